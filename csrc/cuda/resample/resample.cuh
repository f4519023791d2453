// One gather for every operator, its gradient and both memory formats; each output is written once, by one thread, as the
// sum of its taps in one order.
//
// A thread makes M neighbouring columns of one plane (contiguous) or N neighbouring channels of one pixel (channels last).
// The columns that it needs of a row of x, the line, are worked out once for all rows, and all loads of a line are under
// way together. Every pixel is read from memory once; the neighbours that read it too find it in the first-level cache.
#pragma once
#include "resample/axis.cuh"

namespace resamples {

// A thread's place: sample, first channel, row and first column of y.
template <int M, int N, bool LAST> struct Place {
    int n, c, row, w;
    bool exists;

    DEVICE explicit Place(const Args& a) {
        const u32 lines = u32(a.width / M), items = u32(a.height) * lines, t = threadIdx.x;
        const u32 log = LAST ? u32(a.log_vectors) : 0, pixels = blockDim.x >> log, blocks = (items + pixels - 1) / pixels;
        u32 block;
        if constexpr (LAST) {  // neighbouring blocks write neighbouring memory
            const u32 wide = u32(N) << log, blocks_c = (u32(a.channels) + wide - 1) / wide, rest = blockIdx.x / blocks_c;
            n = int(rest / blocks), block = rest - u32(n) * blocks;
            c = int((blockIdx.x - rest * blocks_c) * wide + (t & ((1u << log) - 1)) * u32(N));
        } else {
            const u32 plane = blockIdx.x / blocks;
            block = blockIdx.x - plane * blocks;
            n = int(plane / u32(a.channels)), c = int(plane - u32(n) * u32(a.channels));
        }
        const u32 item = block * pixels + (t >> log);
        exists = item < items && c < a.channels;
        row = int(item / lines), w = int(item - u32(row) * lines) * M;
    }
};

// Chosen word by word: an array is not to be indexed by what is known at run time only.
template <class T, int N> DEVICE Pack<T, N> choose(bool second, const Pack<T, N>& v, const Pack<T, N>& w) {
    Pack<T, N> found;
#pragma unroll
    for (int i = 0; i < v.WORDS; ++i) {
        const u32 p = v.w[i], q = w.w[i];
        found.w[i] = second ? q : p;
    }
    return found;
}
template <class T, int N> DEVICE void accumulate(float* sum, float weight, const Pack<T, N>& v) {
    float f[N];
    unpack(v, f);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = multiply_add(weight, f[i], sum[i]);
}

// TAPS: at most so many, of a pixel and an image of it. LAST: channels last.
template <class T, int M, int N, int STRIDE, int TAPS, bool EXPAND, bool LAST> DEVICE void resample(const Args& a) {
    static_assert(M == 1 || N == 1, "columns or channels");
    constexpr int SPAN = EXPAND ? TAPS + (M + STRIDE - 2) / STRIDE : STRIDE * (M - 1) + TAPS;
    const Place<M, N, LAST> at(a);
    if (!at.exists) return;
    const T* plane = static_cast<const T*>(a.x) + at.n * a.sn + at.c * a.sc;
    // the line: position e of it is column[e] of x, or none
    const int first = at.w + a.before[COLUMNS];  // EXPAND: in coordinates with margins
    const bool odd = EXPAND && STRIDE == 2 && (first & 1);
    const int start = EXPAND ? first / STRIDE - (TAPS - 1) : at.w * STRIDE - a.before[COLUMNS];
    const int needed = EXPAND ? SPAN : STRIDE * (M - 1) + a.taps;
    int column[SPAN];
#pragma unroll
    for (int e = 0; e < SPAN; ++e) column[e] = e < needed ? source<EXPAND>(a, start + e, a.in_width) : -1;
    // EXPAND: tap u of a column, by whether m is odd; 0: it has none
    constexpr int KINDS = EXPAND ? STRIDE : 1;
    float weight[KINDS][TAPS];
#pragma unroll
    for (int k = 0; k < KINDS; ++k)
#pragma unroll
        for (int u = 0; u < TAPS; ++u) {
            const int tap = EXPAND ? ((k + odd) & (STRIDE - 1)) + STRIDE * u : u;
            weight[k][u] = tap < a.taps ? a.weight[tap] : 0.0f;
        }

    float sum[M * N] = {};
    each_row<STRIDE, EXPAND>(a, at.row, [&](int h, float in_row) {
        const T* from = plane + h * a.sh;
        Pack<T, N> line[SPAN] = {};
#pragma unroll
        for (int e = 0; e < SPAN; ++e)
            if (column[e] >= 0) line[e] = load_global<T, N>(from + column[e] * a.sw);
#pragma unroll
        for (int m = 0; m < M; ++m) {
            if constexpr (STRIDE == 1 && !EXPAND) {  // a copy: every bit of it, the sign of zero too
                float f[N];
                unpack(line[m], f);
#pragma unroll
                for (int i = 0; i < N; ++i) sum[m * N + i] = f[i];
            } else {
#pragma unroll
                for (int u = 0; u < TAPS; ++u) {
                    const float w = in_row * weight[EXPAND ? m % STRIDE : 0][u];
                    Pack<T, N> v = line[EXPAND ? m / STRIDE - u + TAPS - 1 : STRIDE * m + u];
                    if constexpr (EXPAND && STRIDE == 2) v = choose(odd, v, line[(m + 1) / STRIDE - u + TAPS - 1]);
                    if (w != 0.0f) accumulate(sum + m * N, w, v);
                }
            }
        }
        if constexpr (EXPAND) {  // the few columns that a margin mirrors
            const Images images(a, COLUMNS, at.w, M, a.width);
#pragma unroll 1
            for (int k = 0; k < images.count(); ++k)
                each_position<STRIDE>(a, images.at(k), a.in_width, [&](int i, float in_column) {
                    const Pack<T, N> v = load_global<T, N>(from + i * a.sw);
#pragma unroll
                    for (int m = 0; m < M; ++m)  // not sum[pixel]: it would be kept in memory
                        if (at.w + m == images.pixel(k)) accumulate(sum + m * N, in_row * in_column, v);
                });
        }
    });
    const i64 pixel = i64(at.row) * a.width + at.w, pixels = i64(a.height) * a.width;
    T* y = static_cast<T*>(a.y) + (LAST ? (at.n * pixels + pixel) * a.channels + at.c : (i64(at.n) * a.channels + at.c) * pixels + pixel);
    store_global(y, pack<T, M * N>(sum));
}

}  // namespace resamples
