// What the kernel of the resample room is given. kernels/_cuda.py reads this struct.
#pragma once

namespace resamples {

struct Args {
    const void* x;     // (N, C, rows, columns) at the strides below
    void* y;           // (N, C, height, width), dense
    long long sn;
    long long sc;
    long long sh;
    long long sw;
    int channels;
    int height;        // of y
    int width;
    int in_height;     // of x
    int in_width;
    int before[2];     // pixels of the operator's margins on the rows' axis and on the columns'
    int behind[2];
    int taps;          // of an axis
    int clamped;       // beyond the border its last pixel is repeated, else the inside mirrored
    int log_vectors;   // channels last: threads of a block along channels, as a power of two
    float weight[7];   // of an axis' taps
};

}  // namespace resamples
