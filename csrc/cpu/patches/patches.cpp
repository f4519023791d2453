// Rows of features out of maps and back: all maps of a call share each parallel region.
//
// A task is one sample's block of channels at all (gather: at some) positions. So every element of a gradient belongs to
// one task, which sums the rows of a repeated position in their order: the result depends on no thread count.
#include "patches/patches.h"

#include "common/tasks.h"
#include "common/vec.h"

namespace KERNELS_ISA {
namespace {

constexpr int64_t kLine = 64;         // bytes of a row that a task reads when each channel stands in a plane of its own
constexpr int64_t kTogether = 64;     // channels of a task when they stand side by side
constexpr int64_t kPatches = 256;     // of a gather task
constexpr int64_t kElements = 8192;   // a thread should have at least so many to copy
constexpr int64_t kFill = 1 << 18;  // bytes of a task that fills with zeros

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t size_of(const PatchMap& m) { return m.dtype == kFloat32 ? 4 : 2; }
int64_t block(const PatchMap& m) { return m.sc == 1 ? kTogether : kLine / size_of(m); }
int64_t blocks(const PatchMap& m) { return divide_up(m.c, block(m)); }
int64_t offset(const PatchMap& m, int64_t n, int64_t c, int64_t id) {
  const int64_t first = n * m.sn + c * m.sc;
  if (m.sh == m.w * m.sw) return first + id * m.sw;  // two divisions less
  return first + (id / m.w) * m.sh + (id % m.w) * m.sw;
}

// Tasks of all maps in one row: per_map(map) of each; f(map index, task of that map).
template <class Count, class F>
void run_maps(const PatchesArgs& args, ParallelFor parallel, int64_t grain, Count per_map, F f) {
  int64_t total = 0;
  for (int64_t i = 0; i < args.count; ++i) total += per_map(args.maps[i]);
  run(parallel, total, grain, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (int64_t i = 0; i < args.count && first < end; ++i) {
      const int64_t tasks = per_map(args.maps[i]);
      for (int64_t t = begin > first ? begin : first; t < end && t < first + tasks; ++t) f(i, t - first);
      first += tasks;
    }
  });
}

// Whether every id is a position of its map. Here, because torch takes two launches and two reads for it: 10 us a map; and
// in both directions, for arrays that share a tensor's memory can change it in between.
bool within(const PatchesArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    const PatchMap& m = args.maps[i];
    uint64_t most = 0;  // a negative one is larger than all
    for (int64_t p = 0; p < m.p; ++p) most = (uint64_t)m.ids[p] > most ? (uint64_t)m.ids[p] : most;
    if (most >= (uint64_t)m.positions) return false;
  }
  return true;
}

// ---- gather ---------------------------------------------------------------------------------------------------------

template <class T>  // any type of the elements' size
void gather_task(const PatchMap& m, int64_t n, int64_t c0, int64_t p0) {
  const int64_t channels = m.c - c0 < block(m) ? m.c - c0 : block(m);
  const int64_t end = m.p < p0 + kPatches ? m.p : p0 + kPatches;
  for (int64_t p = p0; p < end; ++p) {
    const T* from = (const T*)m.map + offset(m, n, c0, m.ids[p]);
    T* to = (T*)m.rows + (n * m.p + p) * m.c + c0;
    if (m.sc == 1) {
      memcpy(to, from, (size_t)channels * sizeof(T));
    } else {
      for (int64_t j = 0; j < channels; ++j) to[j] = from[j * m.sc];
    }
  }
}

int gather(const PatchesArgs& args, ParallelFor parallel) {
  if (!within(args)) return 2;
  const auto pieces = [](const PatchMap& m) { return divide_up(m.p, kPatches); };
  run_maps(
      args, parallel, kElements / (kLine / 4 * kPatches), [&](const PatchMap& m) { return m.n * blocks(m) * pieces(m); },
      [&](int64_t i, int64_t task) {
        const PatchMap& m = args.maps[i];
        const int64_t p0 = task % pieces(m) * kPatches;
        task /= pieces(m);
        const int64_t c0 = task % blocks(m) * block(m);
        if (size_of(m) == 4)
          gather_task<uint32_t>(m, task / blocks(m), c0, p0);
        else
          gather_task<uint16_t>(m, task / blocks(m), c0, p0);
      });
  return 0;
}

// ---- scatter --------------------------------------------------------------------------------------------------------

// Which patches show the same position. next[p]: the next of them, -1 at the last; first[p]: whether none comes before.
struct Chains {
  int32_t *next, *first;
};

// Links them through a hash table of `slots` (a power of two, at least twice as many as patches).
void link(const PatchMap& m, const Chains& chains, int32_t* table, int64_t slots) {
  memset(table, 0xff, (size_t)slots * sizeof *table);  // -1: empty
  for (int64_t p = 0; p < m.p; ++p) {
    uint64_t slot = ((uint64_t)m.ids[p] * 0x9E3779B97F4A7C15u) >> 32;
    for (slot &= (uint64_t)slots - 1; table[slot] >= 0 && m.ids[table[slot]] != m.ids[p];)
      slot = (slot + 1) & ((uint64_t)slots - 1);
    const int32_t before = table[slot];
    if (before >= 0) chains.next[before] = (int32_t)p;
    chains.first[p] = before < 0;
    chains.next[p] = -1;
    table[slot] = (int32_t)p;
  }
}

template <class T>
void scatter_task(const PatchMap& m, const Chains& chains, int64_t n, int64_t c0) {
  const int64_t end = m.c < c0 + block(m) ? m.c : c0 + block(m);
  const T* rows = (const T*)m.rows + n * m.p * m.c;
  for (int64_t p = 0; p < m.p; ++p) {
    if (chains.first && !chains.first[p]) continue;
    T* to = (T*)m.map + offset(m, n, c0, m.ids[p]);
    for (int64_t c = c0; c < end; c += W, to += W * m.sc) {
      const int lanes = end - c < W ? (int)(end - c) : W;
      const auto row = [&](int64_t q) {
        const T* from = rows + q * m.c + c;
        return lanes == W ? load(from) : load_first(from, lanes);
      };
      vf sum = row(p);
      if (chains.next)
        for (int32_t q = chains.next[p]; q >= 0; q = chains.next[q]) sum += row(q);
      T piece[W];
      if (!m.zero) {
        memset(piece, 0, sizeof piece);
        for (int j = 0; j < lanes; ++j) piece[j] = to[j * m.sc];
        sum += load(piece);
      }
      store(piece, sum);
      if (m.sc == 1) {
        memcpy(to, piece, (size_t)lanes * sizeof(T));
      } else {
        for (int j = 0; j < lanes; ++j) to[j * m.sc] = piece[j];
      }
    }
  }
}

int scatter(const PatchesArgs& args, ParallelFor parallel) {
  if (!within(args)) return 2;
  int64_t patches = 0, slots = 1;
  for (int64_t i = 0; i < args.count; ++i) {
    if (args.maps[i].unique) continue;
    patches += args.maps[i].p;
    while (slots < 2 * args.maps[i].p) slots *= 2;
  }
  Scratch chains(args.count * (int64_t)sizeof(Chains)), links((2 * patches + slots) * (int64_t)sizeof(int32_t));
  if (!chains.p || !links.p) return 1;
  Chains* of = (Chains*)chains.p;
  int32_t *table = (int32_t*)links.p, *free = table + slots;
  for (int64_t i = 0; i < args.count; ++i) {
    const PatchMap& m = args.maps[i];
    of[i] = {nullptr, nullptr};
    if (m.unique) continue;
    of[i] = {free, free + m.p};
    free += 2 * m.p;
    link(m, of[i], table, slots);
  }
  run_maps(
      args, parallel, 1, [](const PatchMap& m) { return divide_up(m.zero, kFill); },
      [&](int64_t i, int64_t task) {
        const int64_t at = task * kFill, left = args.maps[i].zero - at;
        memset((char*)args.maps[i].map + at, 0, (size_t)(left < kFill ? left : kFill));
      });
  run_maps(
      args, parallel, kElements / (kLine / 4 * kPatches), [](const PatchMap& m) { return m.n * blocks(m); },
      [&](int64_t i, int64_t task) {
        const PatchMap& m = args.maps[i];
        const int64_t n = task / blocks(m), c0 = task % blocks(m) * block(m);
        if (m.dtype == kFloat32)
          scatter_task<float>(m, of[i], n, c0);
        else if (m.dtype == kBFloat16)
          scatter_task<bf16>(m, of[i], n, c0);
        else
          scatter_task<f16>(m, of[i], n, c0);
      });
  return 0;
}

}  // namespace

PatchesTable patches_table() { return {gather, scatter}; }

}  // namespace KERNELS_ISA
