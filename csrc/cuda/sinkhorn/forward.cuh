// All iterations of one problem in one launch; formulas: csrc/cpu/sinkhorn/sinkhorn.cpp.
//
// Potentials of the rows are kept without the log(M / S) that each contains, and backward takes its sums in the order that
// log-sum-exp takes them here: so that rows and columns sum to 1 there, too, where entries are in the thousands.
#pragma once
#include "sinkhorn/problem.cuh"

namespace sinkhorns {

template <class T> DEVICE void iterate(const Args& a) {
    SHARED(Sum, scratch, THREADS);
    const Problem<T> p(a);
    const int lane = int(threadIdx.x) % 32;
    const float* before = nullptr;  // of the columns, after the iteration before
    const float *of_rows = nullptr, *of_columns = nullptr;
    for (int t = 0; t < a.iterations; ++t) {
        float *kept = p.history(a, a.potentials, t), *kept_columns = kept ? kept + a.rows : nullptr;
        float* rows = a.held ? p.of_rows - p.begin : kept;
        float* columns = a.held ? p.of_columns : kept_columns;
        each_row(p, [&](int i) {
            float most = -infinity(), total = 0;
            for (int j = lane; j < a.columns; j += 32) most = max(most, p.at(a, i, j) + (before ? before[j] : 0.0f));
            most = warp_max(most);
            const float base = finite(most);
            for (int j = lane; j < a.columns; j += 32) total += expf(p.at(a, i, j) + (before ? before[j] : 0.0f) - base);
            total = warp_sum(total);
            if (lane == 0) {
                rows[i] = close({most, total});
                if (a.held && kept) kept[i] = rows[i];
            }
        });
        __syncthreads();
        each_column(
            a, p, scratch, t & 1,
            [&](int j, int first, int step) {
                Sum s{-infinity(), 0.0f};
                for (int i = first; i < p.end; i += step) s.most = max(s.most, p.at(a, i, j) + (rows[i] + a.log_ratio));
                const float base = finite(s.most);
                for (int i = first; i < p.end; i += step) s.total += expf(p.at(a, i, j) + (rows[i] + a.log_ratio) - base);
                return s;
            },
            [](const Sum& v, const Sum& w) {
                const float most = max(v.most, w.most), base = finite(most);
                return Sum{most, v.total * expf(v.most - base) + w.total * expf(w.most - base)};
            },
            [&](int j, const Sum& s) {
                columns[j] = close(s);
                if (a.held && kept && p.rank == 0) kept_columns[j] = columns[j];
            });
        before = of_columns = columns, of_rows = rows;
    }
    T* plan = static_cast<T*>(a.plan) + p.start(a);
    each_row(p, [&](int i) {
        const float of_row = of_rows[i] + a.log_ratio;
        for (int j = lane; j < a.columns; j += 32) store_one(plan + i64(i) * a.columns + j, p.at(a, i, j) + of_row + of_columns[j]);
    });
    if (p.cluster > 1) {  // others read this block's parts
        cluster_arrive();
        cluster_wait();
    }
}

}  // namespace sinkhorns
