// Losses, their statistics, and the gradient of each query for a row gradient of 1, all in one launch: the matrix of logits
// never reaches memory. With more keys than a tile holds, the log-sum-exp and the gradient are rescaled when a maximum
// grows (Milakov and Gimelshein 2018, arXiv 1805.02867).
//
//   d loss_i / d q_hat_i = pull_i / T * (sum_j p_ij m_ij k_hat_j - k_hat_i),  pull_i = sigmoid(lse_i - positive_i) or 1
//
// The positive's part never enters a product of 16-bit tiles: p - 1 rounded to 16 bits would leave nothing of a small
// difference.
#pragma once
#include "nce/logits.cuh"
#include "nce/tile.cuh"

namespace nce {

// What a row's sums over its negatives come to.
struct Row {
    float lse, pull, loss;
    DEVICE Row(const Args& a, float top, float sum, float positive) {
        lse = finite_or_zero(top) + logf(sum);
        const float margin = lse - positive, e = expf(-fabsf(margin));
        loss = a.decoupled ? margin : (margin > 0.0f ? margin : 0.0f) + log1pf(e);
        pull = a.decoupled ? 1.0f : (margin > 0.0f ? 1.0f : e) / (1.0f + e);
    }
};

// A row's sums over its negatives: of keys, `columns` of them; of exponentials; of these times similarity - positive.
struct Sums {
    const float* keys;
    int columns;
    float total, dot;
};

// The gradient of q, of these columns.
template <class T, int N> DEVICE void emit_unit(const Args& a, const T* q, const T* k, float* unit, const Sums& sums, const Pair& p, float pull) {
    // a row without negatives: its sums are 0; what the normalisation takes back is then the positive's part alone
    const float one = sums.total == 0.0f ? 0.0f : 1.0f / sums.total, weight = pull * a.scale;
    const Through through(a, pull * (sums.total == 0.0f ? -p.positive : sums.dot * one), p.q_norm, p.q_inverse);
    each_column<N>(sums.columns, [&](int c) {
        float x[N], y[N];
        unpack(load_global<T, N>(q + c), x);
        unpack(load_global<T, N>(k + c), y);
#pragma unroll
        for (int e = 0; e < N; ++e) x[e] = through((sums.keys[c + e] * one - y[e] * p.k_inverse) * weight, x[e]);
        constexpr int EACH = N < 4 ? N : 4;
#pragma unroll
        for (int v = 0; v < N; v += EACH) {
            float f[EACH];
#pragma unroll
            for (int e = 0; e < EACH; ++e) f[e] = x[v + e];
            store_global(unit + c + v, pack<float, EACH>(f));
        }
    });
}

template <class T, int COLUMNS, int ROWS> DEVICE void forward(const Args& a) {
    using S = Tile<T, COLUMNS, ROWS>;
    SHARED(Pair, row_pairs, ROWS);
    SHARED(float, row_tops, ROWS);
    SHARED(float, squares, THREADS);
    SHARED(float, warp_tops, ROWS * WARPS);
    SHARED(float, sum_parts, ROWS * WARPS);
    SHARED(float, dot_parts, ROWS * WARPS);
    const Work w(a);
    const Logits logits(a, w.l);
    const int queries = a.queries[w.l], keys = a.keys[w.l], width = a.width[w.l];
    const int i0 = w.tile * ROWS, first = w.problem * queries + i0;  // of the problem, of the layer
    const T *q = row_at<T>(a.q[w.l], first, width), *k = row_at<T>(a.k[w.l], first, width);
    const T* across = row_at<T>(logits.in_image ? a.k[w.l] : a.negatives[w.l], i64(w.problem) * keys, width);
    const S tile(a, w, q, queries - i0, across, keys);
    tile.begin();
    for (int r = tile.warp; r < tile.own_count; r += WARPS) {
        const Pair p = pair_of<T>(a, q + i64(r) * width, k + i64(r) * width, width, tile.wide);
        if (tile.lane == 0) row_pairs[r] = p;
    }

    float* unit = static_cast<float*>(a.unit[w.l]);
    float s[S::M][S::TILES][4] = {}, out[S::M][S::OUT][4] = {}, top[S::M][2], sum[S::M][2] = {}, dot[S::M][2] = {}, part = 0;
#pragma unroll
    for (int m = 0; m < S::M; ++m) top[m][0] = top[m][1] = -infinity();
    for (int slab = 0; slab < tile.slabs(); ++slab) {
        tile.wait();
        if (a.normalize) part += tile.squares(slab);
        tile.multiply_rows(slab, s);
        if (!tile.last(slab)) {
            tile.release(slab);
            continue;
        }
        if (a.normalize) {
            squares[threadIdx.x] = part, part = 0;
            __syncthreads();
        }
        const auto key_inverse = [&](int o) { return a.normalize ? inverse_norm(sqrtf(S::whole(squares, o)), 1) : 1.0f; };
        float by[S::TILES][2];
#pragma unroll
        for (int n = 0; n < S::TILES; ++n) by[n][0] = key_inverse(tile.other(n, 0)), by[n][1] = key_inverse(tile.other(n, 1));
        // twice rather than kept: logits, similarities and weights would take three times the registers
        const auto logit = [&](int m, int n, int e) {
            const int r = tile.row(m, e), i = i0 + r;
            return logits(s[m][n][e], i, tile.first_other(slab) + tile.other(n, e), first + r, row_pairs[r].q_inverse, by[n][e % 2]);
        };
#pragma unroll
        for (int m = 0; m < S::M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float high = -infinity();
#pragma unroll
                for (int n = 0; n < S::TILES; ++n) high = fmaxf(fmaxf(high, logit(m, n, 2 * h).z), logit(m, n, 2 * h + 1).z);
                high = lane_max<4>(high);
                if (tile.pair == 0) warp_tops[tile.row(m, 2 * h) * WARPS + tile.warp] = high;
            }
        __syncthreads();
        if (S::SCALED && a.normalize && unit) tile.scale_others(slab, key_inverse);
#pragma unroll
        for (int m = 0; m < S::M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = tile.row(m, 2 * h);
                const float positive = row_pairs[r].positive;
                float higher = top[m][h];
#pragma unroll
                for (int v = 0; v < WARPS; ++v) higher = fmaxf(higher, warp_tops[r * WARPS + v]);
                // NaN enters the sums by its own exponential
                const float base = finite_or_zero(higher), keep = expf(top[m][h] - base);
                top[m][h] = higher, sum[m][h] *= keep, dot[m][h] *= keep;
#pragma unroll
                for (int n = 0; n < S::OUT; ++n) out[m][n][2 * h] *= keep, out[m][n][2 * h + 1] *= keep;
#pragma unroll
                for (int n = 0; n < S::TILES; ++n) {
                    float p[2];
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const Logit v = logit(m, n, 2 * h + e);
                        p[e] = expf(v.z - base);
                        sum[m][h] += p[e], dot[m][h] += p[e] * (v.s - positive);
                        p[e] *= v.m;
                        if (!S::SCALED) p[e] *= by[n][e];
                        s[m][n][2 * h + e] = 0;
                    }
                    tile.put_weights(m, n, 2 * h, p[0], p[1]);
                }
            }
        __syncthreads();
        if (unit) tile.sum_others(slab, out);
        tile.release(slab);
    }

    tile.put_row_parts(sum_parts, sum), tile.put_row_parts(dot_parts, dot);
    if (tile.warp == 0 && tile.pair == 0)
#pragma unroll
        for (int m = 0; m < S::M; ++m) row_tops[tile.row(m, 0)] = top[m][0], row_tops[tile.row(m, 2)] = top[m][1];
    const float* staged = tile.staged(out);
    __syncthreads();
    for (int r = tile.warp; r < tile.own_count; r += WARPS) {
        const Pair p = row_pairs[r];
        const float total = row_sum(sum_parts, r);
        const Row row(a, row_tops[r], total, p.positive);
        const i64 at = i64(a.first_row[w.l]) + first + r;
        if (w.chunk == 0 && tile.lane == 0) {
            static_cast<float*>(a.loss)[at] = row.loss;
            float* stats = static_cast<float*>(a.stats) + at;
            stats[LSE * a.total] = row.lse, stats[LSE_GRAD * a.total] = row.pull, stats[INVERSE_NORM * a.total] = p.q_inverse;
        }
        if (!unit) continue;
        const int c0 = w.chunk * COLUMNS, columns = min(width - c0, COLUMNS);
        const i64 from = i64(r) * width + c0;
        const Sums sums{staged + r * S::LINE, columns, total, row_sum(dot_parts, r)};
        float* to = unit + i64(first) * width + from;
        if (tile.wide) emit_unit<T, S::N>(a, q + from, k + from, to, sums, p, row.pull);
        else emit_unit<T, 1>(a, q + from, k + from, to, sums, p, row.pull);
    }
}

}  // namespace nce
