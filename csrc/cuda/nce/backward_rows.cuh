// Backward, row by row, a warp each: the gradient of q is that of the forward launch, scaled; that of k, where other rows
// are the negatives, is the positive's alone.
#pragma once
#include "nce/rows.cuh"

namespace nce {

constexpr int ROWS_OF_BLOCK = 2 * WARPS;

// g_i a_i of a row: its logits' gradients are this times a probability, or times -1.
DEVICE float row_factor(const Args& a, i64 at) {
    return static_cast<const float*>(a.grad)[at] * static_cast<const float*>(a.stats)[LSE_GRAD * a.total + at];
}

template <class T, int N> DEVICE void emit_dq(const float* unit, T* dq, int width, float g, bool zeros) {
    each_column<N>(width, [&](int c) {
        constexpr int EACH = N < 4 ? N : 4;
        float f[N];
#pragma unroll
        for (int v = 0; v < N; v += EACH) {
            float u[EACH];
            unpack(load_global<float, EACH>(unit + c + v), u);
#pragma unroll
            for (int e = 0; e < EACH; ++e) f[v + e] = held<T>(u[e] * g, zeros);
        }
        store_global(dq + c, pack<T, N>(f));
    });
}
template <class T, int N> DEVICE void emit_dk(const Args& a, const T* q, const T* k, T* dk, int width, float factor) {
    const Pair p = pair_of<T, N>(a, q, k, width);
    const Through through(a, -factor * p.positive, p.k_norm, p.k_inverse);
    const float weight = p.q_inverse * -factor * a.scale;
    const bool zeros = a.normalize && p.k_norm == 0.0f;
    each_column<N>(width, [&](int c) {
        float x[N], y[N];
        unpack(load_global<T, N>(q + c), x);
        unpack(load_global<T, N>(k + c), y);
#pragma unroll
        for (int e = 0; e < N; ++e) x[e] = held<T>(through(x[e] * weight, y[e]), zeros);
        store_global(dk + c, pack<T, N>(x));
    });
}

template <class T, int N> DEVICE void emit_row(const Args& a, int l, int row) {
    const int width = a.width[l];
    const i64 at = i64(a.first_row[l]) + row, from = i64(row) * width;
    T *dq = static_cast<T*>(a.dq[l]), *dk = a.negatives[l] ? static_cast<T*>(a.dk[l]) : nullptr;
    // the inverse norm of a row of zeros, and of no other in float16
    const bool zeros = a.normalize && static_cast<const float*>(a.stats)[INVERSE_NORM * a.total + at] == 1.0f / EPS;
    if (dq) emit_dq<T, N>(static_cast<const float*>(a.unit[l]) + from, dq + from, width, static_cast<const float*>(a.grad)[at], zeros);
    if (dk) emit_dk<T, N>(a, row_at<T>(a.q[l], row, width), row_at<T>(a.k[l], row, width), dk + from, width, row_factor(a, at));
}

// block: among those with rows.
template <class T> DEVICE void rows_of(const Args& a, int block) {
    const int l = layer_of(a.first_row_block, a.layers, block);
    const int first = (block - a.first_row_block[l]) * ROWS_OF_BLOCK, end = min(first + ROWS_OF_BLOCK, a.rows[l]);
    for (int row = first + int(threadIdx.x) / 32; row < end; row += WARPS) {
        if (a.wide[l]) emit_row<T, 16 / int(sizeof(T))>(a, l, row);
        else emit_row<T, 1>(a, l, row);
    }
}

template <class T> DEVICE void backward_rows(const Args& a) { rows_of<T>(a, int(blockIdx.x)); }

}  // namespace nce
