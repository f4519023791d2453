// Contrastive losses on patch features (kernels/nce): how the work is handed to threads.
#include "nce/backward.h"
#include "nce/forward.h"

namespace KERNELS_ISA {
namespace {

constexpr int64_t kMostRows = 256;  // of a task: its keys are read, and normalised, once for so many queries

// Tasks differ in size, so threads take the next one when they are done. Which thread takes which changes no result.
// f(task, space); space holds `floats` for one thread.
template <class F>
int share(ParallelFor parallel, int64_t threads, int64_t tasks, int64_t floats, F f) {
  int64_t next = 0;
  int failed = 0;
  run(parallel, least(threads, tasks), 1, [&](int64_t begin, int64_t end) {
    Scratch space(end > begin ? floats * 4 : 0);
    if (!space.p) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    for (;;) {
      const int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (task >= tasks) return;
      f(task, space.floats());
    }
  });
  return failed;
}

// Queries that meet the same negatives.
static inline int64_t group_rows(const NceLayer& L) { return L.bank && L.shared ? L.b * L.s : L.s; }
static inline int64_t groups(const NceLayer& L) { return L.bank && L.shared ? (L.b > 0) : L.b; }
static inline int64_t pieces(int64_t n, int64_t each) { return (n + each - 1) / each; }

// The layer a task belongs to, and which of that layer's tasks it is.
template <class F>
const NceLayer& layer_of(const NceArgs& A, int64_t& task, int64_t& first_row, F tasks_of) {
  first_row = 0;
  int64_t i = 0;
  for (; i < A.count - 1 && task >= tasks_of(A.layers[i]); ++i) {
    task -= tasks_of(A.layers[i]);
    first_row += A.layers[i].b * A.layers[i].s;
  }
  return A.layers[i];
}

int forward(const NceArgs& A, ParallelFor parallel) {
  // As large as leaves every thread two tasks of a bank, or four of keys that come from the cache anyway; powers of two
  // halve an image's rows evenly.
  const auto rows_of_task = [&](const NceLayer& L) {
    int64_t rows = kLanes;
    while (rows < kMostRows && 2 * rows * (L.bank ? 2 : 4) * A.threads <= A.rows) rows *= 2;
    return rows;
  };
  const auto tasks_of = [&](const NceLayer& L) { return groups(L) * pieces(group_rows(L), rows_of_task(L)); };
  int64_t tasks = 0, width = 1;
  for (int64_t i = 0; i < A.count; ++i) {
    tasks += tasks_of(A.layers[i]);
    if (A.layers[i].c > width) width = A.layers[i].c;
  }
  return share(parallel, A.threads, tasks, Forward::Space::floats(width, kMostRows), [&](int64_t task, float* space) {
    int64_t first_row;
    const NceLayer& L = layer_of(A, task, first_row, tasks_of);
    const int64_t rows = rows_of_task(L), each = pieces(group_rows(L), rows), from = (task % each) * rows;
    Forward::Space w(space, L.c, rows);
    Forward{A, L, first_row, 1 / A.temperature}.run(task / each * group_rows(L) + from, least(group_rows(L) - from, rows), w);
  });
}

int backward(const NceArgs& A, ParallelFor parallel) {
  const auto columns = [](const NceLayer& L) { return L.grad_bank || L.grad_log_weight || (L.grad_k && !L.bank); };
  const auto by_columns = [&](const NceLayer& L) { return columns(L) ? groups(L) * pieces(L.m, kKeys) : 0; };
  const auto by_rows = [](const NceLayer& L) { return pieces(L.b * L.s, kMostRows); };
  const auto tasks_of = [&](const NceLayer& L) { return by_columns(L) + by_rows(L); };
  int64_t tasks = 0, width = 1;
  bool recompute = false;
  for (int64_t i = 0; i < A.count; ++i) {
    tasks += tasks_of(A.layers[i]);
    recompute |= columns(A.layers[i]);
    if (A.layers[i].c > width) width = A.layers[i].c;
  }
  // rows alone are scaled in microseconds: not worth waking a thread for less than 256 KB of them
  const int64_t threads = recompute ? A.threads : least(A.threads, pieces(A.rows * width, 65536));
  const int64_t floats = recompute ? Columns::Space::floats(width) : 3 * padded(width);
  return share(parallel, threads, tasks, floats, [&](int64_t task, float* space) {
    int64_t first_row;
    const NceLayer& L = layer_of(A, task, first_row, tasks_of);
    const int64_t blocks = pieces(L.m, kKeys);
    if (task < by_columns(L)) {
      const int64_t group = task / blocks, j0 = task % blocks * kKeys, count = group_rows(L);
      Columns::Space w(space, L.c);
      const int64_t shift = L.bank && L.shared ? 0 : group * L.m;
      Columns{A, L, first_row, 1 / A.temperature}.run(group * count, count, shift, j0, least(L.m - j0, kKeys), w);
      return;
    }
    const int64_t row0 = (task - by_columns(L)) * kMostRows, count = least(L.b * L.s - row0, kMostRows);
    if (L.grad_q) scale_rows(A, L, first_row, row0, count, space);
    if (L.grad_k && L.bank) positive_rows(A, L, first_row, row0, count, space);
  });
}

}  // namespace

NceTable nce_table() { return {forward, backward}; }

}  // namespace KERNELS_ISA
