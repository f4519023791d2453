// Innermost loops of the norm family where pixels of C channels stand beside each other: coefficients per channel. See
// lines.h for what is computed.
//
// A span is `rows` times `c` elements. A few rows are met together, vector after vector of channels: their coefficients or
// sums are loaded once for all of them, and memory is read and written in a few streams from front to back, which hardware
// prefetches. (Tiles of channels that walked down a block of rows took 1.1 to 1.4 times as long with AVX2.)
#pragma once

#include "norm/lines.h"

namespace KERNELS_ISA {

constexpr int kSumRows = 8;     // met together by sums
constexpr int kMapRows = 4;     // by what writes a map
constexpr int kFlushRows = 64;  // whose sums run in float32
constexpr int kPanel = 512;     // channels whose sums stay in the first cache

template <int N>
struct Count {
  static constexpr int value = N;
};

// What sums ask for themselves: a few rows of few channels are met in strides, which hardware does not prefetch (moments of
// 1x64x256x256 float32: 1.19 ms without, 0.87 with). Beyond the end of a map this asks in vain.
template <class T>
static inline void fetch_ahead(const T* p) {
  __builtin_prefetch((const char*)p + 8192);
}

static inline void add_vector(double* out, vf v) {
  vd t;
  memcpy(&t, out, sizeof t);
  add_to(t, v);
  memcpy(out, &t, sizeof t);
}

// s0[channel] and s1[channel] += what f.template sum<R>(r, k, p, q) adds to p and q for the rows [r, r + R) of the W
// channels from k on, or f.sum_first(r, k, m, p, q) for the m < W last channels of row r.
template <class F>
static inline void sum_span(int64_t rows, int64_t c, double* s0, double* s1, const F& f) {
  alignas(64) float p[kPanel], q[kPanel];
  for (int64_t k0 = 0; k0 < c; k0 += kPanel) {
    const int64_t width = c - k0 < kPanel ? c - k0 : kPanel, whole = width / W * W;
    for (int64_t r0 = 0; r0 < rows; r0 += kFlushRows) {
      const int64_t end = r0 + kFlushRows < rows ? r0 + kFlushRows : rows;
      memset(p, 0, sizeof p);
      memset(q, 0, sizeof q);
      const auto meet = [&](auto count, int64_t r) {
        for (int64_t k = 0; k < whole; k += W) {
          vf a = load(p + k), b = load(q + k);
          f.template sum<decltype(count)::value>(r, k0 + k, a, b);
          store(p + k, a);
          store(q + k, b);
        }
      };
      int64_t r = r0;
      for (; r + kSumRows <= end; r += kSumRows) meet(Count<kSumRows>{}, r);
      for (; r < end; ++r) meet(Count<1>{}, r);
      for (int64_t k = 0; k < whole; k += W) {
        add_vector(s0 + k0 + k, load(p + k));
        add_vector(s1 + k0 + k, load(q + k));
      }
      if (whole == width) continue;
      vf a = {}, b = {};
      const int m = (int)(width - whole);
      for (r = r0; r < end; ++r) f.sum_first(r, k0 + whole, m, a, b);
      for (int i = 0; i < m; ++i) {
        s0[k0 + whole + i] += a[i];
        s1[k0 + whole + i] += b[i];
      }
    }
  }
}

// f.template map<R>(r, k) writes rows [r, r + R) of the W channels from k on, f.map_first(r, k, m) the m < W last ones.
template <class F>
static inline void map_span(int64_t rows, int64_t c, const F& f) {
  const int64_t whole = c / W * W;
  const auto meet = [&](auto count, int64_t r) {
    for (int64_t k = 0; k < whole; k += W) f.template map<decltype(count)::value>(r, k);
    if (whole == c) return;
    for (int64_t i = r; i < r + decltype(count)::value; ++i) f.map_first(i, whole, (int)(c - whole));
  };
  int64_t r = 0;
  for (; r + kMapRows <= rows; r += kMapRows) meet(Count<kMapRows>{}, r);
  for (; r < rows; ++r) meet(Count<1>{}, r);
}

template <class T>
struct SpanMoments {  // sum (x - shift), sum (x - shift)^2
  const T* x;
  int64_t c;
  const float* shift;
  template <int R>
  void sum(int64_t r, int64_t k, vf& p, vf& q) const {
    const vf s = load(shift + k);
    const T* from = x + r * c + k;
    for (int j = 0; j < R; ++j) {
      fetch_ahead(from + j * c);
      const vf d = load(from + j * c) - s;
      p += d;
      q += d * d;
    }
  }
  void sum_first(int64_t r, int64_t k, int m, vf& p, vf& q) const {
    const vf d = load_first(x + r * c + k, m) - load_first(shift + k, m);
    p += d;
    q += d * d;
  }
};

template <class T, int ACT, bool RES>
struct SpanForward {
  const T *x, *residual;
  T* y;
  int64_t c;
  const float *high, *a, *b;
  float slope;
  template <int R>
  void map(int64_t r, int64_t k) const {
    const vf vs = splat(slope), vh_ = load(high + k), va = load(a + k), vb = load(b + k);
    for (int j = 0; j < R; ++j) {
      const int64_t i = (r + j) * c + k;
      vf v = activate<ACT>((load(x + i) - vh_) * va + vb, vs);
      if (RES) v += load(residual + i);
      store(y + i, v);
    }
  }
  void map_first(int64_t r, int64_t k, int m) const {
    const vf vs = splat(slope), vh_ = load_first(high + k, m), va = load_first(a + k, m), vb = load_first(b + k, m);
    const int64_t i = r * c + k;
    vf v = activate<ACT>((load_first(x + i, m) - vh_) * va + vb, vs);
    if (RES) v += load_first(residual + i, m);
    store_first(y + i, v, m);
  }
};

template <class T, class G, int ACT>
struct SpanSums {  // sum g', sum g' d
  const T* x;
  const G* g;
  int64_t c;
  const float *high, *a, *b;
  float slope;
  template <int R>
  void sum(int64_t r, int64_t k, vf& p, vf& q) const {
    const vf vs = splat(slope), vh_ = load(high + k), va = load(a + k), vb = load(b + k);
    for (int j = 0; j < R; ++j) {
      const int64_t i = (r + j) * c + k;
      fetch_ahead(x + i);
      fetch_ahead(g + i);
      const vf d = load(x + i) - vh_, gg = activation_gradient<ACT>(load(g + i), d * va + vb, vs);
      p += gg;
      q += gg * d;
    }
  }
  void sum_first(int64_t r, int64_t k, int m, vf& p, vf& q) const {
    const vf vs = splat(slope), vh_ = load_first(high + k, m), va = load_first(a + k, m), vb = load_first(b + k, m);
    const int64_t i = r * c + k;
    const vf d = load_first(x + i, m) - vh_, gg = activation_gradient<ACT>(load_first(g + i, m), d * va + vb, vs);
    p += gg;
    q += gg * d;
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
  template <int R>
  void map(int64_t row, int64_t k) const {
    const vf vs = splat(slope), vh_ = load(high + k), va = load(a + k), vb = load(b + k);
    const vf vp = load(p + k), vq = load(q + k), vr = load(r + k);
    for (int j = 0; j < R; ++j) {
      const int64_t i = (row + j) * c + k;
      const vf d = load(x + i) - vh_, gg = activation_gradient<ACT>(load(g + i), d * va + vb, vs);
      store(dx + i, gg * vp + (d * vq + vr));
    }
  }
  void map_first(int64_t row, int64_t k, int m) const {
    const vf vs = splat(slope), vh_ = load_first(high + k, m), va = load_first(a + k, m), vb = load_first(b + k, m);
    const vf vp = load_first(p + k, m), vq = load_first(q + k, m), vr = load_first(r + k, m);
    const int64_t i = row * c + k;
    const vf d = load_first(x + i, m) - vh_, gg = activation_gradient<ACT>(load_first(g + i, m), d * va + vb, vs);
    store_first(dx + i, gg * vp + (d * vq + vr), m);
  }
};

template <class T>
struct SpanAffine {  // dx = d * q + r
  const T* x;
  T* dx;
  int64_t c;
  const float *high, *q, *r;
  template <int R>
  void map(int64_t row, int64_t k) const {
    const vf vh_ = load(high + k), vq = load(q + k), vr = load(r + k);
    for (int j = 0; j < R; ++j) {
      const int64_t i = (row + j) * c + k;
      store(dx + i, (load(x + i) - vh_) * vq + vr);
    }
  }
  void map_first(int64_t row, int64_t k, int m) const {
    const vf vh_ = load_first(high + k, m), vq = load_first(q + k, m), vr = load_first(r + k, m);
    const int64_t i = row * c + k;
    store_first(dx + i, (load_first(x + i, m) - vh_) * vq + vr, m);
  }
};

}  // namespace KERNELS_ISA
