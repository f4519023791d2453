// What the kernels of the sinkhorn room are given. kernels/_cuda.py reads this struct.
#pragma once

namespace sinkhorns {

struct Args {
    const void* log_kernel;  // (B, S, M)
    void* plan;              // forward: the log plan
    void* potentials;        // (B, T, S + M + 1) float32: the rows' and the columns' after each iteration; or null
    const void* grad;        // backward: of the log plan
    void* dpotentials;       // backward: of the potentials, laid out as they are
    void* dx;                // backward: of log_kernel
    int iterations;          // T
    int rows;                // S
    int columns;             // M
    int span;                // rows of a block
    int held;                // whether a block has its rows and potentials in shared memory
    int log_threads;         // threads side by side along columns, as a power of two
    float log_ratio;         // log(M / S)
};

}  // namespace sinkhorns
