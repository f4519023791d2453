// What a block works on: a tile of patches and channels of one sample of one map. A thread has one patch, and a vector of
// its channels where rows allow it.
#pragma once
#include "common/gpu.cuh"
#include "patches/args.h"

namespace patches {

using namespace gpu;

constexpr int THREADS = 256;

// How channels are accessed: one by one; a vector of them in rows, one by one in the map; or a vector in both.
constexpr int SINGLE = 0, ROWS = 1, BOTH = 2;

DEVICE i64 divide(i64 a, i64 b) {  // neither negative; a division of 64 bits takes a hundred instructions
    return (a | b) >> 32 ? a / b : i64(u32(a) / u32(b));
}

// VECTOR: channels in 16 bytes.
template <int VECTOR> struct Tile {
    int map;            // which of the launch
    int n;              // sample
    int p0, row, rows;  // first patch of the block, this thread's from there, how many there are
    int column, columns;
    int c;              // this thread's first channel

    DEVICE explicit Tile(const Args& a) {
        map = 0;
        while (map + 1 < a.maps && int(blockIdx.x) >= a.first[map + 1]) ++map;
        const int t = int(threadIdx.x), log = a.log_columns[map], wide = (a.access[map] == SINGLE ? 1 : VECTOR) << log;
        column = t & ((1 << log) - 1), columns = 1 << log, row = t >> log, rows = THREADS >> log;
        const u32 blocks_c = u32(divide_up(a.channels[map], wide)), blocks_p = u32(divide_up(a.count[map], rows));
        const u32 block = blockIdx.x - u32(a.first[map]), rest = block / blocks_c;
        c = int(block - rest * blocks_c) * wide + column * (wide >> log);
        n = int(rest / blocks_p), p0 = int(rest % blocks_p) * rows;
    }
    DEVICE int p() const { return p0 + row; }
    DEVICE bool exists(const Args& a) const { return p() < a.count[map] && c < a.channels[map]; }
    DEVICE i64 id(const Args& a, int p) const { return static_cast<const i64*>(a.ids[map])[p]; }
    DEVICE bool inside(const Args& a, i64 id) const { return id >= 0 && id < a.length[map]; }
    // Elements from the start of the rows and of the map to this thread's channels.
    DEVICE i64 in_rows(const Args& a, int p) const { return (i64(n) * a.count[map] + p) * a.channels[map] + c; }
    DEVICE i64 in_map(const Args& a, i64 id) const {
        const i64 line = divide(id, a.w[map]);
        return n * a.sn[map] + c * a.sc[map] + line * a.sh[map] + (id - line * a.w[map]) * a.sw[map];
    }
};

// What a thread does with its channels: do_it(access, elements of it), both as numbers the compiler knows.
template <int N> struct Number { static constexpr int value = N; };
template <int VECTOR, class F> DEVICE void by_access(int access, F do_it) {
    if (access == BOTH) do_it(Number<BOTH>{}, Number<VECTOR>{});
    else if (access == ROWS) do_it(Number<ROWS>{}, Number<VECTOR>{});
    else do_it(Number<SINGLE>{}, Number<1>{});
}

}  // namespace patches
