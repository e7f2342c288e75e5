// What the network asks of a processor. One table of functions for each instruction set, filled by kernels_body.h.
//
// Shape key   m rows of activations   n outputs of a matrix   k inputs of a matrix   p panels of 16 outputs

#pragma once

#include <cstdint>

namespace dn {

constexpr int64_t LANES = 16;   // outputs of a panel, keys of a block
constexpr int64_t GROUP = 128;  // inputs that share one scale where activations are int8

enum Precision : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };
enum Activation : int32_t { RELU = 0, GELU = 1, SILU = 2, GATED_RELU = 3, GATED_GELU = 4, GATED_SILU = 5 };

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Weights as the file has them (docs/native.md): panels of 16 outputs, within a panel input by input.
struct Matrix {
    int64_t n = 0, k = 0;
    Precision precision = FLOAT32;
    const void* data = nullptr;
    const float* scales = nullptr;  // int8: one an output
    bool positive = false;          // whether its inputs are never negative
    int64_t panels() const { return up(n, LANES) / LANES; }
    int64_t panel_bytes() const {
        return LANES * (precision == FLOAT32 ? 4 * k : precision == BFLOAT16 ? 2 * up(k, 2) : up(k, 4));
    }
};

// A matrix in 4 bits, to see which few outputs can be the largest: codes -7 .. 7, kept as their value + 8. A panel is
// [ceil(k/8)][16][4] bytes: of 8 inputs the first four in the low halves, the others in the high ones.
struct Narrow {
    int64_t n = 0, k = 0;
    uint8_t* data = nullptr;
    float* scales = nullptr;  // one an output: the width of a step
    int64_t panels() const { return up(n, LANES) / LANES; }
    int64_t panel_bytes() const { return LANES * up(k, 8) / 2; }
};

// Keys and values of up to 16 positions of one head: key [width][16], value [16][up(width, 16)].
struct Past {
    const char* const* blocks;  // where each 16 positions' block begins
    int64_t key, value;         // bytes from there
    int64_t positions;
};

struct Best {  // of a stretch of one row of logits
    float most = 0, sum = 0;      // the largest, and the sum of exp(logit - largest)
    float value = 0;              // the largest that is allowed
    int64_t id = -1;              // and whose; -1: none
};

struct Kernels {
    const char* name;
    int32_t most_code;  // of an int8 row; of one that is never negative it is 127

    // Activations as `multiply` wants them. Zero bytes: it reads the float rows themselves.
    int64_t (*packed_bytes)(Precision, int64_t k);
    void (*pack)(const Matrix& w, const float* x, int64_t stride, int64_t m, char* out, int64_t out_bytes);

    // c[m][16p .. 16p+16) = or += x . w for the panels first .. last-1. `a` holds rows of `a_bytes` bytes; behind an odd k,
    // bfloat16 reads one float more, any finite one, and multiplies it by zero.
    void (*multiply)(const char* a, int64_t a_bytes, int64_t m, const Matrix& w, int64_t first, int64_t last, float* c,
                     int64_t c_stride, bool add);

    // Panels first .. last-1 of a matrix into 4 bits; and c = x . w as `multiply`, with these and int8 activations. Null
    // where these are not written: then nothing is narrowed.
    void (*narrow)(const Matrix& w, int64_t first, int64_t last, const Narrow& to);
    void (*glance)(const char* a, int64_t a_bytes, int64_t m, const Narrow& w, int64_t first, int64_t last, float* c,
                   int64_t c_stride);
    // Of one row's glances at panels first .. last-1 (`c` begins with the first's): the largest c - reach * scale that is
    // allowed, and of each panel the largest c + reach * scale, into upper[panel].
    float (*bounds)(const float* c, const Narrow& w, int64_t first, int64_t last, float reach, int64_t limit,
                    const uint32_t* mask, float* upper);

    // out = x / rms(x) * weight, a row of k; times `scale`
    void (*norm)(const float* x, const float* weight, int64_t k, float scale, float* out);

    // hidden [m][f or 2f] -> activated, in place in its first f columns
    void (*activate)(Activation, float* hidden, int64_t stride, int64_t m, int64_t f);

    // One query over the past: out[width] = softmax(query . keys + bias) . values. `scores` holds up(positions, 16).
    void (*attend)(bool half, const float* query, int64_t width, const Past& past, const float* bias, float* scores,
                   float* out);

    // Queries [l][width] of one head over all l keys and values of an input. bias[m - l] is that of key m, query l.
    // `scratch` holds attend_all_floats(l, width).
    void (*attend_all)(const float* query, const float* key, const float* value, int64_t stride, int64_t length,
                       int64_t width, const float* bias, float* scratch, float* out, int64_t out_stride);
    int64_t (*attend_all_floats)(int64_t length, int64_t width);

    // A key and a value into their place of a block.
    void (*keep)(bool half, const float* key, const float* value, int64_t width, int64_t slot, char* key_block,
                 char* value_block);

    // Statistics of logits [0, count), whose ids begin at `id`, a multiple of 16; `mask` may be null, bit id % 32 of word id / 32. Without
    // `sums` those are left out.
    Best (*best)(const float* logits, int64_t count, int64_t id, int64_t limit, const uint32_t* mask, bool sums);
    // p[i] = exp((logit[i] - most) / temperature)
    void (*exponential)(const float* logits, int64_t count, float most, float temperature, float* p);
};

const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avx2vnni();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512bf16();

}  // namespace dn
