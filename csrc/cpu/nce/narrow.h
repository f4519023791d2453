// bfloat16 features as operands of `narrow_product`: rows as they lie in memory, pairs of columns as lanes, pairs of rows.
// Twice the speed of float32 and more, and exact products; what is normalised afterwards is the sum.
#pragma once

#include "nce/tile.h"

namespace KERNELS_ISA {
namespace {

// Always on the levels of the matrix unit: other dtypes are left to another level (common/binding.cpp), and their code here
// to the compiler, which drops it.
static inline bool in_pairs(int64_t dtype) { return kNarrowAlone || (kNarrow && dtype == kBFloat16); }

// Rows `ld` apart, a multiple of kStep, of which up(count, kRowStep) exist: those of the tensor, or a copy with zeros.
struct NarrowRows {
  const bf16* p;
  int64_t ld;
  const bf16* row(int64_t i) const { return p + i * ld; }
};
NarrowRows narrow_rows(const void* base, int64_t c, int64_t first, int64_t count, bf16* copy) {
  const bf16* from = (const bf16*)base + first * c;
  if (c % kStep == 0 && count % kRowStep == 0) return {from, c};
  const int64_t ld = up(c, kStep), rows = up(count, kRowStep);
  memset(copy, 0, (size_t)(rows * ld) * sizeof(bf16));
  for (int64_t i = 0; i < count; ++i) memcpy(copy + i * ld, from + i * c, (size_t)c * sizeof(bf16));
  return {copy, ld};
}

// 1 / (norm + eps) of each row.
void inverse_norms(const NarrowRows& rows, int64_t count, int64_t c, float* to) {
  for (int64_t i = 0; i < count; i += W) {
    vu sums[W] = {};
    const int64_t here = least(count - i, W);
    for (int64_t r = 0; r < here; ++r) {
      const bf16* row = rows.row(i + r);
      vf total[2] = {};
      int64_t x = 0;
      for (; x + 2 * W <= c; x += 2 * W) {
        const vf a = load(row + x), b = load(row + x + W);
        total[0] += a * a;
        total[1] += b * b;
      }
      for (; x < c; x += W) {
        const vf a = load_first(row + x, (int)least(c - x, W));
        total[0] += a * a;
      }
      sums[r] = (vu)(total[0] + total[1]);
    }
    transpose(sums);  // W rows' sums at once: adding up one vector costs as much as what went into it
    vf square = {};
    for (int j = 0; j < W; ++j) square += (vf)sums[j];
    for (int64_t r = 0; r < here; ++r) to[i + r] = inverse_norm((double)square[r]);
  }
}

// count <= kLanes rows as lanes: to[c / 2][lane], two columns in each; lanes from count on are zero.
void pack_lane_pairs(const NarrowRows& rows, int64_t count, uint32_t* to) {
  const int64_t pairs = rows.ld / 2;
  for (int64_t lane = 0; lane < kLanes; lane += W)
    for (int64_t x = 0; x < pairs; x += W) {
      const int64_t here = least(pairs - x, W);
      vu block[W] = {};
      for (int64_t i = 0; i < W && lane + i < count; ++i) memcpy(&block[i], rows.row(lane + i) + 2 * x, (size_t)here * 4);
      transpose(block);
      for (int64_t i = 0; i < here; ++i) memcpy(to + (x + i) * kLanes + lane, &block[i], sizeof block[i]);
    }
}

// Two rows beside each other, column by column: to[row / 2][x] for up(count, kStep) rows, those from count on and columns
// from c to ld zero.
void pair_rows(const NarrowRows& rows, int64_t count, int64_t c, int64_t ld, uint32_t* to) {
  for (int64_t j = 0; j < up(count, kStep); j += 2, to += ld) {
    if (j >= count) {
      memset(to, 0, (size_t)ld * 4);
      continue;
    }
    const bf16 *even = rows.row(j), *odd = rows.row(j + 1);
    const bool alone = j + 1 == count;
    int64_t x = 0;
    for (; x + W <= c; x += W) {
      const vu both = load_u16(even + x) | (alone ? vu{} : load_u16(odd + x) << 16);
      memcpy(to + x, &both, sizeof both);
    }
    for (; x < ld; ++x) to[x] = x < c ? even[x].bits | (alone ? 0u : (uint32_t)odd[x].bits << 16) : 0;
  }
}

// A tile of numbers, (keys, kLanes), as rows of a query each: to[lane][key], kKeys apart, keys up to a multiple of 32 zero.
void lanes_as_rows(const float* from, int64_t keys, bf16* to) {
  for (int64_t j0 = 0; j0 < up(keys, 32); j0 += 2 * W)
    for (int64_t lane = 0; lane < kLanes; lane += W) {
      vu block[W];
      for (int p = 0; p < W; ++p) {
        const int64_t j = j0 + 2 * p;
        const vu even = j < keys ? bf16_bits(load(from + j * kLanes + lane)) : vu{};
        block[p] = even | (j + 1 < keys ? bf16_bits(load(from + (j + 1) * kLanes + lane)) << 16 : vu{});
      }
      transpose(block);
      for (int i = 0; i < W; ++i) memcpy(to + (lane + i) * kKeys + j0, &block[i], sizeof block[i]);
    }
}

}  // namespace
}  // namespace KERNELS_ISA
