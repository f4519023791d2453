// Backward: the sums of each plane, then dx; held in a cluster of blocks or in two sweeps, as forward.
#pragma once
#include "norm/moments.cuh"
#include "norm/output.cuh"

namespace norms {

// What the activation's gradient and the sums need of a plane.
struct Plane { Affine affine; float low, rstd; };

template <class S> DEVICE void load_planes(const Args& a, const S& tile, Plane (&own)[S::SUMS]) {
#pragma unroll
    for (int k = 0; k < S::SUMS; ++k) {
        const bool exists = tile.exists();
        const Stats s = exists ? load_stats(a, tile.plane + tile.column * S::SUMS + k) : Stats{0.0f, 0.0f, 0.0f, 0.0f};
        own[k] = {exists ? affine(a, s, tile.n, tile.c + k) : Affine{0.0f, 0.0f, 0.0f}, s.low, s.rstd};
    }
}

// The gradients of all padded positions that show position (h, w), added up: EACH neighbouring channels at once.
template <class T, int EACH> DEVICE void folded(const Args& a, const T* from, int h, int w, int step, float (&sum)[EACH]) {
#pragma unroll
    for (int k = 0; k < EACH; ++k) sum[k] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < 3; ++i) {
        const int row = shown(i, h, a.height, a.padding);
        if (row < 0) continue;
#pragma unroll 1
        for (int j = 0; j < 3; ++j) {
            const int column = shown(j, w, a.width, a.padding);
            if (column < 0) continue;
            float f[EACH];
            unpack(load_global<T, EACH>(from + (i64(row) * (a.width + 2 * a.padding) + column) * step), f);
#pragma unroll
            for (int k = 0; k < EACH; ++k) sum[k] += f[k];
        }
    }
}
// The gradient that reaches an item: with padding, that of all positions that show it, gathered again whenever it is
// asked for. Contiguous, most vectors lie where every position is shown once; one loop serves the others, for the code of
// nine loads for each of N elements is more than the instruction cache holds (4,200 to 7,900 instructions were seen).
template <class T, int N, bool LAST, bool PADDED> DEVICE void gradient(const Args& a, const Tile<T, N, LAST>& tile, int item, float (&g)[N]) {
    const T* grad = static_cast<const T*>(a.grad);
    if constexpr (!PADDED) {
        unpack(load_global<T, N>(grad + tile.at(a, item)), g);
        return;
    }
    const T* from = grad + tile.start(a, a.out_length);
    const int p = a.padding, position = LAST ? item : item * N;
    int h = position / a.width, w = position - h * a.width;
    if constexpr (LAST) {
        folded<T, N>(a, from, h, w, a.channels, g);
    } else if (h > p && h < a.height - 1 - p && w > p && w + N <= a.width - 1 - p) {
        from += i64(h + p) * (a.width + 2 * p) + w + p;
#pragma unroll
        for (int e = 0; e < N; ++e) g[e] = load_one(from + e);
    } else {
#pragma unroll 1
        for (int e = 0; e < N; ++e) {
            float sum[1];
            folded<T, 1>(a, from, h, w, 1, sum);
#pragma unroll
            for (int k = 0; k < N; ++k) g[k] = k == e ? sum[0] : g[k];  // an index would put g into memory
            if (++w == a.width) w = 0, ++h;
        }
    }
}
// Whether a block keeps x and the gradient from the sums to dx. A padded contiguous gradient would be gathered again
// anyway, in a loop that is not unrolled: there both are read again, from cache.
template <bool LAST, bool PADDED> constexpr bool KEEPS = LAST || !PADDED;
template <class T, int N, bool LAST, bool PADDED, int PER, class F> DEVICE void each_item(const Tile<T, N, LAST>& tile, F visit) {
    if constexpr (KEEPS<LAST, PADDED>) tile.template each<PER>(visit);
    else tile.template each<0, 1>(visit);
}

// Adds a vector to the sums of g' and of g' * d; with padding stores the residual's gradient on the way.
template <class T, int N, bool LAST, int ACTIVATION, bool PADDED>
DEVICE void add(const Args& a, const Tile<T, N, LAST>& tile, const Plane (&own)[Tile<T, N, LAST>::SUMS], int item, const float (&f)[N], const float (&g)[N],
                float (&sums)[2 * Tile<T, N, LAST>::SUMS]) {
    constexpr int K = Tile<T, N, LAST>::SUMS;
    if constexpr (PADDED)
        if (a.dresidual) store_global(static_cast<T*>(a.dresidual) + tile.at(a, item), pack<T, N>(g));
#pragma unroll
    for (int e = 0; e < N; ++e) {
        const int k = LAST ? e : 0;
        const float d = f[e] - own[k].affine.high, through = activation_gradient<ACTIVATION>(g[e], apply(own[k].affine, d), a.slope);
        sums[k] += through;
        sums[K + k] = multiply_add(through, d, sums[K + k]);
    }
}
template <class T, int N, bool LAST, int ACTIVATION>
DEVICE void store_dx(const Args& a, const Tile<T, N, LAST>& tile, const Plane (&own)[Tile<T, N, LAST>::SUMS], const Coefficients (&c)[Tile<T, N, LAST>::SUMS],
                     int item, float (&f)[N], const float (&g)[N]) {
#pragma unroll
    for (int e = 0; e < N; ++e) {
        const int k = LAST ? e : 0;
        const float d = f[e] - own[k].affine.high;
        f[e] = dx(c[k], activation_gradient<ACTIVATION>(g[e], apply(own[k].affine, d), a.slope), d);
    }
    store_global(static_cast<T*>(a.dx) + tile.at(a, item), pack<T, N>(f));
}
DEVICE Sums plane_sums(const Stats& s, float g, float gd) { return {g, (gd - s.low * g) * s.rstd}; }
DEVICE void store_sums(const Args& a, i64 plane, const Sums& s) {
    if (a.dscale) static_cast<float*>(a.dscale)[plane] = s.gx;
    if (a.dshift) static_cast<float*>(a.dshift)[plane] = s.g;
}

// Grid: groups times the cluster.
template <class T, int N, bool LAST, int ACTIVATION, bool PADDED, int PER> DEVICE void backward_held(const Args& a) {
    using S = Tile<T, N, LAST>;
    constexpr int K = S::SUMS;
    SHARED(float, scratch, BLOCK_SUMS);
    SHARED(float, totals, 2 * PLANES);
    SHARED(float, part, 2 * PLANES);
    SHARED(Coefficients, coefficient, PLANES);
    const int rank = cluster_rank(), blocks = cluster_size(), t = int(threadIdx.x);
    const S tile(a, blockIdx.x / u32(blocks), rank);
    const T *x = static_cast<const T*>(a.x);
    Kept<T, N, PER> kept_x, kept_g;  // a padded gradient is not kept
    kept_x.in_shared = dynamic_shared<Pack<T, N>>();
    kept_g.in_shared = kept_x.in_shared + (LAST ? a.span << a.log_columns : a.span / N);
    Plane own[K];
    load_planes(a, tile, own);
    float sums[2 * K] = {};
    each_item<T, N, LAST, PADDED, PER>(tile, [&](int k, int item) {
        const Pack<T, N> v = load_global<T, N>(x + tile.at(a, item));
        if constexpr (KEEPS<LAST, PADDED>) kept_x.put(tile, k, item, v);
        float f[N], g[N] = {};
        unpack(v, f);
        if constexpr (PADDED) {
            gradient<T, N, LAST, true>(a, tile, item, g);
        } else {
            const Pack<T, N> u = load_global<T, N>(static_cast<const T*>(a.grad) + tile.at(a, item));
            kept_g.put(tile, k, item, u);
            unpack(u, g);
        }
        add<T, N, LAST, ACTIVATION, PADDED>(a, tile, own, item, f, g, sums);
    });
    block_sums(sums, scratch, totals, a.log_columns);
    if (tile.row == 0)
#pragma unroll
        for (int k = 0; k < K; ++k) part[tile.column * K + k] = sums[k], part[PLANES + tile.column * K + k] = sums[K + k];
    cluster_arrive();
    cluster_wait();
    if (t < tile.group) {
        float g = 0.0f, gd = 0.0f;
        for (int r = 0; r < blocks; ++r) g += remote(part + t, r), gd += remote(part + PLANES + t, r);
        const Stats s = load_stats(a, tile.plane + t);
        const Sums plane = plane_sums(s, g, gd);
        if (rank == 0) store_sums(a, tile.plane + t, plane);
        const float scale = scale_of(a, tile.n, int(tile.plane + t - i64(tile.n) * a.channels));
        coefficient[t] = dx_coefficients(a, s, scale, {scale * plane.g, scale * plane.gx});
    }
    cluster_arrive();
    __syncthreads();
    Coefficients c[K];
#pragma unroll
    for (int k = 0; k < K; ++k) c[k] = coefficient[tile.column * K + k];
    each_item<T, N, LAST, PADDED, PER>(tile, [&](int k, int item) {
        float f[N], g[N] = {};
        if constexpr (KEEPS<LAST, PADDED>) kept_x.get(tile, k, item, f);
        else unpack(load_global<T, N>(x + tile.at(a, item)), f);
        if constexpr (PADDED) gradient<T, N, LAST, true>(a, tile, item, g);
        else kept_g.get(tile, k, item, g);
        store_dx<T, N, LAST, ACTIVATION>(a, tile, own, c, item, f, g);
    });
    cluster_wait();
}

// ---- two sweeps ------------------------------------------------------------------------------------------------------

// a.partials (2, planes, chunks): sums of g' and of g' * d of each piece. Grid: groups times chunks.
template <class T, int N, bool LAST, int ACTIVATION, bool PADDED, int PER> DEVICE void chunk_sums(const Args& a) {
    using S = Tile<T, N, LAST>;
    constexpr int K = S::SUMS;
    SHARED(float, scratch, BLOCK_SUMS);
    SHARED(float, totals, 2 * PLANES);
    const i64 piece = blockIdx.x % u32(a.chunks);
    const S tile(a, blockIdx.x / u32(a.chunks), piece);
    Plane own[K];
    load_planes(a, tile, own);
    float sums[2 * K] = {};
    each_item<T, N, LAST, PADDED, PER>(tile, [&](int, int item) {
        float f[N], g[N] = {};
        unpack(load_global<T, N>(static_cast<const T*>(a.x) + tile.at(a, item)), f);
        gradient<T, N, LAST, PADDED>(a, tile, item, g);
        add<T, N, LAST, ACTIVATION, PADDED>(a, tile, own, item, f, g, sums);
    });
    block_sums(sums, scratch, totals, a.log_columns);
    if (tile.row != 0 || !tile.exists()) return;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        float* to = static_cast<float*>(a.partials) + (tile.plane + tile.column * K + k) * a.chunks + piece;
        to[0] = sums[k], to[i64(a.planes) * a.chunks] = sums[K + k];
    }
}
// Sums of a plane's pieces, by a warp.
DEVICE Sums merge_sums(const Args& a, i64 plane, const Stats& s, int lane) {
    const float* from = static_cast<const float*>(a.partials) + plane * a.chunks;
    float g = 0.0f, gd = 0.0f;
    for (int j = lane; j < a.chunks; j += 32) g += from[j], gd += from[i64(a.planes) * a.chunks + j];
    g = warp_sum(g), gd = warp_sum(gd);
    return plane_sums(s, g, gd);
}
// a.sums (2, groups): of scale * g' and scale * g' * x_hat over the planes of a group; each plane's own go to dscale and
// dshift. Grid: groups.
DEVICE void combine_sums(const Args& a) {
    SHARED(float, scratch, BLOCK_SUMS);
    SHARED(float, totals, 2 * PLANES);
    const int lane = int(threadIdx.x) % 32;
    float sums[2] = {};
    for (int i = int(threadIdx.x) / 32; i < a.group; i += int(blockDim.x) / 32) {
        const i64 plane = i64(blockIdx.x) * a.group + i;
        const Sums s = merge_sums(a, plane, load_stats(a, plane), lane);
        if (lane != 0) continue;
        store_sums(a, plane, s);
        const float scale = scale_of(a, int(plane / a.channels), int(plane % a.channels));
        sums[0] = multiply_add(scale, s.g, sums[0]), sums[1] = multiply_add(scale, s.gx, sums[1]);
    }
    block_sums(sums, scratch, totals, 0);
    float* to = static_cast<float*>(a.sums) + blockIdx.x;
    if (threadIdx.x == 0) to[0] = sums[0], to[gridDim.x] = sums[1];
}
// dx from the sums of pieces, merged here, or where a.partials is null from those of groups. Grid: as forward_apply.
template <class T, int N, bool LAST, int ACTIVATION, bool PADDED, int PER> DEVICE void backward_apply(const Args& a) {
    using S = Tile<T, N, LAST>;
    constexpr int K = S::SUMS;
    SHARED(Coefficients, coefficient, PLANES);
    const u32 block = gridDim.x - 1 - blockIdx.x;
    const int piece = int(block % u32(a.chunks)), t = int(threadIdx.x);
    const S tile(a, block / u32(a.chunks), piece);
    for (int i = t / 32; i < tile.group; i += int(blockDim.x) / 32) {
        const i64 plane = tile.plane + i, groups = a.planes / a.group;
        const Stats s = load_stats(a, plane);
        const float scale = scale_of(a, tile.n, int(plane - i64(tile.n) * a.channels));
        Sums group;
        if (a.partials) {
            const Sums own = merge_sums(a, plane, s, t % 32);
            if (piece == 0 && t % 32 == 0) store_sums(a, plane, own);
            group = {scale * own.g, scale * own.gx};
        } else {
            const float* from = static_cast<const float*>(a.sums) + plane / a.group;
            group = {from[0], from[groups]};
        }
        if (t % 32 == 0) coefficient[i] = dx_coefficients(a, s, scale, group);
    }
    Plane own[K];
    load_planes(a, tile, own);
    __syncthreads();
    Coefficients c[K];
#pragma unroll
    for (int k = 0; k < K; ++k) c[k] = coefficient[tile.column * K + k];
    each_item<T, N, LAST, PADDED, PER>(tile, [&](int, int item) {
        float f[N], g[N] = {};
        unpack(load_global<T, N>(static_cast<const T*>(a.x) + tile.at(a, item)), f);
        gradient<T, N, LAST, PADDED>(a, tile, item, g);
        store_dx<T, N, LAST, ACTIVATION>(a, tile, own, c, item, f, g);
    });
}
// dx from the gradients of each plane's own mean and sqrt(unbiased variance + eps): linear in d. Grid: groups times chunks.
template <class T, int N, bool LAST, int PER> DEVICE void moments_backward(const Args& a) {
    using S = Tile<T, N, LAST>;
    constexpr int K = S::SUMS;
    const S tile(a, blockIdx.x / u32(a.chunks), blockIdx.x % u32(a.chunks));
    float high[K], slope[K], constant[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const i64 plane = tile.plane + tile.column * K + k;
        high[k] = slope[k] = constant[k] = 0.0f;
        if (!tile.exists()) continue;
        const Stats s = load_stats(a, plane);
        high[k] = s.high;
        slope[k] = static_cast<const float*>(a.grad_std)[plane] * s.rstd / (a.count - 1.0f);
        constant[k] = static_cast<const float*>(a.grad_mean)[plane] / a.count - slope[k] * s.low;
    }
    tile.template each<PER>([&](int, int item) {
        float f[N];
        unpack(load_global<T, N>(static_cast<const T*>(a.x) + tile.at(a, item)), f);
#pragma unroll
        for (int e = 0; e < N; ++e) f[e] = multiply_add(f[e] - high[LAST ? e : 0], slope[LAST ? e : 0], constant[LAST ? e : 0]);
        store_global(static_cast<T*>(a.dx) + tile.at(a, item), pack<T, N>(f));
    });
}

}  // namespace norms
