// What the tables of all rooms share. No torch here: see common/binding.cpp.
#pragma once

#include <stdint.h>

enum DType { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Runs body(context, begin, end) over pieces of [0, count); provided by the binding, so that torch's thread count rules.
typedef void (*ParallelBody)(void* context, int64_t begin, int64_t end);
typedef void (*ParallelFor)(int64_t count, int64_t grain, void* context, ParallelBody body);
