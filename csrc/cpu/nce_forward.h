// Losses, their statistics, and the gradient of the queries for a row gradient of 1.
//
// Online log-sum-exp over blocks of keys (Milakov and Gimelshein 2018, arXiv 1805.02867): the tile of logits never leaves
// the cache. The gradient is gathered beside it as attention gathers its values, rescaled when a maximum grows.
#pragma once

#include "nce_tile.h"

namespace KERNELS_ISA {
namespace {

struct Forward {
  const NceArgs& A;
  const NceLayer& L;
  const int64_t first_row;  // of this layer among all
  const float inverse_t;

  // Scratch of one thread, for up to `rows` queries of width c.
  struct Space {
    float *queries, *gradient, *logits, *weights, *keys, *rows, *row, *inverse, *lanes;
    static int64_t floats(int64_t c, int64_t rows) {
      const int64_t ld = padded(c);
      return c * rows + ld * rows + 3 * kKeys * kLanes + kKeys * ld + kLanes * ld + 2 * ld + kKeys + 7 * rows;
    }
    Space(float* p, int64_t c, int64_t count) {
      const int64_t ld = padded(c);
      queries = p, p += c * count;
      gradient = p, p += ld * count;
      logits = p, p += kKeys * kLanes;
      weights = p, p += 2 * kKeys * kLanes;
      keys = p, p += kKeys * ld;
      rows = p, p += kLanes * ld;
      row = p, p += 2 * ld;
      inverse = p, p += kKeys;
      lanes = p;  // 7 numbers per query
    }
  };

  // One number per query each.
  struct Lanes {
    float *top, *total, *positive, *inverse, *back, *keep, *key_inverse;
    Lanes(float* p, int64_t n)
        : top(p), total(p + n), positive(p + 2 * n), inverse(p + 3 * n), back(p + 4 * n), keep(p + 5 * n),
          key_inverse(p + 6 * n) {}
  };

  // Queries row0 to row0 + count of the layer (count <= Space's rows): of one problem, unless the bank is shared.
  void run(int64_t row0, int64_t count, Space& w) const {
    const int64_t c = L.c, ld = padded(c), tiles = (count + kLanes - 1) / kLanes;
    const bool pairs = in_pairs(A.dtype, c);
    Lanes lane(w.lanes, tiles * kLanes);
    for (int64_t t = 0; t < tiles; ++t) begin(row0 + t * kLanes, least(count - t * kLanes, kLanes), t, lane, w);
    const int64_t problem = row0 / L.s, shift = L.bank && L.shared ? 0 : problem * L.m;
    for (int64_t j0 = 0; j0 < L.m; j0 += kKeys) {
      const int64_t keys = least(L.m - j0, kKeys);
      const bf16* raw = (const bf16*)L.negatives() + (shift + j0) * c;
      const Rows n = pairs && !A.normalize ? Rows{} : rows_of(L.negatives(), A.dtype, c, shift + j0, keys, w.keys);
      for (int64_t j = 0; j < keys; ++j) w.inverse[j] = A.normalize ? norm_of(n.row(j), c, true).inverse : 1;
      if (pairs && L.unit) pair_rows(raw, c, keys, ld, (uint32_t*)w.keys);
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t lanes = least(count - t * kLanes, kLanes);
        const float* q = w.queries + t * c * kLanes;
        float *gradient = w.gradient + t * kLanes * ld, *keep = lane.keep + t * kLanes;
        if (pairs) product<Pair>((const uint32_t*)raw, c / 2, 1, (const uint32_t*)q, kLanes, c / 2, w.logits, kLanes, keys, kLanes);
        else product<Single>(n.p, n.ld, 1, q, kLanes, c, w.logits, kLanes, keys, kLanes);
        soften(row0 + t * kLanes, lanes, j0, keys, t * kLanes, lane, w);
        if (!L.unit) continue;
        if (!pairs) {
          product<Single>(w.logits, 1, kLanes, n.p, n.ld, keys, gradient, ld, lanes, ld, j0 > 0, keep);
          continue;
        }
        uint32_t* p = (uint32_t*)w.weights;  // those of this tile have been used
        pair_rows(w.logits, kLanes, keys, kLanes, p);
        product<Pair>(p, 1, kLanes, (const uint32_t*)w.keys, ld, (keys + 1) / 2, gradient, ld, lanes, ld, j0 > 0, keep);
      }
    }
    for (int64_t i = 0; i < count; ++i) finish(row0 + i, i, lane, w);
  }

  // A tile's queries as lanes, their positives and norms.
  void begin(int64_t row0, int64_t count, int64_t t, Lanes& lane, Space& w) const {
    const int64_t at = t * kLanes;
    const Rows q = rows_of(L.q, A.dtype, L.c, row0, count, w.rows);
    for (int64_t i = 0; i < count; ++i) {
      const Rows k = rows_of(L.k, A.dtype, L.c, row0 + i, 1, w.row);
      const Norm nq = norm_of(q.row(i), L.c, A.normalize), nk = norm_of(k.p, L.c, A.normalize);
      lane.inverse[at + i] = nq.inverse;
      lane.back[at + i] = nq.back;
      lane.key_inverse[at + i] = nk.inverse;
      lane.positive[at + i] = dot(q.row(i), k.p, L.c) * nq.inverse * nk.inverse * inverse_t;
    }
    for (int64_t i = 0; i < kLanes; ++i) lane.top[at + i] = kLowest, lane.total[at + i] = 0;
    for (int64_t i = count; i < kLanes; ++i) lane.inverse[at + i] = 0;
    float* to = w.queries + t * L.c * kLanes;
    if (in_pairs(A.dtype, L.c)) pack_lane_pairs(q, count, L.c, (uint32_t*)to);
    else pack_lanes(q, count, L.c, to);
  }

  // Products to e^(z - max), their sums, and the factors of the negatives in the gradient.
  void soften(int64_t row0, int64_t count, int64_t j0, int64_t keys, int64_t at, Lanes& lane, Space& w) const {
    float *similarity = w.weights, *log_weight = w.weights + kKeys * kLanes;
    if (L.similarity_weight.p) weight_tile(L.similarity_weight, L.s, row0, count, j0, keys, similarity);
    if (L.log_weight.p) weight_tile(L.log_weight, L.s, row0, count, j0, keys, log_weight);
    const int64_t diagonal = L.bank ? -1 : row0 % L.s - j0;  // lane i is the key of row diagonal + i
    for (int64_t v = 0; v < kLanes; v += W) {
      const vf scale = load(lane.inverse + at + v) * inverse_t;
      vf top = load(lane.top + at + v);
      const vf before = top;
      for (int64_t j = 0; j < keys; ++j) {
        float* z_ = w.logits + j * kLanes + v;
        vf z = load(z_) * (scale * w.inverse[j]);
        if (L.similarity_weight.p) z *= load(similarity + j * kLanes + v);
        if (L.log_weight.p) z += load(log_weight + j * kLanes + v);
        store(z_, z);
        if (!L.bank && j - diagonal >= v && j - diagonal < v + W) {
          z_[j - diagonal - v] = -INFINITY;
          z = load(z_);
        }
        top = greater(z, top);
      }
      const vf keep = exp_or_zero(before - top);
      vf total = {};
      for (int64_t j = 0; j < keys; ++j) {
        float* z_ = w.logits + j * kLanes + v;
        const vf e = exp_or_zero(load(z_) - top);
        total += e;
        vf factor = e * w.inverse[j];
        if (L.similarity_weight.p) factor *= load(similarity + j * kLanes + v);
        store(z_, factor);
      }
      store(lane.top + at + v, top);
      store(lane.keep + at + v, keep);
      store(lane.total + at + v, load(lane.total + at + v) * keep + total);
    }
  }

  void finish(int64_t row, int64_t i, const Lanes& lane, Space& w) const {
    const float total = lane.total[i], lse = lane.top[i] + logf(total), positive = lane.positive[i];
    const float margin = lse - positive, small = expf(-fabsf(margin));
    const float loss = A.decoupled ? margin : log1pf(small) + (margin > 0 ? margin : 0);
    const float pull = A.decoupled ? 1.0f : margin > 0 ? 1 / (1 + small) : small / (1 + small);
    const int64_t at = first_row + row;
    A.loss[at] = margin == margin ? loss : margin;
    A.stats[at] = lse;
    A.stats[A.rows + at] = margin == margin ? pull : margin;
    A.stats[2 * A.rows + at] = lane.inverse[i];
    if (!L.unit) return;
    // the negatives' pull less the positive's: the weight of both is `pull`, so nothing cancels that should not
    const int64_t ld = padded(L.c);
    const float* sum = w.gradient + i * ld;
    const Rows k = rows_of(L.k, A.dtype, L.c, row, 1, w.row), q = rows_of(L.q, A.dtype, L.c, row, 1, w.row + ld);
    const float scale = pull * inverse_t * lane.inverse[i];
    const float a = scale / total, b = scale * lane.key_inverse[i];
    float* out = L.unit + row * L.c;
    int64_t c = 0;
    for (; c + W <= L.c; c += W) store(out + c, load(sum + c) * a - load(k.p + c) * b);
    for (; c < L.c; ++c) out[c] = sum[c] * a - k.p[c] * b;
    if (A.normalize) leave_direction(out, q.p, L.c, lane.back[i], out);
  }
};

}  // namespace
}  // namespace KERNELS_ISA
