// One short-vector type for every instruction set.
//
// GCC and Clang vector extensions do the arithmetic, so the same source becomes SSE2, AVX2, AVX-512 or NEON code by flags
// alone; intrinsics appear only where no portable expression compiles to the single instruction wanted (half and bfloat16
// conversions). Everything lives in a namespace named after the instruction set and nothing here includes the C++ library:
// an inline function shared between translation units with different flags could be linked in its AVX-512 form into
// the path taken by a machine without it.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef KERNELS_ISA
#error "compile with -DKERNELS_ISA=<namespace of this instruction set>"
#endif

namespace KERNELS_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef float vf_half __attribute__((vector_size(W * 2)));
typedef double vd_half __attribute__((vector_size(W * 4)));
struct vd {  // two registers: as one vector of twice the register's size GCC 12 would convert it piecemeal
  vd_half low, high;
};

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

static inline vf splat(float v) { return v - vf{}; }  // v - 0 keeps the sign of zero and NaN

static inline vf load(const float* p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, vf v) { memcpy(p, &v, sizeof v); }

// Widening and narrowing of 16-bit lanes: __builtin_convertvector takes four instructions for what is one (GCC 12).
static inline vu load_u16(const void* p) {
#if defined(__AVX512F__)
  return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  vh h;
  memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vu);
#endif
}
static inline void store_u16(void* p, vu v) {  // lanes below 2^16
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)v));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  vh h = __builtin_convertvector(v, vh);
  memcpy(p, &h, sizeof h);
#endif
}

// Lanes of a and b by turns: a0 b0 a1 b1 and so on, the first half of them in `low`.
template <class V>
static inline void interleave(V a, V b, V& low, V& high) {
#if defined(__AVX512F__)
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i last = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  low = (V)_mm512_permutex2var_epi32((__m512i)a, first, (__m512i)b);
  high = (V)_mm512_permutex2var_epi32((__m512i)a, last, (__m512i)b);
#elif defined(__AVX2__)
  const __m256i even = _mm256_unpacklo_epi32((__m256i)a, (__m256i)b);  // of each half
  const __m256i odd = _mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
  low = (V)_mm256_permute2x128_si256(even, odd, 0x20);
  high = (V)_mm256_permute2x128_si256(even, odd, 0x31);
#else
  for (int i = 0; i < W / 2; ++i) {
    low[2 * i] = a[i], low[2 * i + 1] = b[i];
    high[2 * i] = a[i + W / 2], high[2 * i + 1] = b[i + W / 2];
  }
#endif
}
// And back: positions 0, 2, .. and 1, 3, .. of two registers that follow one another.
template <class V>
static inline void deinterleave(V a, V b, V& even, V& odd) {
#if defined(__AVX512F__)
  const __m512i pick = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = (V)_mm512_permutex2var_epi32((__m512i)a, pick, (__m512i)b);
  odd = (V)_mm512_permutex2var_epi32((__m512i)a, _mm512_add_epi32(pick, _mm512_set1_epi32(1)), (__m512i)b);
#elif defined(__AVX2__)
  const __m256 e = _mm256_shuffle_ps((__m256)a, (__m256)b, 0x88), o = _mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd);
  even = (V)_mm256_permute4x64_epi64((__m256i)e, 0xd8);
  odd = (V)_mm256_permute4x64_epi64((__m256i)o, 0xd8);
#else
  for (int i = 0; i < W / 2; ++i) {
    even[i] = a[2 * i], even[i + W / 2] = b[2 * i];
    odd[i] = a[2 * i + 1], odd[i + W / 2] = b[2 * i + 1];
  }
#endif
}
// W rows become columns: interleaving row i with row i + W/2 moves the bits of every element's place round by one.
static inline __attribute__((always_inline)) void transpose(vu (&v)[W]) {
#pragma GCC unroll 4
  for (int n = 1; n < W; n *= 2) {
    vu next[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) interleave(v[i], v[i + W / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = next[i];
  }
}

static inline vf load(const bf16* p) { return (vf)(load_u16(p) << 16); }

// The bits of v as bfloat16, in the low half of each lane.
static inline vu bf16_bits(vf v) {
#if defined(__AVX512BF16__)
  return (vu)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  // round to nearest, ties to even; a NaN stays one (its payload must not be rounded up into infinity)
  vu u = (vu)v;
  vu rounded = u + (0x7fffu + ((u >> 16) & 1u));
  return ((v != v) ? (u | 0x400000u) : rounded) >> 16;
#endif
}
static inline void store(bf16* p, vf v) {
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &h, sizeof h);
#else
  store_u16(p, bf16_bits(v));
#endif
}

#if !defined(__AVX512F__) && !defined(__F16C__)
static inline float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent == 0) {
    float tiny = (float)fraction * 0x1p-24f;
    memcpy(&bits, &tiny, 4);
    bits |= sign;
  } else {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint16_t float_to_half(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7e00u;
  if (u >= 0x477ff000u) return sign | 0x7c00u;  // from 65520 upwards rounding gives infinity
  if (u < 0x38800000u) {                        // subnormal half: let the float adder round at the right bit
    float a;
    memcpy(&a, &u, 4);
    a += 0.5f;
    memcpy(&u, &a, 4);
    return sign | (uint16_t)(u - 0x3f000000u);
  }
  u += 0xfffu + ((u >> 13) & 1u);
  return sign | (uint16_t)((u - 0x38000000u) >> 13);
}
#endif

static inline vf load(const f16* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vf v;
  for (int i = 0; i < W; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}

static inline void store(f16* p, vf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < W; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

static inline float scalar(float v) { return v; }
static inline float scalar(bf16 v) {
  const uint32_t bits = (uint32_t)v.bits << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static inline float scalar(f16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  return half_to_float(v.bits);
#endif
}

// The n < W elements at the end of a line, through a buffer: nothing beyond them is read or written.
template <class T>
static inline vf load_first(const T* p, int n) {
  T buffer[W];
  memset(buffer, 0, sizeof buffer);
  memcpy(buffer, p, (size_t)n * sizeof(T));
  return load(buffer);
}
template <class T>
static inline void store_first(T* p, vf v, int n) {
  T buffer[W];
  store(buffer, v);
  memcpy(p, buffer, (size_t)n * sizeof(T));
}

static inline vf lanes(vf v, int from, int to) {  // zero but for lanes [from, to)
  vi lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  return (lane >= from & lane < to) ? v : vf{};
}
static inline vf first_lanes(vf v, int n) { return lanes(v, 0, n); }

static inline void add_to(vd& total, vf v) {
  vf_half half[2];
  memcpy(half, &v, sizeof half);
  total.low += __builtin_convertvector(half[0], vd_half);
  total.high += __builtin_convertvector(half[1], vd_half);
}
static inline double lane(const vd& v, int i) { return i < W / 2 ? v.low[i] : v.high[i - W / 2]; }
static inline double sum(const vd& v) {
  const vd_half pairs = v.low + v.high;
  double s = 0;
  for (int i = 0; i < W / 2; ++i) s += pairs[i];
  return s;
}
static inline float sum(vf v) {
  float s = 0;
  for (int i = 0; i < W; ++i) s += v[i];
  return s;
}

// exp on [-87, 0]: 2^n * e^r with |r| <= ln2/2 and the degree-6 Taylor polynomial (truncation below 1e-7 relative)
static inline vf exp_nonpositive(vf x) {
  vf n = x * 1.44269504088896341f;
  vi k = __builtin_convertvector(n - 0.5f, vi);  // n <= 0: truncation of n - 1/2 rounds to nearest
  vf kf = __builtin_convertvector(k, vf);
  vf r = x - kf * 0.693145751953125f;            // ln 2 in two parts, the first exact in 16 bits
  r = r - kf * 1.42860682030941723212e-6f;
  vf p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * (vf)((k + 127) << 23);
}

// tanh: odd series where it is small (1 - e^-2|x| would cancel), (1 - e) / (1 + e) elsewhere. NaN passes through.
static inline vf tanh_(vf x) {
  vf m = (x < 0) ? -x : x;
  vf big = (m > 9.0f) ? splat(9.0f) : m;  // tanh(9) rounds to 1 in float32
  vf e = exp_nonpositive(-2.0f * big);
  vf far = (1.0f - e) / (1.0f + e);
  vf s = x * x;
  // Maclaurin coefficients of tanh(x)/x up to x^14; the next term is below 3e-8 for |x| < 0.55
  vf q = s * (-929569.0f / 638512875) + 21844.0f / 6081075;
  q = q * s + (-1382.0f / 155925);
  q = q * s + 62.0f / 2835;
  q = q * s + (-17.0f / 315);
  q = q * s + 2.0f / 15;
  q = q * s + (-1.0f / 3);
  vf near = x + x * s * q;
  vf signed_far = (x < 0) ? -far : far;
  vf y = (m < 0.55f) ? near : signed_far;
  return (x == x) ? y : x;
}

}  // namespace KERNELS_ISA
