// What the kernels use of a GPU, each as one function: inline PTX for the device compilers, the emulation for the host.
// No CUDA header is needed, so NVRTC compiles these sources wherever torch's CUDA wheel is: `cooperative_groups.h` alone
// would cost 2.3 s per compilation, and is in none of torch's dependencies.
//
// KERNELS_EMULATE: compiled by a host compiler for tests (tests/support/emulation), which count these functions' effects
// and order threads at random. What a kernel does beyond plain C++ goes through this file.
#pragma once

#ifdef KERNELS_EMULATE
#include "emulation.h"
#define DEVICE inline
#define SITE , int line_ = __builtin_LINE()
#define SITE_ONLY int line_ = __builtin_LINE()
#define KERNEL(threads, Args, body)                   \
    extern "C" void kernel(const void* given) {       \
        Args a;                                       \
        __builtin_memcpy(&a, given, sizeof a);        \
        body(a);                                      \
    }
#else
#define DEVICE __device__ __forceinline__
#define SITE
#define SITE_ONLY
// One block on a multiprocessor is enough: without the 1 ptxas keeps some numbers in memory to fit one block more (seen: 8
// to 88 bytes spilled in a third of the norm family's kernels).
#define KERNEL(threads, Args, body) \
    extern "C" __global__ void __launch_bounds__(threads, 1) kernel(const __grid_constant__ Args a) { body(a); }
#endif

// Clusters of blocks are there from sm_90 on; before, every block is a cluster of its own.
#if defined(KERNELS_EMULATE) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define GPU_CLUSTERS 1
#else
#define GPU_CLUSTERS 0
#endif

namespace gpu {

using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

template <class T> DEVICE T min(T a, T b) { return a < b ? a : b; }
template <class T> DEVICE T max(T a, T b) { return a > b ? a : b; }
DEVICE int divide_up(int a, int b) { return (a + b - 1) / b; }

DEVICE u32 bits(float f) {
#ifdef KERNELS_EMULATE
    return emu::bits<u32>(f);
#else
    return __float_as_uint(f);
#endif
}
DEVICE float from_bits(u32 u) {
#ifdef KERNELS_EMULATE
    return emu::bits<float>(u);
#else
    return __uint_as_float(u);
#endif
}
DEVICE float infinity() { return from_bits(0x7f800000u); }
DEVICE float nan() { return from_bits(0x7fffffffu); }

// a * b + c in one rounding, everywhere: what forward and backward both compute must be the same number.
DEVICE float multiply_add(float a, float b, float c) {
#ifdef KERNELS_EMULATE
    return __builtin_fmaf(a, b, c);
#else
    return __fmaf_rn(a, b, c);
#endif
}

// ---- number formats --------------------------------------------------------------------------------------------------

struct bf16 { u16 bits; };
struct fp16 { u16 bits; };

DEVICE float widen(float v) { return v; }
DEVICE float widen(bf16 v) { return from_bits(u32(v.bits) << 16); }
DEVICE float widen(fp16 v) {
#ifdef KERNELS_EMULATE
    return emu::fp16_to_float(v.bits);
#else
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
#endif
}
// Two in a word, rounded to nearest even.
DEVICE u32 narrow2(float low, float high, bf16) {
#ifdef KERNELS_EMULATE
    return emu::float_to_bf16(low) | u32(emu::float_to_bf16(high)) << 16;
#else
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}
DEVICE u32 narrow2(float low, float high, fp16) {
#ifdef KERNELS_EMULATE
    return emu::float_to_fp16(low) | u32(emu::float_to_fp16(high)) << 16;
#else
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}

// N neighbouring elements, moved by one instruction: 2, 4, 8 or 16 bytes.
template <class T, int N> struct Pack {
    static constexpr int BYTES = N * int(sizeof(T)), WORDS = (BYTES + 3) / 4;
    static_assert(BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16, "no such access");
    u32 w[WORDS];
};
template <class T, int N> DEVICE void unpack(const Pack<T, N>& v, float (&f)[N]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < N; ++i) f[i] = from_bits(v.w[i]);
    } else if constexpr (N == 1) {
        f[0] = widen(T{u16(v.w[0])});
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            f[2 * i] = widen(T{u16(v.w[i])});
            f[2 * i + 1] = widen(T{u16(v.w[i] >> 16)});
        }
    }
}
template <class T, int N> DEVICE Pack<T, N> pack(const float (&f)[N]) {
    Pack<T, N> v;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < N; ++i) v.w[i] = bits(f[i]);
    } else if constexpr (N == 1) {
        v.w[0] = narrow2(f[0], 0.0f, T{});
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; ++i) v.w[i] = narrow2(f[2 * i], f[2 * i + 1], T{});
    }
    return v;
}

// ---- memory ----------------------------------------------------------------------------------------------------------

DEVICE u32 shared_address(const void* p) {
#ifdef KERNELS_EMULATE
    (void)p;
    return 0;
#else
    return u32(__cvta_generic_to_shared(p));
#endif
}
template <class T> DEVICE T* dynamic_shared() {
#ifdef KERNELS_EMULATE
    return reinterpret_cast<T*>(emu::dynamic_shared());
#else
    extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
    return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}
#ifdef KERNELS_EMULATE
#define SHARED(T, name, size)  \
    static char name##_key;    \
    T* name = static_cast<T*>(emu::static_shared(&name##_key, sizeof(T) * (size)))
#else
#define SHARED(T, name, size) __shared__ __align__(16) T name[size]
#endif

// Written out, because nvcc takes an assignment of four words apart and then stores them one by one (seen: sm_80, sm_90).
// load_global: of memory that this kernel does not write.
template <class T, int N> DEVICE Pack<T, N> load_global(const T* p) {
    constexpr int BYTES = Pack<T, N>::BYTES;
    Pack<T, N> v;
#ifdef KERNELS_EMULATE
    emu::aligned(p, BYTES), v.w[0] = 0, __builtin_memcpy(v.w, p, BYTES);
#else
    const size_t at = __cvta_generic_to_global(p);
    if constexpr (BYTES == 16)
        asm("ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3]) : "l"(at));
    else if constexpr (BYTES == 8)
        asm("ld.global.nc.v2.b32 {%0,%1}, [%2];" : "=r"(v.w[0]), "=r"(v.w[1]) : "l"(at));
    else if constexpr (BYTES == 4)
        asm("ld.global.nc.b32 %0, [%1];" : "=r"(v.w[0]) : "l"(at));
    else {
        u16 h;
        asm("ld.global.nc.b16 %0, [%1];" : "=h"(h) : "l"(at));
        v.w[0] = h;
    }
#endif
    return v;
}
// Of memory that this kernel writes, too: not by the cache for what is only read.
template <class T, int N> DEVICE Pack<T, N> load_written(const T* p) {
    constexpr int BYTES = Pack<T, N>::BYTES;
    Pack<T, N> v;
#ifdef KERNELS_EMULATE
    emu::aligned(p, BYTES), v.w[0] = 0, __builtin_memcpy(v.w, p, BYTES);
#else
    const size_t at = __cvta_generic_to_global(p);
    if constexpr (BYTES == 16)
        asm volatile("ld.global.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3]) : "l"(at) : "memory");
    else if constexpr (BYTES == 8)
        asm volatile("ld.global.v2.b32 {%0,%1}, [%2];" : "=r"(v.w[0]), "=r"(v.w[1]) : "l"(at) : "memory");
    else if constexpr (BYTES == 4)
        asm volatile("ld.global.b32 %0, [%1];" : "=r"(v.w[0]) : "l"(at) : "memory");
    else {
        u16 h;
        asm volatile("ld.global.b16 %0, [%1];" : "=h"(h) : "l"(at) : "memory");
        v.w[0] = h;
    }
#endif
    return v;
}
template <class T, int N> DEVICE void store_global(T* p, const Pack<T, N>& v) {
    constexpr int BYTES = Pack<T, N>::BYTES;
#ifdef KERNELS_EMULATE
    emu::aligned(p, BYTES), __builtin_memcpy(p, v.w, BYTES);
#else
    const size_t at = __cvta_generic_to_global(p);
    if constexpr (BYTES == 16)
        asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(at), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3]) : "memory");
    else if constexpr (BYTES == 8)
        asm volatile("st.global.v2.b32 [%0], {%1,%2};" ::"l"(at), "r"(v.w[0]), "r"(v.w[1]) : "memory");
    else if constexpr (BYTES == 4)
        asm volatile("st.global.b32 [%0], %1;" ::"l"(at), "r"(v.w[0]) : "memory");
    else
        asm volatile("st.global.b16 [%0], %1;" ::"l"(at), "h"(u16(v.w[0])) : "memory");
#endif
}
template <class T> DEVICE float load_one(const T* p) {
    float f[1];
    unpack(load_global<T, 1>(p), f);
    return f[0];
}
template <class T> DEVICE void store_one(T* p, float v) {
    const float f[1] = {v};
    store_global(p, pack<T, 1>(f));
}

// 16 bytes from shared memory, of any type.
struct alignas(16) Vec { u32 w[4]; };
DEVICE Vec load_shared(const Vec* p) {
#ifdef KERNELS_EMULATE
    emu::aligned(p, 16), emu::in_shared(p, 16);
    return *p;
#else
    Vec v;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3]) : "r"(shared_address(p)) : "memory");
    return v;
#endif
}
DEVICE void store_shared(Vec* p, const Vec& v) {
#ifdef KERNELS_EMULATE
    emu::aligned(p, 16), emu::in_shared(p, 16);
    *p = v;
#else
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(p)), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3]) : "memory");
#endif
}

// Global to shared, 16 bytes, asynchronous; zeros if not `real`. The copies of a committed group are there after
// copy_wait<groups that may still be under way>, for the thread that made them; for others after a barrier then.
DEVICE void copy_async(Vec* to, const void* from, bool real) {
#ifdef KERNELS_EMULATE
    emu::cp_async16(to, from, real);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0) : "memory");
#endif
}
DEVICE void copy_commit() {
#ifdef KERNELS_EMULATE
    emu::commit_group();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int LEFT> DEVICE void copy_wait() {
#ifdef KERNELS_EMULATE
    emu::wait_groups(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// ---- clusters --------------------------------------------------------------------------------------------------------

DEVICE int cluster_rank() {
#ifdef KERNELS_EMULATE
    return int(emu::cluster_rank());
#elif GPU_CLUSTERS
    u32 r;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return int(r);
#else
    return 0;
#endif
}
DEVICE int cluster_size() {
#ifdef KERNELS_EMULATE
    return int(emu::cluster_size());
#elif GPU_CLUSTERS
    u32 r;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
    return int(r);
#else
    return 1;
#endif
}
// Every thread of every block arrives, then waits; what was written to shared memory before the one is seen after the
// other. A block may not end while others read its shared memory: they arrive when they have done so. Not `.aligned`,
// which a warp would have to reach undivided: some arrive after code that a part of a warp takes.
DEVICE void cluster_arrive() {
#ifdef KERNELS_EMULATE
    emu::cluster_arrive();
#elif GPU_CLUSTERS
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#else
    __syncthreads();
#endif
}
DEVICE void cluster_wait(SITE_ONLY) {
#ifdef KERNELS_EMULATE
    emu::cluster_wait(line_);
#elif GPU_CLUSTERS
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
// The float at the place of *p in the shared memory of another block of the cluster.
DEVICE float remote(const float* p, int rank) {
#ifdef KERNELS_EMULATE
    return *static_cast<const float*>(emu::map_rank(p, u32(rank)));
#elif GPU_CLUSTERS
    u32 a;
    float v;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(shared_address(p)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory");
    return v;
#else
    return *p;
#endif
}

// ---- warps -----------------------------------------------------------------------------------------------------------

DEVICE float shuffle_xor(float v, int with SITE) {
#ifdef KERNELS_EMULATE
    return emu::shuffle_xor(v, u32(with), line_);
#else
    return __shfl_xor_sync(0xffffffffu, v, with);
#endif
}
// Four 8x8 tiles of 16-bit elements; lanes 8i to 8i + 7 give the addresses of tile i's rows.
template <bool TRANSPOSE> DEVICE void load_matrices(u32 (&r)[4], const void* row SITE) {
#ifdef KERNELS_EMULATE
    emu::ldmatrix_x4(r, row, TRANSPOSE, line_);
#else
    if constexpr (TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}
// c += a (16 x 16) b (16 x 8), float32 sums; fragments as in the PTX manual (mma.m16n8k16).
DEVICE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16 SITE) {
#ifdef KERNELS_EMULATE
    emu::mma_m16n8k16(c, a, b0, b1, true, line_);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
DEVICE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, fp16 SITE) {
#ifdef KERNELS_EMULATE
    emu::mma_m16n8k16(c, a, b0, b1, false, line_);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace gpu
