// Sinkhorn iterations in the log domain, and the gradient of the unrolled loop.
//
//   a_t = log(m / s) - logsumexp_j(L_ij + b_{t-1,j}),   b_t = -logsumexp_i(L_ij + a_t,i),   b_0 = 0;   plan = L + a + b
//
// No exp per element runs inside the loop. With reference potentials (A, B) taken off, K = exp(L + A + B) holds numbers
// up to 1, and the loop is matrix-vector products with K and scalings exp(a_t - A), exp(b_t - B) near 1. Once a scaling
// has drifted too far, the potentials of the moment become the reference and K is computed anew. This is safe, since
// after the first iteration no potential moves by more than log(max(s, m)) in one step: a row of exp(L + a_t + b_{t-1})
// sums to m / s, so no column sums to more than m, and so on.
//
// Both half iterations read K once: a group of rows is multiplied with the column scalings, which gives its row
// scalings, and while it is in the first cache level it is added to the column sums.
//
// One problem is one task.
#include "sinkhorn/sinkhorn.h"

#include "sinkhorn/parts.h"

namespace KERNELS_ISA {
namespace {

template <class T>
int forward_one(const SinkhornArgs& args, int64_t problem) {
  const int64_t s = args.s, m = args.m, sp = padded(s, W), ld = padded(m, W);
  Pieces pieces(s * ld + 3 * sp + 4 * ld, 8);
  if (!pieces.memory.p) return 1;
  Problem<T> p = {(const T*)args.log_kernel + problem * s * m, s, m, sp, ld};
  p.k = pieces.take(s * ld);
  p.a = pieces.take(sp);
  p.b = pieces.take(ld);
  float *u = pieces.take(sp), *v = pieces.take(ld), *y = pieces.take(ld), *at = pieces.take(sp), *bt = pieces.take(ld);
  const int64_t entry = s + m + 1;
  float* history = args.potentials ? args.potentials + problem * args.iterations * entry : nullptr;
  auto keep = [&](const float* rows, const float* columns, float mark) {
    if (!history) return;
    memcpy(history, rows, (size_t)s * 4);
    memcpy(history + s, columns, (size_t)m * 4);
    history[s + m] = mark;
    history += entry;
  };
  const float ratio = (float)((double)m / (double)s);

  float* sums = sp > ld ? u : y;  // both lengths must fit
  p.first_iteration(ratio, v, sums);
  memcpy(at, p.a, (size_t)sp * 4);
  memcpy(bt, p.b, (size_t)ld * 4);
  keep(at, bt, 1);
  for (int64_t j = 0; j < ld; ++j) v[j] = 1;
  for (int64_t i = 0; i < sp; ++i) u[i] = 1;
  for (int64_t t = 1; t < args.iterations; ++t) {
    sweep<true, true>(p.k, s, ld, v, y, [&](int64_t i, float sum) { return u[i] = ratio / sum; });
    for (int64_t j = m; j < ld; ++j) y[j] = 1;
    for (int64_t i = 0; i < sp; i += W) {
      const vf x = log_of(load(u + i));
      store(u + i, x);
      store(at + i, load(p.a + i) + x);
    }
    for (int64_t i = s; i < sp; ++i) u[i] = 1;
    for (int64_t j = 0; j < ld; j += W) {
      const vf sum = load(y + j), x = -log_of(sum);
      store(v + j, 1.0f / sum);
      store(y + j, x);
      store(bt + j, load(p.b + j) + x);
    }
    const bool far = reach(u, s) > kDrift || reach(y, m) > kDrift;
    keep(u, y, far);
    if (far && t + 1 < args.iterations) {
      memcpy(p.a, at, (size_t)sp * 4);
      memcpy(p.b, bt, (size_t)ld * 4);
      p.absorb(y);
      for (int64_t j = 0; j < ld; ++j) v[j] = 1;
    }
  }
  T* out = (T*)args.log_plan + problem * s * m;
  for (int64_t i = 0; i < s; ++i) {
    const float ai = at[i];
    along(m, [&](int64_t j, int n) { put(out + i * m + j, get(p.l + i * m + j, n) + ai + load(bt + j), n); });
  }
  return 0;
}

// What the sweeps find of sum_t (exp(a_t) x db_t exp(b_t) + da_t exp(a_t) x exp(b_{t-1})), as factors to be multiplied.
struct Factors {
  float *u, *v, *panel;  // u: (sp / 4, kRank, 4); v: (kRank, ld); panel: (kRank, 2 W)
  int64_t rank;

  void put_u(int64_t i, int64_t column, float x) { u[((i >> 2) * kRank + column) * 4 + (i & 3)] = x; }

  // d -= K o (u v), and the factors are empty
  void flush(const float* k, float* d, int64_t s, int64_t ld) {
    for (int64_t j = 0; j < ld; j += 2 * W) {
      const bool two = j + W < ld;
      for (int64_t c = 0; c < rank; ++c) {
        store(panel + c * 2 * W, load(v + c * ld + j));
        store(panel + c * 2 * W + W, two ? load(v + c * ld + j + W) : vf{});
      }
      for (int64_t i = 0; i < s; i += 4) {
        const float* rows = u + (i >> 2) * kRank * 4;
        vf acc[4][2] = {};
        for (int64_t c = 0; c < rank; ++c) {
          const vf x = load(panel + c * 2 * W), z = load(panel + c * 2 * W + W);
          for (int r = 0; r < 4; ++r) {
            acc[r][0] += rows[c * 4 + r] * x;
            acc[r][1] += rows[c * 4 + r] * z;
          }
        }
        const int64_t count = s - i < 4 ? s - i : 4;
        for (int64_t r = 0; r < count; ++r)
          for (int h = 0; h <= (int)two; ++h) {
            const int64_t at = (i + r) * ld + j + h * W;
            store(d + at, load(d + at) - load(k + at) * acc[r][h]);
          }
      }
    }
    rank = 0;
  }
};

template <class T>
int backward_one(const SinkhornArgs& args, int64_t problem) {
  const int64_t s = args.s, m = args.m, sp = padded(s, W), ld = padded(m, W);
  Pieces pieces(2 * s * ld + 4 * sp + 5 * ld + sp * kRank + kRank * ld + kRank * 2 * W, 14);
  if (!pieces.memory.p) return 1;
  Problem<T> p = {(const T*)args.log_kernel + problem * s * m, s, m, sp, ld};
  p.k = pieces.take(s * ld);
  p.a = pieces.take(sp);
  p.b = pieces.take(ld);
  float* d = pieces.take(s * ld);
  float *ea = pieces.take(sp), *da = pieces.take(sp);
  float *eb = pieces.take(ld), *before = pieces.take(ld), *w = pieces.take(ld), *db = pieces.take(ld);
  Factors f = {pieces.take(sp * kRank), pieces.take(kRank * ld), pieces.take(kRank * 2 * W), 0};
  memset(f.u, 0, (size_t)(sp * kRank) * 4);
  float *of_rows[] = {p.a, ea}, *of_columns[] = {p.b, eb, before, w, db};
  for (float* x : of_rows) memset(x, 0, (size_t)sp * 4);
  for (float* x : of_columns) memset(x, 0, (size_t)ld * 4);

  const T* grad = (const T*)args.grad + problem * s * m;
  for (int64_t i = 0; i < s; ++i) {
    vf total = {};
    along(m, [&](int64_t j, int n) {
      const vf g = get(grad + i * m + j, n);
      store(d + i * ld + j, g);
      store(db + j, load(db + j) + g);
      total += g;
    });
    da[i] = hsum(total);
  }

  const int64_t entry = s + m + 1;
  const float* history = args.potentials + problem * args.iterations * entry;
  const float inverse = (float)((double)s / (double)m);
  auto marked = [&](int64_t t) { return history[t * entry + s + m] != 0; };
  auto exponentials = [&](const float* x, int64_t count, float* to) {
    along(count, [&](int64_t i, int n) { store(to + i, first_lanes(exp_of(get(x + i, n)), n)); });
  };
  auto ones = [](float* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = 1;
  };
  // The reference after iteration t, by the additions that forward did, and its K.
  auto refer_to = [&](int64_t t) {
    if (f.rank) f.flush(p.k, d, s, ld);
    memcpy(p.a, history, (size_t)s * 4);
    memcpy(p.b, history + s, (size_t)m * 4);
    for (int64_t from = 1; from <= t; ++from)
      if (marked(from)) {
        const float* x = history + from * entry;
        for (int64_t i = 0; i < s; ++i) p.a[i] += x[i];
        for (int64_t j = 0; j < m; ++j) p.b[j] += x[s + j];
      }
    p.absorb(before);
  };
  for (int64_t t = args.iterations - 1; t >= 0; --t) {
    const bool last = t == args.iterations - 1;
    // iteration t stands on the reference of the mark before it; the first is itself the reference
    if (last || marked(t)) {
      int64_t mark = t > 0 ? t - 1 : 0;
      while (!marked(mark)) --mark;
      refer_to(mark);
    } else if (f.rank + 2 > kRank) {
      f.flush(p.k, d, s, ld);
    }
    const float* x = history + t * entry;
    bool together = true;
    if (t > 0) {
      exponentials(x, s, ea);
      exponentials(x + s, m, eb);
      if (marked(t - 1))
        ones(before, m);
      else
        exponentials(x - entry + s, m, before);
    } else {
      ones(ea, s);
      ones(eb, m);
      together = reach(p.b, m) <= kNear;  // the step from b_0 = 0 may be any distance
      if (together)
        for (int64_t j = 0; j < ld; j += W) store(before + j, exp_of(-load(p.b + j)));
    }
    for (int64_t j = 0; j < ld; j += W) store(w + j, load(eb + j) * load(db + j));

    const int64_t column = f.rank;
    float *v0 = f.v + column * ld, *v1 = v0 + ld;
    memcpy(v0, w, (size_t)ld * 4);
    if (together) {
      memcpy(v1, before, (size_t)ld * 4);
      f.rank += 2;
      sweep<true, true>(p.k, s, ld, w, db, [&](int64_t i, float sum) {
        const float c = ea[i] * ((last ? da[i] : 0.0f) - ea[i] * sum) * inverse;
        f.put_u(i, column, ea[i]);
        f.put_u(i, column + 1, c);
        return c;
      });
      for (int64_t j = 0; j < ld; j += W) store(db + j, -(load(db + j) * load(before + j)));
    } else {
      f.rank += 1;
      sweep<true, false>(p.k, s, ld, w, db, [&](int64_t i, float sum) {
        da[i] = (last ? da[i] : 0.0f) - sum;
        f.put_u(i, column, 1);
        return 0.0f;
      });
      f.flush(p.k, d, s, ld);
      const float shift = __builtin_logf(inverse);
      for (int64_t i = 0; i < s; ++i) p.a[i] += shift;
      p.absorb_rows();
      for (int64_t i = 0; i < s; ++i) f.put_u(i, 0, da[i]);
      ones(f.v, ld);
      f.rank = 1;
    }
  }
  f.flush(p.k, d, s, ld);
  T* out = (T*)args.grad_log_kernel + problem * s * m;
  for (int64_t i = 0; i < s; ++i)
    along(m, [&](int64_t j, int n) { put(out + i * m + j, load(d + i * ld + j), n); });
  return 0;
}

template <class F>
int each(const SinkhornArgs& args, ParallelFor parallel, F one) {
  int failed = 0;
  run(parallel, args.problems, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (one(args, i)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  });
  return failed;
}

int forward(const SinkhornArgs& args, ParallelFor parallel) {
  if (args.dtype == kBFloat16) return each(args, parallel, forward_one<bf16>);
  return args.dtype == kFloat16 ? each(args, parallel, forward_one<f16>) : each(args, parallel, forward_one<float>);
}

int backward(const SinkhornArgs& args, ParallelFor parallel) {
  if (args.dtype == kBFloat16) return each(args, parallel, backward_one<bf16>);
  return args.dtype == kFloat16 ? each(args, parallel, backward_one<f16>) : each(args, parallel, backward_one<float>);
}

}  // namespace

SinkhornTable sinkhorn_table() { return {forward, backward}; }
}  // namespace KERNELS_ISA
