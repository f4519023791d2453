// Drivers of the norm family: cut the tensor into chunks, run the loops of norm_lines.h over them, merge what they sum.
//
// A plane (or, channels last, a sample) is cut into chunks of fixed size whose partial results are merged in order, in
// float64. How chunks are handed to threads therefore changes no bit of the result.
#include <math.h>
#include <stdlib.h>

#include "norm_table.h"

namespace KERNELS_ISA {
namespace {

constexpr int64_t kLineChunk = 16384;  // elements; its x, gradient and result together stay in an L2 of 256 KB
constexpr int64_t kSpanChunk = 65536;  // elements, c channels each
constexpr int64_t kGrain = 32768;      // elements below which a second thread costs more than it brings

template <class F>
void run(ParallelFor parallel, int64_t count, int64_t grain, F f) {
  parallel(count, grain > 1 ? grain : 1, &f, [](void* c, int64_t b, int64_t e) { (*(F*)c)(b, e); });
}

struct Scratch {  // freed on return
  void* p;
  explicit Scratch(int64_t bytes) : p(malloc(bytes > 0 ? (size_t)bytes : 1)) {}
  ~Scratch() { free(p); }
  Scratch(const Scratch&) = delete;
  double* doubles() { return (double*)p; }
  float* floats() { return (float*)p; }
};

// How one plane or sample of l positions is cut. A unit is what one loop call gets: a row of the image where rows matter
// (padding, strided residual), else a whole chunk.
struct Cut {
  int64_t l, unit, units, per_chunk, chunks;
  Cut(const NormArgs& A, bool by_rows, int64_t chunk) {
    l = A.h * A.w;
    if (by_rows) {
      unit = A.w;
      units = A.h;
      per_chunk = chunk / unit > 1 ? chunk / unit : 1;
    } else {
      unit = chunk;
      units = (l + unit - 1) / unit;
      per_chunk = 1;
    }
    chunks = (units + per_chunk - 1) / per_chunk;
  }
  int64_t first(int64_t chunk) const { return chunk * per_chunk; }
  int64_t last(int64_t chunk) const { return (chunk + 1) * per_chunk < units ? (chunk + 1) * per_chunk : units; }
  int64_t begin(int64_t u) const { return u * unit; }
  int64_t end(int64_t u) const { return (u + 1) * unit < l ? (u + 1) * unit : l; }
};

struct Moments {
  double n, mean, m2;
  void merge(double nb, double mean_b, double m2_b) {  // Chan, Golub, LeVeque 1979
    const double total = n + nb, delta = mean_b - mean;
    m2 += m2_b + (n > 0 ? delta * delta * n * nb / total : 0);
    mean += delta * nb / total;
    n = total;
  }
};

struct Group {  // what normalisation needs of one statistics group
  float high, low, var, rstd;
};

Group close(const NormArgs& A, const Moments& m) {
  Group g;
  g.high = (float)m.mean;
  g.low = (float)(m.mean - (double)g.high);
  g.var = (float)(m.m2 / m.n);
  double d;
  if (A.form == kInstance) d = sqrt(m.m2 / m.n + (double)A.eps);
  else if (A.form == kInstanceUnbiased) d = sqrt(m.m2 / (m.n - 1) + (double)A.eps);
  else d = sqrt(m.m2 / (m.n - 1)) + (double)A.eps;
  g.rstd = (float)(1.0 / d);
  return g;
}

// d x_hat / d x pulls the mean of g * x_hat back through the deviation: dx = rstd * (g - mean g) - pull * x_hat * sum(g x_hat)
double pull(const NormArgs& A, double n, double var, double rstd) {
  if (A.form == kInstance) return rstd / n;
  if (A.form == kInstanceUnbiased) return rstd / (n - 1);
  const double s = sqrt(var * n / (n - 1));
  return s > 0 ? 1.0 / (s * (n - 1)) : 0.0;  // a constant sample has no direction to push its deviation in
}

struct Driver {
  const NormArgs& A;
  const Loops& L;
  ParallelFor parallel;
  const int64_t l, planes, ph, pw, reps, cr;
  int failed = 0;

  Driver(const NormArgs& args, const Loops& loops, ParallelFor p)
      : A(args), L(loops), parallel(p), l(A.h * A.w), planes(A.n * A.c), ph(A.h + 2 * A.pad), pw(A.w + 2 * A.pad),
        reps(A.channels_last && A.c < 32 ? repeat(A.c) : 1), cr(A.c * reps) {}

  // Few channels would leave vectors mostly empty: channels last, several pixels count as one with reps * c channels.
  static int64_t repeat(int64_t c) {
    int64_t a = 64, b = c;
    while (b) {
      int64_t t = a % b;
      a = b;
      b = t;
    }
    return 64 / a;
  }

  float scale(int64_t n, int64_t c) const { return A.scale ? A.offset + A.scale[(A.per_sample ? n * A.c : 0) + c] : 1.0f; }
  float shift(int64_t n, int64_t c) const { return A.shift ? A.shift[(A.per_sample ? n * A.c : 0) + c] : 0.0f; }
  const char* x(int64_t plane, int64_t at) const { return (const char*)A.x + (plane * l + at) * L.size; }

  void write_stats(int64_t plane, const Group& g) const {
    A.stats[plane] = g.high;
    A.stats[planes + plane] = g.low;
    A.stats[2 * planes + plane] = g.var;
    A.stats[3 * planes + plane] = g.rstd;
  }
  Group read_stats(int64_t plane) const {
    return {A.stats[plane], A.stats[planes + plane], A.stats[2 * planes + plane], A.stats[3 * planes + plane]};
  }
  void coefficients(int64_t plane, const Group& g, float* a, float* b) const {
    const double s = (double)g.rstd * scale(plane / A.c, plane % A.c);
    *a = (float)s;
    *b = (float)(shift(plane / A.c, plane % A.c) - (double)g.low * s);
  }

  // ---- where partial results of chunk k of plane (n, c) stand ----
  int64_t slot(int64_t n, int64_t c, int64_t k, int64_t chunks) const {
    return A.channels_last ? (n * chunks + k) * A.c + c : (n * A.c + c) * chunks + k;
  }

  // Runs f(plane) over planes when a plane is a task of its own, f(chunk of plane) otherwise.
  bool plane_per_task(const Cut& cut) const {
    return A.form != kLayerStd && !A.channels_last && (cut.chunks == 1 || planes >= 4 * A.threads);
  }

  // ---- statistics ----
  void span_chunk_moments(const Cut& cut, int64_t n, int64_t k, double* mean, double* m2) {
    const int64_t l0 = cut.begin(cut.first(k)), l1 = cut.end(cut.last(k) - 1), count = l1 - l0;
    const int64_t rows = count / reps, tail = (count % reps) * A.c;
    const char* p = (const char*)A.x + (n * l + l0) * A.c * L.size;
    int64_t head = count / 16 > 64 ? count / 16 : 64;  // pixels whose mean is the shift
    if (head > count) head = count;
    Scratch work(cr * 3 * 8);
    if (!work.p) {
      failed = 1;
      return;
    }
    double *s1 = work.doubles(), *s2 = s1 + cr;
    float* shift = (float*)(s2 + cr);
    for (int64_t i = 0; i < cr; ++i) s1[i] = s2[i] = 0;
    const int64_t head_rows = head / reps;
    if (head_rows) L.span_head(p, head_rows, cr, s1);
    else L.span_head(p, 1, tail, s1);  // fewer pixels than one row of repeats
    const double head_count = head_rows ? (double)(head_rows * reps) : (double)count;
    for (int64_t c = 0; c < A.c; ++c) {
      double total = 0;
      for (int64_t r = 0; r < reps; ++r) total += s1[r * A.c + c];
      shift[c] = (float)(total / head_count);
    }
    for (int64_t i = 0; i < cr; ++i) {
      s1[i] = 0;
      shift[i] = shift[i % A.c];
    }
    L.span_moments(p, rows, cr, shift, s1, s2);
    if (tail) L.span_moments(p + rows * cr * L.size, 1, tail, shift, s1, s2);
    for (int64_t c = 0; c < A.c; ++c) {
      double t1 = 0, t2 = 0;
      for (int64_t r = 0; r < reps; ++r) {
        t1 += s1[r * A.c + c];
        t2 += s2[r * A.c + c];
      }
      const double delta = t1 / (double)count, v = t2 - t1 * delta;
      mean[c] = (double)shift[c] + delta;
      m2[c] = v > 0 ? v : (v == v ? 0 : v);
    }
  }

  Moments plane_moments(const Cut& cut, int64_t plane) {
    Moments m = {0, 0, 0};
    for (int64_t k = 0; k < cut.chunks; ++k) {
      const int64_t l0 = cut.begin(cut.first(k)), l1 = cut.end(cut.last(k) - 1);
      double mean, m2;
      L.line_moments(x(plane, l0), l1 - l0, &mean, &m2);
      m.merge((double)(l1 - l0), mean, m2);
    }
    return m;
  }

  int all_stats(const Cut& cut) {
    const int64_t parts = planes * cut.chunks;
    Scratch work(2 * parts * 8);
    if (!work.p) return 1;
    double *mean = work.doubles(), *m2 = mean + parts;
    if (A.channels_last) {
      run(parallel, A.n * cut.chunks, kGrain / (cut.unit * cut.per_chunk * A.c), [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i)
          span_chunk_moments(cut, i / cut.chunks, i % cut.chunks, mean + i * A.c, m2 + i * A.c);
      });
    } else {
      run(parallel, parts, kGrain / (cut.unit * cut.per_chunk), [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i) {
          const int64_t k = i % cut.chunks, l0 = cut.begin(cut.first(k)), l1 = cut.end(cut.last(k) - 1);
          L.line_moments(x(i / cut.chunks, l0), l1 - l0, mean + i, m2 + i);
        }
      });
    }
    if (failed) return 1;
    const int64_t group = A.form == kLayerStd ? A.c : 1;  // planes of one statistics group
    run(parallel, planes / group, 4096 / (group * cut.chunks), [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) {
        Moments m = {0, 0, 0};
        for (int64_t plane = i * group; plane < (i + 1) * group; ++plane)
          for (int64_t k = 0; k < cut.chunks; ++k) {
            const int64_t at = slot(plane / A.c, plane % A.c, k, cut.chunks);
            m.merge((double)(cut.end(cut.last(k) - 1) - cut.begin(cut.first(k))), mean[at], m2[at]);
          }
        const Group g = close(A, m);
        for (int64_t plane = i * group; plane < (i + 1) * group; ++plane) write_stats(plane, g);
      }
    });
    return 0;
  }

  // ---- reflection padding: rows of `unit` = 1 (planes) or c (channels last) elements a pixel ----
  // Column j outside [0, w) shows column -j or 2 (w - 1) - j; rows likewise.
  void mirror_columns(char* row, int64_t unit) const {  // row: padded row whose middle is written
    const int64_t bytes = unit * L.size;
    for (int64_t j = 1; j <= A.pad; ++j) {
      memcpy(row + (A.pad - j) * bytes, row + (A.pad + j) * bytes, (size_t)bytes);
      memcpy(row + (A.pad + A.w - 1 + j) * bytes, row + (A.pad + A.w - 1 - j) * bytes, (size_t)bytes);
    }
  }
  // the padded rows that show row i besides its own; returns how many
  int mirrors(int64_t i, int64_t* rows) const {
    int count = 0;
    if (i >= 1 && i <= A.pad) rows[count++] = A.pad - i;
    if (i <= A.h - 2 && i >= A.h - 1 - A.pad) rows[count++] = A.pad + 2 * (A.h - 1) - i;
    return count;
  }
  // gradient of row i: the sum over everything that shows it, in float32
  void fold_row(const char* image, int64_t i, int64_t unit, float* out) const {
    int64_t rows[3];
    const int extra = mirrors(i, rows + 1);
    rows[0] = i + A.pad;
    const int64_t bytes = unit * L.size;
    for (int r = 0; r <= extra; ++r) {
      const char* row = image + rows[r] * pw * bytes;
      (r ? L.accumulate : L.widen)(row + A.pad * bytes, A.w * unit, out);
      for (int64_t j = 1; j <= A.pad; ++j) {
        L.accumulate(row + (A.pad - j) * bytes, unit, out + j * unit);
        L.accumulate(row + (A.pad + A.w - 1 + j) * bytes, unit, out + (A.w - 1 - j) * unit);
      }
    }
  }

  // ---- forward ----
  template <class Apply>  // apply(from, to, residual) computes one unpadded row
  void forward_row(int64_t image, int64_t i, int64_t unit, const char* residual, const Apply& apply) {
    const int64_t bytes = unit * L.size;
    char* out = (char*)A.y + image * ph * pw * bytes;
    char* row = out + (i + A.pad) * pw * bytes;
    apply((const char*)A.x + (image * l + i * A.w) * bytes, row + A.pad * bytes, residual);
    if (!A.pad) return;
    mirror_columns(row, unit);
    int64_t rows[2];
    const int extra = mirrors(i, rows);
    for (int r = 0; r < extra; ++r) memcpy(out + rows[r] * pw * bytes, row, (size_t)(pw * bytes));
  }
  const char* residual_row(int64_t n, int64_t c, int64_t i) const {
    if (!A.residual) return nullptr;
    return (const char*)A.residual + (n * A.residual_n + c * A.residual_c + i * A.residual_h) * L.size;
  }

  void forward_lines(const Cut& cut, bool by_rows, int64_t plane, int64_t u0, int64_t u1, const Group& g) {
    float a, b;
    coefficients(plane, g, &a, &b);
    const auto loop = L.line_forward[A.activation][A.residual != nullptr];
    for (int64_t u = u0; u < u1; ++u) {
      if (by_rows) {
        forward_row(plane, u, 1, residual_row(plane / A.c, plane % A.c, u), [&](const char* from, char* to, const char* res) {
          loop(from, res, to, A.w, g.high, a, b, A.slope);
        });
      } else {
        const int64_t l0 = cut.begin(u), at = (plane * l + l0) * L.size;
        loop(x(plane, l0), A.residual ? (const char*)A.residual + at : nullptr, (char*)A.y + at, cut.end(u) - l0, g.high, a,
             b, A.slope);
      }
    }
  }

  int forward() {
    const bool dense = !A.residual || (A.channels_last ? A.residual_h == A.w * A.c && A.residual_n == l * A.c
                                                       : A.residual_h == A.w && A.residual_c == l && A.residual_n == l * A.c);
    const bool by_rows = A.pad > 0 || !dense;
    const Cut cut(A, by_rows, chunk());
    if (plane_per_task(cut)) {
      run(parallel, planes, kGrain / l, [&](int64_t b, int64_t e) {
        for (int64_t plane = b; plane < e; ++plane) {
          const Group g = close(A, plane_moments(cut, plane));
          write_stats(plane, g);
          forward_lines(cut, by_rows, plane, 0, cut.units, g);
        }
      });
      return 0;
    }
    if (all_stats(cut)) return 1;
    if (!A.channels_last) {
      run(parallel, planes * cut.chunks, kGrain / (cut.unit * cut.per_chunk), [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i) {
          const int64_t plane = i / cut.chunks, k = i % cut.chunks;
          forward_lines(cut, by_rows, plane, cut.first(k), cut.last(k), read_stats(plane));
        }
      });
      return 0;
    }
    Scratch work(3 * A.n * cr * 4);
    if (!work.p) return 1;
    float *high = work.floats(), *a = high + A.n * cr, *b = a + A.n * cr;
    spread(high, a, b);
    const auto loop = L.span_forward[A.activation][A.residual != nullptr];
    run(parallel, A.n * cut.chunks, kGrain / (cut.unit * cut.per_chunk * A.c), [&](int64_t from_i, int64_t to_i) {
      for (int64_t i = from_i; i < to_i; ++i) {
        const int64_t n = i / cut.chunks, k = i % cut.chunks, at = n * cr;
        auto span = [&](const char* from, const char* res, char* to, int64_t pixels) {
          const int64_t rows = pixels / reps, tail = (pixels % reps) * A.c, skip = rows * cr * L.size;
          loop(from, res, to, rows, cr, high + at, a + at, b + at, A.slope);
          if (tail) loop(from + skip, res ? res + skip : nullptr, to + skip, 1, tail, high + at, a + at, b + at, A.slope);
        };
        for (int64_t u = cut.first(k); u < cut.last(k); ++u) {
          if (by_rows) {
            forward_row(n, u, A.c, residual_row(n, 0, u),
                        [&](const char* from, char* to, const char* res) { span(from, res, to, A.w); });
          } else {
            const int64_t l0 = cut.begin(u), byte = (n * l + l0) * A.c * L.size;
            span((const char*)A.x + byte, A.residual ? (const char*)A.residual + byte : nullptr, (char*)A.y + byte,
                 cut.end(u) - l0);
          }
        }
      }
    });
    return 0;
  }

  int64_t chunk() const {  // positions of one chunk: whole repeats, so that every chunk starts at channel 0
    if (!A.channels_last) return kLineChunk;
    const int64_t pixels = kSpanChunk / A.c;
    return pixels > reps ? pixels / reps * reps : reps;
  }

  void spread(float* high, float* a, float* b) {  // per-plane coefficients, repeated for few channels
    for (int64_t plane = 0; plane < planes; ++plane) {
      const Group g = read_stats(plane);
      float pa, pb;
      coefficients(plane, g, &pa, &pb);
      for (int64_t r = 0; r < reps; ++r) {
        const int64_t at = (plane / A.c) * cr + r * A.c + plane % A.c;
        high[at] = g.high;
        a[at] = pa;
        b[at] = pb;
      }
    }
  }

  // ---- backward ----
  // sums[0] = sum g', sums[1] = sum g' x_hat of every plane -> parameter gradients and p, q, r of dx = g' p + d q + r
  struct Pull {
    float p, q, r;
  };
  Pull coefficients_back(int64_t plane, const Group& g, double g_sum, double gx_sum, double n) const {
    const double k = pull(A, n, g.var, g.rstd) * gx_sum, rstd = g.rstd;
    return {(float)(rstd * scale(plane / A.c, plane % A.c)), (float)(-k * rstd), (float)(-rstd * g_sum / n + k * rstd * g.low)};
  }
  void parameter_gradients(const double* s0, const double* s1) const {
    if (!A.grad_scale && !A.grad_shift) return;
    const int64_t rows = A.per_sample ? A.n : 1, inner = A.per_sample ? 1 : A.n;
    for (int64_t i = 0; i < rows * A.c; ++i) {
      double g = 0, gx = 0;
      for (int64_t j = 0; j < inner; ++j) {
        g += s0[i + j * A.c];
        gx += s1[i + j * A.c];
      }
      if (A.grad_scale) A.grad_scale[i] = (float)gx;
      if (A.grad_shift) A.grad_shift[i] = (float)g;
    }
  }
  void group_sums(int64_t plane, const double* s0, const double* s1, double* g_sum, double* gx_sum) const {
    const int64_t first = A.form == kLayerStd ? plane / A.c * A.c : plane, count = A.form == kLayerStd ? A.c : 1;
    *g_sum = *gx_sum = 0;
    for (int64_t i = first; i < first + count; ++i) {
      *g_sum += scale(i / A.c, i % A.c) * s0[i];
      *gx_sum += scale(i / A.c, i % A.c) * s1[i];
    }
  }

  // Calls f(x, gradient, dx, residual gradient row or null) for every unit; the gradient is a folded row with padding.
  template <class F>
  void each_unit(const Cut& cut, int64_t image, int64_t u0, int64_t u1, int64_t unit, float* row, bool residual, const F& f) {
    for (int64_t u = u0; u < u1; ++u) {
      const int64_t l0 = cut.begin(u), at = (image * l + l0) * unit * L.size, count = cut.end(u) - l0;
      const char* g = (const char*)A.grad + at;
      if (A.pad) {
        fold_row((const char*)A.grad + image * ph * pw * unit * L.size, u, unit, row);
        if (residual && A.grad_residual) L.narrow(row, count * unit, (char*)A.grad_residual + at);
        g = (const char*)row;
      }
      f((const char*)A.x + at, g, (char*)A.grad_x + at, count);
    }
  }

  void sum_lines(const Cut& cut, int64_t plane, int64_t u0, int64_t u1, const Group& g, float* row, double* sums) {
    float a, b;
    coefficients(plane, g, &a, &b);
    const auto loop = L.line_sums[A.activation][A.pad > 0];
    double s[2] = {0, 0};
    each_unit(cut, plane, u0, u1, 1, row, true, [&](const char* x_, const char* g_, char*, int64_t n) {
      loop(x_, g_, n, g.high, a, b, A.slope, s);
    });
    sums[0] = s[0];
    sums[1] = (s[1] - (double)g.low * s[0]) * g.rstd;
  }
  void backward_lines(const Cut& cut, int64_t plane, int64_t u0, int64_t u1, const Group& g, float* row, const Pull& k) {
    float a, b;
    coefficients(plane, g, &a, &b);
    const auto loop = L.line_backward[A.activation][A.pad > 0];
    each_unit(cut, plane, u0, u1, 1, row, false, [&](const char* x_, const char* g_, char* dx, int64_t n) {
      loop(x_, g_, dx, n, g.high, a, b, A.slope, k.p, k.q, k.r);
    });
  }

  int backward() {
    const Cut cut(A, A.pad > 0, chunk());
    const int64_t row_bytes = A.pad ? A.w * (A.channels_last ? A.c : 1) * 4 : 1;
    const double n_group = (double)l * (A.form == kLayerStd ? A.c : 1);
    Scratch work(2 * planes * 8);
    if (!work.p) return 1;
    double *s0 = work.doubles(), *s1 = s0 + planes;
    if (plane_per_task(cut)) {
      run(parallel, planes, kGrain / l, [&](int64_t b, int64_t e) {
        Scratch row(row_bytes);
        if (!row.p) {
          failed = 1;
          return;
        }
        for (int64_t plane = b; plane < e; ++plane) {
          const Group g = read_stats(plane);
          double total[2] = {0, 0};
          for (int64_t k = 0; k < cut.chunks; ++k) {
            double part[2];
            sum_lines(cut, plane, cut.first(k), cut.last(k), g, row.floats(), part);
            total[0] += part[0];
            total[1] += part[1];
          }
          s0[plane] = total[0];
          s1[plane] = total[1];
          double g_sum, gx_sum;
          group_sums(plane, s0, s1, &g_sum, &gx_sum);
          backward_lines(cut, plane, 0, cut.units, g, row.floats(), coefficients_back(plane, g, g_sum, gx_sum, n_group));
        }
      });
      if (failed) return 1;
      parameter_gradients(s0, s1);
      return 0;
    }
    const int64_t parts = planes * cut.chunks;
    Scratch partial(2 * parts * 8);
    if (!partial.p) return 1;
    double *p0 = partial.doubles(), *p1 = p0 + parts;
    return A.channels_last ? backward_spans(cut, row_bytes, n_group, s0, s1, p0, p1)
                           : backward_chunks(cut, row_bytes, n_group, s0, s1, p0, p1);
  }

  void merge_sums(const Cut& cut, const double* p0, const double* p1, double* s0, double* s1) const {
    for (int64_t plane = 0; plane < planes; ++plane) {
      s0[plane] = s1[plane] = 0;
      for (int64_t k = 0; k < cut.chunks; ++k) {
        const int64_t at = slot(plane / A.c, plane % A.c, k, cut.chunks);
        s0[plane] += p0[at];
        s1[plane] += p1[at];
      }
    }
  }

  int backward_chunks(const Cut& cut, int64_t row_bytes, double n_group, double* s0, double* s1, double* p0, double* p1) {
    const int64_t grain = kGrain / (cut.unit * cut.per_chunk), parts = planes * cut.chunks;
    run(parallel, parts, grain, [&](int64_t b, int64_t e) {
      Scratch row(row_bytes);
      if (!row.p) {
        failed = 1;
        return;
      }
      for (int64_t i = b; i < e; ++i) {
        const int64_t plane = i / cut.chunks, k = i % cut.chunks;
        double part[2];
        sum_lines(cut, plane, cut.first(k), cut.last(k), read_stats(plane), row.floats(), part);
        p0[i] = part[0];
        p1[i] = part[1];
      }
    });
    if (failed) return 1;
    merge_sums(cut, p0, p1, s0, s1);
    parameter_gradients(s0, s1);
    run(parallel, parts, grain, [&](int64_t b, int64_t e) {
      Scratch row(row_bytes);
      if (!row.p) {
        failed = 1;
        return;
      }
      for (int64_t i = b; i < e; ++i) {
        const int64_t plane = i / cut.chunks, k = i % cut.chunks;
        const Group g = read_stats(plane);
        double g_sum, gx_sum;
        group_sums(plane, s0, s1, &g_sum, &gx_sum);
        backward_lines(cut, plane, cut.first(k), cut.last(k), g, row.floats(),
                       coefficients_back(plane, g, g_sum, gx_sum, n_group));
      }
    });
    return failed;
  }

  int backward_spans(const Cut& cut, int64_t row_bytes, double n_group, double* s0, double* s1, double* p0, double* p1) {
    const int64_t each = A.n * cr, grain = kGrain / (cut.unit * cut.per_chunk * A.c);
    Scratch work(6 * each * 4);
    if (!work.p) return 1;
    float *high = work.floats(), *a = high + each, *b = a + each, *p = b + each, *q = p + each, *r = q + each;
    spread(high, a, b);
    const auto sums = L.span_sums[A.activation][A.pad > 0];
    const auto loop = L.span_backward[A.activation][A.pad > 0];
    const int64_t g_size = A.pad ? 4 : L.size;
    run(parallel, A.n * cut.chunks, grain, [&](int64_t from, int64_t to) {
      Scratch row(row_bytes), total(2 * cr * 8);
      if (!row.p || !total.p) {
        failed = 1;
        return;
      }
      double *t0 = total.doubles(), *t1 = t0 + cr;
      for (int64_t i = from; i < to; ++i) {
        const int64_t n = i / cut.chunks, k = i % cut.chunks, at = n * cr;
        for (int64_t j = 0; j < 2 * cr; ++j) t0[j] = 0;
        each_unit(cut, n, cut.first(k), cut.last(k), A.c, row.floats(), true,
                  [&](const char* x_, const char* g_, char*, int64_t pixels) {
                    const int64_t rows = pixels / reps, tail = (pixels % reps) * A.c, skip = rows * cr;
                    sums(x_, g_, rows, cr, high + at, a + at, b + at, A.slope, t0, t1);
                    if (tail)
                      sums(x_ + skip * L.size, g_ + skip * g_size, 1, tail, high + at, a + at, b + at, A.slope, t0, t1);
                  });
        for (int64_t c = 0; c < A.c; ++c) {
          double g_sum = 0, gd_sum = 0;
          for (int64_t j = 0; j < reps; ++j) {
            g_sum += t0[j * A.c + c];
            gd_sum += t1[j * A.c + c];
          }
          const Group s = read_stats(n * A.c + c);
          p0[i * A.c + c] = g_sum;
          p1[i * A.c + c] = (gd_sum - (double)s.low * g_sum) * s.rstd;
        }
      }
    });
    if (failed) return 1;
    merge_sums(cut, p0, p1, s0, s1);
    parameter_gradients(s0, s1);
    double g_sum = 0, gx_sum = 0;
    for (int64_t plane = 0; plane < planes; ++plane) {
      if (A.form != kLayerStd || plane % A.c == 0) group_sums(plane, s0, s1, &g_sum, &gx_sum);
      const Pull k = coefficients_back(plane, read_stats(plane), g_sum, gx_sum, n_group);
      for (int64_t j = 0; j < reps; ++j) {
        const int64_t at = (plane / A.c) * cr + j * A.c + plane % A.c;
        p[at] = k.p;
        q[at] = k.q;
        r[at] = k.r;
      }
    }
    run(parallel, A.n * cut.chunks, grain, [&](int64_t from, int64_t to) {
      Scratch row(row_bytes);
      if (!row.p) {
        failed = 1;
        return;
      }
      for (int64_t i = from; i < to; ++i) {
        const int64_t n = i / cut.chunks, k = i % cut.chunks, at = n * cr;
        each_unit(cut, n, cut.first(k), cut.last(k), A.c, row.floats(), false,
                  [&](const char* x_, const char* g_, char* dx, int64_t pixels) {
                    const int64_t rows = pixels / reps, tail = (pixels % reps) * A.c, skip = rows * cr;
                    loop(x_, g_, dx, rows, cr, high + at, a + at, b + at, p + at, q + at, r + at, A.slope);
                    if (tail)
                      loop(x_ + skip * L.size, g_ + skip * g_size, dx + skip * L.size, 1, tail, high + at, a + at, b + at,
                           p + at, q + at, r + at, A.slope);
                  });
      }
    });
    return failed;
  }

  // ---- a plane's own mean and deviation (the style side of AdaIN) ----
  int moments_backward() {
    const Cut cut(A, false, chunk());
    const double n = (double)l;
    Scratch work(3 * A.n * cr * 4);
    if (!work.p) return 1;
    float *high = work.floats(), *q = high + A.n * cr, *r = q + A.n * cr;
    for (int64_t plane = 0; plane < planes; ++plane) {
      const Group g = read_stats(plane);
      const double slope = (double)A.grad_std[plane] * g.rstd / (n - 1);
      for (int64_t j = 0; j < reps; ++j) {
        const int64_t at = (plane / A.c) * cr + j * A.c + plane % A.c;
        high[at] = g.high;
        q[at] = (float)slope;
        r[at] = (float)((double)A.grad_mean[plane] / n - slope * g.low);
      }
    }
    const int64_t tasks = A.channels_last ? A.n * cut.chunks : planes * cut.chunks;
    run(parallel, tasks, kGrain / (cut.unit * (A.channels_last ? A.c : 1)), [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) {
        const int64_t image = i / cut.chunks, l0 = cut.begin(i % cut.chunks), l1 = cut.end(i % cut.chunks);
        if (!A.channels_last) {
          L.line_affine(x(image, l0), (char*)A.grad_x + (image * l + l0) * L.size, l1 - l0, high[image], q[image], r[image]);
          continue;
        }
        const int64_t byte = (image * l + l0) * A.c * L.size, rows = (l1 - l0) / reps, at = image * cr;
        const int64_t tail = ((l1 - l0) % reps) * A.c, skip = rows * cr * L.size;
        const char* from = (const char*)A.x + byte;
        char* to = (char*)A.grad_x + byte;
        L.span_affine(from, to, rows, cr, high + at, q + at, r + at);
        if (tail) L.span_affine(from + skip, to + skip, 1, tail, high + at, q + at, r + at);
      }
    });
    return 0;
  }
};

const Loops& loops(const NormArgs& A) {
  static const Loops records[3] = {Untyped<float>::record(), Untyped<bf16>::record(), Untyped<f16>::record()};
  return records[A.dtype];
}

int forward(const NormArgs& A, ParallelFor p) { return Driver(A, loops(A), p).forward(); }
int backward(const NormArgs& A, ParallelFor p) { return Driver(A, loops(A), p).backward(); }
int moments(const NormArgs& A, ParallelFor p) {
  Driver d(A, loops(A), p);
  return d.all_stats(Cut(A, false, d.chunk()));
}
int moments_backward(const NormArgs& A, ParallelFor p) { return Driver(A, loops(A), p).moments_backward(); }

}  // namespace

NormTable norm_table() { return {forward, backward, moments, moments_backward}; }

}  // namespace KERNELS_ISA
