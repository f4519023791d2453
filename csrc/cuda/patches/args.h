// What the kernels of the patches room are given: up to 8 maps of a launch. kernels/_cuda.py reads this struct.
#pragma once

namespace patches {

constexpr int MAPS = 8;

// Position p of channel c in sample n stands at n * sn + c * sc + p / w * sh + p % w * sw, in elements.
struct Args {
    void* map[8];          // (N, C, *spatial): gather reads it, scatter writes it
    const void* ids[8];    // (P,) int64
    void* rows[8];         // (N, P, C): gather writes them, scatter reads them
    long long length[8];   // positions
    long long w[8];        // of a line of positions
    long long sn[8];
    long long sc[8];
    long long sh[8];
    long long sw[8];
    int first[8];          // the map's first block
    int channels[8];       // C
    int count[8];          // P
    int access[8];         // of channels, see tile.cuh
    int log_columns[8];    // threads of a block along channels, as a power of two
    int maps;
    int unique;            // scatter: no position comes twice
    int add;               // scatter: onto what is there
};

}  // namespace patches
