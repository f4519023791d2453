// What both directions of the Sinkhorn iteration are made of: exp and log of short vectors, products with K by groups of
// rows, and K itself with its reference potentials. Formulas: sinkhorn.cpp.
#pragma once

#include "common/tasks.h"
#include "common/vec.h"

namespace KERNELS_ISA {
namespace {

// Entries of K below exp(-kFloor) are 0 (subnormal numbers would cost a hundred cycles each). Scalings of rows and of
// columns stay within exp(kDrift) and one step more, 7 for a thousand columns: what is lost is below exp(-26) of a sum.
constexpr float kFloor = 60.0f, kDrift = 10.0f;
constexpr float kNear = 4.0f;  // |b_1| up to which backward takes the first half iteration with the rest
constexpr int kRows = 8;     // rows per sweep: independent accumulators for the latency of a multiply-add
constexpr int kRank = 128;   // columns of the factors of the gradient that are gathered before they are multiplied out

inline float hsum(vf v) {  // sum(vf) of common/vec.h, by halves
  vf_half h[2];
  memcpy(h, &v, sizeof v);
  h[0] += h[1];
  float s[W / 2];
  memcpy(s, &h[0], sizeof s);
  for (int n = W / 4; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) s[i] += s[i + n];
  return s[0];
}

inline vf larger(vf a, vf b) { return (a > b) ? a : b; }

// exp of numbers at most a rounding error above 0, NaN kept
inline vf exp_or_zero(vf x) {
  vf y = (x < -kFloor) ? splat(-kFloor) : x;
  y = (y > 0.3f) ? splat(0.3f) : y;
  return (x < -kFloor) ? vf{} : exp_nonpositive(y);
}

// exp(x + y + z) with what the two sums round off: K is computed once for many iterations, so its errors do not average
// out. exp(rest) = 1 + rest. -inf gives 0.
inline vf exp_of_sum(vf x, vf y, vf z) {
  const vf s = x + y, v = s - x, t = s + z, w = t - s;
  const vf rest = ((x - (s - v)) + (y - v)) + ((s - (t - w)) + (z - w));
  return (t < -kFloor) ? vf{} : exp_or_zero(t) * (1.0f + rest);
}

inline vf exp_of(vf x) {  // |x| up to 87
  vf e = exp_nonpositive((x > 0) ? -x : x);
  return (x > 0) ? 1.0f / e : e;
}

// log of a normal number: exponent and a mantissa in [1/sqrt2, sqrt2) with Cephes' minimax polynomial; NaN kept
inline vf log_of(vf x) {
  vi bits = (vi)x;
  vi e = (bits >> 23) - 127;
  vf m = (vf)((bits & 0x7fffff) | 0x3f800000);
  vi high = m > 1.41421356f;  // -1 where true
  m = high ? m * 0.5f : m;
  vf n = __builtin_convertvector(e - high, vf);
  vf z = m - 1.0f, q = z * z;
  vf p = z * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * z + 1.1676998740e-1f;
  p = p * z - 1.2420140846e-1f;
  p = p * z + 1.4249322787e-1f;
  p = p * z - 1.6668057665e-1f;
  p = p * z + 2.0000714765e-1f;
  p = p * z - 2.4999993993e-1f;
  p = p * z + 3.3333331174e-1f;
  vf y = z * q * p - n * 2.12194440e-4f - 0.5f * q;
  vf r = z + y + n * 0.693359375f;
  return (x == x) ? r : x;
}

// f(j, n): the W numbers from j on, of which n exist
template <class F>
inline void along(int64_t m, F f) {
  int64_t j = 0;
  for (; j + W <= m; j += W) f(j, W);
  if (j < m) f(j, (int)(m - j));
}
template <class T>
inline vf get(const T* p, int n) {
  return n == W ? load(p) : load_first(p, n);
}
template <class T>
inline void put(T* p, vf v, int n) {
  if (n == W)
    store(p, v);
  else
    store_first(p, v, n);
}

// For R rows of K: sums = rows . v; coefficients c = f(i, R, sums); y += c . rows. Either half may be left out.
template <int R, bool kDot, bool kAdd, class F>
inline void sweep_group(const float* k, int64_t ld, const float* v, float* y, int64_t i, F& f) {
  float c[R] = {};
  if (kDot) {
    vf acc[R] = {};
    for (int64_t j = 0; j < ld; j += W) {
      const vf x = load(v + j);
      for (int r = 0; r < R; ++r) acc[r] += load(k + r * ld + j) * x;
    }
    for (int r = 0; r < R; ++r) c[r] = hsum(acc[r]);
  }
  for (int r = 0; r < R; ++r) c[r] = f(i + r, c[r]);
  if (kAdd) {
    for (int64_t j = 0; j < ld; j += W) {
      vf sum = load(y + j);
      for (int r = 0; r < R; ++r) sum += load(k + r * ld + j) * c[r];
      store(y + j, sum);
    }
  }
}
template <bool kDot, bool kAdd, class F>
void sweep(const float* k, int64_t s, int64_t ld, const float* v, float* y, F f) {
  if (kAdd) memset(y, 0, (size_t)ld * sizeof(float));
  int64_t i = 0;
  for (; i + kRows <= s; i += kRows) sweep_group<kRows, kDot, kAdd>(k + i * ld, ld, v, y, i, f);
  for (; i < s; ++i) sweep_group<1, kDot, kAdd>(k + i * ld, ld, v, y, i, f);
}

inline int64_t padded(int64_t n, int64_t by) { return (n + by - 1) / by * by; }

// Memory of one task, handed out in pieces that begin at a cache line: a load across two lines costs double.
struct Pieces {
  Scratch memory;
  char* at;
  explicit Pieces(int64_t floats, int pieces)
      : memory((floats + 16 * (pieces + 1)) * 4), at((char*)(((uintptr_t)memory.p + 63) & ~(uintptr_t)63)) {}
  float* take(int64_t floats) {
    float* p = (float*)at;
    at += padded(floats * 4, 64);
    return p;
  }
};

template <class T>
struct Problem {
  const T* l;  // log kernel
  int64_t s, m, sp, ld;  // sp, ld: s and m up to whole vectors
  float *k, *a, *b;      // K (s, ld) and the reference potentials; what lies beyond s and m is 0

  // K = exp(L + a + b) where b follows from a: columns sum to 1. That is then made exact, for where L is in the
  // thousands the potentials' own rounding is 1e-4 of every entry of a column. sums: memory for ld numbers.
  void absorb(float* sums) {
    memset(sums, 0, (size_t)ld * sizeof(float));
    for (int64_t i = 0; i < s; ++i) {
      const T* row = l + i * m;
      const float ai = a[i];
      along(m, [&](int64_t j, int n) {
        const vf e = first_lanes(exp_of_sum(get(row + j, n), splat(ai), load(b + j)), n);
        store(k + i * ld + j, e);
        store(sums + j, load(sums + j) + e);
      });
    }
    divide_columns(sums);
  }

  void divide_columns(float* sums) {
    for (int64_t j = m; j < ld; ++j) sums[j] = 1;
    for (int64_t j = 0; j < ld; j += W) store(sums + j, 1.0f / load(sums + j));
    for (int64_t i = 0; i < s; ++i)
      for (int64_t j = 0; j < ld; j += W) store(k + i * ld + j, load(k + i * ld + j) * load(sums + j));
  }

  // K = exp(L + a) with rows that sum to 1, likewise
  void absorb_rows() {
    for (int64_t i = 0; i < s; ++i) {
      const T* row = l + i * m;
      const float ai = a[i];
      vf total = {};
      along(m, [&](int64_t j, int n) {
        const vf e = first_lanes(exp_of_sum(get(row + j, n), splat(ai), vf{}), n);
        store(k + i * ld + j, e);
        total += e;
      });
      const float scale = 1.0f / hsum(total);
      for (int64_t j = 0; j < ld; j += W) store(k + i * ld + j, load(k + i * ld + j) * scale);
    }
  }

  // The first iteration, where nothing bounds the spread of L: true log-sum-exp over rows, then over columns.
  void first_iteration(float ratio, float* top, float* sums) {
    const float low = -__builtin_inff();
    for (int64_t i = 0; i < s; ++i) {
      const T* row = l + i * m;
      vf most = splat(low), total = {};
      along(m, [&](int64_t j, int n) {
        vf x = get(row + j, n);
        if (n < W)
          for (int e = n; e < W; ++e) x[e] = low;
        most = larger(x, most);
      });
      float peak = most[0];
      for (int e = 1; e < W; ++e) peak = most[e] > peak ? most[e] : peak;
      along(m, [&](int64_t j, int n) { total += first_lanes(exp_or_zero(get(row + j, n) - peak), n); });
      sums[i] = hsum(total) / ratio;
      a[i] = -peak;
    }
    for (int64_t i = s; i < sp; ++i) sums[i] = 1;
    for (int64_t i = 0; i < sp; i += W) store(a + i, load(a + i) - log_of(load(sums + i)));
    for (int64_t i = s; i < sp; ++i) a[i] = 0;

    for (int64_t j = 0; j < ld; ++j) top[j] = low;
    for (int64_t i = 0; i < s; ++i) {
      const T* row = l + i * m;
      const float ai = a[i];
      along(m, [&](int64_t j, int n) { store(top + j, larger(get(row + j, n) + ai, load(top + j))); });
    }
    memset(sums, 0, (size_t)ld * sizeof(float));
    for (int64_t i = 0; i < s; ++i) {
      const T* row = l + i * m;
      const float ai = a[i];
      along(m, [&](int64_t j, int n) {
        const vf e = first_lanes(exp_of_sum(get(row + j, n), splat(ai), -load(top + j)), n);
        store(k + i * ld + j, e);
        store(sums + j, load(sums + j) + e);
      });
    }
    for (int64_t j = m; j < ld; ++j) sums[j] = 1, top[j] = 0;
    for (int64_t j = 0; j < ld; j += W) store(b + j, -load(top + j) - log_of(load(sums + j)));
    divide_columns(sums);
  }
};

// Largest |x|. NaN does not count: it comes from the input, and no new reference mends it.
inline float reach(const float* x, int64_t count) {
  vf most = {};
  along(count, [&](int64_t i, int n) {
    const vf v = get(x + i, n);
    most = larger((v < 0) ? -v : v, most);
  });
  float peak = 0;
  for (int e = 0; e < W; ++e) peak = most[e] > peak ? most[e] : peak;
  return peak;
}

}  // namespace
}  // namespace KERNELS_ISA
