// What one call of the Sinkhorn iteration needs, as raw pointers and sizes. No torch here: see common/binding.cpp.
#pragma once

#include "common/parallel.h"

struct SinkhornArgs {
  int64_t problems, s, m;  // every problem is an (s, m) matrix
  int64_t iterations;
  int64_t dtype;           // of the log kernel, the log plan and the gradients; everything else is float32
  const void* log_kernel;  // (problems, s, m)
  // (problems, iterations, s + m + 1): what forward leaves for backward; null where nothing is to be left. Log scalings
  // of the rows, then of the columns, after each iteration: the first absolute, the others relative to the reference in
  // force (sinkhorn.cpp); last a mark, not 0 where these become the reference of the iterations that follow.
  float* potentials;
  void* log_plan;          // forward, out
  const void* grad;        // backward, of the log plan
  void* grad_log_kernel;   // backward, out
};

struct SinkhornTable {  // one per instruction set; each returns 0, or 1 when scratch memory could not be had
  int (*forward)(const SinkhornArgs&, ParallelFor);
  int (*backward)(const SinkhornArgs&, ParallelFor);
};
