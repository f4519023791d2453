// Innermost loops of the norm family.
//
// "line": consecutive elements of one plane, so one set of coefficients (memory order n, c, h, w).
// "span": consecutive pixels of C channels each, so coefficients per channel (memory order n, h, w, c): spans.h.
//
// Everything is written in terms of d = x - high, where high is the float32 nearest to the mean. For x near the mean the
// subtraction is exact, and what float32 lost of the mean goes into the constant term; x * a + b would lose
// the low digits of a plane whose mean is large against its deviation.
//   forward   y  = act(d * a + b)                  a = scale * rstd, b = shift - low * a
//   backward  dx = g' * p + d * q + r              g' = gradient through act, p, q, r from the plane's two sums
// Sums run in float32 over at most kFlush vectors per accumulator, then go to float64.
#pragma once

#include "norm/norm.h"
#include "common/wide.h"

namespace KERNELS_ISA {

constexpr int kFlush = 16;

template <int ACT>
static inline vf activate(vf z, vf slope) {
  if (ACT == kRelu) return (z < 0) ? vf{} : z;  // written so that NaN survives
  if (ACT == kLeakyRelu) return (z < 0) ? z * slope : z;
  if (ACT == kTanh) return tanh_(z);
  return z;
}

template <int ACT>
static inline Pair activate(Pair z, Pair slope) {
  return {activate<ACT>(z.even, slope.even), activate<ACT>(z.odd, slope.odd)};
}

template <int ACT>
static inline vf activation_gradient(vf g, vf z, vf slope) {
  if (ACT == kRelu) return (z <= 0) ? vf{} : g;  // as torch: 0 at 0, passes at NaN
  if (ACT == kLeakyRelu) return (z > 0) ? g : g * slope;
  if (ACT == kTanh) {
    vf t = tanh_(z);
    return g * (1.0f - t * t);
  }
  return g;
}

template <int ACT>
static inline Pair activation_gradient(Pair g, Pair z, Pair slope) {
  return {activation_gradient<ACT>(g.even, z.even, slope.even), activation_gradient<ACT>(g.odd, z.odd, slope.odd)};
}

// ---- lines -----------------------------------------------------------------------------------------------------------

// The last elements of a line of n, from i on, fewer than W, for sums. Where there are W elements at all, the last W are
// loaded (`last`), and what was met before is taken out of what is added (`unmet`): far cheaper than a part of a vector.
template <class T>
static inline vf last(const T* x, int64_t n) {
  return n < W ? load_first(x, (int)n) : load(x + n - W);
}
static inline vf unmet(vf v, int64_t i, int64_t n) {
  return n < W ? lanes(v, (int)i, (int)n) : lanes(v, (int)(i - (n - W)), W);
}

// Asks for the memory of N elements. The first of two sweeps over a plane asks for what the second will write, if given as
// `result` (null: not): that waits for memory while the first computes. Where nothing is in cache, as in a training step,
// 1x256x64x64 float32 took 0.62 ms instead of 0.74, backward 0.85 instead of 1.05 (one thread of AVX2); where everything
// is in the last cache, 0.20 instead of 0.18.
template <int N, class T>
static inline void fetch(const T* p) {
  for (int64_t byte = 0; byte < N * (int64_t)sizeof(T); byte += 64) __builtin_prefetch((const char*)p + byte);
}

template <class T>
static void line_moments(const T* x, const T* result, int64_t n, double* mean, double* m2) {
  // One pass, shifted by the mean of the first elements. The shift is a mean of n/16 of the data, so the shifted sum of
  // squares is at most 17 times the true one however the data are arranged: no cancellation to speak of. (It need not be
  // an exact mean: any rounding of it is accounted for by the sum of differences.)
  int64_t head = n / 16 > 64 ? n / 16 : (n < 64 ? n : 64);
  vf h0 = {}, h1 = {};
  int64_t i = 0;
  for (; i + 2 * W <= head; i += 2 * W) h0 += load(x + i), h1 += load(x + i + W);
  for (; i < head; i += W) h0 += load_first(x + i, head - i < W ? (int)(head - i) : W);
  const float shift = sum(h0 + h1) / (float)head;
  typedef Wide<T> V;
  constexpr int N = kLanes<V>;
  const vf vs = splat(shift);
  const V ws = splat_as<V>(shift);
  vd s1 = {}, s2 = {};
  i = 0;
  do {  // what is left after the groups of four goes with the last of them: to float64 once, which short planes feel
    V sums[4 * W / N] = {}, squares[4 * W / N] = {};
    for (int k = 0; k < kFlush && i + 4 * W <= n; ++k, i += 4 * W) {
      if (result) fetch<4 * W>(result + i);
#pragma GCC unroll 4
      for (int j = 0; j < 4 * W / N; ++j) {
        const V d = take<V>(x + i + j * N) - ws;
        sums[j] += d;
        squares[j] += d * d;
      }
    }
    vf a[4], b[4];
    for (int j = 0; j < 4 * W / N; ++j) apart(sums[j], a + j * N / W), apart(squares[j], b + j * N / W);
    if (i + 4 * W > n) {
      for (; i + W <= n; i += W) {
        const vf d = load(x + i) - vs;
        a[0] += d;
        b[0] += d * d;
      }
      if (i < n) {
        const vf d = unmet(last(x, n) - vs, i, n);
        a[1] += d;
        b[1] += d * d;
        i = n;
      }
    }
    add_to(s1, (a[0] + a[1]) + (a[2] + a[3]));
    add_to(s2, (b[0] + b[1]) + (b[2] + b[3]));
  } while (i < n);
  const double t1 = sum(s1), t2 = sum(s2), delta = t1 / (double)n;
  *mean = (double)shift + delta;
  const double v = t2 - t1 * delta;
  *m2 = v > 0 ? v : (v == v ? 0 : v);
}

template <class T, int ACT, bool RES>
static void line_forward(const T* x, const T* residual, T* y, int64_t n, float high, float a, float b, float slope) {
  typedef Wide<T> V;
  const vf vh_ = splat(high), va = splat(a), vb = splat(b), vs = splat(slope);
  const V wh = splat_as<V>(high), wa = splat_as<V>(a), wb = splat_as<V>(b), ws = splat_as<V>(slope);
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kLanes<V> <= n; i += kLanes<V>) {
    V v = activate<ACT>((take<V>(x + i) - wh) * wa + wb, ws);
    if (RES) v += take<V>(residual + i);
    put_wide(y + i, v);
  }
  if constexpr (kLanes<V> > W)
    if (i + W <= n) {
      vf v = activate<ACT>((load(x + i) - vh_) * va + vb, vs);
      if (RES) v += load(residual + i);
      store(y + i, v);
      i += W;
    }
  if (i < n && n >= W) {  // the last vector again, from where it is whole
    i = n - W;
    vf v = activate<ACT>((load(x + i) - vh_) * va + vb, vs);
    if (RES) v += load(residual + i);
    store(y + i, v);
  } else if (i < n) {
    int m = (int)(n - i);
    vf v = activate<ACT>((load_first(x + i, m) - vh_) * va + vb, vs);
    if (RES) v += load_first(residual + i, m);
    store_first(y + i, v, m);
  }
}

// sums[0] += sum g', sums[1] += sum g' d
template <class T, class G, int ACT>
static void line_sums(const T* x, const G* g, const T* result, int64_t n, float high, float a, float b, float slope, double* sums) {
  typedef Wide<T> V;
  constexpr int N = kLanes<V>;
  const vf vh_ = splat(high), va = splat(a), vb = splat(b), vs = splat(slope);
  const V wh = splat_as<V>(high), wa = splat_as<V>(a), wb = splat_as<V>(b), ws = splat_as<V>(slope);
  vd s0 = {}, s1 = {};
  int64_t i = 0;
  do {
    V ps[2 * W / N] = {}, qs[2 * W / N] = {};
    for (int k = 0; k < 2 * kFlush && i + 2 * W <= n; ++k, i += 2 * W) {
      if (result) fetch<2 * W>(result + i);
#pragma GCC unroll 2
      for (int j = 0; j < 2 * W / N; ++j) {
        const V d = take<V>(x + i + j * N) - wh, gg = activation_gradient<ACT>(take<V>(g + i + j * N), d * wa + wb, ws);
        ps[j] += gg;
        qs[j] += gg * d;
      }
    }
    vf p[2], q[2];
    for (int j = 0; j < 2 * W / N; ++j) apart(ps[j], p + j * N / W), apart(qs[j], q + j * N / W);
    if (i + 2 * W > n) {
      if (i + W <= n) {
        const vf d = load(x + i) - vh_, gg = activation_gradient<ACT>(load(g + i), d * va + vb, vs);
        p[0] += gg;
        q[0] += gg * d;
        i += W;
      }
      if (i < n) {
        const vf d = last(x, n) - vh_, gg = activation_gradient<ACT>(last(g, n), d * va + vb, vs);
        p[1] += unmet(gg, i, n);
        q[1] += unmet(gg * d, i, n);
        i = n;
      }
    }
    add_to(s0, p[0] + p[1]);
    add_to(s1, q[0] + q[1]);
  } while (i < n);
  sums[0] += sum(s0);
  sums[1] += sum(s1);
}

template <class T, class G, int ACT>
static void line_backward(const T* x, const G* g, T* dx, int64_t n, float high, float a, float b, float slope, float p,
                          float q, float r) {
  typedef Wide<T> V;
  const vf vh_ = splat(high), va = splat(a), vb = splat(b), vs = splat(slope), vp = splat(p), vq = splat(q), vr = splat(r);
  const V wh = splat_as<V>(high), wa = splat_as<V>(a), wb = splat_as<V>(b), ws = splat_as<V>(slope);
  const V wp = splat_as<V>(p), wq = splat_as<V>(q), wr = splat_as<V>(r);
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kLanes<V> <= n; i += kLanes<V>) {
    const V d = take<V>(x + i) - wh, gg = activation_gradient<ACT>(take<V>(g + i), d * wa + wb, ws);
    put_wide(dx + i, gg * wp + (d * wq + wr));
  }
  if constexpr (kLanes<V> > W)
    if (i + W <= n) {
      vf d = load(x + i) - vh_;
      vf gg = activation_gradient<ACT>(load(g + i), d * va + vb, vs);
      store(dx + i, gg * vp + (d * vq + vr));
      i += W;
    }
  if (i < n && n >= W) {
    i = n - W;
    vf d = load(x + i) - vh_;
    vf gg = activation_gradient<ACT>(load(g + i), d * va + vb, vs);
    store(dx + i, gg * vp + (d * vq + vr));
  } else if (i < n) {
    int m = (int)(n - i);
    vf d = load_first(x + i, m) - vh_;
    vf gg = activation_gradient<ACT>(load_first(g + i, m), d * va + vb, vs);
    store_first(dx + i, gg * vp + (d * vq + vr), m);
  }
}

// dx = d * q + r: the gradient of a plane's own mean and deviation
template <class T>
static void line_affine(const T* x, T* dx, int64_t n, float high, float q, float r) {
  const vf vh_ = splat(high), vq = splat(q), vr = splat(r);
  int64_t i = 0;
  for (; i + W <= n; i += W) store(dx + i, (load(x + i) - vh_) * vq + vr);
  if (i < n) store_first(dx + i, (load_first(x + i, (int)(n - i)) - vh_) * vq + vr, (int)(n - i));
}

}  // namespace KERNELS_ISA
