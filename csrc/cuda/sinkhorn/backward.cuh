// Backward through every iteration: `sweep` goes through them in reverse, one problem to a cluster, and leaves the
// gradients of all potentials; then `gradient` adds up what each iteration contributes to an element.
#pragma once
#include "sinkhorn/problem.cuh"

namespace sinkhorns {

struct One { float v; };

template <class T> DEVICE void sweep(const Args& a) {
    SHARED(One, scratch, THREADS);
    const Problem<T> p(a);
    const int lane = int(threadIdx.x) % 32;
    const T* grad = static_cast<const T*>(a.grad) + p.start(a);
    const auto add = [](const One& v, const One& w) { return One{v.v + w.v}; };
    const int last = a.iterations - 1;
    float* kept = p.history(a, a.dpotentials, last);
    const auto keep_column = [&](int j, const One& sum) {  // of kept, and where it is held
        if (a.held) p.of_columns[j] = sum.v;
        if (p.rank == 0) kept[a.rows + j] = sum.v;
    };
    each_column(
        a, p, scratch, 0,
        [&](int j, int first, int step) {
            One s{0};
            for (int i = first; i < p.end; i += step) s.v += load_one(grad + i64(i) * a.columns + j);
            return s;
        },
        add, keep_column);
    for (int t = last; t >= 0; --t) {
        const float *of_rows = p.history(a, a.potentials, t), *of_columns = of_rows + a.rows;
        kept = p.history(a, a.dpotentials, t);
        const float* dcolumns = a.held ? p.of_columns : kept + a.rows;
        float* drows = a.held ? p.of_rows - p.begin : kept;
        each_row(p, [&](int i) {
            float total = 0;
            const float of_row = of_rows[i] + a.log_ratio;
            for (int j = lane; j < a.columns; j += 32) total -= expf(p.at(a, i, j) + of_row + of_columns[j]) * dcolumns[j];
            if (t == last)
                for (int j = lane; j < a.columns; j += 32) total += load_one(grad + i64(i) * a.columns + j);
            total = warp_sum(total);
            if (lane == 0) {
                drows[i] = total;
                if (a.held) kept[i] = total, (p.more_rows - p.begin)[i] = of_rows[i];
            }
        });
        __syncthreads();
        if (t == 0) break;
        kept = p.history(a, a.dpotentials, t - 1);
        const float* before = p.history(a, a.potentials, t - 1) + a.rows;
        const float* rows = a.held ? p.more_rows - p.begin : of_rows;
        each_column(
            a, p, scratch, (last - t + 1) & 1,
            [&](int j, int first, int step) {
                One s{0};
                for (int i = first; i < p.end; i += step) s.v -= expf(p.at(a, i, j) + before[j] + rows[i]) * drows[i];
                return s;
            },
            add, keep_column);
    }
    if (p.cluster > 1) {  // others read this block's parts
        cluster_arrive();
        cluster_wait();
    }
}

// A thread has PER rows of one column: a block of 128 threads 16 rows of 32 columns.
constexpr int PER = 4, TILE_ROWS = 16, TILE_COLUMNS = 32;
template <class T> DEVICE void gradient(const Args& a) {
    const int across = divide_up(a.columns, TILE_COLUMNS), tiles = divide_up(a.rows, TILE_ROWS) * across;
    const int problem = int(blockIdx.x) / tiles, tile = int(blockIdx.x) % tiles, t = int(threadIdx.x);
    const int j = tile % across * TILE_COLUMNS + t % 32, i0 = tile / across * TILE_ROWS + t / 32 * PER;
    if (j >= a.columns || i0 >= a.rows) return;
    const i64 start = i64(problem) * a.rows * a.columns + i64(i0) * a.columns + j, entry = i64(a.rows) + a.columns + 1;
    const float* kept = static_cast<const float*>(a.potentials) + problem * a.iterations * entry;
    const float* dkept = static_cast<const float*>(a.dpotentials) + problem * a.iterations * entry;
    float x[PER], total[PER], before = 0;
    int row[PER];
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        const bool there = i0 + k < a.rows;
        row[k] = there ? i0 + k : i0;
        x[k] = there ? load_one(static_cast<const T*>(a.log_kernel) + start + i64(k) * a.columns) : -infinity();
        total[k] = there ? load_one(static_cast<const T*>(a.grad) + start + i64(k) * a.columns) : 0.0f;
    }
    for (int step = 0; step < a.iterations; ++step, kept += entry, dkept += entry) {
        const float of_column = kept[a.rows + j], dcolumn = dkept[a.rows + j];
#pragma unroll
        for (int k = 0; k < PER; ++k) {
            const float of_row = kept[row[k]];
            total[k] -= expf(x[k] + before + of_row) * dkept[row[k]];
            total[k] -= expf(x[k] + (of_row + a.log_ratio) + of_column) * dcolumn;
        }
        before = of_column;
    }
    T* to = static_cast<T*>(a.dx) + start;
#pragma unroll
    for (int k = 0; k < PER; ++k)
        if (i0 + k < a.rows) store_one(to + i64(k) * a.columns, total[k]);
}

}  // namespace sinkhorns
