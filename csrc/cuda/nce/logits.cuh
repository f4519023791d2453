// A logit from a product of rows: temperature, norms, and the weights of the negatives.
#pragma once
#include "nce/rows.cuh"

namespace nce {

DEVICE float weight_at(const void* from, i64 at, int dtype) {  // dtype: DTYPES of kernels/_cuda.py
    if (dtype == 0) return static_cast<const float*>(from)[at];
    if (dtype == 1) return widen(static_cast<const bf16*>(from)[at]);
    if (dtype == 2) return widen(static_cast<const fp16*>(from)[at]);
    return float(static_cast<const double*>(from)[at]);
}

// similarity: s, of which the norm's gradient takes; z: the logit; m: the similarity weight. Of a pair that is left out,
// whatever its weights say, z is -infinity and the others have no say: 0 times infinity would be NaN.
struct Logit { float s, z, m; };

struct Logits {
    const Args& a;
    int l, queries, keys;
    bool in_image, weighted;

    DEVICE Logits(const Args& given, int layer)
        : a(given), l(layer), queries(a.queries[l]), keys(a.keys[l]), in_image(!a.negatives[l]),
          weighted(a.log_weight[l] || a.similarity_weight[l]) {}

    DEVICE bool pair(int i, int j) const { return i < queries && j < keys && !(in_image && i == j); }

    // product of query i and key j of a problem, not normalised; row: of the query in its layer.
    DEVICE Logit operator()(float product, int i, int j, int row, float q_inverse, float k_inverse) const {
        if (!pair(i, j)) return {0.0f, -infinity(), 1.0f};
        const float s = product * q_inverse * k_inverse * a.scale;
        if (!weighted) return {s, s, 1.0f};
        return with_weights(s, row, j);
    }
    DEVICE Logit with_weights(float s, int row, int j) const {  // strides are read here: they would fill registers
        const int b = row / a.image_queries[l], i = row - b * a.image_queries[l];
        float m = 1.0f, add = 0.0f;
        if (a.similarity_weight[l]) {
            const i64 at = b * a.similarity_b[l] + i * a.similarity_i[l] + j * a.similarity_j[l];
            m = weight_at(a.similarity_weight[l], at, a.similarity_dtype[l]);
        }
        if (a.log_weight[l]) add = weight_at(a.log_weight[l], b * a.log_b[l] + i * a.log_i[l] + j * a.log_j[l], a.log_dtype[l]);
        return {s * m, s * m + add, m};
    }
};

}  // namespace nce
