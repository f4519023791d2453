// The matrix unit of x86 processors (AMX): eight registers, "tiles", of 16 rows of 64 bytes, and one instruction that adds
// the product of 16 x 32 and 32 x 16 bfloat16 to 16 x 16 float32. The right factor holds pairs: row p, column x has rows 2p
// and 2p + 1 of the matrix, beside each other.
//
// Two implementations of the same functions: the instructions, and plain C++ (-DKERNELS_AMX_PLAIN), with which the tests
// run everything around them on processors without AMX. Tile numbers are template arguments: instructions name them.
#pragma once

#include "common/vec.h"

namespace KERNELS_ISA {
namespace {

constexpr int kTileRows = 16, kTileTerms = 32;

// What `Tiles` sets up: palette 1, and all eight tiles whole. Tails are padded by those who pack.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

#if !defined(KERNELS_AMX_PLAIN)

// The calling thread may use tiles as long as one of these lives. Afterwards the registers are as new, as other libraries
// expect them, and the kernel no longer saves their 8 KB when it switches threads.
struct Tiles {
  Tiles() {
    const TileConfig config;
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
};

// Not the compiler's intrinsics: GCC's want numbers that are written out, and do not say that tileloadd reads memory.
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
inline void tile_load(const void* rows, int64_t stride) {  // in bytes
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
inline void tile_product() {  // C += A B
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#else

struct TileUnit {  // of a thread
  bool ready;
  uint32_t tile[8][kTileRows][16];
};
static thread_local TileUnit tile_unit;

// The processor faults where tiles are used without a configuration, and so does this.
inline uint32_t (&tile_at(int t))[kTileRows][16] {
  if (!tile_unit.ready) __builtin_trap();
  return tile_unit.tile[t];
}

struct Tiles {
  Tiles() {
    memset(&tile_unit, 0, sizeof tile_unit);
    tile_unit.ready = true;
  }
  ~Tiles() { tile_unit.ready = false; }
  Tiles(const Tiles&) = delete;
};

template <int T>
void tile_zero() {
  memset(tile_at(T), 0, sizeof tile_at(T));
}
template <int T>
void tile_load(const void* rows, int64_t stride) {
  for (int r = 0; r < kTileRows; ++r) memcpy(tile_at(T)[r], (const char*)rows + r * stride, 64);
}
template <int T>
void tile_store(void* rows, int64_t stride) {
  for (int r = 0; r < kTileRows; ++r) memcpy((char*)rows + r * stride, tile_at(T)[r], 64);
}

inline vf flushed(vf x) {  // denormals count as zeros, on the way in and out
  const vi zero = ((vi)x & 0x7f800000) == 0;
  return (vf)((vi)x & ~(zero & 0x7fffffff));
}

// As the instruction sums: even and odd terms of the tile apart, one fused multiply-add each, in order and rounded to
// nearest even; then the two, then these and C.
template <int C, int A, int B>
void tile_product() {
  const auto &a = tile_at(A), &b = tile_at(B);
  for (int r = 0; r < kTileRows; ++r)
    for (int x = 0; x < 16; x += W) {
      vf even = {}, odd = {};
      for (int p = 0; p < 16; ++p) {
        vu pairs;
        memcpy(&pairs, b[p] + x, sizeof pairs);
        const vf a0 = flushed((vf)(a[r][p] << 16 | vu{})), a1 = flushed((vf)((a[r][p] & 0xffff0000u) | vu{}));
        even = flushed(even + a0 * flushed((vf)(pairs << 16)));
        odd = flushed(odd + a1 * flushed((vf)(pairs & 0xffff0000u)));
      }
      vf c;
      memcpy(&c, tile_at(C)[r] + x, sizeof c);
      c = flushed(flushed(c) + flushed(even + odd));
      memcpy(tile_at(C)[r] + x, &c, sizeof c);
    }
}

#endif

}  // namespace
}  // namespace KERNELS_ISA
