// Lines whose pixels are single numbers (channels first): the regular part of a row, a vector of groups at a time.
//
// Loads are of consecutive numbers only: where the operator takes every second column, two registers are split into even
// and odd positions; where it makes two columns of one, two are merged on the way out.
#pragma once

#include "resample/resample.h"
#include "common/tasks.h"
#include "common/vec.h"

namespace KERNELS_ISA {
namespace {

constexpr int kMostTaps = 7;  // of one output on one axis: MOST_TAPS of kernels/resample/taps.py

template <class T>
struct Tap {
  const T* from;
  float weight;
};

template <class T>
struct Rows {  // the rows of input that make one row of output
  Tap<T> row[kMostTaps];
  int count;
};

static inline void put(float* p, float v) { *p = v; }
template <class T>
static inline void put(T* p, float v) {
  T piece[W];
  store(piece, splat(v));
  *p = piece[0];
}

// The regular groups of a row (see Taps in kernels/resample/taps.py): group g makes outputs low + g * phases + p.
struct Columns {
  int64_t base, low, groups;
  int step, phases, reach;                              // reach: inputs from base + g * step on that a group looks at
  int begin[2], end[2];                                 // those of each phase
  float weight[2][kMostTaps];
};

inline Columns columns_of(const ResampleAxis& axis) {
  Columns c = {INT64_MAX, axis.low, axis.groups, (int)axis.step, (int)axis.phases, 0, {}, {}, {}};
  if (!c.groups) return c;
  for (int p = 0; p < c.phases; ++p) {
    const int64_t from = axis.index[axis.first[c.low + p]];
    if (from < c.base) c.base = from;
  }
  for (int p = 0; p < c.phases; ++p) {
    const int32_t t = axis.first[c.low + p];
    c.begin[p] = (int)(axis.index[t] - c.base);
    c.end[p] = c.begin[p] + axis.first[c.low + p + 1] - t;
    if (c.end[p] > c.reach) c.reach = c.end[p];
    for (int o = c.begin[p]; o < c.end[p]; ++o) c.weight[p][o] = axis.weight[t + o - c.begin[p]];
  }
  // Pairs of inputs are loaded: of an odd number the last group's would reach one too far.
  if (c.step == 2 && c.reach % 2) --c.groups;
  return c;
}

template <class T>
static inline vf load_until(const T* p, int64_t left) {
  return left >= W ? load(p) : left > 0 ? load_first(p, (int)left) : vf{};
}
template <class T>
static inline void store_until(T* p, vf v, int64_t left) {
  if (left >= W)
    store(p, v);
  else if (left > 0)
    store_first(p, v, (int)left);
}

// W groups from g on; `left` of them exist. WHOLE: all do. Nothing is read beyond the inputs of a row's groups.
template <int REACH, int STEP, int PHASES, bool WHOLE, class T>
static inline void groups_at(const Rows<T>& rows, const Columns& c, int64_t g, int64_t left, T* y) {
  constexpr int kPairs = STEP == 1 ? REACH : (REACH + 1) / 2;
  vf in[STEP * kPairs] = {};
  const int64_t inputs = (left - 1) * STEP + c.reach;
  for (int r = 0; r < rows.count; ++r) {
    const T* from = rows.row[r].from + c.base + g * STEP;
    const vf weight = splat(rows.row[r].weight);
    for (int o = 0; o < kPairs; ++o) {
      for (int k = 0; k < STEP; ++k) {  // with step 2 two registers, split below
        const int64_t at = STEP * o + k * W;
        in[STEP * o + k] += weight * (WHOLE ? load(from + at) : load_until(from + at, inputs - at));
      }
    }
  }
  if (STEP == 2)
    for (int o = 0; o < kPairs; ++o) deinterleave(in[2 * o], in[2 * o + 1], in[2 * o], in[2 * o + 1]);
  vf sum[2] = {};
  for (int p = 0; p < PHASES; ++p)
    for (int o = 0; o < REACH; ++o)
      if (o >= c.begin[p] && o < c.end[p]) sum[p] += splat(c.weight[p][o]) * in[o];  // no 0 * inf
  T* to = y + c.low + g * PHASES;
  vf second = {};
  if (PHASES == 2) interleave(sum[0], sum[1], sum[0], second);
  if (WHOLE) {
    store(to, sum[0]);
    if (PHASES == 2) store(to + W, second);
  } else {
    store_until(to, sum[0], PHASES * left);
    if (PHASES == 2) store_until(to + W, second, PHASES * left - W);
  }
}

template <int REACH, int STEP, int PHASES, class T>
void all_groups(const Rows<T>& rows, const Columns& c, T* y) {
  int64_t g = 0;
  for (; g + W <= c.groups; g += W) groups_at<REACH, STEP, PHASES, true>(rows, c, g, W, y);
  if (g == c.groups) return;
  if (g)  // the last ones together with some that are there already: far cheaper than a part of a vector
    groups_at<REACH, STEP, PHASES, true>(rows, c, c.groups - W, W, y);
  else
    groups_at<REACH, STEP, PHASES, false>(rows, c, 0, c.groups, y);
}

template <int REACH, class T>
void regular_columns(const Rows<T>& rows, const Columns& c, T* y) {
  if (c.step == 2)
    all_groups<REACH, 2, 1>(rows, c, y);
  else if (c.phases == 2)
    all_groups<REACH, 1, 2>(rows, c, y);
  else
    all_groups<REACH, 1, 1>(rows, c, y);
}
template <class T>
void regular_columns(const Rows<T>& rows, const Columns& c, T* y) {
  switch (c.reach) {
    case 1: return regular_columns<1>(rows, c, y);
    case 2: return regular_columns<2>(rows, c, y);
    case 3: return regular_columns<3>(rows, c, y);
    case 4: return regular_columns<4>(rows, c, y);
    case 5: return regular_columns<5>(rows, c, y);
    case 6: return regular_columns<6>(rows, c, y);
    default: return regular_columns<7>(rows, c, y);
  }
}

}  // namespace
}  // namespace KERNELS_ISA
