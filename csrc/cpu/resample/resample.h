// What one call of the resample room needs, as raw pointers and sizes. No torch here: see common/binding.cpp.
#pragma once

#include "common/parallel.h"

// The taps of one axis: see Taps in kernels/resample/taps.py.
struct ResampleAxis {
  const int32_t *first, *index;
  const float* weight;
  int64_t outputs, low, groups, phases, step;
};

struct ResampleArgs {
  const void* x;  // channels first: rows of dense pixels. Channels last: pixels of c dense channels, dense within a row
  void* y;        // dense
  int64_t n, c, channels_last, dtype;
  int64_t sn, sc, sh;  // strides of x in elements; sc is not used with channels last
  ResampleAxis rows, columns;
};

struct ResampleTable {  // one per instruction set; returns 0
  int (*apply)(const ResampleArgs&, ParallelFor);
};
