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

// s0[channel] and s1[channel] += what f.template sum<R, V>(r, k, p, q) adds to p and q for the rows [r, r + R) of the
// channels of a V from k on, or f.sum_first(r, k, m, p, q) for the m < W last channels of row r.
template <class F>
static inline void sum_span(int64_t rows, int64_t c, double* s0, double* s1, const F& f) {
  alignas(64) float p[kPanel], q[kPanel];
  for (int64_t k0 = 0; k0 < c; k0 += kPanel) {
    typedef typename F::Vector V;
    const int64_t width = c - k0 < kPanel ? c - k0 : kPanel;
    const int64_t whole = width / W * W, wide = width / kLanes<V> * kLanes<V>;
    for (int64_t r0 = 0; r0 < rows; r0 += kFlushRows) {
      const int64_t end = r0 + kFlushRows < rows ? r0 + kFlushRows : rows;
      memset(p, 0, sizeof p);
      memset(q, 0, sizeof q);
      const auto vectors = [&](auto count, auto a, int64_t r, int64_t from, int64_t to) {
        typedef decltype(a) U;
        for (int64_t k = from; k < to; k += kLanes<U>) {
          U b;
          kept(p + k, a);
          kept(q + k, b);
          f.template sum<decltype(count)::value, U>(r, k0 + k, a, b);
          keep(p + k, a);
          keep(q + k, b);
        }
      };
      const auto meet = [&](auto count, int64_t r) {
        vectors(count, V{}, r, 0, wide);
        if constexpr (kLanes<V> > W) vectors(count, vf{}, r, wide, whole);
      };
      int64_t r = r0;
      for (; r + kSumRows <= end; r += kSumRows) meet(Count<kSumRows>{}, r);
      for (; r < end; ++r) meet(Count<1>{}, r);
      const auto flush = [&](auto v, int64_t from, int64_t to) {
        for (int64_t k = from; k < to; k += kLanes<decltype(v)>) {
          kept(p + k, v);
          add_elements(s0 + k0 + k, v);
          kept(q + k, v);
          add_elements(s1 + k0 + k, v);
        }
      };
      flush(V{}, 0, wide);
      if constexpr (kLanes<V> > W) flush(vf{}, wide, whole);
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

// f.template map<R, V>(r, k) writes rows [r, r + R) of the channels of a V from k on, f.map_first(r, k, m) the m < W last
// ones.
template <class F>
static inline void map_span(int64_t rows, int64_t c, const F& f) {
  typedef typename F::Vector V;
  const int64_t whole = c / W * W, wide = c / kLanes<V> * kLanes<V>;
  const auto meet = [&](auto count, int64_t r) {
    for (int64_t k = 0; k < wide; k += kLanes<V>) f.template map<decltype(count)::value, V>(r, k);
    if constexpr (kLanes<V> > W)
      for (int64_t k = wide; k < whole; k += W) f.template map<decltype(count)::value, vf>(r, k);
    if (whole == c) return;
    for (int64_t i = r; i < r + decltype(count)::value; ++i) f.map_first(i, whole, (int)(c - whole));
  };
  int64_t r = 0;
  for (; r + kMapRows <= rows; r += kMapRows) meet(Count<kMapRows>{}, r);
  for (; r < rows; ++r) meet(Count<1>{}, r);
}

template <class T>
struct SpanMoments {  // sum (x - shift), sum (x - shift)^2
  typedef Wide<T> Vector;
  const T* x;
  int64_t c;
  const float* shift;
  template <int R, class V>
  void sum(int64_t r, int64_t k, V& p, V& q) const {
    const V s = take<V>(shift + k);
    const T* from = x + r * c + k;
    for (int j = 0; j < R; ++j) {
      fetch_ahead(from + j * c);
      const V d = take<V>(from + j * c) - s;
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
  typedef Wide<T> Vector;
  const T *x, *residual;
  T* y;
  int64_t c;
  const float *high, *a, *b;
  float slope;
  template <int R, class V>
  void map(int64_t r, int64_t k) const {
    const V vs = splat_as<V>(slope), vh_ = take<V>(high + k), va = take<V>(a + k), vb = take<V>(b + k);
    for (int j = 0; j < R; ++j) {
      const int64_t i = (r + j) * c + k;
      V v = activate<ACT>((take<V>(x + i) - vh_) * va + vb, vs);
      if (RES) v += take<V>(residual + i);
      put_wide(y + i, v);
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
  typedef Wide<T> Vector;
  const T* x;
  const G* g;
  int64_t c;
  const float *high, *a, *b;
  float slope;
  template <int R, class V>
  void sum(int64_t r, int64_t k, V& p, V& q) const {
    const V vs = splat_as<V>(slope), vh_ = take<V>(high + k), va = take<V>(a + k), vb = take<V>(b + k);
    for (int j = 0; j < R; ++j) {
      const int64_t i = (r + j) * c + k;
      fetch_ahead(x + i);
      fetch_ahead(g + i);
      const V d = take<V>(x + i) - vh_, gg = activation_gradient<ACT>(take<V>(g + i), d * va + vb, vs);
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
  typedef Wide<T> Vector;
  const T* x;
  const G* g;
  T* dx;
  int64_t c;
  const float *high, *a, *b, *p, *q, *r;
  float slope;
  template <int R, class V>
  void map(int64_t row, int64_t k) const {
    const V vs = splat_as<V>(slope), vh_ = take<V>(high + k), va = take<V>(a + k), vb = take<V>(b + k);
    const V vp = take<V>(p + k), vq = take<V>(q + k), vr = take<V>(r + k);
    for (int j = 0; j < R; ++j) {
      const int64_t i = (row + j) * c + k;
      const V d = take<V>(x + i) - vh_, gg = activation_gradient<ACT>(take<V>(g + i), d * va + vb, vs);
      put_wide(dx + i, gg * vp + (d * vq + vr));
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
  typedef Wide<T> Vector;
  const T* x;
  T* dx;
  int64_t c;
  const float *high, *q, *r;
  template <int R, class V>
  void map(int64_t row, int64_t k) const {
    const V vh_ = take<V>(high + k), vq = take<V>(q + k), vr = take<V>(r + k);
    for (int j = 0; j < R; ++j) {
      const int64_t i = (row + j) * c + k;
      put_wide(dx + i, (take<V>(x + i) - vh_) * vq + vr);
    }
  }
  void map_first(int64_t row, int64_t k, int m) const {
    const vf vh_ = load_first(high + k, m), vq = load_first(q + k, m), vr = load_first(r + k, m);
    const int64_t i = row * c + k;
    store_first(dx + i, (load_first(x + i, m) - vh_) * vq + vr, m);
  }
};

}  // namespace KERNELS_ISA
