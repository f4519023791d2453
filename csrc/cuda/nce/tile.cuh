// Products of tiles. A block owns ROWS rows (queries forward, keys backward) and goes over the `others` that meet them,
// OTHERS at a time: products with each other, and then the others summed with weights made of these.
//
// Shared memory holds slabs: COLUMNS columns of the own and of the other rows, filled with zeros. Wider rows come slab by
// slab, and each block sums but one of these chunks of columns, the last of its round. So any width needs the registers
// and the memory of COLUMNS.
//
// 16-bit rows are multiplied by the tensor cores (mma.m16n8k16), float32 rows exactly, on the ordinary ones. In both cases
// a thread has the same logits: of rows g, g + 8 and of two neighbouring others, g = lane / 4, as mma leaves them.
#pragma once
#include "nce/rows.cuh"

namespace nce {

template <class T, int COLUMNS, int ROWS> struct Tile {
    static constexpr bool EXACT = sizeof(T) == 4;
    static constexpr int N = 16 / int(sizeof(T)), CHUNKS = COLUMNS / N;  // elements of a vector, vectors of a row
    static constexpr int STEP = EXACT ? 4 : 16;                          // columns of a product's step
    static constexpr int OTHERS = EXACT ? 64 : 128;
    static constexpr int EACH = OTHERS / WARPS, TILES = EACH / 8;  // others of a warp
    static constexpr int M = ROWS / 16, OUT = COLUMNS / 64;        // 16 own rows; 8 columns of a warp's sums
    static constexpr int SLAB = (ROWS + OTHERS) * CHUNKS;          // vectors
    static constexpr int LINE = COLUMNS + 4;                       // of `staged`

    Vec* memory;   // slabs, then weights
    int stages;
    const T *own, *others;  // first rows
    int own_count, other_count, width, wide, chunks, chunk;
    int warp, lane, g, pair;

    DEVICE Tile(const Args& a, const Work& w, const T* own_rows, int own_left, const T* other_rows, int others_there)
        : memory(dynamic_shared<Vec>()), stages(a.stages), own(own_rows), others(other_rows), own_count(min(own_left, ROWS)),
          other_count(others_there), width(a.width[w.l]), wide(a.wide[w.l]), chunks(divide_up(width, COLUMNS)), chunk(w.chunk),
          warp(int(threadIdx.x) / 32), lane(int(threadIdx.x) % 32), g(lane / 4), pair(lane % 4) {}

    // Chunk c of row r stands at c ^ (r % 8), so that eight rows of a matrix lie in different banks.
    template <int LENGTH> DEVICE static int place(int row, int c) { return row * LENGTH + (c ^ (row & 7)); }

    // ---- slabs: chunks of columns in a round that ends with this block's own, for each `others` in turn --------------

    DEVICE int slabs() const { return divide_up(other_count, OTHERS) * chunks; }
    DEVICE int first_column(int slab) const { return (slab + 1 + chunk) % chunks * COLUMNS; }
    DEVICE int columns(int slab) const { return min(width - first_column(slab), COLUMNS); }
    DEVICE bool last(int slab) const { return slab % chunks == chunks - 1; }  // of its round
    DEVICE int first_other(int slab) const { return slab / chunks * OTHERS; }
    DEVICE int others_of(int slab) const { return min(other_count - first_other(slab), OTHERS); }
    DEVICE Vec* at(int slab) const { return memory + (stages == 2 && slab % 2 ? SLAB : 0); }
    DEVICE Vec* weights() const { return memory + stages * SLAB; }

    DEVICE void load_rows(Vec* to, const T* from, int rows, int there, int columns) const {
        const int used = divide_up(columns, STEP) * STEP, t = int(threadIdx.x);
        if (wide) {
            const int c = t % CHUNKS;
            if (c * N < used)
#pragma unroll 1  // addresses of all 16 rows at once would fill the registers
                for (int r = t / CHUNKS; r < rows; r += THREADS / CHUNKS) {
                    const bool real = r < there && c * N < columns;
                    copy_async(to + place<CHUNKS>(r, c), real ? from + i64(r) * width + c * N : from, real);
                }
        } else {
            const int c = t % COLUMNS;
            if (c < used)
#pragma unroll 2
                for (int r = t / COLUMNS; r < rows; r += THREADS / COLUMNS)
                    reinterpret_cast<T*>(to + place<CHUNKS>(r, c / N))[c % N] = r < there && c < columns ? from[i64(r) * width + c] : T{};
        }
    }
    DEVICE void load(int slab) const {
        if (slab < slabs()) {
            const int c0 = first_column(slab);
            load_rows(at(slab), own + c0, ROWS, own_count, columns(slab));
            load_rows(at(slab) + ROWS * CHUNKS, others + i64(first_other(slab)) * width + c0, OTHERS, others_of(slab), columns(slab));
        }
        copy_commit();  // an empty group too: every slab has its own
    }
    DEVICE void begin() const {
        for (int s = 0; s < stages; ++s) load(s);
    }
    DEVICE void wait() const {  // for the next slab
        if (stages == 2) { copy_wait<1>(); } else { copy_wait<0>(); }
        __syncthreads();
    }
    DEVICE void release(int slab) const {
        __syncthreads();
        load(slab + stages);
    }

    // ---- products ----------------------------------------------------------------------------------------------------

    // s += own rows times others, of this slab's columns. [m][n][e]: row m * 16 + row(e), other other(n, e).
    DEVICE int row(int m, int e) const { return m * 16 + g + e / 2 * 8; }
    DEVICE int other(int n, int e) const { return warp * EACH + n * 8 + 2 * pair + e % 2; }

    DEVICE void multiply_rows(int slab, float (&s)[M][TILES][4]) const {
        if (warp * EACH >= others_of(slab)) return;
        const Vec *rows = at(slab), *across = rows + ROWS * CHUNKS;
        const int steps = divide_up(columns(slab), STEP);
        if constexpr (EXACT) {
#pragma unroll 2
            for (int c = 0; c < steps; ++c) {
                const Vec y[2] = {load_shared(across + place<CHUNKS>(other(0, 0), c)), load_shared(across + place<CHUNKS>(other(0, 1), c))};
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    const Vec x[2] = {load_shared(rows + place<CHUNKS>(row(m, 0), c)), load_shared(rows + place<CHUNKS>(row(m, 2), c))};
#pragma unroll
                    for (int i = 0; i < 4; ++i)
#pragma unroll
                        for (int e = 0; e < 4; ++e) s[m][0][e] = multiply_add(from_bits(x[e / 2].w[i]), from_bits(y[e % 2].w[i]), s[m][0][e]);
                }
            }
        } else {
            static_assert(EXACT || TILES == 2, "four matrices of others in one load");
#pragma unroll 2
            for (int step = 0; step < steps; ++step) {
                u32 y[4];
                load_matrices<false>(y, across + place<CHUNKS>(warp * EACH + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    u32 x[4];
                    load_matrices<false>(x, rows + place<CHUNKS>(m * 16 + lane % 16, 2 * step + lane / 16));
                    multiply(s[m][0], x, y[0], y[1], T{});
                    multiply(s[m][TILES - 1], x, y[2], y[3], T{});
                }
            }
        }
    }

    // Weights of two neighbouring others in the sum of a row, at (m, n, e), e even.
    DEVICE void put_weights(int m, int n, int e, float first, float second) const {
        const int r = row(m, e), o = other(n, 0);
        u32* to = weights()[place<OTHERS / N>(r, o / N)].w;
        if constexpr (EXACT) to[o % 4] = bits(first), to[o % 4 + 1] = bits(second);
        else to[pair] = narrow2(first, second, T{});
    }

    // out += weights times others, of the columns of the round's last slab. [m][n][e]: row(m, e), column(n, e).
    DEVICE int column(int n, int e) const {
        return EXACT ? (warp * 4 + pair) * 2 * OUT + 2 * n + e % 2 : (warp * OUT + n) * 8 + 2 * pair + e % 2;
    }
    DEVICE void sum_others(int slab, float (&out)[M][OUT][4]) const {
        if (warp * OUT * 8 >= columns(slab)) return;
        const Vec *across = at(slab) + ROWS * CHUNKS, *given = weights();
        const int count = others_of(slab);
        if constexpr (EXACT) {
            for (int j = 0; j < divide_up(count, 4); ++j) {
                Vec p[M][2];
#pragma unroll
                for (int m = 0; m < M; ++m)
#pragma unroll
                    for (int h = 0; h < 2; ++h) p[m][h] = load_shared(given + place<OTHERS / N>(row(m, 2 * h), j));
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float x[2 * OUT];
                    if constexpr (OUT == 1) {
                        const Vec v = load_shared(across + place<CHUNKS>(4 * j + i, column(0, 0) / 4));
                        x[0] = from_bits(pair % 2 ? v.w[2] : v.w[0]), x[1] = from_bits(pair % 2 ? v.w[3] : v.w[1]);
                    } else {
#pragma unroll
                        for (int n = 0; n < OUT / 2; ++n) {
                            const Vec v = load_shared(across + place<CHUNKS>(4 * j + i, column(0, 0) / 4 + n));
#pragma unroll
                            for (int b = 0; b < 4; ++b) x[4 * n + b] = from_bits(v.w[b]);
                        }
                    }
#pragma unroll
                    for (int m = 0; m < M; ++m)
#pragma unroll
                        for (int n = 0; n < OUT; ++n)
#pragma unroll
                            for (int e = 0; e < 4; ++e) out[m][n][e] = multiply_add(from_bits(p[m][e / 2].w[i]), x[2 * n + e % 2], out[m][n][e]);
                }
            }
        } else if constexpr (OUT == 1) {
#pragma unroll 2
            for (int step = 0; step < divide_up(count, 16); step += 2) {  // four matrices are two steps of others
                u32 y[4];
                load_matrices<true>(y, across + place<CHUNKS>(step * 16 + lane, warp));
#pragma unroll
                for (int m = 0; m < M; ++m)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        u32 x[4];
                        load_matrices<false>(x, given + place<OTHERS / N>(m * 16 + lane % 16, 2 * (step + h) + lane / 16));
                        multiply(out[m][0], x, y[2 * h], y[2 * h + 1], T{});
                    }
            }
        } else {
#pragma unroll 2
            for (int step = 0; step < divide_up(count, 16); ++step) {
                u32 x[M][4];
#pragma unroll
                for (int m = 0; m < M; ++m) load_matrices<false>(x[m], given + place<OTHERS / N>(m * 16 + lane % 16, 2 * step + lane / 16));
#pragma unroll
                for (int n = 0; n < OUT; n += 2) {
                    u32 y[4];
                    load_matrices<true>(y, across + place<CHUNKS>(step * 16 + lane % 16, warp * OUT + n + lane / 16));
#pragma unroll
                    for (int m = 0; m < M; ++m) {
                        multiply(out[m][n], x[m], y[0], y[1], T{});
                        multiply(out[m][n + 1], x[m], y[2], y[3], T{});
                    }
                }
            }
        }
    }

    // ---- norms of others ---------------------------------------------------------------------------------------------

    static constexpr int PARTS = THREADS / OTHERS;  // threads that share a row

    // This thread's part of the squares of other threadIdx % OTHERS.
    DEVICE float squares(int slab) const {
        const int t = int(threadIdx.x), r = t % OTHERS;
        float sum = 0;
        if (r < others_of(slab)) {
            const int used = divide_up(columns(slab), N);
            for (int c = t / OTHERS; c < used; c += PARTS) {
                const Vec v = load_shared(at(slab) + ROWS * CHUNKS + place<CHUNKS>(r, c));
                float x[N];
                unpack(Pack<T, N>{{v.w[0], v.w[1], v.w[2], v.w[3]}}, x);
#pragma unroll
                for (int e = 0; e < N; ++e) sum = multiply_add(x[e], x[e], sum);
            }
        }
        return sum;
    }
    DEVICE static float whole(const float* parts, int o) {  // of what all threads left at their numbers
        float sum = 0;
#pragma unroll
        for (int p = 0; p < PARTS; ++p) sum += parts[p * OTHERS + o];
        return sum;
    }
    // float16 others times inverse(r), in place: an inverse norm may leave float16's range, x / norm does not. bfloat16 and
    // float32 put it into the weights.
    static constexpr bool SCALED = IS_HALF<T>;
    template <class F> DEVICE void scale_others(int slab, F inverse) const {
        const int t = int(threadIdx.x), c = t % CHUNKS, count = others_of(slab);
        if (c * N >= columns(slab)) return;
        for (int r = t / CHUNKS; r < count; r += THREADS / CHUNKS) {
            Vec* at_row = at(slab) + ROWS * CHUNKS + place<CHUNKS>(r, c);
            const Vec v = load_shared(at_row);
            const float by = inverse(r);
            float x[N];
            unpack(Pack<T, N>{{v.w[0], v.w[1], v.w[2], v.w[3]}}, x);
#pragma unroll
            for (int e = 0; e < N; ++e) x[e] *= by;
            const Pack<T, N> p = pack<T, N>(x);
            store_shared(at_row, Vec{{p.w[0], p.w[1], p.w[2], p.w[3]}});
        }
    }

    // ---- results -----------------------------------------------------------------------------------------------------

    // The sums as rows of floats, LINE apart, in the place of the slabs, for `each_column`.
    DEVICE const float* staged(const float (&out)[M][OUT][4]) const {
        float* to = reinterpret_cast<float*>(memory);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int n = 0; n < OUT; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) to[row(m, e) * LINE + column(n, e)] = out[m][n][e];
        return to;
    }
    // Sums over the others of each row, from each thread's part: 8 numbers a row, of which `row_sum` is the sum.
    DEVICE void put_row_parts(float* to, const float (&v)[M][2]) const {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float sum = lane_sum<4>(v[m][h]);
                if (pair == 0) to[row(m, 2 * h) * WARPS + warp] = sum;
            }
    }
};
DEVICE float row_sum(const float* parts, int row) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += parts[row * WARPS + w];
    return sum;
}

}  // namespace nce
