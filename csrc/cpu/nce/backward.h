// Gradients of keys, bank and log weights: the logits are computed again, block by block of keys.
#pragma once

#include "nce/tile.h"

namespace KERNELS_ISA {
namespace {

// q's: rows of the gradient that the forward pass left, scaled.
void scale_rows(const NceArgs& A, const NceLayer& L, int64_t first_row, int64_t row0, int64_t count, float* row) {
  const bool zeros_matter = A.normalize && A.dtype == kFloat16;
  for (int64_t i = row0; i < row0 + count; ++i) {
    const float g = A.grad[first_row + i];
    const float* from = L.unit_in + i * L.c;
    char* to = (char*)L.grad_q + i * L.c * size_of(A.dtype);
    float* out = A.dtype == kFloat32 ? (float*)to : row;
    int64_t c = 0;
    for (; c + W <= L.c; c += W) store(out + c, load(from + c) * g);
    for (; c < L.c; ++c) out[c] = from[c] * g;
    if (A.dtype != kFloat32)
      narrow(out, A.dtype, L.c, to, zeros_matter && A.stats[2 * A.rows + first_row + i] == (float)(1 / (double)kEps));
  }
}

// k's, where other rows are the negatives: only the positive pulls.
void positive_rows(const NceArgs& A, const NceLayer& L, int64_t first_row, int64_t row0, int64_t count, float* space) {
  const int64_t ld = padded(L.c);
  for (int64_t i = row0; i < row0 + count; ++i) {
    Norm nq, nk;
    const Rows q = directions_of(L.q, A.dtype, L.c, i, 1, A.normalize, space, &nq);
    const Rows k = directions_of(L.k, A.dtype, L.c, i, 1, A.normalize, space + ld, &nk);
    const float g = -A.grad[first_row + i] * A.stats[A.rows + first_row + i] / A.temperature * nk.inverse;
    float* out = space + 2 * ld;
    for (int64_t c = 0; c < L.c; ++c) out[c] = q.p[c] * g;
    if (A.normalize) leave_direction(out, k.p, L.c, nk.back);
    narrow(out, A.dtype, L.c, (char*)L.grad_k + i * L.c * size_of(A.dtype), A.normalize && nk.back == 0);
  }
}

struct Columns {  // a block of keys, over all queries that meet them
  const NceArgs& A;
  const NceLayer& L;
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
    const int64_t c = L.c, ld = padded(c);
    void* out = L.bank ? L.grad_bank : L.grad_k;
    const Rows n = directions_of(L.negatives(), A.dtype, c, shift + j0, keys, A.normalize, w.keys, w.norms);
    for (int64_t t = 0; t < count; t += kLanes) {
      const int64_t lanes = least(count - t, kLanes);
      const Rows q = directions_of(L.q, A.dtype, c, row0 + t, lanes, A.normalize, w.rows, w.query_norms);
      pack_lanes(q, lanes, c, w.queries);
      product<Single>(n.p, n.ld, 1, w.queries, kLanes, c, w.logits, kLanes, keys, kLanes);
      pull_tile(row0 + t, lanes, t, j0, keys, w);
      if (!out) continue;
      // columns beyond c of a float32 tensor read as it is do not exist: c is a multiple of kColumns then
      product<Single>(w.logits, kLanes, 1, q.p, q.ld, lanes, w.gradient, ld, keys, ld, t > 0);
    }
    if (!out) return;
    for (int64_t j = 0; j < keys; ++j) {
      float* g = w.gradient + j * ld;
      const float a = inverse_t * w.norms[j].inverse;
      for (int64_t x = 0; x < c; ++x) g[x] *= a;
      if (A.normalize) leave_direction(g, n.row(j), c, w.norms[j].back);
      narrow(g, A.dtype, c, (char*)out + (shift + j0 + j) * c * size_of(A.dtype), A.normalize && w.norms[j].back == 0);
    }
  }

  // Products to what each query does to each key: dz, times the similarity weight.
  void pull_tile(int64_t row, int64_t count, int64_t i0, int64_t j0, int64_t keys, Space& w) const {
    float *similarity = w.weights, *log_weight = w.weights + kKeys * kLanes;
    float *lse = w.lanes, *weight = lse + kLanes;
    if (L.similarity_weight.p) weight_tile(L.similarity_weight, L.s, row, count, j0, keys, similarity);
    if (L.log_weight.p) weight_tile(L.log_weight, L.s, row, count, j0, keys, log_weight);
    for (int64_t i = 0; i < kLanes; ++i) {  // lanes without a query pull at nothing
      const int64_t at = first_row + row + i;
      lse[i] = i < count && A.stats[at] != -INFINITY ? A.stats[at] : 0;  // no negative at all: z is -inf, z - lse too
      weight[i] = i < count ? A.stats[A.rows + at] * A.grad[at] : 0;
    }
    const int64_t diagonal = L.bank ? -1 : i0 - j0;
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t v = 0; v < kLanes; v += W) {
        float* z_ = w.logits + j * kLanes + v;
        vf z = load(z_) * inverse_t;
        if (L.similarity_weight.p) z *= load(similarity + j * kLanes + v);
        if (L.log_weight.p) z += load(log_weight + j * kLanes + v);
        z -= load(lse + v);
        vf dz = load(weight + v) * exp_or_zero((z > 0) ? vf{} : z);
        vf factor = dz;
        if (L.similarity_weight.p) factor *= load(similarity + j * kLanes + v);
        const int64_t lane = j - diagonal - v;
        if (!L.bank && lane >= 0 && lane < W) {  // the positive
          dz[lane] = 0;
          factor[lane] = -weight[v + lane];
        }
        if (L.grad_log_weight) store(w.weights + j * kLanes + v, dz);
        store(z_, factor);
      }
    }
    if (L.grad_log_weight)  // similarity weights of this tile have been used
      for (int64_t i = 0; i < count; ++i) {
        float* to = L.grad_log_weight + (row + i) * L.m + j0;
        for (int64_t j = 0; j < keys; ++j) to[j] = w.weights[j * kLanes + i];
      }
  }
};

}  // namespace
}  // namespace KERNELS_ISA
