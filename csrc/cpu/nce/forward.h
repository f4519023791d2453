// Losses, their statistics, and the gradient of the queries for a row gradient of 1.
//
// Online log-sum-exp over blocks of keys (Milakov and Gimelshein 2018, arXiv 1805.02867): the tile of logits never leaves
// the cache. The gradient is gathered beside it as attention gathers its values, rescaled when a maximum grows.
#pragma once

#include "nce/narrow.h"

namespace KERNELS_ISA {
namespace {

struct Forward {
  const NceArgs& args;
  const NceLayer& layer;
  const int64_t first_row;  // of this layer among all
  const float inverse_t;

  // Scratch of one thread, for up to `rows` queries of width c.
  struct Space {
    float *queries, *gradient, *logits, *weights, *keys, *rows, *row, *scale, *lanes;
    Norm* norms;
    static int64_t floats(int64_t c, int64_t rows) {
      const int64_t ld = padded(c);
      return 2 * ld * rows + 3 * kKeys * kLanes + kKeys * ld + kLanes * ld + ld + 3 * kKeys + 7 * rows;
    }
    Space(float* p, int64_t c, int64_t count) {
      const int64_t ld = padded(c);
      queries = p, p += ld * count;
      gradient = p, p += ld * count;
      logits = p, p += kKeys * kLanes;
      weights = p, p += 2 * kKeys * kLanes;
      keys = p, p += kKeys * ld;
      rows = p, p += kLanes * ld;
      row = p, p += ld;
      scale = p, p += kKeys;
      norms = (Norm*)p, p += 2 * kKeys;
      lanes = p;  // 7 numbers per query
    }
    // bfloat16 takes the memory of float32 keys for two things, and that of the weights of a tile after their use.
    uint32_t* key_pairs() const { return (uint32_t*)keys; }
    bf16* copy(int64_t c) const { return (bf16*)(keys + kKeys / 2 * padded(c)); }
    bf16* factors() const { return (bf16*)weights; }
  };

  // One number per query each.
  struct Lanes {
    float *top, *total, *positive, *scale, *keep;
    Norm* norms;
    Lanes(float* p, int64_t n)
        : top(p), total(p + n), positive(p + 2 * n), scale(p + 3 * n), keep(p + 4 * n), norms((Norm*)(p + 5 * n)) {}
  };

  // Queries row0 to row0 + count of the layer (count <= Space's rows): of one problem, unless negatives are shared.
  void run(int64_t row0, int64_t count, Space& w) const {
    const int64_t c = layer.c, ld = padded(c), tiles = (count + kLanes - 1) / kLanes;
    const bool pairs = in_pairs(args.dtype);
    Lanes lane(w.lanes, tiles * kLanes);
    for (int64_t t = 0; t < tiles; ++t) begin(row0 + t * kLanes, least(count - t * kLanes, kLanes), t, lane, w);
    const int64_t problem = row0 / layer.s, shift = layer.negatives && layer.shared ? 0 : problem * layer.m;
    for (int64_t j0 = 0; j0 < layer.m; j0 += kKeys) {
      const int64_t keys = least(layer.m - j0, kKeys);
      Rows n = {};
      NarrowRows raw = {};
      if (pairs)
        raw = narrow_rows(layer.negatives_or_k(), c, shift + j0, keys, w.copy(c));
      else
        n = directions_of(layer.negatives_or_k(), args.dtype, c, shift + j0, keys, args.normalize, w.keys, w.norms);
      for (int64_t j = 0; j < keys; ++j) w.scale[j] = 1;
      if (pairs && args.normalize) inverse_norms(raw, keys, c, w.scale);
      if (pairs && layer.dq_unscaled) pair_rows(raw, keys, c, ld, w.key_pairs());
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t lanes = least(count - t * kLanes, kLanes);
        const float* q = w.queries + t * ld * kLanes;
        float *gradient = w.gradient + t * kLanes * ld, *keep = lane.keep + t * kLanes;
        if (pairs)
          narrow_product(raw.p, raw.ld, (const uint32_t*)q, kLanes, raw.ld, w.logits, kLanes, keys, kLanes);
        else
          product<Single>(n.p, n.ld, 1, q, kLanes, c, w.logits, kLanes, keys, kLanes);
        soften(row0 + t * kLanes, lanes, j0, keys, t * kLanes, lane, w);
        if (!layer.dq_unscaled) continue;
        if (!pairs) {
          product<Single>(w.logits, 1, kLanes, n.p, n.ld, keys, gradient, ld, lanes, ld, j0 > 0, keep);
          continue;
        }
        lanes_as_rows(w.logits, keys, w.factors());
        narrow_product(w.factors(), kKeys, w.key_pairs(), ld, up(keys, kStep), gradient, ld, lanes, ld, j0 > 0, keep);
      }
    }
    for (int64_t i = 0; i < count; ++i) finish(row0 + i, i, lane, w);
  }

  // A tile's queries as lanes, their positives and norms.
  void begin(int64_t row0, int64_t count, int64_t t, Lanes& lane, Space& w) const {
    const int64_t at = t * kLanes;
    const bool pairs = in_pairs(args.dtype);
    float* to = w.queries + t * padded(layer.c) * kLanes;
    if (pairs) pack_lane_pairs(narrow_rows(layer.q, layer.c, row0, count, w.copy(layer.c)), count, (uint32_t*)to);
    const Rows q = directions_of(layer.q, args.dtype, layer.c, row0, count, args.normalize, w.rows, lane.norms + at);
    if (!pairs) pack_lanes(q, count, layer.c, to);
    for (int64_t i = 0; i < count; ++i) {
      Norm norm;
      const Rows k = directions_of(layer.k, args.dtype, layer.c, row0 + i, 1, args.normalize, w.row, &norm);
      lane.positive[at + i] = dot(q.row(i), k.p, layer.c) * inverse_t;
      lane.scale[at + i] = inverse_t * (pairs ? lane.norms[at + i].inverse : 1);
    }
    for (int64_t i = count; i < kLanes; ++i) lane.scale[at + i] = 0;
    for (int64_t i = 0; i < kLanes; ++i) lane.top[at + i] = kLowest, lane.total[at + i] = 0;
  }

  // Products to e^(z - max), their sums, and the factors of the negatives in the gradient.
  void soften(int64_t row0, int64_t count, int64_t j0, int64_t keys, int64_t at, Lanes& lane, Space& w) const {
    float *similarity = w.weights, *log_weight = w.weights + kKeys * kLanes;
    if (layer.similarity_weight.p) weight_tile(layer.similarity_weight, layer.s, row0, count, j0, keys, similarity);
    if (layer.log_weight.p) weight_tile(layer.log_weight, layer.s, row0, count, j0, keys, log_weight);
    const int64_t diagonal = layer.negatives ? -1 : row0 % layer.s - j0;  // lane i is the key of row diagonal + i
    // 0 for the pairs that are left out, whatever their weight: 0 times infinity would be NaN
    if (layer.similarity_weight.p && !layer.negatives)
      for (int64_t i = 0; i < count; ++i)
        if (diagonal + i >= 0 && diagonal + i < keys) similarity[(diagonal + i) * kLanes + i] = 0;
    for (int64_t v = 0; v < kLanes; v += W) {
      const vf scale = load(lane.scale + at + v);
      vf top = load(lane.top + at + v);
      const vf before = top;
      for (int64_t j = 0; j < keys; ++j) {
        float* z_ = w.logits + j * kLanes + v;
        vf z = load(z_) * (scale * w.scale[j]);
        if (layer.similarity_weight.p) z *= load(similarity + j * kLanes + v);
        if (layer.log_weight.p) z += load(log_weight + j * kLanes + v);
        store(z_, z);
        if (!layer.negatives && j - diagonal >= v && j - diagonal < v + W) {
          z_[j - diagonal - v] = -INFINITY;
          z = load(z_);
        }
        top = greater(z, top);
      }
      // An infinite maximum is taken off as the largest number: its own e^(z - max) and the total are then infinite, where
      // inf - inf would make them NaN. Once per tile: the loops over keys need not know of it.
      top = (top > FLT_MAX) ? splat(FLT_MAX) : top;
      const vf keep = exp_or_zero(before - top);
      vf total = {};
      for (int64_t j = 0; j < keys; ++j) {
        float* z_ = w.logits + j * kLanes + v;
        const vf e = exp_or_zero(load(z_) - top);
        total += e;
        vf factor = e * w.scale[j];
        if (layer.similarity_weight.p) factor *= load(similarity + j * kLanes + v);
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
    const float loss = args.decoupled ? margin : log1pf(small) + (margin > 0 ? margin : 0);
    const float lse_grad = args.decoupled ? 1.0f : margin > 0 ? 1 / (1 + small) : small / (1 + small);
    const int64_t at = first_row + row;
    args.loss[at] = margin == margin ? loss : margin;
    args.stats[at] = lse;
    args.stats[args.rows + at] = args.decoupled || margin == margin ? lse_grad : margin;
    args.stats[2 * args.rows + at] = lane.norms[i].inverse;
    if (!layer.dq_unscaled) return;
    // The negatives' part less the positive's. Both have the one factor `lse_grad`, so that no digits cancel but those
    // that cancel in exact arithmetic.
    const int64_t ld = padded(layer.c);
    const float* sum = w.gradient + i * ld;
    Norm norm;
    const Rows k = directions_of(layer.k, args.dtype, layer.c, row, 1, args.normalize, w.row, &norm);
    // a row without negatives: total is 0, and so is their sum
    const float b = lse_grad * inverse_t * lane.norms[i].inverse, a = total == 0 ? 0 : b / total;
    float* out = layer.dq_unscaled + row * layer.c;
    int64_t c = 0;
    for (; c + W <= layer.c; c += W) store(out + c, load(sum + c) * a - load(k.p + c) * b);
    for (; c < layer.c; ++c) out[c] = sum[c] * a - k.p[c] * b;
    if (!args.normalize) return;
    const Rows q = directions_of(layer.q, args.dtype, layer.c, row, 1, true, w.row, &norm);
    through_norm(out, q.p, layer.c, norm.back);
  }
};

}  // namespace
}  // namespace KERNELS_ISA
