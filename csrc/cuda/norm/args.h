// What a kernel of the norm family is given. kernels/_cuda.py reads this struct: pointers first, then numbers, each by
// its name, so that kernels/norm/launch_cuda.py cannot hand over another order.
#pragma once

namespace norms {

struct Args {
    const void* x;         // (N, C, L), contiguous or channels last
    const void* scale;     // (C,) or (N, C), or null: 1
    const void* shift;     // the same, or null: 0
    const void* residual;  // added after the activation, or null
    const void* grad;      // backward: of y
    const void* grad_mean; // (N, C) float32, of moments
    const void* grad_std;
    void* y;               // (N, C, out_length)
    void* dx;
    void* dresidual;       // with padding: the gradient folded back; or null
    void* stats;           // (4, N, C) float32: mean high, mean low, biased variance, 1 / denominator
    void* partials;        // sweeps, float32: (3, planes, chunks) high, low, squares; backward (2, planes, chunks) sums
    void* sums;            // (2, groups) float32, of merged chunks
    void* dscale;          // (N, C) float32, or null
    void* dshift;
    long long length;      // positions of a plane
    long long out_length;  // and of a padded one
    long long scale_n;     // elements from one sample's parameters to the next one's: 0 for (C,)
    long long shift_n;
    long long residual_n;  // strides of a residual that lies otherwise than x
    long long residual_c;
    long long residual_h;
    long long residual_w;
    int planes;            // N * C
    int channels;          // C
    int height;            // rows and columns, where they matter
    int width;
    int padding;
    int log_columns;       // channels last: vectors of channels of a group, as a power of two
    int span;              // positions of a piece, a block's part of a plane
    int chunks;            // sweeps: pieces of a plane
    int group;             // planes that share statistics: 1, or C
    int kind;              // kernels/norm/spec.py
    int scale_dtype;       // kernels/_cuda.py
    int shift_dtype;
    float count;           // elements of a statistics group
    float eps;
    float offset;          // y = act((offset + scale) * x_hat + shift) + residual
    float slope;
};

}  // namespace norms
