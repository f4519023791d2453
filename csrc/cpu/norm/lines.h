// Innermost loops of the norm family.
//
// "line": consecutive elements of one plane, so one set of coefficients (memory order n, c, h, w).
// "span": consecutive pixels of C channels each, so coefficients per channel (memory order n, h, w, c).
//
// Everything is written in terms of d = x - high, where high is the float32 nearest to the mean. For x near the mean the
// subtraction is exact, and what float32 lost of the mean goes into the constant term; x * a + b would lose
// the low digits of a plane whose mean is large against its deviation.
//   forward   y  = act(d * a + b)                  a = scale * rstd, b = shift - low * a
//   backward  dx = g' * p + d * q + r              g' = gradient through act, p, q, r from the plane's two sums
// Sums run in float32 over at most kFlush vectors per accumulator, then go to float64.
#pragma once

#include "norm/norm.h"
#include "common/vec.h"

namespace KERNELS_ISA {

constexpr int kFlush = 16;
constexpr int kTile = 4;      // vectors of channels handled together in a span: their coefficients stay in registers
constexpr int kBlock = 32;    // pixels of a span per visit of a tile, so that the next tile finds them in cache
constexpr int kShort = 8;     // the same where a tile is written: a tile walks down a block in strides, which hardware does
                              // not prefetch for writing (2x32x64x64x64 float32 backward: 1.3 times the speed of 32)

template <int ACT>
static inline vf activate(vf z, vf slope) {
  if (ACT == kRelu) return (z < 0) ? vf{} : z;  // written so that NaN survives
  if (ACT == kLeakyRelu) return (z < 0) ? z * slope : z;
  if (ACT == kTanh) return tanh_(z);
  return z;
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

// ---- lines -----------------------------------------------------------------------------------------------------------

template <class T>
static void line_moments(const T* x, int64_t n, double* mean, double* m2) {
  // One pass, shifted by the mean of the first elements. The shift is a mean of n/16 of the data, so the shifted sum of
  // squares is at most 17 times the true one however the data are arranged: no cancellation to speak of. (It need not be
  // an exact mean: any rounding of it is accounted for by the sum of differences.)
  int64_t head = n / 16 > 64 ? n / 16 : (n < 64 ? n : 64);
  vf h0 = {}, h1 = {};
  int64_t i = 0;
  for (; i + 2 * W <= head; i += 2 * W) h0 += load(x + i), h1 += load(x + i + W);
  for (; i < head; i += W) h0 += load_first(x + i, head - i < W ? (int)(head - i) : W);
  const float shift = sum(h0 + h1) / (float)head;
  const vf vs = splat(shift);
  vd s1 = {}, s2 = {};
  i = 0;
  while (i + 4 * W <= n) {
    vf a0 = {}, a1 = {}, a2 = {}, a3 = {}, b0 = {}, b1 = {}, b2 = {}, b3 = {};
    for (int k = 0; k < kFlush && i + 4 * W <= n; ++k, i += 4 * W) {
      vf d0 = load(x + i) - vs, d1 = load(x + i + W) - vs, d2 = load(x + i + 2 * W) - vs, d3 = load(x + i + 3 * W) - vs;
      a0 += d0, a1 += d1, a2 += d2, a3 += d3;
      b0 += d0 * d0, b1 += d1 * d1, b2 += d2 * d2, b3 += d3 * d3;
    }
    add_to(s1, (a0 + a1) + (a2 + a3));
    add_to(s2, (b0 + b1) + (b2 + b3));
  }
  for (; i < n; i += W) {
    const int64_t at = i + W <= n || n < W ? i : n - W;  // the last vector again, less what it shares with the one before
    const int m = n - at < W ? (int)(n - at) : W;
    const vf d = lanes((m < W ? load_first(x + at, m) : load(x + at)) - vs, (int)(i - at), m);
    add_to(s1, d);
    add_to(s2, d * d);
  }
  const double t1 = sum(s1), t2 = sum(s2), delta = t1 / (double)n;
  *mean = (double)shift + delta;
  const double v = t2 - t1 * delta;
  *m2 = v > 0 ? v : (v == v ? 0 : v);
}

template <class T, int ACT, bool RES>
static void line_forward(const T* x, const T* residual, T* y, int64_t n, float high, float a, float b, float slope) {
  const vf vh_ = splat(high), va = splat(a), vb = splat(b), vs = splat(slope);
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + W <= n; i += W) {
    vf v = activate<ACT>((load(x + i) - vh_) * va + vb, vs);
    if (RES) v += load(residual + i);
    store(y + i, v);
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
static void line_sums(const T* x, const G* g, int64_t n, float high, float a, float b, float slope, double* sums) {
  const vf vh_ = splat(high), va = splat(a), vb = splat(b), vs = splat(slope);
  vd s0 = {}, s1 = {};
  int64_t i = 0;
  while (i + 2 * W <= n) {
    vf p0 = {}, p1 = {}, q0 = {}, q1 = {};
    for (int k = 0; k < 2 * kFlush && i + 2 * W <= n; ++k, i += 2 * W) {
      vf d0 = load(x + i) - vh_, d1 = load(x + i + W) - vh_;
      vf g0 = activation_gradient<ACT>(load(g + i), d0 * va + vb, vs);
      vf g1 = activation_gradient<ACT>(load(g + i + W), d1 * va + vb, vs);
      p0 += g0, p1 += g1;
      q0 += g0 * d0, q1 += g1 * d1;
    }
    add_to(s0, p0 + p1);
    add_to(s1, q0 + q1);
  }
  for (; i < n; i += W) {
    const int64_t at = i + W <= n || n < W ? i : n - W;  // the last vector again, less what it shares with the one before
    const int m = n - at < W ? (int)(n - at) : W;
    vf d = (m < W ? load_first(x + at, m) : load(x + at)) - vh_;
    vf gg = activation_gradient<ACT>(m < W ? load_first(g + at, m) : load(g + at), d * va + vb, vs);
    gg = lanes(gg, (int)(i - at), m);
    add_to(s0, gg);
    add_to(s1, lanes(gg * d, (int)(i - at), m));
  }
  sums[0] += sum(s0);
  sums[1] += sum(s1);
}

template <class T, class G, int ACT>
static void line_backward(const T* x, const G* g, T* dx, int64_t n, float high, float a, float b, float slope, float p,
                          float q, float r) {
  const vf vh_ = splat(high), va = splat(a), vb = splat(b), vs = splat(slope), vp = splat(p), vq = splat(q), vr = splat(r);
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + W <= n; i += W) {
    vf d = load(x + i) - vh_;
    vf gg = activation_gradient<ACT>(load(g + i), d * va + vb, vs);
    store(dx + i, gg * vp + (d * vq + vr));
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

// ---- spans -----------------------------------------------------------------------------------------------------------
//
// A span of `rows` times `c` elements. `visit` calls f.template tile<NV>(channel, first row, last row) for whole tiles of
// NV vectors and f.rest(channel, count, first row, last row) for the channels that fill no vector.

template <int BLOCK = kBlock, class F>
static inline void visit(int64_t rows, int64_t c, F&& f) {
  for (int64_t r0 = 0; r0 < rows; r0 += BLOCK) {
    const int64_t r1 = r0 + BLOCK < rows ? r0 + BLOCK : rows;
    int64_t k = 0;
    for (; k + kTile * W <= c; k += kTile * W) f.template tile<kTile>(k, r0, r1);
    for (; k + W <= c; k += W) f.template tile<1>(k, r0, r1);
    if (k < c) f.rest(k, (int)(c - k), r0, r1);
  }
}

// Not `vf s[NV] = {}`, which GCC 12 clears in memory by `rep stos`: 1.1 times the time of the moments in bfloat16.
template <int NV>
static inline void clear(vf (&sums)[NV]) {
  for (int j = 0; j < NV; ++j) sums[j] = vf{};
}
static inline void add_lanes(double* out, const vd& v, int n) {
  for (int i = 0; i < n; ++i) out[i] += lane(v, i);
}
static inline void add_vector(double* out, vf v) {
  vd t;
  memcpy(&t, out, sizeof t);
  add_to(t, v);
  memcpy(out, &t, sizeof t);
}

// A tile walks down a block in strides of a pixel, which hardware does not prefetch: sums ask for their part of the next
// block themselves (the moments of 2x32x64x64x64: 1.4 times as fast). Beyond the end of a map this asks in vain.
template <int NV, class T>
static inline void fetch_ahead(const T* p, int64_t c) {
  const char* next = (const char*)(p + kBlock * c);
  for (int j = 0; j < NV * W * (int)sizeof(T); j += 64) __builtin_prefetch(next + j);
}

template <class T>
struct SpanHead {  // first[channel] += sum over a few rows of x, from which the shift is made
  const T* x;
  int64_t c;
  double* first;
  template <int NV>
  void tile(int64_t k, int64_t r0, int64_t r1) {
    vf s[NV];
    clear(s);
    for (int64_t r = r0; r < r1; ++r)
      for (int j = 0; j < NV; ++j) s[j] += load(x + r * c + k + j * W);
    for (int j = 0; j < NV; ++j) add_vector(first + k + j * W, s[j]);
  }
  void rest(int64_t k, int m, int64_t r0, int64_t r1) {
    vf s = {};
    for (int64_t r = r0; r < r1; ++r) s += load_first(x + r * c + k, m);
    vd t = {};
    add_to(t, s);
    add_lanes(first + k, t, m);
  }
};

template <class T>
struct SpanMoments {  // s1[channel] += sum (x - shift), s2[channel] += sum (x - shift)^2
  const T* x;
  int64_t c;
  const float* shift;
  double *s1, *s2;
  template <int NV>
  void tile(int64_t k, int64_t r0, int64_t r1) {
    vf sh[NV], a[NV], b[NV];
    clear(a);
    clear(b);
    for (int j = 0; j < NV; ++j) sh[j] = load(shift + k + j * W);
    for (int64_t r = r0; r < r1; ++r) {
      fetch_ahead<NV>(x + r * c + k, c);
      for (int j = 0; j < NV; ++j) {
        vf d = load(x + r * c + k + j * W) - sh[j];
        a[j] += d;
        b[j] += d * d;
      }
    }
    for (int j = 0; j < NV; ++j) {
      add_vector(s1 + k + j * W, a[j]);
      add_vector(s2 + k + j * W, b[j]);
    }
  }
  void rest(int64_t k, int m, int64_t r0, int64_t r1) {
    vf sh = load_first(shift + k, m), a = {}, b = {};
    for (int64_t r = r0; r < r1; ++r) {
      vf d = load_first(x + r * c + k, m) - sh;
      a += d;
      b += d * d;
    }
    vd t = {}, u = {};
    add_to(t, a);
    add_to(u, b);
    add_lanes(s1 + k, t, m);
    add_lanes(s2 + k, u, m);
  }
};

template <class T, int ACT, bool RES>
struct SpanForward {
  const T *x, *residual;
  T* y;
  int64_t c;
  const float *high, *a, *b;
  float slope;
  template <int NV>
  void tile(int64_t k, int64_t r0, int64_t r1) {
    const vf vs = splat(slope);
    vf vh_[NV], va[NV], vb[NV];
    for (int j = 0; j < NV; ++j) {
      vh_[j] = load(high + k + j * W);
      va[j] = load(a + k + j * W);
      vb[j] = load(b + k + j * W);
    }
    for (int64_t r = r0; r < r1; ++r) {
      for (int j = 0; j < NV; ++j) {
        const int64_t i = r * c + k + j * W;
        vf v = activate<ACT>((load(x + i) - vh_[j]) * va[j] + vb[j], vs);
        if (RES) v += load(residual + i);
        store(y + i, v);
      }
    }
  }
  void rest(int64_t k, int m, int64_t r0, int64_t r1) {
    const vf vs = splat(slope), vh_ = load_first(high + k, m), va = load_first(a + k, m), vb = load_first(b + k, m);
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t i = r * c + k;
      vf v = activate<ACT>((load_first(x + i, m) - vh_) * va + vb, vs);
      if (RES) v += load_first(residual + i, m);
      store_first(y + i, v, m);
    }
  }
};

template <class T, class G, int ACT>
struct SpanSums {  // s0[channel] += sum g', s1[channel] += sum g' d
  const T* x;
  const G* g;
  int64_t c;
  const float *high, *a, *b;
  float slope;
  double *s0, *s1;
  template <int NV>
  void tile(int64_t k, int64_t r0, int64_t r1) {
    const vf vs = splat(slope);
    vf vh_[NV], va[NV], vb[NV], p[NV], q[NV];
    clear(p);
    clear(q);
    for (int j = 0; j < NV; ++j) {
      vh_[j] = load(high + k + j * W);
      va[j] = load(a + k + j * W);
      vb[j] = load(b + k + j * W);
    }
    for (int64_t r = r0; r < r1; ++r) {
      fetch_ahead<NV>(x + r * c + k, c);
      fetch_ahead<NV>(g + r * c + k, c);
      for (int j = 0; j < NV; ++j) {
        const int64_t i = r * c + k + j * W;
        vf d = load(x + i) - vh_[j];
        vf gg = activation_gradient<ACT>(load(g + i), d * va[j] + vb[j], vs);
        p[j] += gg;
        q[j] += gg * d;
      }
    }
    for (int j = 0; j < NV; ++j) {
      add_vector(s0 + k + j * W, p[j]);
      add_vector(s1 + k + j * W, q[j]);
    }
  }
  void rest(int64_t k, int m, int64_t r0, int64_t r1) {
    const vf vs = splat(slope), vh_ = load_first(high + k, m), va = load_first(a + k, m), vb = load_first(b + k, m);
    vf p = {}, q = {};
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t i = r * c + k;
      vf d = load_first(x + i, m) - vh_;
      vf gg = activation_gradient<ACT>(load_first(g + i, m), d * va + vb, vs);
      p += gg;
      q += gg * d;
    }
    vd t = {}, u = {};
    add_to(t, p);
    add_to(u, q);
    add_lanes(s0 + k, t, m);
    add_lanes(s1 + k, u, m);
  }
};

template <class T, class G, int ACT>
struct SpanBackward {
  const T* x;
  const G* g;
  T* dx;
  int64_t c;
  const float *high, *a, *b, *p, *q, *r;
  float slope;
  template <int NV>
  void tile(int64_t k, int64_t r0, int64_t r1) {
    // six coefficients a channel: two vectors at a time fit the registers, the four of a full tile would not
    constexpr int M = NV > 2 ? 2 : NV;
    for (int j0 = 0; j0 < NV; j0 += M) pair<M>(k + j0 * W, r0, r1);
  }
  template <int M>
  void pair(int64_t k, int64_t r0, int64_t r1) {
    const vf vs = splat(slope);
    vf vh_[M], va[M], vb[M], vp[M], vq[M], vr[M];
    for (int j = 0; j < M; ++j) {
      vh_[j] = load(high + k + j * W);
      va[j] = load(a + k + j * W);
      vb[j] = load(b + k + j * W);
      vp[j] = load(p + k + j * W);
      vq[j] = load(q + k + j * W);
      vr[j] = load(r + k + j * W);
    }
    for (int64_t row = r0; row < r1; ++row) {
      for (int j = 0; j < M; ++j) {
        const int64_t i = row * c + k + j * W;
        vf d = load(x + i) - vh_[j];
        vf gg = activation_gradient<ACT>(load(g + i), d * va[j] + vb[j], vs);
        store(dx + i, gg * vp[j] + (d * vq[j] + vr[j]));
      }
    }
  }
  void rest(int64_t k, int m, int64_t r0, int64_t r1) {
    const vf vs = splat(slope), vh_ = load_first(high + k, m), va = load_first(a + k, m), vb = load_first(b + k, m);
    const vf vp = load_first(p + k, m), vq = load_first(q + k, m), vr = load_first(r + k, m);
    for (int64_t row = r0; row < r1; ++row) {
      const int64_t i = row * c + k;
      vf d = load_first(x + i, m) - vh_;
      vf gg = activation_gradient<ACT>(load_first(g + i, m), d * va + vb, vs);
      store_first(dx + i, gg * vp + (d * vq + vr), m);
    }
  }
};

template <class T>
struct SpanAffine {
  const T* x;
  T* dx;
  int64_t c;
  const float *high, *q, *r;
  template <int NV>
  void tile(int64_t k, int64_t r0, int64_t r1) {
    for (int j = 0; j < NV; ++j) {
      const vf vh_ = load(high + k + j * W), vq = load(q + k + j * W), vr = load(r + k + j * W);
      for (int64_t row = r0; row < r1; ++row) {
        const int64_t i = row * c + k + j * W;
        store(dx + i, (load(x + i) - vh_) * vq + vr);
      }
    }
  }
  void rest(int64_t k, int m, int64_t r0, int64_t r1) {
    const vf vh_ = load_first(high + k, m), vq = load_first(q + k, m), vr = load_first(r + k, m);
    for (int64_t row = r0; row < r1; ++row)
      store_first(dx + row * c + k, (load_first(x + row * c + k, m) - vh_) * vq + vr, m);
  }
};

}  // namespace KERNELS_ISA
