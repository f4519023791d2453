// Rows out of maps. Elements are moved as bits, so float16 goes as bfloat16 does.
#pragma once
#include "patches/tile.cuh"

namespace patches {

// N neighbouring elements from places `step` apart.
template <class T, int N> DEVICE Pack<T, N> load_apart(const T* from, i64 step) {
    Pack<T, N> v;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < N; ++i) v.w[i] = load_global<T, 1>(from + i * step).w[0];
    } else if constexpr (N == 1) {
        v = load_global<T, 1>(from);
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; ++i)
            v.w[i] = load_global<T, 1>(from + 2 * i * step).w[0] | load_global<T, 1>(from + (2 * i + 1) * step).w[0] << 16;
    }
    return v;
}

// A position outside the map reads nothing and yields NaN: to raise, the host would have to wait for the device.
template <class T> DEVICE void gather(const Args& a) {
    constexpr int VECTOR = 16 / int(sizeof(T));
    const Tile<VECTOR> tile(a);
    if (!tile.exists(a)) return;
    const i64 id = tile.id(a, tile.p());
    const bool inside = tile.inside(a, id);
    const T* from = static_cast<const T*>(a.map[tile.map]);
    T* to = static_cast<T*>(a.rows[tile.map]) + tile.in_rows(a, tile.p());
    by_access<VECTOR>(a.access[tile.map], [&](auto access, auto elements) {
        constexpr int N = decltype(elements)::value;
        Pack<T, N> v;
        if (!inside) {
#pragma unroll
            for (int i = 0; i < v.WORDS; ++i) v.w[i] = sizeof(T) == 4 ? 0x7fffffffu : 0x7fff7fffu;  // NaN in all formats
        } else if constexpr (decltype(access)::value == BOTH) {
            v = load_global<T, N>(from + tile.in_map(a, id));
        } else {
            v = load_apart<T, N>(from + tile.in_map(a, id), a.sc[tile.map]);
        }
        store_global(to, v);
    });
}

}  // namespace patches
