// What one call of the norm family needs, as raw pointers and sizes. No torch here: see common/binding.cpp.
#pragma once

#include "common/parallel.h"

enum NormKind { kInstance = 0, kInstanceUnbiased = 1, kLayerStd = 2 };
enum Activation { kNone = 0, kRelu = 1, kLeakyRelu = 2, kTanh = 3 };

struct NormArgs {
  int64_t n, c, h, w;      // planes are h * w; without padding any plane may come as h = 1
  int64_t pad;             // reflection padding of the output, each side
  int64_t channels_last;   // memory order of x, y and the gradients: 0 = (n, c, h, w), 1 = (n, h, w, c)
  int64_t dtype;           // of x, residual, y and the gradients; everything else is float32
  int64_t kind;            // NormKind
  int64_t activation;      // Activation
  int64_t per_sample;      // scale and shift hold n * c values (1) or c (0)
  int64_t threads;         // upper bound, to decide how to cut the work; the result does not depend on it
  float eps, slope, offset;  // effective scale = offset + scale
  const void* x;
  const float *scale, *shift;  // may be null: scale 1 (and no offset), shift 0
  float* stats;                // (4, n, c): mean, what float32 lost of the mean, biased variance, 1 / denominator
  // forward
  void* y;
  const void* residual;                          // may be null
  int64_t residual_n, residual_c, residual_h;    // strides in elements; a row (w, or w * c) is dense
  // backward
  const void* grad;
  void *grad_x, *grad_residual;       // grad_residual only with padding: without it the gradient is `grad` itself
  float *grad_scale, *grad_shift;     // shaped as scale; may be null
  const float *grad_mean, *grad_std;  // moments_backward: (n, c)
};

struct NormTable {  // one per instruction set; each returns 0, or 1 when scratch memory could not be had
  int (*forward)(const NormArgs&, ParallelFor);
  int (*backward)(const NormArgs&, ParallelFor);
  int (*moments)(const NormArgs&, ParallelFor);           // x -> stats
  int (*moments_backward)(const NormArgs&, ParallelFor);  // grad_mean, grad_std -> grad_x
};
