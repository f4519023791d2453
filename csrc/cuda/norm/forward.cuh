// Forward. forward_held keeps a group's planes in a cluster of blocks: x is read once, y written once, in one launch.
// Groups that no cluster holds go in two sweeps: chunk_moments (moments.cuh), then forward_apply, which merges the
// pieces itself where they are few and else finds them merged by combine_moments.
#pragma once
#include "norm/moments.cuh"
#include "norm/output.cuh"

namespace norms {

// M: elements of an access to y where it is padded and contiguous, else not used.
template <class T, int N, bool LAST, int ACTIVATION, bool PADDED, int RESIDUAL, int M, int PER, class G>
DEVICE void emit_any(const Args& a, const Tile<T, N, LAST>& tile, const Affine (&p)[Tile<T, N, LAST>::SUMS], int piece, int pieces, G get) {
    if constexpr (PADDED && !LAST) emit_padded<T, N, M, ACTIVATION, RESIDUAL>(a, tile, p[0], piece, pieces);
    else emit<T, N, LAST, ACTIVATION, PADDED, RESIDUAL, PER>(a, tile, p, get);
}
// Each plane's coefficients, by one thread, and those of its own planes in every thread.
template <int K> DEVICE void share(const Affine* all, int column, Affine (&own)[K]) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) own[k] = all[column * K + k];
}

// a.y null: statistics alone. Grid: groups times the cluster.
template <class T, int N, bool LAST, int ACTIVATION, bool PADDED, int RESIDUAL, int M, int PER> DEVICE void forward_held(const Args& a) {
    using S = Tile<T, N, LAST>;
    constexpr int K = S::SUMS;
    SHARED(float, scratch, BLOCK_SUMS);
    SHARED(float, totals, 2 * PLANES);
    SHARED(float, part, 3 * PLANES);  // this piece's moments, for the other blocks
    SHARED(Affine, coefficient, PLANES);
    const int rank = cluster_rank(), blocks = cluster_size(), t = int(threadIdx.x);
    const S tile(a, blockIdx.x / u32(blocks), rank);
    Kept<T, N, PER> kept;
    kept.in_shared = dynamic_shared<Pack<T, N>>();
    Moments m[K];
    piece_moments(a, tile, kept, positions(a, rank), scratch, totals, m);
    if (tile.row == 0)
#pragma unroll
        for (int k = 0; k < K; ++k) {
            float* to = part + tile.column * K + k;
            to[0] = m[k].high, to[PLANES] = m[k].low, to[2 * PLANES] = m[k].squares;
        }
    cluster_arrive();
    cluster_wait();
    if (t < tile.group) {
        const Moments all = merge(
            blocks, a.count, 0, 1, [&](int r) { return Moments{remote(part + t, r), remote(part + PLANES + t, r), remote(part + 2 * PLANES + t, r)}; },
            [&](int r) { return positions(a, r); }, [](float v) { return v; });
        const Stats s = close_group(a, all);
        if (rank == 0) store_stats(a, tile.plane + t, s);
        coefficient[t] = affine(a, s, tile.n, int(tile.plane + t - i64(tile.n) * a.channels));
    }
    cluster_arrive();  // this block has read what it needs of the others; they may end once all have
    if (a.y) {
        Affine own[K];
        share(coefficient, tile.column, own);
        emit_any<T, N, LAST, ACTIVATION, PADDED, RESIDUAL, M, PER>(a, tile, own, rank, blocks, [&](int k, int item, float (&f)[N]) { kept.get(tile, k, item, f); });
    }
    cluster_wait();
}

// Grid: groups times chunks, the last first: what chunk_moments read last is still in the cache.
template <class T, int N, bool LAST, int ACTIVATION, bool PADDED, int RESIDUAL, int M, int PER> DEVICE void forward_apply(const Args& a) {
    using S = Tile<T, N, LAST>;
    SHARED(Affine, coefficient, PLANES);
    const u32 block = gridDim.x - 1 - blockIdx.x;
    const int piece = int(block % u32(a.chunks)), t = int(threadIdx.x);
    const S tile(a, block / u32(a.chunks), piece);
    const T* x = static_cast<const T*>(a.x);
    for (int i = t / 32; i < tile.group; i += int(blockDim.x) / 32) {  // a plane to a warp
        const i64 plane = tile.plane + i;
        Stats s;
        if (a.partials) {
            s = close_group(a, merge_partials(a, plane * a.chunks, a.chunks, t % 32, 32, warp_sum));
            if (piece == 0 && t % 32 == 0) store_stats(a, plane, s);
        } else {
            s = load_stats(a, plane);
        }
        if (t % 32 == 0) coefficient[i] = affine(a, s, tile.n, int(plane - i64(tile.n) * a.channels));
    }
    Affine own[S::SUMS];
    share(coefficient, tile.column, own);
    emit_any<T, N, LAST, ACTIVATION, PADDED, RESIDUAL, M, PER>(a, tile, own, piece, a.chunks, [&](int, int item, float (&f)[N]) { unpack(load_global<T, N>(x + tile.at(a, item)), f); });
}

}  // namespace norms
