// What a block has of its problem, and sums over it.
//
// A problem is one cluster's: each block owns `span` rows and all columns. Sums along a row are a warp's; sums along a
// column are added up over threads, then over the cluster. Where `held`, a block's rows and what the halves of an iteration
// hand to one another are in shared memory; else the problem is one block's and these are in global memory, where the
// potentials are kept anyway. All orders are fixed.
#pragma once
#include "common/gpu.cuh"
#include "sinkhorn/args.h"

namespace sinkhorns {

using namespace gpu;

constexpr int THREADS = 512;

struct Sum { float most, total; };  // of log-sum-exp: the largest x, and the sum of exp(x - largest), which shows NaN
DEVICE float finite(float most) { return most == -infinity() ? 0.0f : most; }  // nothing but -inf so far: no inf - inf
DEVICE float close(const Sum& s) { return -(s.most + logf(s.total)); }

template <class T> struct Problem {
    int index, rank, cluster;
    int begin, end;  // rows
    const T* x;      // row `begin` of the log kernel
    // shared memory, where held: numbers of the own rows, two for each, and of all columns
    float *of_rows = nullptr, *more_rows = nullptr, *of_columns = nullptr;
    float* parts = nullptr;  // (2, 2, M): this block's part of the sums over columns, two halves that take turns
    i64 entry;               // numbers of an iteration

    DEVICE explicit Problem(const Args& a) {
        rank = cluster_rank(), cluster = cluster_size(), index = int(blockIdx.x) / cluster;
        begin = min(rank * a.span, a.rows), end = min(begin + a.span, a.rows), entry = i64(a.rows) + a.columns + 1;
        const T* from = static_cast<const T*>(a.log_kernel) + start(a) + i64(begin) * a.columns;
        x = from;
        if (!a.held) return;
        of_rows = dynamic_shared<float>(), more_rows = of_rows + a.span, of_columns = more_rows + a.span, parts = of_columns + a.columns;
        T* to = reinterpret_cast<T*>(parts + 4 * a.columns);
        for (int i = int(threadIdx.x); i < (end - begin) * a.columns; i += int(blockDim.x)) to[i] = from[i];
        x = to;
        __syncthreads();
    }
    DEVICE i64 start(const Args& a) const { return i64(index) * a.rows * a.columns; }
    DEVICE float at(const Args& a, int i, int j) const { return widen(x[i64(i - begin) * a.columns + j]); }
    DEVICE float* history(const Args& a, void* of, int t) const {
        return of ? static_cast<float*>(of) + (i64(index) * a.iterations + t) * entry : nullptr;
    }
};

DEVICE float warp_sum(float v) {
    for (int with = 16; with; with /= 2) v += shuffle_xor(v, with);
    return v;
}
DEVICE float warp_max(float v) {
    for (int with = 16; with; with /= 2) v = max(v, shuffle_xor(v, with));
    return v;
}
// f(i) for each of the block's rows, by a warp.
template <class T, class F> DEVICE void each_row(const Problem<T>& p, F f) {
    for (int i = p.begin + int(threadIdx.x) / 32; i < p.end; i += int(blockDim.x) / 32) f(i);
}
// Sums of V numbers over the columns of the cluster: part(j, first row, step) of one thread, join(V, V) of two of them, then
// finish(j, V), in each block for every column. `turn`: 0 and 1 by turns, so that one barrier of the cluster suffices.
template <class V, class T, class Part, class Join, class Finish>
DEVICE void each_column(const Args& a, const Problem<T>& p, V* scratch, int turn, Part part, Join join, Finish finish) {
    constexpr int WORDS = int(sizeof(V)) / 4;
    const int wide = 1 << a.log_threads, split = int(threadIdx.x) >> a.log_threads, splits = int(blockDim.x) >> a.log_threads;
    float* own = p.parts + turn * 2 * a.columns;  // a word of all columns, then the next
    for (int j0 = 0; j0 < a.columns; j0 += wide) {
        const int j = j0 + (int(threadIdx.x) & (wide - 1));
        V v{};
        if (j < a.columns) v = part(j, p.begin + split, splits);
        if (splits > 1) {  // then there is one j0
            scratch[threadIdx.x] = v;
            __syncthreads();
            if (split == 0)
                for (int s = 1; s < splits; ++s) v = join(v, scratch[threadIdx.x + (s << a.log_threads)]);
        }
        if (split > 0 || j >= a.columns) continue;
        if (p.cluster == 1) {
            finish(j, v);
        } else {
            const float* word = reinterpret_cast<const float*>(&v);
#pragma unroll
            for (int k = 0; k < WORDS; ++k) own[k * a.columns + j] = word[k];
        }
    }
    if (p.cluster > 1) {
        cluster_arrive();
        cluster_wait();
        for (int j = int(threadIdx.x); j < a.columns; j += int(blockDim.x)) {
            V all;
            for (int r = 0; r < p.cluster; ++r) {
                V v;
                float* word = reinterpret_cast<float*>(&v);
#pragma unroll
                for (int k = 0; k < WORDS; ++k) word[k] = remote(own + k * a.columns + j, r);
                all = r ? join(all, v) : v;
            }
            finish(j, all);
        }
    }
    __syncthreads();
}

}  // namespace sinkhorns
