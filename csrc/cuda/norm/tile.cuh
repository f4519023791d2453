// What a block works on, and the sums over it.
//
//   contiguous     a group is one plane (n, c); an item is N neighbouring positions
//   channels last  a group is 2^log_columns vectors of N channels of one sample; an item is a position, and each thread
//                  takes one vector of it
//
// A group is cut into pieces of `span` positions, a block each. N is the widest access that x's address and rows allow: 16
// bytes where they can be had, one element where planes or channels are odd in number. So there is no head and no tail.
#pragma once
#include "norm/formulas.cuh"

namespace norms {

constexpr int THREADS = 512, WARPS = THREADS / 32;  // at most
constexpr int PLANES = 64;                          // of a group, at most

template <class T, int N, bool LAST> struct Tile {
    static constexpr int SUMS = LAST ? N : 1;  // planes that one vector touches

    int n, c;       // sample, and the thread's first channel
    int column;     // its vector of the group
    int group;      // planes of the group that exist
    i64 plane;      // the group's first
    i64 base;       // element of item 0 and this thread's vector, in x
    int begin, end; // items of this piece; none where the vector lies beyond the last channel
    int row, rows;  // first item of this thread, and the step to its next

    DEVICE Tile(const Args& a, i64 group_index, i64 piece) {
        const int t = int(threadIdx.x), total = int(LAST ? a.length : a.length / N);
        const int items = LAST ? a.span : a.span / N;
        begin = int(min(piece * items, i64(total)));
        end = min(begin + items, total);
        if constexpr (LAST) {
            const int wide = N << a.log_columns, groups = divide_up(a.channels, wide);
            n = int(group_index / groups);
            const int first = int(group_index % groups) * wide;
            column = t & ((1 << a.log_columns) - 1), row = t >> a.log_columns, rows = int(blockDim.x) >> a.log_columns;
            plane = i64(n) * a.channels + first, group = min(wide, a.channels - first);
            c = first + column * N;
            base = i64(n) * a.length * a.channels + c;
            if (c >= a.channels) end = begin;
        } else {
            plane = group_index, group = 1, column = 0, row = t, rows = int(blockDim.x);
            n = int(plane / a.channels), c = int(plane % a.channels);
            base = plane * a.length;
        }
    }
    DEVICE bool exists() const { return !LAST || column * SUMS < group; }
    DEVICE i64 at(const Args& a, int item) const { return base + i64(item) * (LAST ? a.channels : N); }
    DEVICE i64 start(const Args& a, i64 length) const {  // of the thread's planes in a tensor of that many positions
        return LAST ? i64(n) * length * a.channels + c : plane * length;
    }
    // visit(k, item) for each of this thread's items. At most PER of them, unrolled, where PER is not 0; else UNROLL at
    // a time, however many they are.
    template <int PER, int UNROLL = 4, class F> DEVICE void each(F visit) const {
        if constexpr (PER > 0) {
#pragma unroll
            for (int k = 0; k < PER; ++k) {
                const int item = begin + row + k * rows;
                if (item < end) visit(k, item);
            }
        } else {
#pragma unroll UNROLL
            for (int item = begin + row; item < end; item += rows) visit(0, item);
        }
    }
};

// Positions in a piece: what its statistics are divided by.
DEVICE float positions(const Args& a, i64 piece) { return float(max(min(i64(a.span), a.length - piece * a.span), i64(0))); }

// Vectors that a block keeps between its passes: PER of each thread in registers, or (PER 0) all in shared memory.
template <class T, int N, int PER> struct Kept {
    Pack<T, N> in_registers[PER > 0 ? PER : 1];
    Pack<T, N>* in_shared;

    template <class S> DEVICE int slot(const S& tile, int item) const {
        return (item - tile.begin) * (int(blockDim.x) / tile.rows) + tile.column;
    }
    template <class S> DEVICE void put(const S& tile, int k, int item, const Pack<T, N>& v) {
        if constexpr (PER > 0) in_registers[k] = v;
        else if constexpr (Pack<T, N>::BYTES == 16) store_shared(reinterpret_cast<Vec*>(in_shared + slot(tile, item)), Vec{v.w[0], v.w[1], v.w[2], v.w[3]});
        else in_shared[slot(tile, item)] = v;
    }
    template <class S> DEVICE void get(const S& tile, int k, int item, float (&f)[N]) const {
        if constexpr (PER > 0) {
            unpack(in_registers[k], f);
        } else if constexpr (Pack<T, N>::BYTES == 16) {
            const Vec v = load_shared(reinterpret_cast<const Vec*>(in_shared + slot(tile, item)));
            unpack(Pack<T, N>{{v.w[0], v.w[1], v.w[2], v.w[3]}}, f);
        } else {
            unpack(in_shared[slot(tile, item)], f);
        }
    }
};

// v: this thread's part of K sums of its column's planes -> the block's, in every thread. One order, so the same bits
// whenever and wherever it runs. `scratch`, `totals`: BLOCK_SUMS floats each, of this kind of call alone.
constexpr int BLOCK_SUMS = WARPS * PLANES * 2;
template <int K> DEVICE void block_sums(float (&v)[K], float* scratch, float* totals, int log_columns) {
    const int columns = 1 << log_columns, t = int(threadIdx.x), warps = int(blockDim.x) / 32;
    for (int with = 16; with >= columns; with /= 2)
#pragma unroll
        for (int k = 0; k < K; ++k) v[k] += shuffle_xor(v[k], with);
    const int column = t & (columns - 1);
    if (t % 32 < columns)
#pragma unroll
        for (int k = 0; k < K; ++k) scratch[(t / 32 * columns + column) * K + k] = v[k];
    __syncthreads();
    for (int i = t; i < columns * K; i += int(blockDim.x)) {
        float sum = 0;
        for (int w = 0; w < warps; ++w) sum += scratch[w * columns * K + i];
        totals[i] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = totals[column * K + k];
}

}  // namespace norms
