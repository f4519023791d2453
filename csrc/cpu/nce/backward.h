// Gradients of keys, negatives and log weights: the logits are computed again, block by block of keys.
#pragma once

#include "nce/narrow.h"

namespace KERNELS_ISA {
namespace {

// q's: rows of the gradient that the forward pass left, scaled.
void scale_rows(const NceArgs& args, const NceLayer& layer, int64_t first_row, int64_t row0, int64_t count, float* row) {
  const bool zeros_matter = args.normalize && args.dtype == kFloat16;
  for (int64_t i = row0; i < row0 + count; ++i) {
    const float g = args.grad[first_row + i];
    const float* from = layer.dq_unscaled_in + i * layer.c;
    char* to = (char*)layer.grad_q + i * layer.c * size_of(args.dtype);
    float* out = args.dtype == kFloat32 ? (float*)to : row;
    int64_t c = 0;
    for (; c + W <= layer.c; c += W) store(out + c, load(from + c) * g);
    for (; c < layer.c; ++c) out[c] = from[c] * g;
    if (args.dtype != kFloat32)
      narrow(out, args.dtype, layer.c, to,
             zeros_matter && args.stats[2 * args.rows + first_row + i] == (float)(1 / (double)kEps));
  }
}

// k's, where other rows are the negatives: that of the positive alone.
void positive_rows(const NceArgs& args, const NceLayer& layer, int64_t first_row, int64_t row0, int64_t count,
                   float* space) {
  const int64_t ld = padded(layer.c);
  for (int64_t i = row0; i < row0 + count; ++i) {
    Norm nq, nk;
    const Rows q = directions_of(layer.q, args.dtype, layer.c, i, 1, args.normalize, space, &nq);
    const Rows k = directions_of(layer.k, args.dtype, layer.c, i, 1, args.normalize, space + ld, &nk);
    const float g = -args.grad[first_row + i] * args.stats[args.rows + first_row + i] / args.temperature * nk.inverse;
    float* out = space + 2 * ld;
    for (int64_t c = 0; c < layer.c; ++c) out[c] = q.p[c] * g;
    if (args.normalize) through_norm(out, k.p, layer.c, nk.back);
    narrow(out, args.dtype, layer.c, (char*)layer.grad_k + i * layer.c * size_of(args.dtype),
           args.normalize && nk.back == 0);
  }
}

constexpr int64_t kTogether = 4 * kLanes;  // queries of one bfloat16 product: its sums are read and written once for them

struct Columns {  // a block of keys, over all queries that meet them
  const NceArgs& args;
  const NceLayer& layer;
  const int64_t first_row;
  const float inverse_t;

  struct Space {
    float *keys, *gradient, *queries, *rows, *logits, *weights, *lanes;
    Norm *norms, *query_norms;
    bf16 *key_copy, *copy, *factors;  // of bfloat16 products alone
    uint32_t* query_pairs;
    static int64_t floats(int64_t c) {
      const int64_t ld = padded(c), narrow = (kKeys + kLanes + kTogether) / 2 * ld + kKeys * kTogether / 2;
      return 2 * kKeys * ld + 2 * kLanes * ld + 3 * kKeys * kLanes + 2 * kKeys + 5 * kLanes + (kNarrow ? narrow : 0);
    }
    Space(float* p, int64_t c) {
      const int64_t ld = padded(c);
      keys = p, p += kKeys * ld;
      gradient = p, p += kKeys * ld;
      queries = p, p += kLanes * ld;
      rows = p, p += kLanes * ld;
      logits = p, p += kKeys * kLanes;
      weights = p, p += 2 * kKeys * kLanes;
      norms = (Norm*)p, p += 2 * kKeys;
      query_norms = (Norm*)p, p += 2 * kLanes;
      lanes = p, p += 3 * kLanes;
      if (!kNarrow) return;
      key_copy = (bf16*)p, p += kKeys / 2 * ld;
      copy = (bf16*)p, p += kLanes / 2 * ld;
      factors = (bf16*)p, p += kKeys * kTogether / 2;
      query_pairs = (uint32_t*)p;
    }
  };

  // Keys j0 to j0 + keys of a group of `count` queries from row0 of the layer; its first key is row `shift` of the tensor.
  void run(int64_t row0, int64_t count, int64_t shift, int64_t j0, int64_t keys, Space& w) const {
    const int64_t c = layer.c, ld = padded(c);
    void* out = layer.negatives ? layer.grad_negatives : layer.grad_k;
    const Rows n = directions_of(layer.negatives_or_k(), args.dtype, c, shift + j0, keys, args.normalize, w.keys, w.norms);
    if (in_pairs(args.dtype))
      sum_pairs(row0, count, shift, j0, keys, out, w);
    else
      sum(row0, count, j0, keys, n, out, w);
    if (!out) return;
    for (int64_t j = 0; j < keys; ++j) {
      float* g = w.gradient + j * ld;
      const float a = inverse_t * w.norms[j].inverse;
      for (int64_t x = 0; x < c; ++x) g[x] *= a;
      if (args.normalize) through_norm(g, n.row(j), c, w.norms[j].back);
      narrow(g, args.dtype, c, (char*)out + (shift + j0 + j) * c * size_of(args.dtype),
             args.normalize && w.norms[j].back == 0);
    }
  }

  // The gradient of each key's direction.
  void sum(int64_t row0, int64_t count, int64_t j0, int64_t keys, const Rows& n, bool out, Space& w) const {
    const int64_t c = layer.c, ld = padded(c);
    for (int64_t t = 0; t < count; t += kLanes) {
      const int64_t lanes = least(count - t, kLanes);
      const Rows q = directions_of(layer.q, args.dtype, c, row0 + t, lanes, args.normalize, w.rows, w.query_norms);
      pack_lanes(q, lanes, c, w.queries);
      product<Single>(n.p, n.ld, 1, w.queries, kLanes, c, w.logits, kLanes, keys, kLanes);
      logit_gradients(row0 + t, lanes, t, j0, keys, nullptr, w);
      // columns beyond c of a float32 tensor read as it is do not exist: c is a multiple of kColumns then
      if (out) product<Single>(w.logits, kLanes, 1, q.p, q.ld, lanes, w.gradient, ld, keys, ld, t > 0);
    }
  }

  // The same of rows as they lie in memory, each query's part divided by its norm: factors are rounded to bfloat16.
  void sum_pairs(int64_t row0, int64_t count, int64_t shift, int64_t j0, int64_t keys, bool out, Space& w) const {
    const int64_t c = layer.c, ld = padded(c);
    const NarrowRows n = narrow_rows(layer.negatives_or_k(), c, shift + j0, keys, w.key_copy);
    for (int64_t t0 = 0; t0 < count; t0 += kTogether) {
      const int64_t together = least(count - t0, kTogether);
      for (int64_t t = 0; t < together; t += kLanes) {
        const int64_t lanes = least(together - t, kLanes), row = row0 + t0 + t;
        const NarrowRows q = narrow_rows(layer.q, c, row, lanes, w.copy);
        uint32_t* queries = (uint32_t*)w.queries;
        pack_lane_pairs(q, lanes, queries);
        narrow_product(n.p, n.ld, queries, kLanes, n.ld, w.logits, kLanes, keys, kLanes);
        logit_gradients(row, lanes, t0 + t, j0, keys, w.factors + t, w);
        if (out) pair_rows(q, lanes, c, ld, w.query_pairs + t / 2 * ld);
      }
      if (out)
        narrow_product(w.factors, kTogether, w.query_pairs, ld, up(together, kStep), w.gradient, ld, keys, ld, t0 > 0);
    }
  }

  // Products of queries and keys to the factors of the queries in each key's gradient: dz, times the similarity weight. In
  // place; or of rows that are not normalised to `factors`, (keys, kTogether), zero where there is no query.
  void logit_gradients(int64_t row, int64_t count, int64_t i0, int64_t j0, int64_t keys, bf16* factors, Space& w) const {
    float *similarity = w.weights, *log_weight = w.weights + kKeys * kLanes;
    float *lse = w.lanes, *weight = lse + kLanes, *norm = weight + kLanes;
    if (layer.similarity_weight.p) weight_tile(layer.similarity_weight, layer.s, row, count, j0, keys, similarity);
    if (layer.log_weight.p) weight_tile(layer.log_weight, layer.s, row, count, j0, keys, log_weight);
    for (int64_t i = 0; i < kLanes; ++i) {  // lanes without a query have weight 0
      const int64_t at = first_row + row + i;
      // without any negative z is -inf, and so must z - lse be
      lse[i] = i < count && args.stats[at] != -INFINITY ? args.stats[at] : 0;
      weight[i] = i < count ? args.stats[args.rows + at] * args.grad[at] : 0;
      norm[i] = factors && i < count ? args.stats[2 * args.rows + at] : 1;
    }
    const int64_t diagonal = layer.negatives ? -1 : i0 - j0;
    for (int64_t j = 0; j < keys; ++j) {
      const float scale = inverse_t * (factors ? w.norms[j].inverse : 1);
      for (int64_t v = 0; v < kLanes; v += W) {
        float* z_ = w.logits + j * kLanes + v;
        vf z = load(z_) * (scale * load(norm + v));
        if (layer.similarity_weight.p) z *= load(similarity + j * kLanes + v);
        if (layer.log_weight.p) z += load(log_weight + j * kLanes + v);
        z -= load(lse + v);
        vf dz = load(weight + v) * exp_or_zero((z > 0) ? vf{} : z);
        vf factor = dz;
        if (layer.similarity_weight.p) factor *= load(similarity + j * kLanes + v);
        const int64_t lane = j - diagonal - v;
        if (!layer.negatives && lane >= 0 && lane < W) {  // the positive
          dz[lane] = 0;
          factor[lane] = -weight[v + lane];
        }
        if (layer.grad_log_weight) store(w.weights + j * kLanes + v, dz);
        if (factors)
          store(factors + j * kTogether + v, first_lanes(factor * load(norm + v), (int)(count - v)));
        else
          store(z_, factor);
      }
    }
    if (layer.grad_log_weight)  // similarity weights of this tile have been used
      for (int64_t i = 0; i < count; ++i) {
        float* to = layer.grad_log_weight + (row + i) * layer.m + j0;
        for (int64_t j = 0; j < keys; ++j) to[j] = w.weights[j * kLanes + i];
      }
  }
};

}  // namespace
}  // namespace KERNELS_ISA
