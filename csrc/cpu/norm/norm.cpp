// The norm family, forward and backward: runs the loops of lines.h over the chunks of driver.h.
#include "norm/driver.h"
#include "norm/moments_backward.h"

namespace KERNELS_ISA {
namespace {

// Both directions sweep twice, the second time backwards: what the first read last is still in cache.
struct Forward : Driver {
  using Driver::Driver;

  template <class Apply>  // apply(from, to, residual) computes one unpadded row
  void forward_row(int64_t image, int64_t i, int64_t pixel, const char* residual, const Apply& apply) {
    const int64_t bytes = pixel * loops.size;
    char* out = (char*)args.y + image * padded_h * padded_w * bytes;
    char* row = out + (i + args.pad) * padded_w * bytes;
    apply((const char*)args.x + (image * positions + i * args.w) * bytes, row + args.pad * bytes, residual);
    if (!args.pad) return;
    loops.mirror(row, args.w, args.pad, pixel);
    int64_t rows[2];
    const int extra = mirrors(i, rows);
    for (int r = 0; r < extra; ++r) memcpy(out + rows[r] * padded_w * bytes, row, (size_t)(padded_w * bytes));
  }
  const char* residual_row(int64_t n, int64_t c, int64_t i) const {
    if (!args.residual) return nullptr;
    return (const char*)args.residual + (n * args.residual_n + c * args.residual_c + i * args.residual_h) * loops.size;
  }

  void forward_lines(const Cut& cut, bool by_rows, int64_t plane, int64_t begin_unit, int64_t end_unit, const Group& g) {
    float a, b;
    coefficients(plane, g, &a, &b);
    const auto loop = loops.line_forward[args.activation][args.residual != nullptr];
    for (int64_t unit = begin_unit; unit < end_unit; ++unit) {
      if (by_rows) {
        const char* residual = residual_row(plane / args.c, plane % args.c, unit);
        forward_row(plane, unit, 1, residual, [&](const char* from, char* to, const char* res) {
          loop(from, res, to, args.w, g.high, a, b, args.slope);
        });
      } else {
        const int64_t l0 = cut.begin(unit), at = (plane * positions + l0) * loops.size;
        loop(x(plane, l0), args.residual ? (const char*)args.residual + at : nullptr, (char*)args.y + at,
             cut.end(unit) - l0, g.high, a, b, args.slope);
      }
    }
  }

  int run_all() {
    const bool dense_rows = args.residual_n == positions * args.c &&
                            (args.channels_last ? args.residual_h == args.w * args.c
                                                : args.residual_h == args.w && args.residual_c == positions);
    const bool dense = !args.residual || dense_rows;
    const bool by_rows = args.pad > 0 || !dense;
    const Cut cut(args, by_rows, chunk());
    if (plane_per_task(cut)) {
      run(parallel, planes, kGrain / positions, [&](int64_t b, int64_t e) {
        for (int64_t plane = b; plane < e; ++plane) {
          const void* y = ask_ahead(cut) ? (const char*)args.y + plane * positions * loops.size : nullptr;
          const Group g = close(args, plane_moments(cut, plane, y));
          write_stats(plane, g);
          for (int64_t k = cut.chunks - 1; k >= 0; --k) forward_lines(cut, by_rows, plane, cut.first(k), cut.last(k), g);
        }
      });
      return 0;
    }
    if (all_stats(cut)) return 1;
    if (!args.channels_last) {
      run(parallel, planes * cut.chunks, kGrain / (cut.unit * cut.per_chunk), [&](int64_t b, int64_t e) {
        for (int64_t i = e - 1; i >= b; --i) {
          const int64_t plane = i / cut.chunks, k = i % cut.chunks;
          forward_lines(cut, by_rows, plane, cut.first(k), cut.last(k), read_stats(plane));
        }
      });
      return 0;
    }
    Scratch work(3 * args.n * repeated_c * 4);
    if (!work.p) return 1;
    float *high = work.floats(), *a = high + args.n * repeated_c, *b = a + args.n * repeated_c;
    spread(high, a, b);
    const auto loop = loops.span_forward[args.activation][args.residual != nullptr];
    run(parallel, args.n * cut.chunks, kGrain / (cut.unit * cut.per_chunk * args.c), [&](int64_t from_i, int64_t to_i) {
      for (int64_t i = to_i - 1; i >= from_i; --i) {
        const int64_t n = i / cut.chunks, k = i % cut.chunks, at = n * repeated_c;
        auto span = [&](const char* from, const char* res, char* to, int64_t pixels) {
          const int64_t rows = pixels / repeats, tail = (pixels % repeats) * args.c, skip = rows * repeated_c * loops.size;
          loop(from, res, to, rows, repeated_c, high + at, a + at, b + at, args.slope);
          if (tail)
            loop(from + skip, res ? res + skip : nullptr, to + skip, 1, tail, high + at, a + at, b + at, args.slope);
        };
        for (int64_t unit = cut.first(k); unit < cut.last(k); ++unit) {
          if (by_rows) {
            forward_row(n, unit, args.c, residual_row(n, 0, unit),
                        [&](const char* from, char* to, const char* res) { span(from, res, to, args.w); });
          } else {
            const int64_t l0 = cut.begin(unit), byte = (n * positions + l0) * args.c * loops.size;
            span((const char*)args.x + byte, args.residual ? (const char*)args.residual + byte : nullptr,
                 (char*)args.y + byte, cut.end(unit) - l0);
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
  struct DxCoefficients {
    float p, q, r;
  };
  DxCoefficients dx_coefficients(int64_t plane, const Group& g, double g_sum, double gx_sum, double n) const {
    const double k = deviation_factor(args, n, g.var, g.rstd) * gx_sum, rstd = g.rstd;
    return {(float)(rstd * scale(plane / args.c, plane % args.c)), (float)(-k * rstd),
            (float)(-rstd * g_sum / n + k * rstd * g.low)};
  }
  void parameter_gradients(const double* s0, const double* s1) const {
    if (!args.grad_scale && !args.grad_shift) return;
    const int64_t rows = args.per_sample ? args.n : 1, inner = args.per_sample ? 1 : args.n;
    for (int64_t i = 0; i < rows * args.c; ++i) {
      double g = 0, gx = 0;
      for (int64_t j = 0; j < inner; ++j) {
        g += s0[i + j * args.c];
        gx += s1[i + j * args.c];
      }
      if (args.grad_scale) args.grad_scale[i] = (float)gx;
      if (args.grad_shift) args.grad_shift[i] = (float)g;
    }
  }
  void group_sums(int64_t plane, const double* s0, const double* s1, double* g_sum, double* gx_sum) const {
    const bool whole_sample = args.kind == kLayerStd;
    const int64_t first = whole_sample ? plane / args.c * args.c : plane, count = whole_sample ? args.c : 1;
    *g_sum = *gx_sum = 0;
    for (int64_t i = first; i < first + count; ++i) {
      *g_sum += scale(i / args.c, i % args.c) * s0[i];
      *gx_sum += scale(i / args.c, i % args.c) * s1[i];
    }
  }

  // Calls f(x, gradient, dx, positions) over units [begin_unit, end_unit). With padding the gradient is folded into `fold`
  // before, many rows at a time: short rows one by one would cost more calls than arithmetic. `first` tells the first
  // sweep, which also writes the residual's gradient, from the second.
  template <class F>
  void each_unit(const Cut& cut, int64_t image, int64_t begin_unit, int64_t end_unit, int64_t pixel, float* fold, bool first,
                 const F& f) {
    const int64_t step = args.pad ? fold_rows(pixel) : 1, row = args.w * pixel;  // the same for any number of threads
    for (int64_t unit = begin_unit; unit < end_unit; unit += step) {
      const int64_t last = unit + step < end_unit ? unit + step : end_unit;
      const int64_t l0 = cut.begin(unit), count = cut.end(last - 1) - l0;
      const int64_t at = (image * positions + l0) * pixel * loops.size;
      const char* g = (const char*)args.grad + at;
      if (args.pad) {
        const char* padded = (const char*)args.grad + image * padded_h * padded_w * pixel * loops.size;
        float* rows = keep_folded ? fold + unit * row : fold;
        if (first || !keep_folded)
          for (int64_t i = unit; i < last; ++i) fold_row(padded, i, pixel, rows + (i - unit) * row);
        if (first && args.grad_residual) loops.narrow(rows, count * pixel, (char*)args.grad_residual + at);
        g = (const char*)rows;
      }
      f((const char*)args.x + at, g, (char*)args.grad_x + at, count);
    }
  }
  // A plane in one task keeps its folded gradient between the sweeps while it fits a second-level cache (256 KB).
  bool keep_folded = false;
  int64_t fold_rows(int64_t pixel) const { return 4096 / (args.w * pixel) > 1 ? 4096 / (args.w * pixel) : 1; }

  void sum_lines(const Cut& cut, int64_t plane, int64_t begin_unit, int64_t end_unit, const Group& g, float* row,
                 double* sums) {
    float a, b;
    coefficients(plane, g, &a, &b);
    const auto loop = loops.line_sums[args.activation][args.pad > 0];
    double s[2] = {0, 0};
    each_unit(cut, plane, begin_unit, end_unit, 1, row, true, [&](const char* x_, const char* g_, char* dx, int64_t n) {
      loop(x_, g_, ask_ahead(cut) ? dx : nullptr, n, g.high, a, b, args.slope, s);
    });
    sums[0] = s[0];
    sums[1] = (s[1] - (double)g.low * s[0]) * g.rstd;
  }
  void backward_lines(const Cut& cut, int64_t plane, int64_t begin_unit, int64_t end_unit, const Group& g, float* row,
                      const DxCoefficients& k) {
    float a, b;
    coefficients(plane, g, &a, &b);
    const auto loop = loops.line_backward[args.activation][args.pad > 0];
    each_unit(cut, plane, begin_unit, end_unit, 1, row, false, [&](const char* x_, const char* g_, char* dx, int64_t n) {
      loop(x_, g_, dx, n, g.high, a, b, args.slope, k.p, k.q, k.r);
    });
  }

  int run_all() {
    const Cut cut(args, args.pad > 0, chunk());
    keep_folded = args.pad && plane_per_task(cut) && positions <= 65536;
    const int64_t pixel = args.channels_last ? args.c : 1;
    const int64_t row_bytes = args.pad ? (keep_folded ? args.h : fold_rows(pixel)) * args.w * pixel * 4 : 1;
    const double n_group = (double)positions * (args.kind == kLayerStd ? args.c : 1);
    Scratch work(2 * planes * 8);
    if (!work.p) return 1;
    double *s0 = work.doubles(), *s1 = s0 + planes;
    if (plane_per_task(cut)) {
      run(parallel, planes, kGrain / positions, [&](int64_t b, int64_t e) {
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
          const DxCoefficients dx = dx_coefficients(plane, g, g_sum, gx_sum, n_group);
          for (int64_t k = cut.chunks - 1; k >= 0; --k)
            backward_lines(cut, plane, cut.first(k), cut.last(k), g, row.floats(), dx);
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
    return args.channels_last ? backward_spans(cut, row_bytes, n_group, s0, s1, p0, p1)
                           : backward_chunks(cut, row_bytes, n_group, s0, s1, p0, p1);
  }

  void merge_sums(const Cut& cut, const double* p0, const double* p1, double* s0, double* s1) const {
    for (int64_t plane = 0; plane < planes; ++plane) {
      s0[plane] = s1[plane] = 0;
      for (int64_t k = 0; k < cut.chunks; ++k) {
        const int64_t at = slot(plane / args.c, plane % args.c, k, cut.chunks);
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
      for (int64_t i = e - 1; i >= b; --i) {
        const int64_t plane = i / cut.chunks, k = i % cut.chunks;
        const Group g = read_stats(plane);
        double g_sum, gx_sum;
        group_sums(plane, s0, s1, &g_sum, &gx_sum);
        backward_lines(cut, plane, cut.first(k), cut.last(k), g, row.floats(),
                       dx_coefficients(plane, g, g_sum, gx_sum, n_group));
      }
    });
    return failed;
  }

  int backward_spans(const Cut& cut, int64_t row_bytes, double n_group, double* s0, double* s1, double* p0, double* p1) {
    const int64_t each = args.n * repeated_c, grain = kGrain / (cut.unit * cut.per_chunk * args.c);
    Scratch work(6 * each * 4);
    if (!work.p) return 1;
    float *high = work.floats(), *a = high + each, *b = a + each, *p = b + each, *q = p + each, *r = q + each;
    spread(high, a, b);
    const auto sums = loops.span_sums[args.activation][args.pad > 0];
    const auto loop = loops.span_backward[args.activation][args.pad > 0];
    const int64_t g_size = args.pad ? 4 : loops.size;
    run(parallel, args.n * cut.chunks, grain, [&](int64_t from, int64_t to) {
      Scratch row(row_bytes), total(2 * repeated_c * 8);
      if (!row.p || !total.p) {
        failed = 1;
        return;
      }
      double *t0 = total.doubles(), *t1 = t0 + repeated_c;
      for (int64_t i = from; i < to; ++i) {
        const int64_t n = i / cut.chunks, k = i % cut.chunks, at = n * repeated_c;
        for (int64_t j = 0; j < 2 * repeated_c; ++j) t0[j] = 0;
        each_unit(cut, n, cut.first(k), cut.last(k), args.c, row.floats(), true,
                  [&](const char* x_, const char* g_, char*, int64_t pixels) {
                    const int64_t rows = pixels / repeats, tail = (pixels % repeats) * args.c, skip = rows * repeated_c;
                    sums(x_, g_, rows, repeated_c, high + at, a + at, b + at, args.slope, t0, t1);
                    if (tail)
                      sums(x_ + skip * loops.size, g_ + skip * g_size, 1, tail, high + at, a + at, b + at, args.slope, t0,
                           t1);
                  });
        for (int64_t c = 0; c < args.c; ++c) {
          double g_sum = 0, gd_sum = 0;
          for (int64_t j = 0; j < repeats; ++j) {
            g_sum += t0[j * args.c + c];
            gd_sum += t1[j * args.c + c];
          }
          const Group s = read_stats(n * args.c + c);
          p0[i * args.c + c] = g_sum;
          p1[i * args.c + c] = (gd_sum - (double)s.low * g_sum) * s.rstd;
        }
      }
    });
    if (failed) return 1;
    merge_sums(cut, p0, p1, s0, s1);
    parameter_gradients(s0, s1);
    double g_sum = 0, gx_sum = 0;
    for (int64_t plane = 0; plane < planes; ++plane) {
      if (args.kind != kLayerStd || plane % args.c == 0) group_sums(plane, s0, s1, &g_sum, &gx_sum);
      const DxCoefficients k = dx_coefficients(plane, read_stats(plane), g_sum, gx_sum, n_group);
      for (int64_t j = 0; j < repeats; ++j) {
        const int64_t at = (plane / args.c) * repeated_c + j * args.c + plane % args.c;
        p[at] = k.p;
        q[at] = k.q;
        r[at] = k.r;
      }
    }
    run(parallel, args.n * cut.chunks, grain, [&](int64_t from, int64_t to) {
      Scratch row(row_bytes);
      if (!row.p) {
        failed = 1;
        return;
      }
      for (int64_t i = to - 1; i >= from; --i) {
        const int64_t n = i / cut.chunks, k = i % cut.chunks, at = n * repeated_c;
        each_unit(cut, n, cut.first(k), cut.last(k), args.c, row.floats(), false,
                  [&](const char* x_, const char* g_, char* dx, int64_t pixels) {
                    const int64_t rows = pixels / repeats, tail = (pixels % repeats) * args.c, skip = rows * repeated_c;
                    loop(x_, g_, dx, rows, repeated_c, high + at, a + at, b + at, p + at, q + at, r + at, args.slope);
                    if (tail)
                      loop(x_ + skip * loops.size, g_ + skip * g_size, dx + skip * loops.size, 1, tail, high + at, a + at,
                           b + at, p + at, q + at, r + at, args.slope);
                  });
      }
    });
    return failed;
  }
};

const Loops& loops_of(const NormArgs& args) {
  static const Loops records[3] = {Untyped<float>::record(), Untyped<bf16>::record(), Untyped<f16>::record()};
  return records[args.dtype];
}

int forward(const NormArgs& args, ParallelFor p) { return Forward(args, loops_of(args), p).run_all(); }
int backward(const NormArgs& args, ParallelFor p) { return Backward(args, loops_of(args), p).run_all(); }
int moments(const NormArgs& args, ParallelFor p) {
  Driver d(args, loops_of(args), p);
  return d.all_stats(Cut(args, false, d.chunk()));
}
int moments_backward(const NormArgs& args, ParallelFor p) { return MomentsBackward(args, loops_of(args), p).run_all(); }

}  // namespace

NormTable norm_table() { return {forward, backward, moments, moments_backward}; }

}  // namespace KERNELS_ISA
