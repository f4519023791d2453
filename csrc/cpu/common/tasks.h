// Work for several threads, and memory for the length of a call, for the rooms' kernels.
//
// In the namespace of the instruction set for the reason vec.h gives.
#pragma once

#include <stdlib.h>

#include "common/parallel.h"

namespace KERNELS_ISA {
namespace {

template <class F>
void run(ParallelFor parallel, int64_t count, int64_t grain, F f) {
  parallel(count, grain > 1 ? grain : 1, &f, [](void* c, int64_t b, int64_t e) { (*(F*)c)(b, e); });
}

struct Scratch {  // freed on return; begins at a cache line: a vector across two of them costs double
  void* base;
  void* p;
  explicit Scratch(int64_t bytes)
      : base(malloc((size_t)(bytes > 0 ? bytes : 0) + 64)), p(base ? (void*)(((uintptr_t)base + 63) & ~(uintptr_t)63) : base) {}
  ~Scratch() { free(base); }
  Scratch(const Scratch&) = delete;
  double* doubles() { return (double*)p; }
  float* floats() { return (float*)p; }
};

}  // namespace
}  // namespace KERNELS_ISA
