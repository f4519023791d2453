// Rows of features: whose they are, their products and norms, and the way of a gradient through a norm.
#pragma once
#include "common/gpu.cuh"
#include "nce/args.h"

namespace nce {

using namespace gpu;

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr float EPS = 1e-7f, HALF_MAX = 65504.0f;  // EPS as in kernels/nce/spec.py
template <class T> constexpr bool IS_HALF = false;
template <> constexpr bool IS_HALF<fp16> = true;
constexpr int LSE = 0, LSE_GRAD = 1, INVERSE_NORM = 2;  // rows of the statistics, likewise

// ---- numbers ---------------------------------------------------------------------------------------------------------

// What to subtract from a row of logits, of which v is the maximum: v, but 0 instead of an infinity, whose difference from
// itself is NaN: of +inf the exponential and the sum are then infinite.
DEVICE float finite_or_zero(float v) { return fabsf(v) == infinity() ? 0.0f : v; }
DEVICE float inverse_norm(float norm, int normalize) { return normalize ? 1.0f / (norm + EPS) : 1.0f; }
template <int COUNT, class F> DEVICE float over_lanes(float v, F combine) {  // of COUNT neighbouring lanes, in each of them
#pragma unroll
    for (int with = COUNT / 2; with; with /= 2) v = combine(v, shuffle_xor(v, with));
    return v;
}
template <int COUNT> DEVICE float lane_sum(float v) {
    return over_lanes<COUNT>(v, [](float a, float b) { return a + b; });
}
template <int COUNT> DEVICE float lane_max(float v) {
    return over_lanes<COUNT>(v, [](float a, float b) { return fmaxf(a, b); });
}

// ---- a row to a warp -------------------------------------------------------------------------------------------------

// visit(c) of all columns of a row, this lane's part: N at a time. One at a time where rows begin anywhere.
template <int N, class F> DEVICE void each_column(int columns, F visit) {
#pragma unroll 1
    for (int c = int(threadIdx.x) % 32 * N; c < columns; c += 32 * N) visit(c);
}

struct Pair { float positive, q_inverse, q_norm, k_inverse, k_norm; };

// q_hat.k_hat / T of two rows and their norms, in float32 whatever the products of tiles are; the same in every lane.
template <class T, int N> DEVICE Pair pair_of(const Args& a, const T* q, const T* k, int width) {
    float qk = 0, qq = 0, kk = 0;
    each_column<N>(width, [&](int c) {
        float x[N], y[N];
        unpack(load_global<T, N>(q + c), x);
        unpack(load_global<T, N>(k + c), y);
#pragma unroll
        for (int e = 0; e < N; ++e) {
            qk = multiply_add(x[e], y[e], qk);
            qq = multiply_add(x[e], x[e], qq);
            kk = multiply_add(y[e], y[e], kk);
        }
    });
    qk = lane_sum<32>(qk);
    Pair p{0, 1, 1, 1, 1};
    if (a.normalize) {
        p.q_norm = sqrtf(lane_sum<32>(qq)), p.k_norm = sqrtf(lane_sum<32>(kk));
        p.q_inverse = inverse_norm(p.q_norm, 1), p.k_inverse = inverse_norm(p.k_norm, 1);
    }
    p.positive = qk * p.q_inverse * p.k_inverse * a.scale;
    return p;
}
template <class T> DEVICE Pair pair_of(const Args& a, const T* q, const T* k, int width, int wide) {
    if (wide) return pair_of<T, 16 / int(sizeof(T))>(a, q, k, width);
    return pair_of<T, 1>(a, q, k, width);
}

// What a gradient g of a normalised row becomes for the row x itself: g * inverse - x * along. dot: x_hat.g, known from the
// row's logits alone, so that columns need nothing from one another. x / norm first: norm may be as small as 1e-22, its
// inverse times another large number is beyond float32.
struct Through {
    bool normalize;
    float inverse, back, along;
    DEVICE Through(const Args& a, float dot, float norm, float inverse_norm)
        : normalize(a.normalize), inverse(inverse_norm), back(norm > 0.0f ? 1.0f / norm : 0.0f), along(inverse_norm * dot) {}
    DEVICE float operator()(float g, float x) const { return normalize ? g * inverse - x * back * along : g; }
};

// The gradient of a row of zeros, 1e7 times that of its normalised self, ends at float16's largest number.
template <class T> DEVICE float held(float v, bool row_of_zeros) {
    if constexpr (IS_HALF<T>)
        if (row_of_zeros && fabsf(v) < infinity()) return fminf(fmaxf(v, -HALF_MAX), HALF_MAX);
    return v;
}

// ---- which layer -----------------------------------------------------------------------------------------------------

DEVICE int layer_of(const int (&first)[8], int layers, int block) {
    int l = 0;
    while (l + 1 < layers && block >= first[l + 1]) ++l;
    return l;
}

// What a block with a tile works for.
struct Work {
    int l, problem, tile, chunk;
    DEVICE explicit Work(const Args& a) {
        l = layer_of(a.first_block, a.layers, int(blockIdx.x));
        const int inside = int(blockIdx.x) - a.first_block[l], rest = inside / a.chunks[l];
        chunk = inside - rest * a.chunks[l];
        problem = rest / a.tiles[l], tile = rest - problem * a.tiles[l];
    }
};
template <class T> DEVICE const T* row_at(const void* from, i64 row, int width) { return static_cast<const T*>(from) + row * width; }

}  // namespace nce
