// Contrastive losses on patch features (kernels/nce): how the work is handed to threads.
#include "nce/nce.h"

#if defined(KERNELS_AMX) && !defined(KERNELS_AMX_PLAIN) && !defined(__clang__) && __GNUC__ < 11
// Assemblers of that age do not know the instructions: this level is not offered.
namespace KERNELS_ISA {
NceTable nce_table() { return {}; }
}  // namespace KERNELS_ISA
#else

#include "nce/backward.h"
#include "nce/forward.h"

namespace KERNELS_ISA {
namespace {

#if defined(KERNELS_AMX_PLAIN)
constexpr const char* kBFloat16Products = "emulated matrix units";
#elif defined(KERNELS_AMX)
constexpr const char* kBFloat16Products = "matrix units (AMX)";
#elif defined(__AVX512BF16__)
constexpr const char* kBFloat16Products = "pairs (AVX512-BF16)";
#else
constexpr const char* kBFloat16Products = "float32";
#endif

constexpr int64_t kMostRows = 256;  // of a task: its keys are read, and normalised, once for so many queries

// Tasks differ in size, so threads take the next one when they are done. Which thread takes which changes no result.
// f(task, space); space holds `floats` for one thread. `pairs`: f multiplies bfloat16.
template <class F>
int share(ParallelFor parallel, int64_t threads, bool pairs, int64_t tasks, int64_t floats, F f) {
  int64_t next = 0;
  int failed = 0;
  run(parallel, least(threads, tasks), 1, [&](int64_t begin, int64_t end) {
    Scratch space(end > begin ? floats * 4 : 0);
    if (!space.p) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    const auto work = [&] {
      for (;;) {
        const int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (task >= tasks) return;
        f(task, space.floats());
      }
    };
    if (!pairs) return work();
    const NarrowUnit unit;
    work();
  });
  return failed;
}

// Queries that meet the same negatives.
static inline int64_t group_rows(const NceLayer& layer) {
  return layer.negatives && layer.shared ? layer.b * layer.s : layer.s;
}
static inline int64_t groups(const NceLayer& layer) {
  return layer.negatives && layer.shared ? (layer.b > 0) : layer.b;
}
static inline int64_t pieces(int64_t n, int64_t each) { return (n + each - 1) / each; }

// The layer a task belongs to, and which of that layer's tasks it is.
template <class F>
const NceLayer& layer_of(const NceArgs& args, int64_t& task, int64_t& first_row, F tasks_of) {
  first_row = 0;
  int64_t i = 0;
  for (; i < args.count - 1 && task >= tasks_of(args.layers[i]); ++i) {
    task -= tasks_of(args.layers[i]);
    first_row += args.layers[i].b * args.layers[i].s;
  }
  return args.layers[i];
}

int forward(const NceArgs& args, ParallelFor parallel) {
  // As large as leaves every thread two tasks with negatives of their own, or four of keys that come from the cache
  // anyway; powers of two halve an image's rows evenly.
  const auto rows_of_task = [&](const NceLayer& layer) {
    int64_t rows = kLanes;
    while (rows < kMostRows && 2 * rows * (layer.negatives ? 2 : 4) * args.threads <= args.rows) rows *= 2;
    return rows;
  };
  const auto tasks_of = [&](const NceLayer& layer) {
    return groups(layer) * pieces(group_rows(layer), rows_of_task(layer));
  };
  int64_t tasks = 0, width = 1;
  for (int64_t i = 0; i < args.count; ++i) {
    tasks += tasks_of(args.layers[i]);
    if (args.layers[i].c > width) width = args.layers[i].c;
  }
  const int64_t floats = Forward::Space::floats(width, kMostRows);
  return share(parallel, args.threads, in_pairs(args.dtype), tasks, floats, [&](int64_t task, float* space) {
    int64_t first_row;
    const NceLayer& layer = layer_of(args, task, first_row, tasks_of);
    const int64_t in_group = group_rows(layer), rows = rows_of_task(layer), each = pieces(in_group, rows);
    const int64_t from = (task % each) * rows;
    Forward::Space w(space, layer.c, rows);
    const Forward queries{args, layer, first_row, 1 / args.temperature};
    queries.run(task / each * in_group + from, least(in_group - from, rows), w);
  });
}

int backward(const NceArgs& args, ParallelFor parallel) {
  const auto columns = [](const NceLayer& layer) {
    return layer.grad_negatives || layer.grad_log_weight || (layer.grad_k && !layer.negatives);
  };
  const auto by_columns = [&](const NceLayer& layer) {
    return columns(layer) ? groups(layer) * pieces(layer.m, kKeys) : 0;
  };
  const auto by_rows = [](const NceLayer& layer) { return pieces(layer.b * layer.s, kMostRows); };
  const auto tasks_of = [&](const NceLayer& layer) { return by_columns(layer) + by_rows(layer); };
  int64_t tasks = 0, width = 1;
  bool recompute = false;
  for (int64_t i = 0; i < args.count; ++i) {
    tasks += tasks_of(args.layers[i]);
    recompute |= columns(args.layers[i]);
    if (args.layers[i].c > width) width = args.layers[i].c;
  }
  // rows alone are scaled in microseconds: not worth waking a thread for less than 256 KB of them
  const int64_t threads = recompute ? args.threads : least(args.threads, pieces(args.rows * width, 65536));
  const int64_t floats = recompute ? Columns::Space::floats(width) : 3 * padded(width);
  const bool pairs = recompute && in_pairs(args.dtype);
  return share(parallel, threads, pairs, tasks, floats, [&](int64_t task, float* space) {
    int64_t first_row;
    const NceLayer& layer = layer_of(args, task, first_row, tasks_of);
    const int64_t blocks = pieces(layer.m, kKeys);
    if (task < by_columns(layer)) {
      const int64_t group = task / blocks, j0 = task % blocks * kKeys, count = group_rows(layer);
      Columns::Space w(space, layer.c);
      const int64_t shift = layer.negatives && layer.shared ? 0 : group * layer.m;
      const Columns keys{args, layer, first_row, 1 / args.temperature};
      keys.run(group * count, count, shift, j0, least(layer.m - j0, kKeys), w);
      return;
    }
    const int64_t row0 = (task - by_columns(layer)) * kMostRows, count = least(layer.b * layer.s - row0, kMostRows);
    if (layer.grad_q) scale_rows(args, layer, first_row, row0, count, space);
    if (layer.grad_k && layer.negatives) positive_rows(args, layer, first_row, row0, count, space);
  });
}

}  // namespace

NceTable nce_table() { return {forward, backward, kBFloat16Products}; }

}  // namespace KERNELS_ISA

#endif
