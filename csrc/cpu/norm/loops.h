// The loops of lines.h and spans.h behind untyped pointers, one record per element type, so that the drivers exist once.
#pragma once

#include "norm/spans.h"

namespace KERNELS_ISA {

struct Loops {
  int64_t size;  // bytes an element
  void (*line_moments)(const void* x, const void* result, int64_t n, double* mean, double* m2);
  void (*span_moments)(const void* x, int64_t rows, int64_t c, const float* shift, double* s1, double* s2);
  // [activation][residual given]
  void (*line_forward[4][2])(const void* x, const void* res, void* y, int64_t n, float high, float a, float b, float slope);
  void (*span_forward[4][2])(const void* x, const void* res, void* y, int64_t rows, int64_t c, const float* high,
                             const float* a, const float* b, float slope);
  // [activation][gradient is a folded float32 row]
  void (*line_sums[4][2])(const void* x, const void* g, const void* result, int64_t n, float high, float a, float b,
                          float slope, double* sums);
  void (*span_sums[4][2])(const void* x, const void* g, int64_t rows, int64_t c, const float* high, const float* a,
                          const float* b, float slope, double* s0, double* s1);
  void (*line_backward[4][2])(const void* x, const void* g, void* dx, int64_t n, float high, float a, float b, float slope,
                              float p, float q, float r);
  void (*span_backward[4][2])(const void* x, const void* g, void* dx, int64_t rows, int64_t c, const float* high,
                              const float* a, const float* b, const float* p, const float* q, const float* r, float slope);
  void (*line_affine)(const void* x, void* dx, int64_t n, float high, float q, float r);
  void (*span_affine)(const void* x, void* dx, int64_t rows, int64_t c, const float* high, const float* q, const float* r);
  // reflection: `row` is a padded row of pixels of c elements
  void (*mirror)(void* row, int64_t w, int64_t pad, int64_t c);                               // fills both margins
  void (*fold)(const void* row, int64_t w, int64_t pad, int64_t c, bool first, float* out);  // out = or += what it shows
  void (*narrow)(const float* x, int64_t n, void* out);
};

template <class T>
struct Untyped {
  static void line_moments_(const void* x, const void* result, int64_t n, double* mean, double* m2) {
    line_moments((const T*)x, (const T*)result, n, mean, m2);
  }
  static void span_moments_(const void* x, int64_t rows, int64_t c, const float* shift, double* s1, double* s2) {
    sum_span(rows, c, s1, s2, SpanMoments<T>{(const T*)x, c, shift});
  }
  template <int ACT, bool RES>
  static void line_forward_(const void* x, const void* res, void* y, int64_t n, float high, float a, float b, float slope) {
    line_forward<T, ACT, RES>((const T*)x, (const T*)res, (T*)y, n, high, a, b, slope);
  }
  template <int ACT, bool RES>
  static void span_forward_(const void* x, const void* res, void* y, int64_t rows, int64_t c, const float* high,
                            const float* a, const float* b, float slope) {
    map_span(rows, c, SpanForward<T, ACT, RES>{(const T*)x, (const T*)res, (T*)y, c, high, a, b, slope});
  }
  template <class G, int ACT>
  static void line_sums_(const void* x, const void* g, const void* result, int64_t n, float high, float a, float b,
                         float slope, double* sums) {
    line_sums<T, G, ACT>((const T*)x, (const G*)g, (const T*)result, n, high, a, b, slope, sums);
  }
  template <class G, int ACT>
  static void span_sums_(const void* x, const void* g, int64_t rows, int64_t c, const float* high, const float* a,
                         const float* b, float slope, double* s0, double* s1) {
    sum_span(rows, c, s0, s1, SpanSums<T, G, ACT>{(const T*)x, (const G*)g, c, high, a, b, slope});
  }
  template <class G, int ACT>
  static void line_backward_(const void* x, const void* g, void* dx, int64_t n, float high, float a, float b, float slope,
                             float p, float q, float r) {
    line_backward<T, G, ACT>((const T*)x, (const G*)g, (T*)dx, n, high, a, b, slope, p, q, r);
  }
  template <class G, int ACT>
  static void span_backward_(const void* x, const void* g, void* dx, int64_t rows, int64_t c, const float* high,
                             const float* a, const float* b, const float* p, const float* q, const float* r, float slope) {
    map_span(rows, c, SpanBackward<T, G, ACT>{(const T*)x, (const G*)g, (T*)dx, c, high, a, b, p, q, r, slope});
  }
  static void line_affine_(const void* x, void* dx, int64_t n, float high, float q, float r) {
    line_affine((const T*)x, (T*)dx, n, high, q, r);
  }
  static void span_affine_(const void* x, void* dx, int64_t rows, int64_t c, const float* high, const float* q,
                           const float* r) {
    map_span(rows, c, SpanAffine<T>{(const T*)x, (T*)dx, c, high, q, r});
  }
  static void mirror(void* row_, int64_t w, int64_t pad, int64_t c) {
    T* row = (T*)row_;
    T* end = row + (pad + w - 1) * c;  // last pixel of the middle
    for (int64_t j = 1; j <= pad; ++j)
      for (int64_t i = 0; i < c; ++i) {
        row[(pad - j) * c + i] = row[(pad + j) * c + i];
        end[j * c + i] = end[i - j * c];
      }
  }
  static void accumulate(const T* p, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, load(out + i) + load(p + i));
    for (; i < n; ++i) out[i] += scalar(p[i]);
  }
  static void fold(const void* row_, int64_t w, int64_t pad, int64_t c, bool first, float* out) {
    const T* row = (const T*)row_;
    const T* middle = row + pad * c;
    const int64_t n = w * c;
    if (first) {
      int64_t i = 0;
      for (; i + W <= n; i += W) store(out + i, load(middle + i));
      for (; i < n; ++i) out[i] = scalar(middle[i]);
    } else {
      accumulate(middle, n, out);
    }
    for (int64_t j = 1; j <= pad; ++j) {
      accumulate(middle - j * c, c, out + j * c);
      accumulate(middle + (w - 1 + j) * c, c, out + (w - 1 - j) * c);
    }
  }
  static void narrow(const float* x, int64_t n, void* out) {
    T* p = (T*)out;
    int64_t i = 0;
    for (; i + W <= n; i += W) store(p + i, load(x + i));
    if (i < n) store_first(p + i, load_first(x + i, (int)(n - i)), (int)(n - i));
  }

  template <int ACT>
  static void fill(Loops& l) {
    l.line_forward[ACT][0] = line_forward_<ACT, false>;
    l.line_forward[ACT][1] = line_forward_<ACT, true>;
    l.span_forward[ACT][0] = span_forward_<ACT, false>;
    l.span_forward[ACT][1] = span_forward_<ACT, true>;
    l.line_sums[ACT][0] = line_sums_<T, ACT>;
    l.line_sums[ACT][1] = line_sums_<float, ACT>;
    l.span_sums[ACT][0] = span_sums_<T, ACT>;
    l.span_sums[ACT][1] = span_sums_<float, ACT>;
    l.line_backward[ACT][0] = line_backward_<T, ACT>;
    l.line_backward[ACT][1] = line_backward_<float, ACT>;
    l.span_backward[ACT][0] = span_backward_<T, ACT>;
    l.span_backward[ACT][1] = span_backward_<float, ACT>;
  }
  static Loops record() {
    Loops l = {};
    l.size = sizeof(T);
    l.line_moments = line_moments_;
    l.span_moments = span_moments_;
    l.line_affine = line_affine_;
    l.span_affine = span_affine_;
    l.mirror = mirror;
    l.fold = fold;
    l.narrow = narrow;
    fill<kNone>(l);
    fill<kRelu>(l);
    fill<kLeakyRelu>(l);
    fill<kTanh>(l);
    return l;
  }
};

}  // namespace KERNELS_ISA
