// See emulation.h.
#include "machine.h"
#undef _FORTIFY_SOURCE  // its longjmp refuses to leave a stack
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define EMU_LEAVE(...) __sanitizer_start_switch_fiber(__VA_ARGS__)
#define EMU_ENTER(...) __sanitizer_finish_switch_fiber(__VA_ARGS__)
#else
#define EMU_LEAVE(...)
#define EMU_ENTER(...)
#endif

namespace emu {

const Where* here = nullptr;

namespace {

// ---- the machine -----------------------------------------------------------------------------------------------------

struct Fiber;
struct Barrier {
    u32 arrived = 0;
    u64 phase = 0;
    int line = 0;
    std::vector<Fiber*> waiting;
};
struct Warp {  // a collective under way: what each lane brought
    u32 present = 0, lanes = 0, priority = 0;
    int line = 0;
    void (*work)(void**) = nullptr;
    void* operand[32];
    Fiber* lane[32];
};
struct Copy { void* to; const void* from; };
struct Block {
    u32 rank = 0, alive = 0, size = 0, priority = 0;
    unsigned char* shared = nullptr;  // dynamic, then static
    Barrier sync;
    std::vector<Warp> warps;
};
struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool started = false, alive = false;
    unsigned char* stack = nullptr;
    void* fake = nullptr;  // AddressSanitizer's
    Where where;
    u32 lane = 0;
    Block* block = nullptr;
    Warp* warp = nullptr;
    u64 cluster_phase = 0;
    std::vector<std::vector<Copy>> groups{1};  // of cp.async: those committed, then the open one
    const char* waits = "";
    int line = 0;
};

constexpr size_t STACK = 128 * 1024;
constexpr u32 STATIC_ROOM = 48 * 1024;  // bytes of static shared memory of a block

struct Machine {
    std::vector<Fiber*> pool;
    std::vector<std::pair<u32, Fiber*>> ready;  // a heap
    std::vector<Block> blocks;                  // of the cluster that runs
    std::map<const void*, u32> statics;         // offset of each static shared variable
    Barrier cluster;
    u32 grid = 1, threads = 1, cluster_size = 1, dynamic = 0, static_bytes = 0, alive = 0, count = 0;
    u64 seed = 0, state = 0;
    jmp_buf home;
    void* fake = nullptr;
    const void* stack = nullptr;
    size_t stack_size = 0;
    std::string error;
    const std::function<void()>* kernel = nullptr;
};
Machine m;
Fiber* self = nullptr;  // the thread that runs

u32 below(size_t n) {  // xorshift64*
    m.state ^= m.state >> 12, m.state ^= m.state << 25, m.state ^= m.state >> 27;
    return u32((m.state * 2685821657736338717ull >> 33) % n);
}

// ---- switching -------------------------------------------------------------------------------------------------------

void to_fiber(Fiber* f) {
    EMU_LEAVE(&m.fake, f->stack, STACK);
    self = f, here = &f->where;
    if (!_setjmp(m.home)) {
        if (f->started) _longjmp(f->at, 1);
        f->started = true;
        setcontext(&f->start);
    }
    EMU_ENTER(m.fake, nullptr, nullptr);
    self = nullptr;
}
__attribute__((noinline)) void to_home() {
    Fiber* f = self;
    EMU_LEAVE(&f->fake, m.stack, m.stack_size);
    if (!_setjmp(f->at)) _longjmp(m.home, 1);
    EMU_ENTER(f->fake, &m.stack, &m.stack_size);
}
[[noreturn]] void fail(const std::string& what) {  // in a kernel: launch returns this
    if (m.error.empty())
        m.error = what + " (block " + std::to_string(self->where.block.x) + ", thread " + std::to_string(self->where.thread.x) + ")";
    for (;;) to_home();
}
void require(bool holds, const char* what) {
    if (!holds) fail(what);
}
// Who goes on first: by seed % 3 in an order drawn for each, or favoured warps, or favoured blocks far ahead of others.
// A uniform order alone misses what shows when one runs as far ahead as it can.
void ready(Fiber* f) {
    const u32 favour = !m.seed || m.seed % 3 == 1 ? 0 : m.seed % 3 == 2 ? f->warp->priority : f->block->priority;
    m.ready.emplace_back(m.seed ? favour << 16 | below(1 << 16) : ++m.count, f);
    std::push_heap(m.ready.begin(), m.ready.end());
}
void wait(const char* what, int line) { self->waits = what, self->line = line, to_home(); }
void release(Barrier& b, u32 needed) {
    if (!b.arrived || b.arrived != needed) return;
    b.arrived = 0, ++b.phase;
    for (Fiber* f : std::exchange(b.waiting, {})) ready(f);
}
void land(const Copy& c) { std::memcpy(c.to, c.from, 16); }

// Each lane brings an operand; the last to arrive runs work(operands) for all.
void collective(void* operand, void (*work)(void**), const char* what, int line) {
    Warp& w = *self->warp;
    if (!w.present) w.line = line, w.work = work;
    if (w.line != line || w.work != work)
        fail(std::string(what) + ": lanes of a warp are at different collectives, lines " + std::to_string(w.line) + " and " + std::to_string(line));
    w.operand[self->lane] = operand, w.lane[self->lane] = self, w.present |= 1u << self->lane;
    if (w.present == w.lanes) {
        if (work) work(w.operand);
        w.present = 0;
        for (u32 l = 0; l < 32; ++l)
            if (w.lanes >> l & 1) ready(w.lane[l]);
    }
    wait(what, line);
}

// ---- running ---------------------------------------------------------------------------------------------------------

void fiber_main() {
    EMU_ENTER(nullptr, &m.stack, &m.stack_size);
    for (;;) {
        (*m.kernel)();
        Block& b = *self->block;
        self->groups.assign(1, {}), self->alive = false;
        self->warp->lanes &= ~(1u << self->lane);
        --b.alive, --m.alive;
        release(b.sync, b.alive), release(m.cluster, m.alive);  // threads that have ended are not waited for
        if (!b.alive) std::memset(b.shared, 0xff, b.size);      // and a block's memory is gone
        to_home();
    }
}
Fiber* fiber(u32 i) {
    if (m.pool.size() <= i) {
        Fiber* f = new Fiber;
        f->stack = static_cast<unsigned char*>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (f->stack == MAP_FAILED) throw std::runtime_error("no memory for the threads' stacks");
        getcontext(&f->start);
        f->start.uc_stack.ss_sp = f->stack, f->start.uc_stack.ss_size = STACK, f->start.uc_link = nullptr;
        makecontext(&f->start, fiber_main, 0), m.pool.push_back(f);
    }
    return m.pool[i];
}
void begin_block(u32 rank, u32 index) {
    Block& b = m.blocks[rank];
    b.rank = rank, b.alive = m.threads, b.size = m.dynamic + STATIC_ROOM, b.warps.resize((m.threads + 31) / 32);
    b.priority = below(1 << 16);
    for (Warp& w : b.warps) w.priority = below(1 << 16);
    b.shared = static_cast<unsigned char*>(std::aligned_alloc(128, b.size));
    std::memset(b.shared, 0xff, b.size);
    for (u32 t = 0; t < m.threads; ++t) {
        Fiber* f = fiber(rank * m.threads + t);
        f->where = {{t, 0, 0}, {index, 0, 0}, {m.threads, 1, 1}, {m.grid, 1, 1}};
        f->lane = t % 32, f->block = &b, f->warp = &b.warps[t / 32], f->alive = true;
        f->warp->lanes |= 1u << f->lane;
        ready(f);
    }
}
std::string stuck() {
    std::map<std::string, u32> where;
    for (u32 i = 0; i < m.cluster_size * m.threads; ++i)
        if (m.pool[i]->alive) ++where[std::string(m.pool[i]->waits) + " at line " + std::to_string(m.pool[i]->line)];
    std::string text = "deadlock:";
    for (auto& [what, n] : where) text += " " + std::to_string(n) + " threads wait for " + what + ";";
    return text;
}
void run_cluster(u32 first) {
    m.blocks.assign(m.cluster_size, {}), m.ready.clear();
    m.cluster = {}, m.alive = m.cluster_size * m.threads;
    for (u32 r = 0; r < m.cluster_size; ++r) begin_block(r, first + r);
    while (m.error.empty() && m.alive) {
        if (m.ready.empty()) {
            m.error = stuck();
            break;
        }
        std::pop_heap(m.ready.begin(), m.ready.end());
        Fiber* f = m.ready.back().second;
        m.ready.pop_back(), to_fiber(f);
    }
    for (Block& b : m.blocks) std::free(b.shared);
    if (!m.error.empty()) m.pool.clear();  // fibers in the middle of a kernel are of no use any more
}

}  // namespace

std::string launch(u32 blocks, u32 threads, u32 cluster, u32 shared, u64 seed, const std::function<void()>& kernel) {
    m.grid = blocks, m.threads = threads, m.cluster_size = cluster, m.dynamic = (shared + 127) / 128 * 128, m.kernel = &kernel;
    m.seed = seed, m.state = (seed + 1) * 0x9e3779b97f4a7c15ull;
    m.statics.clear(), m.static_bytes = 0, m.count = 0, m.error.clear();
    std::vector<u32> order(blocks / cluster);
    for (u32 i = 0; i < order.size(); ++i) order[i] = i;
    for (size_t i = order.size(); seed && i > 1; --i) std::swap(order[i - 1], order[below(i)]);
    for (u32 i : order) {
        run_cluster(i * cluster);
        if (!m.error.empty()) break;
    }
    return m.error;
}

// ---- memory ----------------------------------------------------------------------------------------------------------

void* dynamic_shared() { return self->block->shared; }
void* static_shared(const void* key, u32 bytes) {
    auto [found, added] = m.statics.emplace(key, m.static_bytes);
    if (added) m.static_bytes += (bytes + 127) / 128 * 128;
    require(m.static_bytes <= STATIC_ROOM, "more than 48 KiB of static shared memory");
    return self->block->shared + m.dynamic + found->second;
}
void aligned(const void* p, u32 bytes) {
    if (reinterpret_cast<u64>(p) % bytes) fail("an access of " + std::to_string(bytes) + " bytes to an address that is no multiple");
}
void in_shared(const void* p, u32 bytes) {
    const auto c = static_cast<const unsigned char*>(p);
    require(c >= self->block->shared && c + bytes <= self->block->shared + self->block->size, "not in this block's shared memory");
}
void cp_async16(void* to, const void* from, bool real) {
    static const unsigned char zeros[16] = {};
    aligned(to, 16), aligned(from, 16), in_shared(to, 16);
    const Copy c{to, real ? from : zeros};
    if (m.seed && below(2)) land(c);
    else self->groups.back().push_back(c);
}
void commit_group() { self->groups.emplace_back(); }
void wait_groups(u32 left) {  // the open group is not counted
    for (auto& g = self->groups; g.size() > left + 1; g.erase(g.begin()))
        for (const Copy& c : g.front()) land(c);
}

// ---- blocks and clusters ---------------------------------------------------------------------------------------------

void sync_threads(int line) {
    Barrier& b = self->block->sync;
    if (!b.arrived) b.line = line;
    if (b.line != line) fail("__syncthreads: threads at lines " + std::to_string(b.line) + " and " + std::to_string(line));
    ++b.arrived, b.waiting.push_back(self);
    release(b, self->block->alive), wait("__syncthreads", line);  // the last to arrive waits for its turn, too
}
u32 cluster_rank() { return self->block->rank; }
u32 cluster_size() { return m.cluster_size; }
void cluster_arrive() { self->cluster_phase = m.cluster.phase, ++m.cluster.arrived, release(m.cluster, m.alive); }
void cluster_wait(int line) {
    while (m.cluster.phase == self->cluster_phase) m.cluster.waiting.push_back(self), wait("the cluster's barrier", line);
}
const void* map_rank(const void* p, u32 rank) {
    const size_t at = static_cast<const unsigned char*>(p) - self->block->shared;
    require(rank < m.blocks.size() && at < self->block->size, "no such shared memory in the cluster");
    require(m.blocks[rank].alive, "shared memory of a block that has ended");
    return m.blocks[rank].shared + at;
}

// ---- warps -----------------------------------------------------------------------------------------------------------

void sync_warp(int line) { collective(nullptr, nullptr, "__syncwarp", line); }

struct Shuffle { float in, out; u32 from; };
float shuffle_xor(float v, u32 with, int line) {
    Shuffle s{v, v, self->lane ^ with};
    collective(&s, [](void** lane) {
        const u32 lanes = self->warp->lanes;
        for (u32 l = 0; l < 32; ++l) {
            if (!(lanes >> l & 1)) continue;
            auto* mine = static_cast<Shuffle*>(lane[l]);
            // of a lane that does not take part: not defined on a GPU
            mine->out = mine->from < 32 && lanes >> mine->from & 1 ? static_cast<Shuffle*>(lane[mine->from])->in : bits<float>(~0u);
        }
    }, "a shuffle", line);
    return s.out;
}
struct Ldmatrix { const void* row; u32* out; bool transpose; };
void ldmatrix_x4(u32* out, const void* row, bool transpose, int line) {
    aligned(row, 16), in_shared(row, 16);
    Ldmatrix s{row, out, transpose};
    collective(&s, [](void** lane) {
        for (int l = 0; l < 32; ++l)
            for (int k = 0; k < 4; ++k) {
                auto* mine = static_cast<Ldmatrix*>(lane[l]);
                mine->out[k] = 0;
                for (int h = 0; h < 2; ++h) {
                    const int a = l / 4, b = l % 4 * 2 + h;
                    const auto* from = static_cast<const u16*>(static_cast<Ldmatrix*>(lane[8 * k + (mine->transpose ? b : a)])->row);
                    mine->out[k] |= u32(from[mine->transpose ? a : b]) << 16 * h;
                }
            }
    }, "ldmatrix", line);
}
struct Mma { float* c; const u32* a; u32 b[2]; bool is_bf16; };
void mma_m16n8k16(float* c, const u32* a, u32 b0, u32 b1, bool is_bf16, int line) {  // fragments as in the PTX manual
    Mma s{c, a, {b0, b1}, is_bf16};
    collective(&s, [](void** lane) {
        float A[16][16], B[16][8];
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 4; ++i)
                for (int h = 0; h < 2; ++h) {
                    const Mma* one = static_cast<Mma*>(lane[l]);
                    const auto widen = [&](u32 w) { return one->is_bf16 ? bf16_to_float(u16(w >> 16 * h)) : fp16_to_float(u16(w >> 16 * h)); };
                    A[l / 4 + i % 2 * 8][l % 4 * 2 + h + i / 2 * 8] = widen(one->a[i]);
                    if (i < 2) B[l % 4 * 2 + h + i * 8][l / 4] = widen(one->b[i]);
                }
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 4; ++i) {
                float sum = 0;
                for (int k = 0; k < 16; ++k) sum += A[l / 4 + i / 2 * 8][k] * B[k][l % 4 * 2 + i % 2];
                static_cast<Mma*>(lane[l])->c[i] += sum;
            }
    }, "mma.sync", line);
}

}  // namespace emu
