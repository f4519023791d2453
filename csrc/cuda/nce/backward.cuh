// Gradients of negatives (or of k, whose rows are the negatives of the others in their image) and of log weights: each tile
// of logits is computed again. A block owns keys and goes over all queries that meet them, one tile after the other, so
// nothing is added up by atomics. Blocks beyond these do rows (backward_rows.cuh): one launch for all gradients.
//
// With row gradient g_i, a_i the derivative of loss i by its log-sum-exp, and p_ij = exp(z_ij - lse_i), the gradients of
// the logits are dz_ij = g_i a_i p_ij for negatives and -g_i a_i for the positive, which enters in float32 at the end.
#pragma once
#include "nce/backward_rows.cuh"
#include "nce/logits.cuh"
#include "nce/tile.cuh"

namespace nce {

// What a key's gradient is made of: the sum of its queries, `columns` of it, times `weight`; the weight of its own query,
// where it is a positive too; key_hat times the gradient of key_hat.
struct Key {
    const float* queries;
    int columns;
    float weight, own_weight, dot, norm, inverse;
};

template <class T, int N> DEVICE void emit_key(const Args& a, const T* key, const T* own, T* to, const Key& of) {
    const Through through(a, of.dot, of.norm, of.inverse);
    const bool zeros = a.normalize && of.norm == 0.0f;
    each_column<N>(of.columns, [&](int c) {
        float x[N], y[N] = {};
        unpack(load_global<T, N>(key + c), x);
        if (own) unpack(load_global<T, N>(own + c), y);
#pragma unroll
        for (int e = 0; e < N; ++e) x[e] = held<T>(through((of.queries[c + e] * of.weight - y[e] * of.own_weight) * a.scale, x[e]), zeros);
        store_global(to + c, pack<T, N>(x));
    });
}

// What the weights of 16-bit tiles are divided by: max |g_i a_i| of a problem's queries. A mean's gradients of rows may be
// below what float16 holds. Needed by float16 alone. parts: WARPS floats.
template <class T> DEVICE float largest_factor(const Args& a, i64 first, int queries, float* parts) {
    if constexpr (!IS_HALF<T>) return 1.0f;
    float peak = 0;
    for (int i = int(threadIdx.x); i < queries; i += THREADS) peak = fmaxf(peak, fabsf(row_factor(a, first + i)));
    peak = lane_max<32>(peak);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = peak;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; ++w) peak = fmaxf(peak, parts[w]);
    return peak > 1e-30f && peak < infinity() ? peak : 1.0f;
}

// Of a query: what its logits' gradients are multiplied by, what is subtracted from them, 1 / (norm + eps).
struct Query { float factor, base, inverse; };

template <class T, int COLUMNS, int ROWS> DEVICE void keys_of(const Args& a) {
    using S = Tile<T, COLUMNS, ROWS>;
    SHARED(Pair, row_pairs, ROWS);  // of each key and its own query; of a negative with itself
    SHARED(float, dot_parts, ROWS * WARPS);
    SHARED(float, peaks, WARPS);
    SHARED(Query, query, S::OTHERS);
    const Work w(a);
    const Logits logits(a, w.l);
    const int queries = a.queries[w.l], keys = a.keys[w.l], width = a.width[w.l], j0 = w.tile * ROWS, t = int(threadIdx.x);
    const i64 first_key = i64(w.problem) * keys + j0, first = i64(w.problem) * queries, first_row = a.first_row[w.l] + first;
    const T *key = row_at<T>(logits.in_image ? a.k[w.l] : a.negatives[w.l], first_key, width);
    const T* across = row_at<T>(a.q[w.l], first, width);
    const S tile(a, w, key, keys - j0, across, queries);
    tile.begin();
    for (int r = tile.warp; r < tile.own_count; r += WARPS) {
        const i64 from = i64(r) * width;
        const Pair p = pair_of<T>(a, logits.in_image ? across + i64(j0 + r) * width : key + from, key + from, width, tile.wide);
        if (tile.lane == 0) row_pairs[r] = p;
    }
    const float largest = largest_factor<T>(a, first_row, queries, peaks), shrink = 1.0f / largest;

    T* to = static_cast<T*>(logits.in_image ? a.dk[w.l] : a.dnegatives[w.l]);
    float* dlog_weight = w.chunk == 0 ? static_cast<float*>(a.dlog_weight[w.l]) : nullptr;
    const float* stats = static_cast<const float*>(a.stats) + first_row;
    float s[S::M][S::TILES][4] = {}, out[S::M][S::OUT][4] = {}, dot[S::M][2] = {};
    for (int slab = 0; slab < tile.slabs(); ++slab) {
        if (slab % tile.chunks == 0 && t < S::OTHERS) {
            const int i = tile.first_other(slab) + t;
            const bool exists = i < queries;
            const float lse = exists ? stats[LSE * a.total + i] : 0.0f;
            query[t].factor = exists ? row_factor(a, first_row + i) : 0.0f;
            query[t].base = lse == -infinity() ? 0.0f : lse;  // of a row without negatives every exponential is 0
            query[t].inverse = exists ? stats[INVERSE_NORM * a.total + i] : 0.0f;
        }
        tile.wait();
        tile.multiply_rows(slab, s);
        if (!tile.last(slab)) {
            tile.release(slab);
            continue;
        }
        const int i0 = tile.first_other(slab);
#pragma unroll
        for (int m = 0; m < S::M; ++m)
#pragma unroll
            for (int n = 0; n < S::TILES; ++n)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int r = tile.row(m, 2 * h), j = j0 + r;
                    float d[2];
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const int o = tile.other(n, e), i = i0 + o;
                        const bool there = logits.pair(i, j);
                        const Logit v = logits(s[m][n][2 * h + e], i, j, int(first) + i, query[o].inverse, row_pairs[r].k_inverse);
                        // a logit is at most its row's log-sum-exp, but for its rounding, which may be another here; NaN passes
                        const float above = v.z - query[o].base, dz = there ? expf(above > 0.0f ? 0.0f : above) * query[o].factor : 0.0f;
                        if (dlog_weight && i < queries && j < keys) dlog_weight[(first + i) * keys + j] = dz;
                        dot[m][h] += dz * v.s;
                        d[e] = dz * v.m * shrink;
                        if (!S::SCALED && a.normalize && there) d[e] *= query[o].inverse;
                        s[m][n][2 * h + e] = 0;
                    }
                    tile.put_weights(m, n, 2 * h, d[0], d[1]);
                }
        if (S::SCALED && a.normalize && to) {
            __syncthreads();  // all have multiplied the rows as they were
            tile.scale_others(slab, [&](int o) { return query[o].inverse; });
        }
        __syncthreads();
        if (to) tile.sum_others(slab, out);
        tile.release(slab);
    }
    if (!to) return;

    tile.put_row_parts(dot_parts, dot);
    const float* staged = tile.staged(out);
    __syncthreads();
    for (int r = tile.warp; r < tile.own_count; r += WARPS) {
        const Pair p = row_pairs[r];
        const float f = logits.in_image ? row_factor(a, first_row + j0 + r) : 0.0f;
        const float all = row_sum(dot_parts, r) - (logits.in_image ? f * p.positive : 0.0f);
        const int c0 = w.chunk * COLUMNS, columns = min(width - c0, COLUMNS);
        const i64 from = i64(r) * width + c0;
        const Key of{staged + r * S::LINE, columns, largest, f * p.q_inverse, all, p.k_norm, p.k_inverse};
        const T* own = logits.in_image ? tile.others + i64(j0) * width + from : nullptr;
        T* at = to + first_key * width + from;
        if (tile.wide) emit_key<T, S::N>(a, tile.own + from, own, at, of);
        else emit_key<T, 1>(a, tile.own + from, own, at, of);
    }
}

template <class T, int COLUMNS, int ROWS> DEVICE void backward(const Args& a) {
    if (int(blockIdx.x) < a.tile_blocks) keys_of<T, COLUMNS, ROWS>(a);
    else rows_of<T>(a, int(blockIdx.x) - a.tile_blocks);
}

}  // namespace nce
