// A small matrix product: C = diag(keep) C + A B, C in float32 and in registers; A and B float32, or pairs of bfloat16 whose
// products one instruction adds in float32.
//
// A is read by the element with any strides and B by the vector, so none of the three products of the losses needs its
// operands packed: keys are the A of the logits (one row of C per key, one lane per query) and the B of q's gradient.
// Measured at 256 x 256 x 32, one thread of a 118 GF/s core: 118 and 118 GF/s with AVX-512 (torch's product 102), 110 and
// 108 with AVX2; more rows or vectors at once gain nothing.
#pragma once

#include "common/vec.h"

namespace KERNELS_ISA {
namespace {

constexpr int kRows = W == 16 ? 8 : 4;  // of C at once: 16 of 32 registers with AVX-512, 8 of 16 else
constexpr int kVectors = 2;
constexpr int kColumns = kVectors * W;  // B and C have a multiple of this many
constexpr int kTerms = 64;  // of a sum before it is added to the rest: one sum of 256 terms has twice the rounding error

struct Single {  // one float32 term a step
  typedef float Scalar;
  typedef vf Vector;
  static Vector take(const float* p) { return load(p); }
  static vf add(vf sum, vf x, float s) { return sum + x * s; }
};

#if defined(__AVX512BF16__)
constexpr bool kPairs = true;
struct Pair {  // two bfloat16 terms a step, the first in the low half
  typedef uint32_t Scalar;
  typedef __m512bh Vector;
  static Vector take(const uint32_t* p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static vf add(vf sum, Vector x, uint32_t s) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, x, (__m512bh)_mm512_set1_epi32((int)s));
  }
};
#else
constexpr bool kPairs = false;
struct Pair : Single {  // never used: lets the same source compile
  typedef uint32_t Scalar;
  static Vector take(const uint32_t*) { return vf{}; }
  static vf add(vf sum, vf, uint32_t) { return sum; }
};
#endif

template <class T, int R, class S = typename T::Scalar>
static inline __attribute__((always_inline)) void product_block(const S* a, int64_t ar, int64_t ak, const S* b, int64_t bk,
                                                                int64_t n, float* c, int64_t cr, bool add,
                                                                const float* keep) {
  vf sum[R][kVectors] = {};
  for (int64_t k = 0; k < n; ++k) {
    typename T::Vector x[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) x[v] = T::take(b + k * bk + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const S s = a[r * ar + k * ak];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = T::add(sum[r][v], x[v], s);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * cr + v * W;
      store(to, add ? (keep ? load(to) * keep[r] : load(to)) + sum[r][v] : sum[r][v]);
    }
}

template <class T, int R, class S = typename T::Scalar>
void product_rows(const S* a, int64_t ar, int64_t ak, const S* b, int64_t bk, int64_t n, float* c, int64_t cr,
                  int64_t columns, bool add, const float* keep) {
  for (int64_t x = 0; x < columns; x += kColumns)
    for (int64_t k = 0; k < n; k += kTerms)
      product_block<T, R>(a + k * ak, ar, ak, b + k * bk + x, bk, n - k < kTerms ? n - k : kTerms, c + x, cr, add || k > 0,
                          k > 0 ? nullptr : keep);
}

// C[r][x] = [keep[r] C[r][x] +] sum over k < n of A[r * ar + k * ak] B[k * bk + x]. `add`: with the term in brackets;
// `keep` may be null for ones. Strides in Scalars.
template <class T, class S = typename T::Scalar>
void product(const S* a, int64_t ar, int64_t ak, const S* b, int64_t bk, int64_t n, float* c, int64_t cr, int64_t rows,
             int64_t columns, bool add = false, const float* keep = nullptr) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    product_rows<T, kRows>(a + r * ar, ar, ak, b, bk, n, c + r * cr, cr, columns, add, keep ? keep + r : keep);
  for (; r < rows; ++r)
    product_rows<T, 1>(a + r * ar, ar, ak, b, bk, n, c + r * cr, cr, columns, add, keep ? keep + r : keep);
}

}  // namespace
}  // namespace KERNELS_ISA
