// What csrc/cuda/common/gpu.cuh needs of a GPU, on the host: CUDA's names and the functions behind them (machine.cpp).
//
// Every CUDA thread is a fiber. The threads of a cluster live together in one thread of the system and are switched only
// at synchronisation points, in an order drawn from a seed. Shared memory begins as NaN and becomes NaN when its block
// ends; an asynchronous copy lands at a random moment before the wait for it. So a missing barrier or wait shows as a
// result that is wrong or depends on the seed; a barrier that not all reach, or reach at different lines, as an error
// that names the lines. Global memory is the caller's and shared memory malloc's: AddressSanitizer sees what reaches
// beyond.
//
// Its limits. A thread runs undisturbed from one synchronisation point to the next, and warp collectives order memory: a
// missing __syncwarp between plain accesses to shared memory shows only if no collective lies between. A missing
// fence.proxy.async is not noticed. No timing, bank conflicts or registers. Sums inside an mma have another order, and
// expf is the host's: last bits differ from a GPU's. No grid-wide barriers, TMA or wgmma.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emu {

using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

struct Dim { u32 x = 1, y = 1, z = 1; };
struct Where { Dim thread, block, threads, blocks; };
extern const Where* here;  // of the thread that runs

// ---- numbers ---------------------------------------------------------------------------------------------------------

template <class To, class From> inline To bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &v, sizeof v);
    return to;
}
inline float bf16_to_float(u16 b) { return bits<float>(u32(b) << 16); }
inline u16 float_to_bf16(float f) {
    const u32 u = bits<u32>(f);
    return f != f ? u16(u >> 16 | 0x40) : u16((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float fp16_to_float(u16 b) { return float(bits<_Float16>(b)); }
inline u16 float_to_fp16(float f) { return bits<u16>(_Float16(f)); }

// ---- memory ----------------------------------------------------------------------------------------------------------

void* dynamic_shared();
void* static_shared(const void* key, u32 bytes);  // the same offset in every block, for each key
void aligned(const void* p, u32 bytes);           // an error unless p is a multiple
void in_shared(const void* p, u32 bytes);         // and unless it is in this block's shared memory

void cp_async16(void* to, const void* from, bool real);
void commit_group();
void wait_groups(u32 left);

// ---- blocks and clusters ---------------------------------------------------------------------------------------------

void sync_threads(int line);
u32 cluster_rank();
u32 cluster_size();
void cluster_arrive();
void cluster_wait(int line);
const void* map_rank(const void* p, u32 rank);  // the same place in another block's shared memory

// ---- warps: every lane has to come -----------------------------------------------------------------------------------

void sync_warp(int line);
float shuffle_xor(float v, u32 with, int line);
void ldmatrix_x4(u32* out, const void* row, bool transpose, int line);
void mma_m16n8k16(float* c, const u32* a, u32 b0, u32 b1, bool is_bf16, int line);

}  // namespace emu

// ---- CUDA's names ----------------------------------------------------------------------------------------------------

#define threadIdx (emu::here->thread)
#define blockIdx (emu::here->block)
#define blockDim (emu::here->threads)
#define gridDim (emu::here->blocks)
#define __syncthreads() emu::sync_threads(__LINE__)
#define __syncwarp() emu::sync_warp(__LINE__)
