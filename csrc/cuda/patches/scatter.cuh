// Rows into maps of zeros, or onto what is there. Nothing is added atomically: the first of the patches that show one
// position adds them all up in their order, in float32, and alone writes.
#pragma once
#include "patches/tile.cuh"

namespace patches {

template <int ACCESS, class T, int N> DEVICE void load_map(const T* from, i64 sc, float (&f)[N]) {
    if constexpr (ACCESS == BOTH) {
        unpack(load_written<T, N>(from), f);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float one[1];
            unpack(load_written<T, 1>(from + i * sc), one);
            f[i] = one[0];
        }
    }
}
template <int ACCESS, class T, int N> DEVICE void store_map(T* to, i64 sc, const float (&f)[N]) {
    if constexpr (ACCESS == BOTH) {
        store_global(to, pack<T, N>(f));
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) store_one(to + i * sc, f[i]);
    }
}

template <class T> DEVICE void scatter(const Args& a) {
    constexpr int VECTOR = 16 / int(sizeof(T));
    SHARED(int, later, THREADS);    // per patch of the block: it is shown by one before
    SHARED(int, repeats, THREADS);  // and by one behind
    const Tile<VECTOR> tile(a);
    const int count = a.count[tile.map], p = tile.p();
    const i64 id = p < count ? tile.id(a, p) : -1;
    bool writes = tile.inside(a, id), again = false;
    if (!a.unique) {
        if (tile.column == 0) later[tile.row] = repeats[tile.row] = 0;
        __syncthreads();
        // the threads of a patch share the search; those that find something write the same number
        if (writes)
            for (int q = tile.column; q < count; q += tile.columns)
                if (q != p && tile.id(a, q) == id) (q < p ? later : repeats)[tile.row] = 1;
        __syncthreads();
        writes = writes && !later[tile.row], again = repeats[tile.row];
    }
    if (!writes || !tile.exists(a)) return;
    const T* rows = static_cast<const T*>(a.rows[tile.map]);
    T* to = static_cast<T*>(a.map[tile.map]) + tile.in_map(a, id);
    const i64 sc = a.sc[tile.map];
    by_access<VECTOR>(a.access[tile.map], [&](auto access, auto elements) {
        constexpr int ACCESS = decltype(access)::value, N = decltype(elements)::value;
        float total[N], more[N];
        unpack(load_global<T, N>(rows + tile.in_rows(a, p)), total);
        for (int q = p + 1; again && q < count; ++q) {
            if (tile.id(a, q) != id) continue;
            unpack(load_global<T, N>(rows + tile.in_rows(a, q)), more);
#pragma unroll
            for (int i = 0; i < N; ++i) total[i] += more[i];
        }
        if (a.add) {
            load_map<ACCESS>(to, sc, more);
#pragma unroll
            for (int i = 0; i < N; ++i) total[i] += more[i];
        }
        store_map<ACCESS>(to, sc, total);
    });
}

}  // namespace patches
