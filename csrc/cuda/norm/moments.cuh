// Statistics: of a piece in a block, and merged (Chan, Golub, LeVeque 1979) over the pieces of a group.
#pragma once
#include "norm/tile.cuh"

namespace norms {

// Moments of the thread's planes over the block's piece: two passes over vectors read once. The first takes the piece's
// first value off, so that a constant plane has exactly its mean and no variance; the second is exact around `high`.
template <class T, int N, bool LAST, int PER>
DEVICE void piece_moments(const Args& a, const Tile<T, N, LAST>& tile, Kept<T, N, PER>& kept, float count, float* scratch, float* totals,
                          Moments (&out)[Tile<T, N, LAST>::SUMS]) {
    constexpr int K = Tile<T, N, LAST>::SUMS;
    const T* x = static_cast<const T*>(a.x);
    const float each = count > 0.0f ? 1.0f / count : 0.0f;
    float pivot[N] = {}, high[K] = {}, rest[2 * K] = {};
    if (tile.begin < tile.end) unpack(load_global<T, N>(x + tile.at(a, tile.begin)), pivot);
    tile.template each<PER>([&](int k, int item) {
        const Pack<T, N> v = load_global<T, N>(x + tile.at(a, item));
        kept.put(tile, k, item, v);
        float f[N];
        unpack(v, f);
#pragma unroll
        for (int e = 0; e < N; ++e) high[LAST ? e : 0] += f[e] - pivot[LAST ? e : 0];
    });
    block_sums(high, scratch, totals, a.log_columns);
#pragma unroll
    for (int k = 0; k < K; ++k) high[k] = pivot[k] + high[k] * each;
    tile.template each<PER>([&](int k, int item) {
        float f[N];
        kept.get(tile, k, item, f);
#pragma unroll
        for (int e = 0; e < N; ++e) {
            const float d = f[e] - high[LAST ? e : 0];
            rest[LAST ? e : 0] += d;
            rest[K + (LAST ? e : 0)] = multiply_add(d, d, rest[K + (LAST ? e : 0)]);
        }
    });
    block_sums(rest, scratch, totals, a.log_columns);
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const float low = rest[k] * each, squares = multiply_add(-count * low, low, rest[K + k]);
        out[k] = {high[k], low, squares < 0.0f ? 0.0f : squares};  // NaN passes
    }
}

// Merges pieces by two functions of their number: moments(j) and count(j). `lane` of `lanes` threads takes every
// lanes-th; sum(v) adds up what they have. Means are merged as differences from the first piece's.
template <class M, class C, class S> DEVICE Moments merge(int pieces, float total, int lane, int lanes, M moments, C count, S sum) {
    const float pivot = moments(0).high;
    float mean = 0.0f, squares = 0.0f;
    for (int j = lane; j < pieces; j += lanes) {
        const Moments m = moments(j);
        if (count(j) > 0.0f) mean = multiply_add(count(j), (m.high - pivot) + m.low, mean);
    }
    mean = sum(mean) / total;
    for (int j = lane; j < pieces; j += lanes) {
        const Moments m = moments(j);
        const float d = ((m.high - pivot) + m.low) - mean;
        if (count(j) > 0.0f) squares += multiply_add(count(j) * d, d, m.squares);
    }
    Moments merged;
    merged.squares = sum(squares);
    two_sum(pivot, mean, merged.high, merged.low);
    return merged;
}
DEVICE float warp_sum(float v) {
#pragma unroll
    for (int with = 16; with; with /= 2) v += shuffle_xor(v, with);
    return v;
}
// Those of the pieces first, first + 1, ... that other blocks left in a.partials.
template <class S> DEVICE Moments merge_partials(const Args& a, i64 first, int pieces, int lane, int lanes, S sum) {
    const float* from = static_cast<const float*>(a.partials) + first;
    const i64 size = i64(a.planes) * a.chunks;
    return merge(pieces, a.count, lane, lanes, [&](int j) { return Moments{from[j], from[size + j], from[2 * size + j]}; },
                 [&](int j) { return positions(a, j % a.chunks); }, sum);
}

// ---- kernels ---------------------------------------------------------------------------------------------------------

// a.partials (3, planes, chunks): the moments of each piece. Grid: groups times chunks.
template <class T, int N, bool LAST, int PER> DEVICE void chunk_moments(const Args& a) {
    using S = Tile<T, N, LAST>;
    SHARED(float, scratch, BLOCK_SUMS);
    SHARED(float, totals, 2 * PLANES);
    const i64 piece = blockIdx.x % u32(a.chunks);
    const S tile(a, blockIdx.x / u32(a.chunks), piece);
    Kept<T, N, PER> kept;
    Moments m[S::SUMS];
    piece_moments(a, tile, kept, positions(a, piece), scratch, totals, m);
    if (tile.row != 0 || !tile.exists()) return;
    const i64 size = i64(a.planes) * a.chunks;
#pragma unroll
    for (int k = 0; k < S::SUMS; ++k) {
        float* to = static_cast<float*>(a.partials) + (tile.plane + tile.column * S::SUMS + k) * a.chunks + piece;
        to[0] = m[k].high, to[size] = m[k].low, to[2 * size] = m[k].squares;
    }
}

// Statistics of groups of a.group planes from their pieces. Grid: groups.
DEVICE void combine_moments(const Args& a) {
    SHARED(float, scratch, BLOCK_SUMS);
    SHARED(float, totals, 2 * PLANES);
    const int t = int(threadIdx.x);
    const i64 first = i64(blockIdx.x) * a.group;
    const Moments m = merge_partials(a, first * a.chunks, a.group * a.chunks, t, int(blockDim.x), [&](float v) {
        float sum[1] = {v};
        block_sums(sum, scratch, totals, 0);
        return sum[0];
    });
    const Stats s = close_group(a, m);
    for (int i = t; i < a.group; i += int(blockDim.x)) store_stats(a, first + i, s);
}

}  // namespace norms
