// y from x and a plane's coefficients: activation, residual and reflection padding.
#pragma once
#include "norm/tile.cuh"

namespace norms {

constexpr int NO_RESIDUAL = 0, DENSE = 1, STRIDED = 2;  // lies as x does; else rows (and columns) of its own strides

// Up to three rows (columns) of a padded map show row h: its own, and what mirrors it above and below; -1: none.
DEVICE int shown(int i, int h, int size, int padding) {
    if (i == 0) return h + padding;
    if (i == 1) return h >= 1 && h <= padding ? padding - h : -1;
    return h <= size - 2 && h >= size - 1 - padding ? padding + 2 * (size - 1) - h : -1;
}
// The row that a padded row shows.
DEVICE int source(int row, int size, int padding) {
    const int h = row < padding ? padding - row : row - padding;
    return h < size ? h : 2 * (size - 1) - h;
}

template <class T, int RESIDUAL> DEVICE float residual_one(const Args& a, int n, int c, i64 dense_at, int h, int w) {
    const T* from = static_cast<const T*>(a.residual);
    if constexpr (RESIDUAL == DENSE) return load_one(from + dense_at);
    if constexpr (RESIDUAL == STRIDED) return load_one(from + n * a.residual_n + c * a.residual_c + h * a.residual_h + w * a.residual_w);
    return 0.0f;
}
template <class T, int N, bool LAST, int RESIDUAL> DEVICE void add_residual(const Args& a, const Tile<T, N, LAST>& tile, int item, float (&f)[N]) {
    const T* from = static_cast<const T*>(a.residual);
    if constexpr (RESIDUAL == NO_RESIDUAL) return;
    if constexpr (RESIDUAL == STRIDED && !LAST) {
#pragma unroll
        for (int e = 0; e < N; ++e) {
            const int position = item * N + e, h = position / a.width;
            f[e] += residual_one<T, STRIDED>(a, tile.n, tile.c, 0, h, position - h * a.width);
        }
        return;
    }
    i64 at = tile.at(a, item);
    if constexpr (RESIDUAL == STRIDED) {  // its channels lie side by side too
        const int h = item / a.width;
        at = tile.n * a.residual_n + h * a.residual_h + (item - h * a.width) * a.residual_w + tile.c;
    }
    float r[N];
    unpack(load_global<T, N>(from + at), r);
#pragma unroll
    for (int e = 0; e < N; ++e) f[e] += r[e];
}

// y of the thread's items, from get(k, item, f): the values of x there.
template <class T, int N, bool LAST, int ACTIVATION, bool PADDED, int RESIDUAL, int PER, class G>
DEVICE void emit(const Args& a, const Tile<T, N, LAST>& tile, const Affine (&p)[Tile<T, N, LAST>::SUMS], G get) {
    T* y = static_cast<T*>(a.y);
    tile.template each<PER>([&](int k, int item) {
        float f[N];
        get(k, item, f);
#pragma unroll
        for (int e = 0; e < N; ++e) {
            const Affine& own = p[LAST ? e : 0];
            f[e] = activate<ACTIVATION>(apply(own, f[e] - own.high), a.slope);
        }
        add_residual<T, N, LAST, RESIDUAL>(a, tile, item, f);
        const Pack<T, N> v = pack<T, N>(f);
        if constexpr (!PADDED) {
            store_global(y + tile.at(a, item), v);
        } else {  // channels last: a position is stored wherever it is shown
            const int h = item / a.width, w = item - h * a.width;
            T* to = y + tile.start(a, a.out_length);
            for (int i = 0; i < 3; ++i) {
                const int row = shown(i, h, a.height, a.padding);
                if (row < 0) continue;
                for (int j = 0; j < 3; ++j) {
                    const int column = shown(j, w, a.width, a.padding);
                    if (column >= 0) store_global(to + (i64(row) * (a.width + 2 * a.padding) + column) * a.channels, v);
                }
            }
        }
    });
}
// The padded plane, contiguous, by its own positions: M of them at once, each read where it is shown, mostly from cache.
// The opposite would store single elements, up to nine times.
template <class T, int N, int M, int ACTIVATION, int RESIDUAL>
DEVICE void emit_padded(const Args& a, const Tile<T, N, false>& tile, const Affine& p, int piece, int pieces) {
    const T* x = static_cast<const T*>(a.x) + tile.base;
    T* y = static_cast<T*>(a.y) + tile.start(a, a.out_length);
    const int total = int(a.out_length / M), share = divide_up(total, pieces), wide = a.width + 2 * a.padding;
    const int end = min(total, (piece + 1) * share);
    for (int item = piece * share + int(threadIdx.x); item < end; item += int(blockDim.x)) {
        float f[M];
#pragma unroll
        for (int e = 0; e < M; ++e) {
            const int position = item * M + e, row = position / wide;
            const int h = source(row, a.height, a.padding), w = source(position - row * wide, a.width, a.padding);
            const i64 at = i64(h) * a.width + w;
            f[e] = activate<ACTIVATION>(apply(p, load_one(x + at) - p.high), a.slope);
            f[e] += residual_one<T, RESIDUAL>(a, tile.n, tile.c, tile.base + at, h, w);
        }
        store_global(y + i64(item) * M, pack<T, M>(f));
    }
}

}  // namespace norms
