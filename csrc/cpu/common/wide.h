// What a loop over elements of type T meets at a time: a vector, or two of them where 16-bit numbers come cheaper in pairs.
//
// With AVX2 alone, widening eight bfloat16 numbers crosses the halves of a register and so does narrowing them. Sixteen at
// once need neither: those at even places are a shift away, those at odd places a mask, and a blend puts both together.
// (Instance norm 1x256x64x64, one thread: forward 352 us by eights, 195 by sixteens; backward 418 and 236.)
#pragma once

#include "common/vec.h"

namespace KERNELS_ISA {

struct Pair {  // 2 W numbers: those at even places and those at odd places
  vf even, odd;
};
static inline Pair operator+(Pair a, Pair b) { return {a.even + b.even, a.odd + b.odd}; }
static inline Pair operator-(Pair a, Pair b) { return {a.even - b.even, a.odd - b.odd}; }
static inline Pair operator*(Pair a, Pair b) { return {a.even * b.even, a.odd * b.odd}; }
static inline void operator+=(Pair& a, Pair b) { a = a + b; }

template <class V>
constexpr int kLanes = sizeof(V) / 4;

template <class T>
struct WideOf {
  typedef vf type;
};
#if defined(__AVX2__) && !defined(__AVX512F__)
template <>
struct WideOf<bf16> {
  typedef Pair type;
};
#endif
template <class T>
using Wide = typename WideOf<T>::type;

// V of the elements from p on. The second argument only says which V.
template <class T>
static inline vf take(const T* p, vf) {
  return load(p);
}
static inline Pair take(const float* p, Pair) {
  Pair v;
  deinterleave(load(p), load(p + W), v.even, v.odd);
  return v;
}
template <class V, class T>
static inline V take(const T* p) {
  return take(p, V{});
}

static inline vf splat_as(float v, vf) { return splat(v); }
static inline Pair splat_as(float v, Pair) { return {splat(v), splat(v)}; }
template <class V>
static inline V splat_as(float v) {
  return splat_as(v, V{});
}

template <class T>
static inline void put_wide(T* p, vf v) {
  store(p, v);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
static inline Pair take(const bf16* p, Pair) {
  const __m256i v = _mm256_loadu_si256((const __m256i*)p);
  return {(vf)_mm256_slli_epi32(v, 16), (vf)_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000u))};
}
// Rounds as `store` does, but for NaN: one whose lower half is not zero may become something else. Arithmetic makes none
// of bfloat16 numbers; `quiet` sees to those that come as float32 arguments.
static inline void put_wide(bf16* p, Pair v) {
  const vu even = (vu)v.even, odd = (vu)v.odd;
  const vu low = (even + (0x7fffu + ((even >> 16) & 1u))) >> 16, high = odd + (0x7fffu + ((odd >> 16) & 1u));
  _mm256_storeu_si256((__m256i*)p, _mm256_blend_epi16((__m256i)low, (__m256i)high, 0xaa));
}
#endif
static inline float quiet(float v) { return v == v ? v : __builtin_nanf(""); }

// Sums in memory, as V has them, and their addition to totals in the order of the elements.
static inline void keep(float* p, vf v) { store(p, v); }
static inline void keep(float* p, Pair v) { store(p, v.even), store(p + W, v.odd); }
static inline void kept(const float* p, vf& v) { v = load(p); }
static inline void kept(const float* p, Pair& v) { v = {load(p), load(p + W)}; }

static inline void add_elements(double* out, vf v) {
  vd t;
  memcpy(&t, out, sizeof t);
  add_to(t, v);
  memcpy(out, &t, sizeof t);
}
static inline void add_elements(double* out, Pair v) {
  vf low, high;
  interleave(v.even, v.odd, low, high);
  add_elements(out, low);
  add_elements(out + W, high);
}
static inline void apart(vf v, vf* to) { *to = v; }  // where their order does not matter
static inline void apart(Pair v, vf* to) { to[0] = v.even, to[1] = v.odd; }

}  // namespace KERNELS_ISA
