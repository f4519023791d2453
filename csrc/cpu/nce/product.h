// Small matrix products: C = diag(keep) C + A B, C in float32 and in registers; A and B float32, or bfloat16 where the
// processor multiplies that faster (`narrow_product`).
//
// A is read by the element with any strides and B by the vector, so none of the three products of the losses needs its
// operands packed: keys are the A of the logits (one row of C per key, one lane per query) and the B of q's gradient.
// Measured at 256 x 256 x 32, one thread of a 118 GF/s core: 118 and 118 GF/s with AVX-512 (torch's product 102), 110 and
// 108 with AVX2; more rows or vectors at once gain nothing.
#pragma once

#include "common/vec.h"
#if defined(KERNELS_AMX)
#include "nce/amx.h"
#endif

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

// The same of bfloat16: A by rows, `ar` apart; B as pairs of rows beside each other, which A's terms 2k and 2k + 1 meet. n is
// a multiple of kStep, columns one of 32; of A and C up(rows, kRowStep) rows exist. kNarrow: there is such a product; kNarrowAlone:
// no other is called.
#if defined(KERNELS_AMX)
constexpr bool kNarrow = true, kNarrowAlone = true;
constexpr int kStep = kTileTerms, kRowStep = kTileRows;
typedef Tiles NarrowUnit;  // lives while a thread calls narrow_product

// R times 16 rows and 32 columns of C in tiles 0 to 3, A in 4 and 5, B in 6 and 7: four products for four loads.
template <int R>
inline void tile_block(const bf16* a, int64_t ar, const uint32_t* b, int64_t bk, int64_t n, float* c, int64_t cr, bool add) {
  const int64_t lower = kTileRows;
  if (add) {
    tile_load<0>(c, cr * 4), tile_load<1>(c + 16, cr * 4);
    if (R == 2) tile_load<2>(c + lower * cr, cr * 4), tile_load<3>(c + lower * cr + 16, cr * 4);
  } else {
    tile_zero<0>(), tile_zero<1>();
    if (R == 2) tile_zero<2>(), tile_zero<3>();
  }
  for (int64_t k = 0; k < n; k += kTileTerms) {
    tile_load<6>(b + k / 2 * bk, bk * 4), tile_load<4>(a + k, ar * 2);
    tile_product<0, 4, 6>();
    tile_load<7>(b + k / 2 * bk + 16, bk * 4);
    tile_product<1, 4, 7>();
    if (R == 1) continue;
    tile_load<5>(a + lower * ar + k, ar * 2);
    tile_product<2, 5, 6>(), tile_product<3, 5, 7>();
  }
  tile_store<0>(c, cr * 4), tile_store<1>(c + 16, cr * 4);
  if (R == 2) tile_store<2>(c + lower * cr, cr * 4), tile_store<3>(c + lower * cr + 16, cr * 4);
}

void narrow_product(const bf16* a, int64_t ar, const uint32_t* b, int64_t bk, int64_t n, float* c, int64_t cr, int64_t rows,
                    int64_t columns, bool add = false, const float* keep = nullptr) {
  for (int64_t r = 0; add && keep && r < rows; ++r) {
    if (keep[r] == 1) continue;  // most often: maxima grow over the first keys
    for (float* to = c + r * cr; to < c + r * cr + columns; to += W) store(to, load(to) * keep[r]);
  }
  for (int64_t x = 0; x < columns; x += 32) {
    int64_t r = 0;
    for (; r + kTileRows < rows; r += 2 * kTileRows) tile_block<2>(a + r * ar, ar, b + x, bk, n, c + r * cr + x, cr, add);
    if (r < rows) tile_block<1>(a + r * ar, ar, b + x, bk, n, c + r * cr + x, cr, add);
  }
}
#elif defined(__AVX512BF16__)
constexpr bool kNarrow = true, kNarrowAlone = false;
constexpr int kStep = 2, kRowStep = 1;
struct NarrowUnit {};

void narrow_product(const bf16* a, int64_t ar, const uint32_t* b, int64_t bk, int64_t n, float* c, int64_t cr, int64_t rows,
                    int64_t columns, bool add = false, const float* keep = nullptr) {
  product<Pair>((const uint32_t*)a, ar / 2, 1, b, bk, n / 2, c, cr, rows, columns, add, keep);
}
#else
constexpr bool kNarrow = false, kNarrowAlone = false;
constexpr int kStep = 2, kRowStep = 1;
struct NarrowUnit {};

void narrow_product(const bf16*, int64_t, const uint32_t*, int64_t, int64_t, float*, int64_t, int64_t, int64_t, bool = false,
                    const float* = nullptr) {}  // never called
#endif

}  // namespace
}  // namespace KERNELS_ISA
