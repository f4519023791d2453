// The style side of AdaIN: the gradient of x from those of its planes' mean and deviation.
#pragma once

#include "norm/driver.h"

namespace KERNELS_ISA {
namespace {

struct MomentsBackward : Driver {
  using Driver::Driver;

  int run_all() {
    const Cut cut(args, false, chunk());
    const double n = (double)positions;
    Scratch work(3 * args.n * repeated_c * 4);
    if (!work.p) return 1;
    float *high = work.floats(), *q = high + args.n * repeated_c, *r = q + args.n * repeated_c;
    for (int64_t plane = 0; plane < planes; ++plane) {
      const Group g = read_stats(plane);
      const double slope = (double)quiet(args.grad_std[plane]) * g.rstd / (n - 1);
      for (int64_t j = 0; j < repeats; ++j) {
        const int64_t at = (plane / args.c) * repeated_c + j * args.c + plane % args.c;
        high[at] = g.high;
        q[at] = (float)slope;
        r[at] = (float)((double)quiet(args.grad_mean[plane]) / n - slope * g.low);
      }
    }
    const int64_t tasks = args.channels_last ? args.n * cut.chunks : planes * cut.chunks;
    run(parallel, tasks, kGrain / (cut.unit * (args.channels_last ? args.c : 1)), [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) {
        const int64_t image = i / cut.chunks, l0 = cut.begin(i % cut.chunks), l1 = cut.end(i % cut.chunks);
        if (!args.channels_last) {
          char* dx = (char*)args.grad_x + (image * positions + l0) * loops.size;
          loops.line_affine(x(image, l0), dx, l1 - l0, high[image], q[image], r[image]);
          continue;
        }
        const int64_t byte = (image * positions + l0) * args.c * loops.size;
        const int64_t rows = (l1 - l0) / repeats, at = image * repeated_c;
        const int64_t tail = ((l1 - l0) % repeats) * args.c, skip = rows * repeated_c * loops.size;
        const char* from = (const char*)args.x + byte;
        char* to = (char*)args.grad_x + byte;
        loops.span_affine(from, to, rows, repeated_c, high + at, q + at, r + at);
        if (tail) loops.span_affine(from + skip, to + skip, 1, tail, high + at, q + at, r + at);
      }
    });
    return 0;
  }
};

}  // namespace
}  // namespace KERNELS_ISA
