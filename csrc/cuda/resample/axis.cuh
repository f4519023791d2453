// Which pixels an output is made of, on one axis. In coordinates of the plane with its margins, position p of the operator
// reads p * STRIDE + t for each tap t. Forward is this (`contract`). The transposed reads the other way round: pixel j of
// the plane with margins is in every position (j - t) / STRIDE that is whole (`expand`), and a pixel of the plane itself is
// there once, and again where a margin mirrors it.
//
// x2 is the opposite of the downsampling by four taps, with a border that is repeated: forward it expands, and its gradient
// contracts. So what is read beyond the border is a mirror image or, with `clamped`, the last pixel; in a gradient of
// mirroring operators nothing.
#pragma once
#include "common/gpu.cuh"
#include "resample/args.h"

namespace resamples {

using namespace gpu;

constexpr int ROWS = 0, COLUMNS = 1;  // axes

DEVICE int clip(int i, int size) { return max(min(i, size - 1), 0); }

// Where position i of x is read; -1: nowhere.
template <bool EXPAND> DEVICE int source(const Args& a, int i, int size) {
    if (i >= 0 && i < size) return i;
    if (a.clamped) return clip(i, size);
    if constexpr (EXPAND) return -1;
    return clip(i < 0 ? -i : 2 * (size - 1) - i, size);
}
// The mirror images of the pixels from w to w + M - 1, one after the other.
struct Images {
    int low, lows, high, highs, before, end;  // first pixel with an image before, how many have one; behind likewise

    DEVICE Images(const Args& a, int axis, int w, int many, int size) {
        const bool any = !a.clamped;
        before = a.before[axis], end = 2 * (size - 1) + before;
        low = max(w, 1), lows = any ? max(min(w + many - 1, before) - low + 1, 0) : 0;
        high = max(w, size - 1 - a.behind[axis]), highs = any ? max(min(w + many - 1, size - 2) - high + 1, 0) : 0;
    }
    DEVICE int count() const { return lows + highs; }
    DEVICE int pixel(int k) const { return k < lows ? low + k : high + k - lows; }
    DEVICE int at(int k) const { return k < lows ? before - pixel(k) : end - pixel(k); }
};
// visit(position of x, weight) for the taps that pixel j, in coordinates with margins, is in.
template <int STRIDE, class F> DEVICE void each_position(const Args& a, int j, int size, F visit) {
    const int many = (a.taps + STRIDE - 1) / STRIDE;
#pragma unroll 1
    for (int u = 0; u < many; ++u) {
        const int t = (j & (STRIDE - 1)) + STRIDE * u;
        const int from = t < a.taps ? source<true>(a, (j - t) / STRIDE, size) : -1;  // a whole number
        if (from >= 0) visit(from, a.weight[t]);
    }
}
// visit(row of x, weight) for every tap of row o of y, in one order.
template <int STRIDE, bool EXPAND, class F> DEVICE void each_row(const Args& a, int o, F visit) {
    if constexpr (EXPAND) {
        const Images images(a, ROWS, o, 1, a.height);
#pragma unroll 1
        for (int k = -1; k < images.count(); ++k)
            each_position<STRIDE>(a, k < 0 ? o + a.before[ROWS] : images.at(k), a.in_height, visit);
    } else {
#pragma unroll 1
        for (int t = 0; t < a.taps; ++t) visit(source<false>(a, o * STRIDE + t - a.before[ROWS], a.in_height), a.weight[t]);
    }
}

}  // namespace resamples
