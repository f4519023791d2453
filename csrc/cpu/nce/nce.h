// What one call of the contrastive losses needs, as raw pointers and sizes. No torch here: see common/binding.cpp.
#pragma once

#include "common/parallel.h"

struct NceWeight {  // of the negatives, float32; null: none. Strides in elements, 0 where it is broadcast.
  const float* p;
  int64_t b, i, j;
};

struct NceLayer {
  const void *q, *k, *negatives;  // (b, s, c), (b, s, c), and (b, m, c), (m, c) if shared, or null: the other keys
  int64_t b, s, m, c, shared;
  NceWeight log_weight, similarity_weight;
  float* dq_unscaled;                      // forward: gradient of q for a row gradient of 1, (b, s, c); may be null
  const float* dq_unscaled_in;             // backward: the same
  void *grad_q, *grad_k, *grad_negatives;  // dtype of q; each may be null
  float* grad_log_weight;                  // (b, s, m); may be null
  const void* negatives_or_k() const { return negatives ? negatives : k; }
};

struct NceArgs {
  int64_t count;        // layers
  NceLayer* layers;
  int64_t dtype;        // of q, k, negatives and their gradients; everything else is float32
  int64_t normalize, decoupled, threads;
  float temperature;
  float* loss;          // (rows)
  float* stats;         // (3, rows): log-sum-exp of the negatives, d loss / d it, 1 / (norm of q + 1e-7)
  const float* grad;    // backward: (rows)
  int64_t rows;         // of all layers
};

struct NceTable {  // one per instruction set; each returns 0, or 1 when scratch memory could not be had
  int (*forward)(const NceArgs&, ParallelFor);
  int (*backward)(const NceArgs&, ParallelFor);
  const char* bfloat16;  // what multiplies such features, for the report
};
