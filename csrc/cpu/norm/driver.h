// What both directions of the norm family share: how tensors are cut, the statistics, reflection padding.
//
// A plane (or, channels last, a sample) is cut into chunks of fixed size whose partial results are merged in order, in
// float64. How chunks are handed to threads therefore changes no bit of the result.
#pragma once

#include <math.h>

#include "norm/loops.h"
#include "common/tasks.h"

namespace KERNELS_ISA {
namespace {

constexpr int64_t kLineChunk = 16384;  // elements; its x, gradient and result together stay in an L2 of 256 KB
constexpr int64_t kSpanChunk = 65536;  // elements, c channels each
constexpr int64_t kGrain = 32768;      // elements below which a second thread costs more than it brings

// How one plane or sample of `positions` is cut. A unit is what one loop call gets: a row of the image where rows matter
// (padding, strided residual), else a whole chunk.
struct Cut {
  int64_t positions, unit, units, per_chunk, chunks;
  Cut(const NormArgs& args, bool by_rows, int64_t chunk) {
    positions = args.h * args.w;
    if (by_rows) {
      unit = args.w;
      units = args.h;
      per_chunk = chunk / unit > 1 ? chunk / unit : 1;
    } else {
      unit = chunk;
      units = (positions + unit - 1) / unit;
      per_chunk = 1;
    }
    chunks = (units + per_chunk - 1) / per_chunk;
  }
  int64_t first(int64_t chunk) const { return chunk * per_chunk; }
  int64_t last(int64_t chunk) const { return (chunk + 1) * per_chunk < units ? (chunk + 1) * per_chunk : units; }
  int64_t begin(int64_t i) const { return i * unit; }  // of unit i
  int64_t end(int64_t i) const { return (i + 1) * unit < positions ? (i + 1) * unit : positions; }
};

struct Moments {
  double n, mean, m2;
  void merge(double nb, double mean_b, double m2_b) {  // Chan, Golub, LeVeque 1979
    if (n == 0) {  // of short planes divisions are a good part
      *this = {nb, mean_b, m2_b};
      return;
    }
    const double total = n + nb, delta = mean_b - mean;
    m2 += m2_b + delta * delta * n * nb / total;
    mean += delta * nb / total;
    n = total;
  }
};

struct Group {  // what normalisation needs of one statistics group
  float high, low, var, rstd;
};

Group close(const NormArgs& args, const Moments& m) {
  Group g;
  g.high = (float)m.mean;
  g.low = (float)(m.mean - (double)g.high);
  g.var = (float)(m.m2 / m.n);
  double d;
  if (args.kind == kInstance) d = sqrt(m.m2 / m.n + (double)args.eps);
  else if (args.kind == kInstanceUnbiased) d = sqrt(m.m2 / (m.n - 1) + (double)args.eps);
  else d = sqrt(m.m2 / (m.n - 1)) + (double)args.eps;
  // 0 for a constant group without eps, as in torch; a variance beyond float32 must show, as NaN, where 1 / inf would not
  g.rstd = (float)(d == 0 ? 0.0 : __builtin_isinf(d) ? __builtin_nan("") : 1.0 / d);
  return g;
}

// The factor of x_hat * sum(g * x_hat) in dx = rstd * (g - mean g) - factor * x_hat * sum(g * x_hat): it comes from the
// derivative of the deviation, which differs between the kinds.
double deviation_factor(const NormArgs& args, double n, double var, double rstd) {
  if (args.kind == kInstance) return rstd / n;
  if (args.kind == kInstanceUnbiased) return rstd / (n - 1);
  const double s = sqrt(var * n / (n - 1));
  return s > 0 ? 1.0 / (s * (n - 1)) : 0.0;  // at a constant sample the deviation has no derivative: 0 is taken
}

struct Driver {
  const NormArgs& args;
  const Loops& loops;
  ParallelFor parallel;
  const int64_t positions, planes;     // of a plane; of the batch
  const int64_t padded_h, padded_w;
  const int64_t repeats, repeated_c;  // pixels that count as one; their channels, see `repeat`
  int failed = 0;

  Driver(const NormArgs& args, const Loops& loops, ParallelFor p)
      : args(args), loops(loops), parallel(p), positions(args.h * args.w), planes(args.n * args.c),
        padded_h(args.h + 2 * args.pad), padded_w(args.w + 2 * args.pad),
        repeats(args.channels_last ? repeat(args.c) : 1), repeated_c(args.c * repeats) {}

  // Channels that fill no whole vectors: channels last, `repeats` pixels count as one of repeats * c channels, a multiple of
  // 16, for a rest at every pixel costs three times the arithmetic; and at least 64, for short rows cost too.
  // (One thread of AVX2, forward, multiples of 64, as before, and of 16: 2x37x61x47 float32 138 and 74 us, bfloat16 144 and
  // 83; 1x3x256x256 float32 53 with 192 channels, 64 with 48.)
  static int64_t repeat(int64_t c) {
    int64_t a = 16, b = c;
    while (b) {
      int64_t t = a % b;
      a = b;
      b = t;
    }
    int64_t pixels = 16 / a;
    while (pixels > 1 && pixels * c < 64) pixels *= 2;
    return pixels * c <= 4096 ? pixels : 1;  // more would push the coefficients out of the first cache
  }

  float scale(int64_t n, int64_t c) const {
    return args.scale ? quiet(args.offset + args.scale[(args.per_sample ? n * args.c : 0) + c]) : 1.0f;
  }
  float shift(int64_t n, int64_t c) const {
    return args.shift ? quiet(args.shift[(args.per_sample ? n * args.c : 0) + c]) : 0.0f;
  }
  const char* x(int64_t plane, int64_t at) const { return (const char*)args.x + (plane * positions + at) * loops.size; }

  void write_stats(int64_t plane, const Group& g) const {
    args.stats[plane] = g.high;
    args.stats[planes + plane] = g.low;
    args.stats[2 * planes + plane] = g.var;
    args.stats[3 * planes + plane] = g.rstd;
  }
  Group read_stats(int64_t plane) const {
    return {args.stats[plane], args.stats[planes + plane], args.stats[2 * planes + plane], args.stats[3 * planes + plane]};
  }
  void coefficients(int64_t plane, const Group& g, float* a, float* b) const {
    const double s = (double)g.rstd * scale(plane / args.c, plane % args.c);
    *a = (float)s;
    *b = (float)(shift(plane / args.c, plane % args.c) - (double)g.low * s);
  }

  // ---- where partial results of chunk k of plane (n, c) stand ----
  int64_t slot(int64_t n, int64_t c, int64_t k, int64_t chunks) const {
    return args.channels_last ? (n * chunks + k) * args.c + c : (n * args.c + c) * chunks + k;
  }

  // Whether a whole plane is one task, so that its second sweep finds it in cache; otherwise every chunk is one.
  bool plane_per_task(const Cut& cut) const {
    return args.kind != kLayerStd && !args.channels_last && (cut.chunks == 1 || planes >= 4 * args.threads);
  }

  // Whether a plane's result is asked for while the plane is summed: it fits beside what is read in a second-level cache.
  bool ask_ahead(const Cut& cut) const { return cut.chunks == 1 && plane_per_task(cut) && !args.pad; }

  // ---- statistics ----
  void span_chunk_moments(const Cut& cut, int64_t n, int64_t k, double* mean, double* m2) {
    const int64_t l0 = cut.begin(cut.first(k)), l1 = cut.end(cut.last(k) - 1), count = l1 - l0;
    const int64_t rows = count / repeats, tail = (count % repeats) * args.c;
    const char* p = (const char*)args.x + (n * positions + l0) * args.c * loops.size;
    int64_t head = count / 16 > 16 ? count / 16 : 16;  // pixels whose mean is the shift
    if (head > count) head = count;
    Scratch work(repeated_c * 3 * 8);
    if (!work.p) {
      failed = 1;
      return;
    }
    double *s1 = work.doubles(), *s2 = s1 + repeated_c;
    float* shift = (float*)(s2 + repeated_c);
    for (int64_t i = 0; i < repeated_c; ++i) {
      s1[i] = s2[i] = 0;
      shift[i] = 0;
    }
    const int64_t head_rows = rows ? (head > repeats ? head / repeats : 1) : 0;
    if (rows) loops.span_moments(p, head_rows, repeated_c, shift, s1, s2);
    else loops.span_moments(p, 1, tail, shift, s1, s2);  // fewer pixels than one row of repeats: all of them
    const double head_count = rows ? (double)(head_rows * repeats) : (double)count;
    // Divisions cost these loops more than all else: one for all channels, here and where chunks are merged (the moments of
    // 1x256x64x64, one thread of AVX2: 263 us became 218).
    fold_repeats(s1);
    for (int64_t c = 0; c < args.c; ++c) shift[c] = (float)(s1[c] * (1 / head_count));
    for (int64_t r = 1; r < repeats; ++r) memcpy(shift + r * args.c, shift, (size_t)args.c * sizeof *shift);
    for (int64_t i = 0; i < repeated_c; ++i) s1[i] = s2[i] = 0;
    loops.span_moments(p, rows, repeated_c, shift, s1, s2);
    if (tail) loops.span_moments(p + rows * repeated_c * loops.size, 1, tail, shift, s1, s2);
    fold_repeats(s1);
    fold_repeats(s2);
    const double each = 1 / (double)count;
    for (int64_t c = 0; c < args.c; ++c) {
      const double delta = s1[c] * each, v = s2[c] - s1[c] * delta;
      mean[c] = (double)shift[c] + delta;
      m2[c] = v > 0 ? v : (v == v ? 0 : v);
    }
  }
  void fold_repeats(double* sums) const {  // those of the pixels that count as one, into the first
    for (int64_t r = 1; r < repeats; ++r)
      for (int64_t c = 0; c < args.c; ++c) sums[c] += sums[r * args.c + c];
  }

  // Channels last: the chunks of a sample merged into the first, which is Moments::merge of all channels together.
  void merge_chunks(const Cut& cut, double* mean, double* m2) const {
    double n = (double)(cut.end(cut.last(0) - 1) - cut.begin(cut.first(0)));
    for (int64_t k = 1; k < cut.chunks; ++k) {
      const double more = (double)(cut.end(cut.last(k) - 1) - cut.begin(cut.first(k))), share = more / (n + more);
      const double *mean_k = mean + k * args.c, *m2_k = m2 + k * args.c;
      for (int64_t c = 0; c < args.c; ++c) {
        const double delta = mean_k[c] - mean[c];
        m2[c] += m2_k[c] + delta * delta * (n * share);
        mean[c] += delta * share;
      }
      n += more;
    }
  }

  // Of a plane that is swept again at once, to write `result` (see lines.h), which may be null.
  Moments plane_moments(const Cut& cut, int64_t plane, const void* result) {
    Moments m = {0, 0, 0};
    for (int64_t k = 0; k < cut.chunks; ++k) {
      const int64_t l0 = cut.begin(cut.first(k)), l1 = cut.end(cut.last(k) - 1);
      double mean, m2;
      loops.line_moments(x(plane, l0), result, l1 - l0, &mean, &m2);
      m.merge((double)(l1 - l0), mean, m2);
    }
    return m;
  }

  int all_stats(const Cut& cut) {
    const int64_t parts = planes * cut.chunks;
    Scratch work(2 * parts * 8);
    if (!work.p) return 1;
    double *mean = work.doubles(), *m2 = mean + parts;
    if (args.channels_last) {
      run(parallel, args.n * cut.chunks, kGrain / (cut.unit * cut.per_chunk * args.c), [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i)
          span_chunk_moments(cut, i / cut.chunks, i % cut.chunks, mean + i * args.c, m2 + i * args.c);
      });
    } else {
      run(parallel, parts, kGrain / (cut.unit * cut.per_chunk), [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i) {
          const int64_t k = i % cut.chunks, l0 = cut.begin(cut.first(k)), l1 = cut.end(cut.last(k) - 1);
          loops.line_moments(x(i / cut.chunks, l0), nullptr, l1 - l0, mean + i, m2 + i);
        }
      });
    }
    if (failed) return 1;
    if (args.channels_last && args.kind != kLayerStd) {
      run(parallel, args.n, 4096 / (args.c * cut.chunks), [&](int64_t b, int64_t e) {
        for (int64_t n = b; n < e; ++n) {
          double *sample_mean = mean + n * cut.chunks * args.c, *sample_m2 = m2 + n * cut.chunks * args.c;
          merge_chunks(cut, sample_mean, sample_m2);
          for (int64_t c = 0; c < args.c; ++c)
            write_stats(n * args.c + c, close(args, {(double)positions, sample_mean[c], sample_m2[c]}));
        }
      });
      return 0;
    }
    const int64_t group = args.kind == kLayerStd ? args.c : 1;  // planes of one statistics group
    run(parallel, planes / group, 4096 / (group * cut.chunks), [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) {
        Moments m = {0, 0, 0};
        for (int64_t plane = i * group; plane < (i + 1) * group; ++plane)
          for (int64_t k = 0; k < cut.chunks; ++k) {
            const int64_t at = slot(plane / args.c, plane % args.c, k, cut.chunks);
            m.merge((double)(cut.end(cut.last(k) - 1) - cut.begin(cut.first(k))), mean[at], m2[at]);
          }
        const Group g = close(args, m);
        for (int64_t plane = i * group; plane < (i + 1) * group; ++plane) write_stats(plane, g);
      }
    });
    return 0;
  }

  // ---- reflection padding: rows of `pixel` = 1 (planes) or c (channels last) elements a pixel ----
  // Column j outside [0, w) shows column -j or 2 (w - 1) - j; rows likewise.
  // the padded rows that show row i besides its own; returns how many
  int mirrors(int64_t i, int64_t* rows) const {
    int count = 0;
    if (i >= 1 && i <= args.pad) rows[count++] = args.pad - i;
    if (i <= args.h - 2 && i >= args.h - 1 - args.pad) rows[count++] = args.pad + 2 * (args.h - 1) - i;
    return count;
  }
  // gradient of row i: the sum over everything that shows it, in float32
  void fold_row(const char* image, int64_t i, int64_t pixel, float* out) const {
    int64_t rows[3];
    const int extra = mirrors(i, rows + 1);
    rows[0] = i + args.pad;
    for (int r = 0; r <= extra; ++r)
      loops.fold(image + rows[r] * padded_w * pixel * loops.size, args.w, args.pad, pixel, r == 0, out);
  }

  int64_t chunk() const {  // positions of one chunk: whole repeats, so that every chunk starts at channel 0
    if (!args.channels_last) return kLineChunk;
    const int64_t pixels = kSpanChunk / args.c;
    return pixels > repeats ? pixels / repeats * repeats : repeats;
  }

  void spread(float* high, float* a, float* b) {  // per-plane coefficients, repeated for few channels
    for (int64_t plane = 0; plane < planes; ++plane) {
      const Group g = read_stats(plane);
      float pa, pb;
      coefficients(plane, g, &pa, &pb);
      for (int64_t r = 0; r < repeats; ++r) {
        const int64_t at = (plane / args.c) * repeated_c + r * args.c + plane % args.c;
        high[at] = g.high;
        a[at] = pa;
        b[at] = pb;
      }
    }
  }
};

}  // namespace
}  // namespace KERNELS_ISA
