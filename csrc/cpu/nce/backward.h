// Gradients of keys, negatives and log weights: the logits are computed again, block by block of keys.
#pragma once

#include "nce/tile.h"

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

struct Columns {  // a block of keys, over all queries that meet them
  const NceArgs& args;
  const NceLayer& layer;
  const int64_t first_row;
  const float inverse_t;

  struct Space {
    float *keys, *gradient, *queries, *rows, *logits, *weights, *lanes;
    Norm *norms, *query_norms;
    static int64_t floats(int64_t c) {
      const int64_t ld = padded(c);
      return 2 * kKeys * ld + kLanes * (c + ld) + 3 * kKeys * kLanes + 2 * kKeys + 4 * kLanes;
    }
    Space(float* p, int64_t c) {
      const int64_t ld = padded(c);
      keys = p, p += kKeys * ld;
      gradient = p, p += kKeys * ld;
      queries = p, p += kLanes * c;
      rows = p, p += kLanes * ld;
      logits = p, p += kKeys * kLanes;
      weights = p, p += 2 * kKeys * kLanes;
      norms = (Norm*)p, p += 2 * kKeys;
      query_norms = (Norm*)p, p += 2 * kLanes;
      lanes = p;
    }
  };

  // Keys j0 to j0 + keys of a group of `count` queries from row0 of the layer; its first key is row `shift` of the tensor.
  void run(int64_t row0, int64_t count, int64_t shift, int64_t j0, int64_t keys, Space& w) const {
    const int64_t c = layer.c, ld = padded(c);
    void* out = layer.negatives ? layer.grad_negatives : layer.grad_k;
    const Rows n = directions_of(layer.negatives_or_k(), args.dtype, c, shift + j0, keys, args.normalize, w.keys, w.norms);
    for (int64_t t = 0; t < count; t += kLanes) {
      const int64_t lanes = least(count - t, kLanes);
      const Rows q = directions_of(layer.q, args.dtype, c, row0 + t, lanes, args.normalize, w.rows, w.query_norms);
      pack_lanes(q, lanes, c, w.queries);
      product<Single>(n.p, n.ld, 1, w.queries, kLanes, c, w.logits, kLanes, keys, kLanes);
      logit_gradients(row0 + t, lanes, t, j0, keys, w);
      if (!out) continue;
      // columns beyond c of a float32 tensor read as it is do not exist: c is a multiple of kColumns then
      product<Single>(w.logits, kLanes, 1, q.p, q.ld, lanes, w.gradient, ld, keys, ld, t > 0);
    }
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

  // Products of queries and keys to the factors of the queries in each key's gradient: dz, times the similarity weight.
  void logit_gradients(int64_t row, int64_t count, int64_t i0, int64_t j0, int64_t keys, Space& w) const {
    float *similarity = w.weights, *log_weight = w.weights + kKeys * kLanes;
    float *lse = w.lanes, *weight = lse + kLanes;
    if (layer.similarity_weight.p) weight_tile(layer.similarity_weight, layer.s, row, count, j0, keys, similarity);
    if (layer.log_weight.p) weight_tile(layer.log_weight, layer.s, row, count, j0, keys, log_weight);
    for (int64_t i = 0; i < kLanes; ++i) {  // lanes without a query have weight 0
      const int64_t at = first_row + row + i;
      // without any negative z is -inf, and so must z - lse be
      lse[i] = i < count && args.stats[at] != -INFINITY ? args.stats[at] : 0;
      weight[i] = i < count ? args.stats[args.rows + at] * args.grad[at] : 0;
    }
    const int64_t diagonal = layer.negatives ? -1 : i0 - j0;
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t v = 0; v < kLanes; v += W) {
        float* z_ = w.logits + j * kLanes + v;
        vf z = load(z_) * inverse_t;
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
