// The training step's heavy parts on a CPU: matrix products, attention, norm and loss, each forward and backward.
//
// Built by native.py on first use, for the processor at hand; GCC's vector extensions, so that one text serves AVX2,
// AVX-512 and NEON. No second thread pool: work is given to torch's own (`torch_parallel_for` of its C interface).
// Every output number is summed by one thread in one order, so results do not depend on which thread is faster.
//
// A `Block` of operands is float32 or bfloat16; products and sums are float32 throughout. Matrix products follow Goto
// and van de Geijn 2008 ("Anatomy of high-performance matrix multiplication"): panels of the right operand stay in the
// first cache level, blocks of the left one in the second.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int WIDE = 16, ROWS = 12;  // floats in a register; rows of a register tile
#else
constexpr int WIDE = 8, ROWS = 6;
#endif
constexpr int COLUMNS = 2 * WIDE;       // columns of a register tile
constexpr int64_t DEPTH = 384;          // inner length of a block
constexpr int64_t CHUNK = 12 * ROWS;    // rows of a block
constexpr int64_t TILE = 48;            // queries at once in attention

typedef float vec __attribute__((vector_size(WIDE * 4)));
typedef int32_t ivec __attribute__((vector_size(WIDE * 4)));
typedef float uvec __attribute__((vector_size(WIDE * 4), aligned(4)));

inline vec load(const float* p) { return *reinterpret_cast<const uvec*>(p); }
inline void store(float* p, vec x) { *reinterpret_cast<uvec*>(p) = x; }
inline vec splat(float x) { return x - vec{}; }
inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
inline vec larger(vec a, vec b) { return a > b ? a : b; }

inline float total(vec x) {
    float sum = 0;
    for (int i = 0; i < WIDE; i++) sum += x[i];
    return sum;
}

// e^x to about one unit in the last place (the polynomial of Cephes' expf); below -87 it is e^-87, nearly nothing.
inline vec exponential(vec x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
    x = larger(splat(-87.0f), x);  // in this order a NaN stays one
    vec shifted = x * 1.44269504088896341f + magic;
    vec n = shifted - magic;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    vec y = p * (r * r) + r + 1.0f;
    ivec exponent = ((ivec)shifted - (ivec)splat(magic)) << 23;
    return (vec)((ivec)y + exponent);
}

struct bf16 {
    uint16_t bits;
};
inline float wide(float x) { return x; }
inline float wide(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, bf16* to) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
template <class T>
inline void widen(const T* from, float* to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = wide(from[i]);
}
template <class T>
inline void narrow_row(const float* from, T* to, int64_t n) {
    for (int64_t i = 0; i < n; i++) narrow(from[i], to + i);
}

// ---- threads and scratch memory

typedef int32_t (*Parallel)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);
Parallel torch_parallel = nullptr;

template <class F>
struct Shared {
    F* work;
    std::atomic<int64_t> next{0};
    int64_t items;
};

template <class F>
void each(int64_t items, int threads, F work) {  // work(item), items handed out one by one
    if (items <= 1 || threads <= 1 || !torch_parallel) {
        for (int64_t i = 0; i < items; i++) work(i);
        return;
    }
    Shared<F> shared;
    shared.work = &work;
    shared.items = items;
    torch_parallel(
        0, std::min<int64_t>(threads, items), 1,
        [](int64_t, int64_t, void* context) {
            auto* mine = static_cast<Shared<F>*>(context);
            for (int64_t i; (i = mine->next.fetch_add(1)) < mine->items;) (*mine->work)(i);
        },
        &shared);
}

struct Scratch {  // grows, and is kept by its thread
    float* data = nullptr;
    int64_t size = 0;
    float* get(int64_t floats) {
        if (floats > size) {
            std::free(data);
            size = up(floats, 1024);
            data = static_cast<float*>(std::aligned_alloc(64, size * 4));
        }
        return data;
    }
    ~Scratch() { std::free(data); }
};
thread_local Scratch of_thread, of_caller;

// ---- one register tile: R x COLUMNS numbers of C

enum Layout { ROW, COLUMN, PACKED };  // how A lies: rows contiguous; columns contiguous; panels of ROWS rows

template <int R, Layout L>
inline __attribute__((always_inline)) void tile(
    int64_t depth, const float* a, int64_t lead, const float* b, float* c, int64_t ldc, bool add) {
    vec sum[R][2];
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = vec{};
    for (int64_t k = 0; k < depth; k++) {
        vec b0 = load(b), b1 = load(b + WIDE);
        b += COLUMNS;
#pragma GCC unroll 12
        for (int i = 0; i < R; i++) {
            float x = L == ROW ? a[i * lead + k] : a[k * (L == PACKED ? ROWS : lead) + i];
            vec s = splat(x);
            sum[i][0] += s * b0;
            sum[i][1] += s * b1;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) {
        float* to = c + i * ldc;
        store(to, add ? load(to) + sum[i][0] : sum[i][0]);
        store(to + WIDE, add ? load(to + WIDE) + sum[i][1] : sum[i][1]);
    }
}

template <Layout L>
void few_rows(int rows, int64_t depth, const float* a, int64_t lead, const float* b, float* c, int64_t ldc, bool add) {
    switch (rows) {
#define CASE(n) \
    case n: return tile<n, L>(depth, a, lead, b, c, ldc, add);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
    }
}

// C [rows, columns] (+)= A [rows, depth] B; B in panels of COLUMNS columns, `panel` floats apart.
template <Layout L>
void block(
    int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t lead, const float* b, int64_t panel, float* c,
    int64_t ldc, bool add) {
    for (int64_t j = 0; j < columns; j += COLUMNS, b += panel) {
        int64_t n = std::min<int64_t>(COLUMNS, columns - j);
        for (int64_t i = 0; i < rows; i += ROWS) {
            int m = int(std::min<int64_t>(ROWS, rows - i));
            const float* from = L == ROW ? a + i * lead : L == COLUMN ? a + i : a + i * depth;
            if (n == COLUMNS) {
                few_rows<L>(m, depth, from, lead, b, c + i * ldc + j, ldc, add);
            } else {
                float part[ROWS * COLUMNS];
                few_rows<L>(m, depth, from, lead, b, part, COLUMNS, false);
                for (int r = 0; r < m; r++)
                    for (int64_t q = 0; q < n; q++) {
                        float* to = c + (i + r) * ldc + j + q;
                        *to = (add ? *to : 0.0f) + part[r * COLUMNS + q];
                    }
            }
        }
    }
}

// Columns of B [depth, n <= COLUMNS] into one panel, zeros behind.
template <class T>
void pack(const T* b, int64_t step, int64_t across, int64_t depth, int64_t n, float* to) {
    if (across == 1) {
        for (int64_t k = 0; k < depth; k++, to += COLUMNS) {
            const T* from = b + k * step;
            if (n == COLUMNS)
                for (int j = 0; j < COLUMNS; j++) to[j] = wide(from[j]);
            else
                for (int j = 0; j < COLUMNS; j++) to[j] = j < n ? wide(from[j]) : 0.0f;
        }
        return;
    }
    for (int64_t j = 0; j < COLUMNS; j++) {
        if (j >= n)
            for (int64_t k = 0; k < depth; k++) to[k * COLUMNS + j] = 0.0f;
        else
            for (int64_t k = 0; k < depth; k++) to[k * COLUMNS + j] = wide(b[k * step + j * across]);
    }
}

struct Product {
    int64_t rows, columns, depth;
    const void* a;
    int64_t a_row, a_column;  // steps; one of them is 1
    const void* b;
    int64_t b_row, b_column;
    void* c;
    int64_t c_row;
    int32_t a_bf16, b_bf16, c_bf16;
    int32_t add;   // C += instead of C =
    int32_t relu;  // then C = max(C, 0)
    int32_t gate_bf16;
    const float* keep;  // then C[r, c] *= keep[r / keep_rows, c]
    int64_t keep_rows;
    const void* gate;  // then C = 0 where gate [rows, columns] <= 0
};

template <class G>
void shut(float* c, const G* gate, int64_t n) {
    for (int64_t i = 0; i < n; i++) c[i] = wide(gate[i]) > 0 ? c[i] : 0.0f;
}

void finish(const Product& p, float* c, int64_t row, int64_t column, int64_t n) {  // one row's part, in place
    if (p.relu)
        for (int64_t i = 0; i < n; i++) c[i] = c[i] > 0 ? c[i] : 0.0f;
    if (p.keep) {
        const float* keep = p.keep + row / p.keep_rows * p.columns + column;
        for (int64_t i = 0; i < n; i++) c[i] *= keep[i];
    }
    if (p.gate) {
        int64_t at = row * p.columns + column;
        if (p.gate_bf16)
            shut(c, static_cast<const bf16*>(p.gate) + at, n);
        else
            shut(c, static_cast<const float*>(p.gate) + at, n);
    }
}

template <class A, class B, class C>
void multiply(const Product& p, int threads) {
    const A* a = static_cast<const A*>(p.a);
    const B* b = static_cast<const B*>(p.b);
    C* c = static_cast<C*>(p.c);
    constexpr bool narrow_c = sizeof(C) == 2;
    const int64_t most_depth = narrow_c ? p.depth : std::min<int64_t>(p.depth, 4096);
    int64_t band = std::max<int64_t>((int64_t(1) << 21) / std::max<int64_t>(most_depth, 1), COLUMNS);
    band = std::min(band / COLUMNS * COLUMNS, up(p.columns, COLUMNS));
    float* packed = of_caller.get(band * most_depth);
    for (int64_t j0 = 0; j0 < p.columns; j0 += band) {
        const int64_t columns = std::min(band, p.columns - j0), panels = up(columns, COLUMNS) / COLUMNS;
        for (int64_t k0 = 0; k0 < p.depth; k0 += most_depth) {
            const int64_t depth = std::min(most_depth, p.depth - k0), blocks = up(depth, DEPTH) / DEPTH;
            const bool last = k0 + depth == p.depth;
            each(panels * blocks, threads, [&](int64_t item) {
                int64_t q = item / panels, j = item % panels * COLUMNS, k = q * DEPTH;
                int64_t deep = std::min(DEPTH, depth - k);
                pack(b + (k0 + k) * p.b_row + (j0 + j) * p.b_column, p.b_row, p.b_column, deep,
                     std::min<int64_t>(COLUMNS, columns - j), packed + k * panels * COLUMNS + j * deep);
            });
            const int64_t chunks = up(p.rows, CHUNK) / CHUNK;
            int64_t parts = 1, most = up(columns, COLUMNS);
            while (chunks * parts < 4 * threads && most / parts > 128) parts *= 2;
            const int64_t share = up(up(columns, COLUMNS) / parts, COLUMNS);
            parts = up(columns, share) / share;
            each(chunks * parts, threads, [&](int64_t item) {
                const int64_t i = item / parts * CHUNK, j = item % parts * share;
                const int64_t rows = std::min(CHUNK, p.rows - i), n = std::min(share, columns - j);
                float* scratch = of_thread.get(CHUNK * (DEPTH + ROWS) + (narrow_c ? CHUNK * up(share, COLUMNS) : 0));
                float* here = narrow_c ? scratch + CHUNK * (DEPTH + ROWS)
                                       : reinterpret_cast<float*>(c + i * p.c_row + j0 + j);
                const int64_t ldc = narrow_c ? up(share, COLUMNS) : p.c_row;
                for (int64_t k = 0; k < depth; k += DEPTH) {
                    const int64_t deep = std::min(DEPTH, depth - k);
                    const float* right = packed + k * panels * COLUMNS + j * deep;
                    const A* left = a + i * p.a_row + (k0 + k) * p.a_column;
                    const bool add = k || k0 || (p.add && !narrow_c);
                    if (p.a_column == 1) {
                        const float* rows_of_a;
                        int64_t lead = p.a_row;
                        if (sizeof(A) == 4) {
                            rows_of_a = reinterpret_cast<const float*>(left);
                        } else {
                            for (int64_t r = 0; r < rows; r++) widen(left + r * p.a_row, scratch + r * deep, deep);
                            rows_of_a = scratch;
                            lead = deep;
                        }
                        block<ROW>(rows, n, deep, rows_of_a, lead, right, deep * COLUMNS, here, ldc, add);
                    } else {
                        for (int64_t d = 0; d < deep; d++)
                            for (int64_t r = 0; r < rows; r += ROWS) {
                                const A* from = left + d * p.a_column + r;
                                float* to = scratch + r * deep + d * ROWS;
                                const int64_t m = std::min<int64_t>(ROWS, rows - r);
                                if (m == ROWS)
                                    for (int s = 0; s < ROWS; s++) to[s] = wide(from[s]);
                                else
                                    for (int s = 0; s < ROWS; s++) to[s] = s < m ? wide(from[s]) : 0.0f;
                            }
                        block<PACKED>(rows, n, deep, scratch, 0, right, deep * COLUMNS, here, ldc, add);
                    }
                }
                if (!last) return;
                for (int64_t r = 0; r < rows; r++) {
                    finish(p, here + r * ldc, i + r, j0 + j, n);
                    if (narrow_c) narrow_row(here + r * ldc, c + (i + r) * p.c_row + j0 + j, n);
                }
            });
        }
    }
}

// ---- attention

struct Attention {
    int64_t batch, heads, kv_heads, queries, keys, width;
    const void *query, *key, *value;  // [B, L, H, K], [B, M, G, K]: as the linear layers wrote them
    void* out;                        // [B, L, H, K]
    float* log_z;                     // [B, H, L]
    const float* bias;                // [H, L + M - 1] by offset, or null
    const int32_t *first, *last;      // [B, L]: query l sees keys first..last-1; or null
    const float* keep;                // [B, G, M] factors of the values, or null
    int32_t causal, is_bf16;
    // backward
    const void* out_gradient;
    void *query_gradient, *key_gradient, *value_gradient;
    float* bias_gradient;  // [B, H, L + M - 1]
};

struct Range {
    int64_t from, to;
};

inline Range seen(const Attention& p, int64_t b, int64_t l) {
    int64_t from = 0, to = p.keys;
    if (p.first) from = p.first[b * p.queries + l], to = p.last[b * p.queries + l];
    if (p.causal) to = std::min(to, l + 1);
    return {from, std::max(from, to)};
}

// The keys a tile of queries sees, in whole panels.
inline Range seen_by(const Attention& p, int64_t b, int64_t l, int64_t rows) {
    int64_t from = p.keys, to = 0;
    for (int64_t r = 0; r < rows; r++) {
        Range one = seen(p, b, l + r);
        if (one.to > one.from) from = std::min(from, one.from), to = std::max(to, one.to);
    }
    return to > from ? Range{from / COLUMNS * COLUMNS, up(to, COLUMNS)} : Range{0, 0};
}

template <class T>
void pack_keys(const T* from, int64_t step, int64_t keys, int64_t width, const float* keep, float* to) {
    for (int64_t j = 0; j < keys; j += COLUMNS, to += width * COLUMNS) {  // [M / COLUMNS, K, COLUMNS]
        int64_t n = std::min<int64_t>(COLUMNS, keys - j);
        pack(from + j * step, 1, step, width, n, to);
        if (keep)
            for (int64_t k = 0; k < width; k++)
                for (int64_t i = 0; i < n; i++) to[k * COLUMNS + i] *= keep[j + i];
    }
}

template <class T>
void pack_values(const T* from, int64_t step, int64_t rows, int64_t padded, int64_t width, const float* keep, float* to) {
    for (int64_t k = 0; k < width; k += COLUMNS, to += padded * COLUMNS) {  // [K / COLUMNS, M, COLUMNS]
        pack(from + k, step, 1, rows, std::min<int64_t>(COLUMNS, width - k), to);
        if (keep)
            for (int64_t m = 0; m < rows; m++)
                for (int i = 0; i < COLUMNS; i++) to[m * COLUMNS + i] *= keep[m];
        std::fill(to + rows * COLUMNS, to + padded * COLUMNS, 0.0f);
    }
}

template <class T>
void attend(const Attention& p, int threads) {
    const int64_t shared = p.heads / p.kv_heads, padded = up(p.keys, COLUMNS), lead = padded + COLUMNS;
    const int64_t offsets = p.queries + p.keys - 1, deep = up(p.width, COLUMNS);
    const int64_t q_step = p.heads * p.width, k_step = p.kv_heads * p.width;
    each(p.batch * p.kv_heads, threads, [&](int64_t item) {
        const int64_t b = item / p.kv_heads, g = item % p.kv_heads;
        float* keys = of_thread.get(padded * (p.width + deep) + TILE * (lead + 2 * deep) + offsets + 4 * COLUMNS);
        float *values = keys + padded * p.width, *scores = values + padded * deep, *rows_q = scores + TILE * lead;
        float *mixed = rows_q + TILE * deep, *bias = mixed + TILE * deep;
        const float* keep = p.keep ? p.keep + item * p.keys : nullptr;
        const int64_t at = b * p.keys * k_step + g * p.width;
        pack_keys(static_cast<const T*>(p.key) + at, k_step, p.keys, p.width, nullptr, keys);
        pack_values(static_cast<const T*>(p.value) + at, k_step, p.keys, padded, p.width, keep, values);
        std::fill(bias, bias + offsets + 4 * COLUMNS, 0.0f);
        for (int64_t h = g * shared; h < (g + 1) * shared; h++) {
            if (p.bias) std::copy(p.bias + h * offsets, p.bias + (h + 1) * offsets, bias + COLUMNS);
            for (int64_t l = 0; l < p.queries; l += TILE) {
                const int64_t rows = std::min(TILE, p.queries - l), home = (b * p.queries + l) * q_step + h * p.width;
                const Range all = seen_by(p, b, l, rows);
                for (int64_t r = 0; r < rows; r++)
                    widen(static_cast<const T*>(p.query) + home + r * q_step, rows_q + r * deep, p.width);
                block<ROW>(rows, all.to - all.from, p.width, rows_q, deep, keys + all.from * p.width,
                           p.width * COLUMNS, scores + all.from, lead, false);
                for (int64_t r = 0; r < rows; r++) {
                    float* s = scores + r * lead;
                    const float* along = bias + COLUMNS + p.queries - 1 - (l + r);
                    const Range one = seen(p, b, l + r);
                    float* log_z = p.log_z + (b * p.heads + h) * p.queries + l + r;
                    if (one.from == one.to) {
                        std::fill(s + all.from, s + all.to, 0.0f);
                        *log_z = 0.0f;
                        continue;
                    }
                    for (int64_t m = all.from; m < all.to; m += WIDE) store(s + m, load(s + m) + load(along + m));
                    std::fill(s + all.from, s + one.from, -INFINITY);
                    std::fill(s + one.to, s + all.to, -INFINITY);
                    vec highest = splat(-INFINITY);
                    for (int64_t m = all.from; m < all.to; m += WIDE) highest = larger(load(s + m), highest);
                    float top = highest[0];
                    for (int i = 1; i < WIDE; i++) top = std::max(top, highest[i]);
                    for (int64_t m = all.from; m < all.to; m += WIDE) store(s + m, exponential(load(s + m) - top));
                    std::fill(s + all.from, s + one.from, 0.0f);
                    std::fill(s + one.to, s + all.to, 0.0f);
                    vec sum = vec{};
                    for (int64_t m = all.from; m < all.to; m += WIDE) sum += load(s + m);
                    const float z = total(sum), share = 1.0f / z;
                    for (int64_t m = all.from; m < all.to; m += WIDE) store(s + m, load(s + m) * share);
                    *log_z = top + std::log(z);
                }
                block<ROW>(rows, p.width, all.to - all.from, scores + all.from, lead, values + all.from * COLUMNS,
                           padded * COLUMNS, mixed, deep, false);
                for (int64_t r = 0; r < rows; r++)
                    narrow_row(mixed + r * deep, static_cast<T*>(p.out) + home + r * q_step, p.width);
            }
        }
    });
}

template <class T>
void attend_back(const Attention& p, int threads) {
    const int64_t shared = p.heads / p.kv_heads, padded = up(p.keys, COLUMNS), lead = padded + COLUMNS;
    const int64_t offsets = p.queries + p.keys - 1, deep = up(p.width, COLUMNS);
    const int64_t q_step = p.heads * p.width, k_step = p.kv_heads * p.width, spare = offsets + 4 * COLUMNS;
    each(p.batch * p.kv_heads, threads, [&](int64_t item) {
        const int64_t b = item / p.kv_heads, g = item % p.kv_heads;
        float* keys = of_thread.get(padded * (2 * p.width + 3 * deep) + TILE * (2 * lead + 6 * deep) + 2 * spare);
        float *values = keys + padded * p.width, *flat_keys = values + padded * p.width;
        float *key_sum = flat_keys + padded * deep, *value_sum = key_sum + padded * deep;
        float *scores = value_sum + padded * deep, *slopes = scores + TILE * lead, *rows_q = slopes + TILE * lead;
        float *rows_g = rows_q + TILE * deep, *packed_q = rows_g + TILE * deep, *packed_g = packed_q + TILE * deep;
        float *made = packed_g + TILE * deep, *row_o = made + TILE * deep, *bias = row_o + TILE * deep;
        float* bias_sum = bias + spare;
        const float* keep = p.keep ? p.keep + item * p.keys : nullptr;
        const int64_t at = b * p.keys * k_step + g * p.width;
        const T* key = static_cast<const T*>(p.key) + at;
        pack_keys(key, k_step, p.keys, p.width, nullptr, keys);
        pack_keys(static_cast<const T*>(p.value) + at, k_step, p.keys, p.width, keep, values);
        pack_values(key, k_step, p.keys, padded, p.width, nullptr, flat_keys);
        std::fill(key_sum, key_sum + 2 * padded * deep, 0.0f);
        std::fill(bias, bias + spare, 0.0f);
        for (int64_t h = g * shared; h < (g + 1) * shared; h++) {
            if (p.bias) std::copy(p.bias + h * offsets, p.bias + (h + 1) * offsets, bias + COLUMNS);
            std::fill(bias_sum, bias_sum + spare, 0.0f);
            for (int64_t l = 0; l < p.queries; l += TILE) {
                const int64_t rows = std::min(TILE, p.queries - l), home = (b * p.queries + l) * q_step + h * p.width;
                const Range all = seen_by(p, b, l, rows);
                const int64_t span = all.to - all.from;
                for (int64_t r = 0; r < rows; r++) {
                    widen(static_cast<const T*>(p.query) + home + r * q_step, rows_q + r * deep, p.width);
                    widen(static_cast<const T*>(p.out_gradient) + home + r * q_step, rows_g + r * deep, p.width);
                }
                block<ROW>(rows, span, p.width, rows_q, deep, keys + all.from * p.width, p.width * COLUMNS,
                           scores + all.from, lead, false);
                block<ROW>(rows, span, p.width, rows_g, deep, values + all.from * p.width, p.width * COLUMNS,
                           slopes + all.from, lead, false);
                for (int64_t r = 0; r < rows; r++) {
                    float *s = scores + r * lead, *d = slopes + r * lead;
                    const int64_t shift = COLUMNS + p.queries - 1 - (l + r);
                    const Range one = seen(p, b, l + r);
                    if (one.from == one.to) {
                        std::fill(s + all.from, s + all.to, 0.0f);
                        std::fill(d + all.from, d + all.to, 0.0f);
                        continue;
                    }
                    widen(static_cast<const T*>(p.out) + home + r * q_step, row_o, p.width);
                    float mean = 0.0f;  // of the weights' gradients under the weights
                    for (int64_t k = 0; k < p.width; k++) mean += row_o[k] * rows_g[r * deep + k];
                    const float log_z = p.log_z[(b * p.heads + h) * p.queries + l + r];
                    const float* along = bias + shift;
                    for (int64_t m = all.from; m < all.to; m += WIDE)
                        store(s + m, exponential(load(s + m) + load(along + m) - log_z));
                    std::fill(s + all.from, s + one.from, 0.0f);
                    std::fill(s + one.to, s + all.to, 0.0f);
                    for (int64_t m = all.from; m < all.to; m += WIDE) {
                        vec slope = load(s + m) * (load(d + m) - mean);
                        store(d + m, slope);
                        store(bias_sum + shift + m, load(bias_sum + shift + m) + slope);
                    }
                }
                block<ROW>(rows, p.width, span, slopes + all.from, lead, flat_keys + all.from * COLUMNS,
                           padded * COLUMNS, made, deep, false);
                for (int64_t r = 0; r < rows; r++)
                    narrow_row(made + r * deep, static_cast<T*>(p.query_gradient) + home + r * q_step, p.width);
                pack_values(rows_q, deep, rows, rows, p.width, nullptr, packed_q);
                pack_values(rows_g, deep, rows, rows, p.width, nullptr, packed_g);
                block<COLUMN>(span, p.width, rows, slopes + all.from, lead, packed_q, rows * COLUMNS,
                              key_sum + all.from * deep, deep, true);
                block<COLUMN>(span, p.width, rows, scores + all.from, lead, packed_g, rows * COLUMNS,
                              value_sum + all.from * deep, deep, true);
            }
            if (p.bias_gradient)
                std::copy(bias_sum + COLUMNS, bias_sum + COLUMNS + offsets,
                          p.bias_gradient + (b * p.heads + h) * offsets);
        }
        for (int64_t m = 0; m < p.keys; m++) {
            if (keep)
                for (int64_t k = 0; k < p.width; k++) value_sum[m * deep + k] *= keep[m];
            narrow_row(key_sum + m * deep, static_cast<T*>(p.key_gradient) + at + m * k_step, p.width);
            narrow_row(value_sum + m * deep, static_cast<T*>(p.value_gradient) + at + m * k_step, p.width);
        }
    });
}

// ---- norm and loss

constexpr int64_t NORM_ROWS = 64;

template <class X, class Y>
void norm(int64_t rows, int64_t width, const X* x, const float* weight, Y* y, float* inverse, float epsilon, int threads) {
    each(up(rows, NORM_ROWS) / NORM_ROWS, threads, [&](int64_t item) {
        for (int64_t r = item * NORM_ROWS; r < std::min(rows, (item + 1) * NORM_ROWS); r++) {
            const X* from = x + r * width;
            float sums[8] = {};
            int64_t i = 0;
            for (; i + 8 <= width; i += 8)
                for (int s = 0; s < 8; s++) sums[s] += wide(from[i + s]) * wide(from[i + s]);
            for (; i < width; i++) sums[0] += wide(from[i]) * wide(from[i]);
            float square = 0.0f;
            for (float s : sums) square += s;
            const float scale = 1.0f / std::sqrt(square / width + epsilon);
            inverse[r] = scale;
            for (i = 0; i < width; i++) narrow(wide(from[i]) * scale * weight[i], y + r * width + i);
        }
    });
}

template <class X, class Y>
void norm_back(
    int64_t rows, int64_t width, const X* x, const float* weight, const float* inverse, const Y* slope, X* x_gradient,
    float* weight_gradient, int threads) {  // weight_gradient [chunks, width]
    each(up(rows, NORM_ROWS) / NORM_ROWS, threads, [&](int64_t item) {
        float* sum = weight_gradient + item * width;
        std::fill(sum, sum + width, 0.0f);
        for (int64_t r = item * NORM_ROWS; r < std::min(rows, (item + 1) * NORM_ROWS); r++) {
            const X* from = x + r * width;
            const Y* dy = slope + r * width;
            const float scale = inverse[r];
            float sums[8] = {};
            int64_t i = 0;
            for (; i + 8 <= width; i += 8)
                for (int s = 0; s < 8; s++) sums[s] += wide(from[i + s]) * wide(dy[i + s]) * weight[i + s];
            for (; i < width; i++) sums[0] += wide(from[i]) * wide(dy[i]) * weight[i];
            float dot = 0.0f;
            for (float s : sums) dot += s;
            const float pull = dot * scale * scale * scale / width;
            for (i = 0; i < width; i++) {
                const float value = wide(from[i]), d = wide(dy[i]);
                sum[i] += d * value * scale;
                narrow(d * weight[i] * scale - value * pull, x_gradient + r * width + i);
            }
        }
    });
}

// Loss of each row, and the logits replaced by its gradient times `factor`.
void loss(
    int64_t rows, int64_t width, float* logits, const int64_t* target, float z_loss, float factor, int gradient,
    float* objective, float* nll, int threads) {
    each(rows, threads, [&](int64_t r) {
        float* row = logits + r * width;
        const int64_t whole = width / WIDE * WIDE;
        vec highest = splat(-INFINITY);
        for (int64_t i = 0; i < whole; i += WIDE) highest = larger(load(row + i), highest);
        float top = -INFINITY;
        for (int i = 0; i < WIDE; i++) top = std::max(top, highest[i]);
        for (int64_t i = whole; i < width; i++) top = std::max(top, row[i]);
        const float aimed = row[target[r]];
        vec sums = vec{};
        double sum = 0.0;
        for (int64_t i = 0; i < whole; i += WIDE) {
            vec e = exponential(load(row + i) - top);
            sums += e;
            if (gradient) store(row + i, e);
            if ((i / WIDE & 63) == 63) sum += total(sums), sums = vec{};
        }
        sum += total(sums);
        for (int64_t i = whole; i < width; i++) {
            const float e = std::exp(row[i] - top);
            sum += e;
            if (gradient) row[i] = e;
        }
        const float log_z = top + float(std::log(sum));
        nll[r] = log_z - aimed;
        objective[r] = nll[r] + z_loss * log_z * log_z;
        if (!gradient) return;
        const float scale = float(factor * (1.0 + 2.0 * z_loss * log_z) / sum);
        for (int64_t i = 0; i < whole; i += WIDE) store(row + i, load(row + i) * scale);
        for (int64_t i = whole; i < width; i++) row[i] *= scale;
        row[target[r]] -= factor;
    });
}

}  // namespace

extern "C" {

void dn_start(void* parallel) { torch_parallel = reinterpret_cast<Parallel>(parallel); }

void dn_multiply(const Product* p, int threads) {
    switch (p->a_bf16 * 4 + p->b_bf16 * 2 + p->c_bf16) {
        case 0: return multiply<float, float, float>(*p, threads);
        case 1: return multiply<float, float, bf16>(*p, threads);
        case 4: return multiply<bf16, float, float>(*p, threads);
        case 5: return multiply<bf16, float, bf16>(*p, threads);
        case 6: return multiply<bf16, bf16, float>(*p, threads);
        case 7: return multiply<bf16, bf16, bf16>(*p, threads);
    }
}

void dn_attend(const Attention* p, int threads) { p->is_bf16 ? attend<bf16>(*p, threads) : attend<float>(*p, threads); }

void dn_attend_back(const Attention* p, int threads) {
    p->is_bf16 ? attend_back<bf16>(*p, threads) : attend_back<float>(*p, threads);
}

void dn_norm(
    int64_t rows, int64_t width, const float* x, const float* weight, void* y, int y_bf16, float* inverse,
    float epsilon, int threads) {
    if (y_bf16)
        norm(rows, width, x, weight, static_cast<bf16*>(y), inverse, epsilon, threads);
    else
        norm(rows, width, x, weight, static_cast<float*>(y), inverse, epsilon, threads);
}

void dn_norm_back(
    int64_t rows, int64_t width, const float* x, const float* weight, const float* inverse, const void* slope,
    int slope_bf16, float* x_gradient, float* weight_gradient, int threads) {
    if (slope_bf16)
        norm_back(rows, width, x, weight, inverse, static_cast<const bf16*>(slope), x_gradient, weight_gradient, threads);
    else
        norm_back(rows, width, x, weight, inverse, static_cast<const float*>(slope), x_gradient, weight_gradient, threads);
}

void dn_loss(
    int64_t rows, int64_t width, float* logits, const int64_t* target, float z_loss, float factor, int gradient,
    float* objective, float* nll, int threads) {
    loss(rows, width, logits, target, z_loss, factor, gradient, objective, nll, threads);
}
}
