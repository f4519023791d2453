// The norm family, forward and backward: runs the loops of lines.h over the chunks of driver.h.
#include "norm/driver.h"

namespace KERNELS_ISA {
namespace {

struct Forward : Driver {
  using Driver::Driver;

  template <class Apply>  // apply(from, to, residual) computes one unpadded row
  void forward_row(int64_t image, int64_t i, int64_t unit, const char* residual, const Apply& apply) {
    const int64_t bytes = unit * L.size;
    char* out = (char*)A.y + image * ph * pw * bytes;
    char* row = out + (i + A.pad) * pw * bytes;
    apply((const char*)A.x + (image * l + i * A.w) * bytes, row + A.pad * bytes, residual);
    if (!A.pad) return;
    L.mirror(row, A.w, A.pad, unit);
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

  int run_all() {
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
};

struct Backward : Driver {
  using Driver::Driver;

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

  // Calls f(x, gradient, dx, positions) over units [u0, u1). With padding the gradient is folded into `fold` before, many
  // rows at a time: short rows one by one would cost more calls than arithmetic. `first` tells the first sweep, which
  // also writes the residual's gradient, from the second.
  template <class F>
  void each_unit(const Cut& cut, int64_t image, int64_t u0, int64_t u1, int64_t unit, float* fold, bool first, const F& f) {
    const int64_t step = A.pad ? fold_rows(unit) : 1, row = A.w * unit;  // the same for any number of threads
    for (int64_t u = u0; u < u1; u += step) {
      const int64_t last = u + step < u1 ? u + step : u1, l0 = cut.begin(u), count = cut.end(last - 1) - l0;
      const int64_t at = (image * l + l0) * unit * L.size;
      const char* g = (const char*)A.grad + at;
      if (A.pad) {
        float* rows = keep_folded ? fold + u * row : fold;
        if (first || !keep_folded)
          for (int64_t i = u; i < last; ++i)
            fold_row((const char*)A.grad + image * ph * pw * unit * L.size, i, unit, rows + (i - u) * row);
        if (first && A.grad_residual) L.narrow(rows, count * unit, (char*)A.grad_residual + at);
        g = (const char*)rows;
      }
      f((const char*)A.x + at, g, (char*)A.grad_x + at, count);
    }
  }
  // A plane in one task keeps its folded gradient between the sweeps while it fits a second-level cache (256 KB).
  bool keep_folded = false;
  int64_t fold_rows(int64_t unit) const { return 4096 / (A.w * unit) > 1 ? 4096 / (A.w * unit) : 1; }

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

  int run_all() {
    const Cut cut(A, A.pad > 0, chunk());
    keep_folded = A.pad && plane_per_task(cut) && l <= 65536;
    const int64_t pixel = A.channels_last ? A.c : 1, row_bytes = A.pad ? (keep_folded ? A.h : fold_rows(pixel)) * A.w * pixel * 4 : 1;
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
};

struct MomentsBackward : Driver {
  using Driver::Driver;

  // gradient of a plane's own mean and deviation: the style side of AdaIN
  int run_all() {
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

int forward(const NormArgs& A, ParallelFor p) { return Forward(A, loops(A), p).run_all(); }
int backward(const NormArgs& A, ParallelFor p) { return Backward(A, loops(A), p).run_all(); }
int moments(const NormArgs& A, ParallelFor p) {
  Driver d(A, loops(A), p);
  return d.all_stats(Cut(A, false, d.chunk()));
}
int moments_backward(const NormArgs& A, ParallelFor p) { return MomentsBackward(A, loops(A), p).run_all(); }

}  // namespace

NormTable norm_table() { return {forward, backward, moments, moments_backward}; }

}  // namespace KERNELS_ISA
