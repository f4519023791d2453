// What a kernel of the contrastive losses is given. kernels/_cuda.py reads this struct: pointers first, then numbers, each
// by its name. Arrays have an entry for each layer of the launch.
//
// A problem is `queries` rows of q that share their keys: one image's, or with negatives shared by all images all rows at
// once. Rows count through the layer: row = problem * queries + i.
#pragma once

namespace nce {

struct Args {
    const void* q[8];                  // (B, S, C)
    const void* k[8];
    const void* negatives[8];          // (B, M, C) or (M, C); null: the other keys of the problem
    const void* log_weight[8];         // (B, S, M) of any strides, or null
    const void* similarity_weight[8];
    void* unit[8];                     // (B, S, C) float32: gradient of q for a row gradient of 1, or null
    void* dq[8];                       // backward: each in the dtype of q, or null
    void* dk[8];
    void* dnegatives[8];
    void* dlog_weight[8];              // (B, S, M) float32, or null
    const void* grad;                  // backward: of the losses, (total,) float32
    void* loss;                        // (total,) float32
    void* stats;                       // (3, total) float32, rows as in kernels/nce/spec.py
    long long total;                   // rows of all layers of the call
    long long log_b[8];                // strides of the weights, in elements
    long long log_i[8];
    long long log_j[8];
    long long similarity_b[8];
    long long similarity_i[8];
    long long similarity_j[8];
    int queries[8];                    // of a problem
    int keys[8];                       // the negatives of a problem
    int width[8];                      // C
    int image_queries[8];              // S
    int first_row[8];                  // among all rows of the call
    int rows[8];                       // B * S
    int first_block[8];                // of the blocks with tiles
    int tiles[8];                      // of a problem
    int chunks[8];                     // blocks that share a tile, each with other columns of the gradient
    int first_row_block[8];            // backward: of the blocks with rows
    int wide[8];                       // whether rows can be read 16 bytes at a time
    int log_dtype[8];                  // kernels/_cuda.py
    int similarity_dtype[8];
    int layers;
    int tile_blocks;                   // backward: blocks with tiles; those with rows follow
    int stages;                        // 1 or 2 slabs in shared memory
    int normalize;
    int decoupled;
    float scale;                       // 1 / temperature
};

}  // namespace nce
