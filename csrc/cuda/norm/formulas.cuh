// The arithmetic of the norm family; formulas and signs are those of csrc/cpu/norm/lines.h.
//
// Statistics are carried as mean = high + low: d = x - high is exact for x near the mean, low enters the constant term.
#pragma once
#include "common/gpu.cuh"
#include "norm/args.h"

namespace norms {

using namespace gpu;

constexpr int INSTANCE = 0, INSTANCE_UNBIASED = 1, LAYER_STD = 2;       // kinds, as in kernels/norm/spec.py
constexpr int NONE = 0, RELU = 1, LEAKY_RELU = 2, TANH = 3;             // activations, likewise

// ---- statistics ------------------------------------------------------------------------------------------------------

struct Moments { float high, low, squares; };  // mean = high + low; squares: of the deviations, summed
struct Stats { float high, low, variance, rstd; };

// a + b as a rounded sum and what the rounding lost (Knuth).
DEVICE void two_sum(float a, float b, float& sum, float& rest) {
    sum = a + b;
    const float back = sum - a;
    rest = (a - (sum - back)) + (b - back);
}
// 1 / denominator is 0 for 0, a constant group without eps, and NaN for a variance beyond float32's range, which would
// else make a plane of zeros.
DEVICE Stats close_group(const Args& a, const Moments& m) {
    const float variance = m.squares / a.count;
    float denominator;
    if (a.kind == INSTANCE) denominator = sqrtf(variance + a.eps);
    else if (a.kind == LAYER_STD) denominator = sqrtf(m.squares / (a.count - 1.0f)) + a.eps;
    else denominator = sqrtf(m.squares / (a.count - 1.0f) + a.eps);
    const float rstd = denominator == 0.0f ? 0.0f : denominator == infinity() ? nan() : 1.0f / denominator;
    return {m.high, m.low, variance, rstd};
}
DEVICE void store_stats(const Args& a, i64 plane, const Stats& s) {
    float* to = static_cast<float*>(a.stats) + plane;
    to[0] = s.high, to[a.planes] = s.low, to[2 * i64(a.planes)] = s.variance, to[3 * i64(a.planes)] = s.rstd;
}
DEVICE Stats load_stats(const Args& a, i64 plane) {
    const float* from = static_cast<const float*>(a.stats) + plane;
    return {from[0], from[a.planes], from[2 * i64(a.planes)], from[3 * i64(a.planes)]};
}

// ---- affine ----------------------------------------------------------------------------------------------------------

DEVICE float parameter(const void* from, i64 at, int dtype) {  // dtype: DTYPES of kernels/_cuda.py
    if (dtype == 0) return static_cast<const float*>(from)[at];
    if (dtype == 1) return widen(static_cast<const bf16*>(from)[at]);
    if (dtype == 2) return widen(static_cast<const fp16*>(from)[at]);
    return float(static_cast<const double*>(from)[at]);
}
DEVICE float scale_of(const Args& a, int n, int c) {
    return a.scale ? parameter(a.scale, n * a.scale_n + c, a.scale_dtype) + a.offset : 1.0f;
}
DEVICE float shift_of(const Args& a, int n, int c) {
    return a.shift ? parameter(a.shift, n * a.shift_n + c, a.shift_dtype) : 0.0f;
}
// z = (x - high) * scale + shift. Backward takes them from here too and so sees the very z of the forward pass.
struct Affine { float high, scale, shift; };
DEVICE Affine affine(const Args& a, const Stats& s, int n, int c) {
    const float scale = scale_of(a, n, c) * s.rstd;
    return {s.high, scale, multiply_add(-s.low, scale, shift_of(a, n, c))};
}
DEVICE float apply(const Affine& p, float d) { return multiply_add(d, p.scale, p.shift); }

// ---- activation ------------------------------------------------------------------------------------------------------

// An odd polynomial where 1 - e^-2|z| would cancel (least squares for the relative error on |z| < 0.625, 8e-8), then
// (1 - e) / (1 + e). NaN passes.
DEVICE float tanh(float z) {
    const float m = fabsf(z), e = expf(-2.0f * m), far = (1.0f - e) / (1.0f + e), s = z * z;
    float q = multiply_add(s, -0.005691985599696636f, 0.020626291632652283f);
    q = multiply_add(q, s, -0.05373531952500343f);
    q = multiply_add(q, s, 0.13331381976604462f);
    q = multiply_add(q, s, -0.3333328068256378f);
    return m < 0.625f ? multiply_add(z, s * q, z) : z < 0.0f ? -far : far;
}
template <int ACTIVATION> DEVICE float activate(float z, float slope) {
    if constexpr (ACTIVATION == RELU) return z < 0.0f ? 0.0f : z;  // NaN survives
    if constexpr (ACTIVATION == LEAKY_RELU) return z < 0.0f ? z * slope : z;
    if constexpr (ACTIVATION == TANH) return tanh(z);
    return z;
}
// The gradient of z from that of act(z), at 0 and at NaN as torch has it.
template <int ACTIVATION> DEVICE float activation_gradient(float g, float z, float slope) {
    if constexpr (ACTIVATION == RELU) return z <= 0.0f ? 0.0f : g;
    if constexpr (ACTIVATION == LEAKY_RELU) return z > 0.0f ? g : g * slope;
    if constexpr (ACTIVATION == TANH) {
        const float t = tanh(z);
        return g * (1.0f - t * t);
    }
    return g;
}

// ---- backward --------------------------------------------------------------------------------------------------------

struct Sums { float g, gx; };  // of g' and of g' * x_hat over a plane (times scale: over a group)

// dx = g' * g + d * x + constant
struct Coefficients { float g, x, constant; };
DEVICE Coefficients dx_coefficients(const Args& a, const Stats& s, float scale, const Sums& group) {
    float k;
    if (a.kind == INSTANCE) {
        k = s.rstd / a.count;
    } else if (a.kind == LAYER_STD) {
        const float std = sqrtf(s.variance * (a.count / (a.count - 1.0f)));
        k = std > 0.0f ? 1.0f / (std * (a.count - 1.0f)) : 0.0f;  // at a constant sample there is no derivative
    } else {
        k = s.rstd / (a.count - 1.0f);
    }
    k = k * group.gx * s.rstd;
    return {s.rstd * scale, -k, k * s.low - s.rstd * (group.g / a.count)};
}
DEVICE float dx(const Coefficients& c, float g, float d) { return multiply_add(g, c.g, multiply_add(d, c.x, c.constant)); }

}  // namespace norms
