// What both directions of the contrastive losses share: rows of features as float32, tiles of logits.
//
// A tile is (keys, kLanes queries), one lane per query, so that maxima and sums over keys run down the lanes and nothing is
// ever summed across a vector. Results of a query depend on no other query and on no number of threads: keys come in blocks
// of fixed size and in order.
#pragma once

#include <float.h>
#include <math.h>

#include "nce/nce.h"
#include "nce/product.h"
#include "common/tasks.h"

namespace KERNELS_ISA {
namespace {

constexpr int kLanes = 32;      // queries of a tile; a multiple of kColumns, so that the product needs no tail
constexpr int kKeys = 128;      // of a block: 128 KB of float32 at C = 256; queries and gradients fit L2 beside them
constexpr float kEps = 1e-7f;   // added to a row's norm
constexpr float kLowest = -FLT_MAX;

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t size_of(int64_t dtype) { return dtype == kFloat32 ? 4 : 2; }

template <class T>
void widen(const T* from, int64_t n, float* to) {
  int64_t c = 0;
  for (; c + W <= n; c += W) store(to + c, load(from + c));
  if (c < n) store_first(to + c, load_first(from + c, (int)(n - c)), (int)(n - c));
}
void widen(const void* from, int64_t dtype, int64_t n, float* to) {
  if (dtype == kFloat32) widen((const float*)from, n, to);
  else if (dtype == kBFloat16) widen((const bf16*)from, n, to);
  else widen((const f16*)from, n, to);
}

template <class T>
void narrow(const float* from, int64_t n, T* to) {
  int64_t c = 0;
  for (; c + W <= n; c += W) store(to + c, load(from + c));
  if (c < n) store_first(to + c, load_first(from + c, (int)(n - c)), (int)(n - c));
}
// `row_of_zeros`: its gradient under normalisation is 1e7 times another, too much for float16, and saturates
void narrow(float* from, int64_t dtype, int64_t n, void* to, bool row_of_zeros) {
  if (dtype == kFloat32) return narrow(from, n, (float*)to);
  if (dtype == kBFloat16) return narrow(from, n, (bf16*)to);
  if (row_of_zeros)
    for (int64_t c = 0; c < n; ++c)
      if (fabsf(from[c]) <= FLT_MAX) from[c] = from[c] > 65504.0f ? 65504.0f : from[c] < -65504.0f ? -65504.0f : from[c];
  narrow(from, n, (f16*)to);
}

template <class T>
float dot(const T* a, const T* b, int64_t n) {
  vf total[2] = {};
  int64_t c = 0;
  for (; c + 2 * W <= n; c += 2 * W) {
    total[0] += load(a + c) * load(b + c);
    total[1] += load(a + c + W) * load(b + c + W);
  }
  for (; c < n; c += W) {
    const int left = (int)least(n - c, W);
    total[0] += load_first(a + c, left) * load_first(b + c, left);
  }
  return sum(total[0] + total[1]);
}

// Rows of one tensor as float32, each `ld` apart: the tensor itself where it is that already, else a copy. Columns from c to
// ld are zero in a copy.
struct Rows {
  const float* p;
  int64_t ld;
  const float* row(int64_t i) const { return p + i * ld; }
};
static inline int64_t padded(int64_t c) { return up(c, kNarrow ? 32 : kColumns); }
static inline bool as_is(int64_t dtype, int64_t c) { return dtype == kFloat32 && c == padded(c); }

Rows rows_of(const void* base, int64_t dtype, int64_t c, int64_t first, int64_t count, float* copy) {
  const char* from = (const char*)base + first * c * size_of(dtype);
  if (as_is(dtype, c)) return {(const float*)from, c};
  const int64_t ld = padded(c);
  for (int64_t i = 0; i < count; ++i) {
    widen(from + i * c * size_of(dtype), dtype, c, copy + i * ld);
    for (int64_t x = c; x < ld; ++x) copy[i * ld + x] = 0;
  }
  return {copy, ld};
}

// Normalisation of a row: 1 / (norm + eps), and (norm + eps) / norm, for the gradient through it (`through_norm`): 0 for a
// row of zeros, where the derivative of the norm is taken as 0.
struct Norm {
  float inverse, back;
};
static inline float inverse_norm(double square) { return (float)(1 / (sqrt(square) + (double)kEps)); }
template <class T>
Norm norm_of(const T* row, int64_t c) {
  // in double: an error of the inverse is one of the temperature, which magnifies it 14 times
  const double norm = sqrt((double)dot(row, row, c)), sum = norm + (double)kEps;
  return {(float)(1 / sum), norm > 0 ? (float)(sum / norm) : 0};
}

template <class T>
void divide_rows(const T* from, int64_t c, int64_t count, float* to, Norm* norms) {
  const int64_t ld = padded(c);
  for (int64_t i = 0; i < count; ++i, from += c, to += ld) {
    norms[i] = norm_of(from, c);
    const float f = norms[i].inverse;
    int64_t x = 0;
    for (; x + W <= c; x += W) store(to + x, load(from + x) * f);
    if (x < c) store(to + x, load_first(from + x, (int)(c - x)) * f), x += W;
    for (; x < ld; x += W) store(to + x, vf{});
  }
}

// The rows divided by (norm + eps), always a copy; or, not normalised, as they are. Dividing element by element leaves
// roundings that average out in a product; scaling the product by two inverses leaves theirs (3 to 10 times the error).
Rows directions_of(const void* base, int64_t dtype, int64_t c, int64_t first, int64_t count, bool normalize, float* copy,
                   Norm* norms) {
  if (!normalize) {
    for (int64_t i = 0; i < count; ++i) norms[i] = {1, 0};
    return rows_of(base, dtype, c, first, count, copy);
  }
  const char* from = (const char*)base + first * c * size_of(dtype);
  if (dtype == kFloat32) divide_rows((const float*)from, c, count, copy, norms);
  else if (dtype == kBFloat16) divide_rows((const bf16*)from, c, count, copy, norms);
  else divide_rows((const f16*)from, c, count, copy, norms);
  return {copy, padded(c)};
}

// The gradient of a row from that of the normalised row, `g`, which has been divided by (norm + eps) already: in place.
void through_norm(float* g, const float* direction, int64_t c, float back) {
  const float along = dot(g, direction, c) * back;
  int64_t x = 0;
  for (; x + W <= c; x += W) store(g + x, load(g + x) - load(direction + x) * along);
  for (; x < c; ++x) g[x] -= direction[x] * along;
}

// count <= kLanes rows as columns: to[c][lane]; lanes from count on are zero.
void pack_lanes(const Rows& rows, int64_t count, int64_t c, float* to) {
  for (int64_t x = 0; x < c; x += 8) {  // 8 columns at a time: one cache line of the result per column stays in reach
    const int64_t last = least(x + 8, c);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t y = x; y < last; ++y) to[y * kLanes + i] = rows.row(i)[y];
    for (int64_t i = count; i < kLanes; ++i)
      for (int64_t y = x; y < last; ++y) to[y * kLanes + i] = 0;
  }
}

// The tile of a weight: to[j][lane] for keys j0 to j0 + keys and rows row0 to row0 + count of the layer.
void weight_tile(const NceWeight& w, int64_t s, int64_t row0, int64_t count, int64_t j0, int64_t keys, float* to) {
  for (int64_t i = 0; i < kLanes; ++i) {
    const int64_t row = row0 + least(i, count - 1);
    const float* from = w.p + (row / s) * w.b + (row % s) * w.i + j0 * w.j;
    for (int64_t j = 0; j < keys; ++j) to[j * kLanes + i] = from[j * w.j];
  }
}

static inline vf exp_or_zero(vf x) {  // x <= 0; 0 below -87, NaN stays
  const vf e = exp_nonpositive((x < -87.0f) ? splat(-87.0f) : x);
  return (x < -87.0f) ? vf{} : e;
}
static inline vf greater(vf a, vf b) { return (a > b) ? a : b; }  // b where a is NaN

}  // namespace
}  // namespace KERNELS_ISA
