// The kernels, written once over vectors of 16 lanes and compiled for one instruction set after another.
//
// 16 lanes are one AVX-512 register, two of AVX2, four of SSE2 or NEON. GCC's and Clang's vector types carry the
// arithmetic; intrinsics stand only where these have no word: the dot product of bytes, half precision, bfloat16.
// Everything is in an unnamed namespace and uses no function of the standard library, for what one of these files
// compiles must not be taken by the linker for a processor that lacks its instructions.

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace dn {
namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 64, ROWS = 12, BYTE_ROWS = 12;
#elif defined(__AVX2__)
constexpr int WIDTH = 32, ROWS = 6, BYTE_ROWS = 4;
#elif defined(__aarch64__)
constexpr int WIDTH = 16, ROWS = 4, BYTE_ROWS = 3;
#else
constexpr int WIDTH = 16, ROWS = 2, BYTE_ROWS = 2;
#endif
constexpr int PARTS = 64 / WIDTH, EACH = WIDTH / 4;

typedef float Floats __attribute__((vector_size(WIDTH)));
typedef int32_t Ints __attribute__((vector_size(WIDTH)));
typedef uint32_t Words __attribute__((vector_size(WIDTH)));
// as they lie in memory, on any address; read part by part, for a copy of all 64 bytes would go by way of the stack
typedef float FloatsThere __attribute__((vector_size(WIDTH), aligned(1), may_alias));
typedef int32_t IntsThere __attribute__((vector_size(WIDTH), aligned(1), may_alias));

#define EVERY_PART _Pragma("GCC unroll 4") for (int part = 0; part < PARTS; part++)
#define EVERY_ROW _Pragma("GCC unroll 12") for (int r = 0; r < R; r++)

struct F {
    Floats v[PARTS];
};
struct I {
    Ints v[PARTS];
};

template <class T, class S>
inline T load_as(const S* from) {
    T x;
    memcpy(&x, from, sizeof x);
    return x;
}

inline F load(const float* from) {
    F y;
    EVERY_PART y.v[part] = *(const FloatsThere*)(from + part * EACH);
    return y;
}
inline void store(float* to, const F& x) {
    EVERY_PART *(FloatsThere*)(to + part * EACH) = x.v[part];
}
inline I load_ints(const void* from) {
    I y;
    EVERY_PART y.v[part] = *(const IntsThere*)((const char*)from + part * WIDTH);
    return y;
}
inline F all(float x) {
    F y;
    EVERY_PART y.v[part] = x - Floats{};
    return y;
}
inline F operator+(const F& a, const F& b) {
    F y;
    EVERY_PART y.v[part] = a.v[part] + b.v[part];
    return y;
}
inline F operator-(const F& a, const F& b) {
    F y;
    EVERY_PART y.v[part] = a.v[part] - b.v[part];
    return y;
}
inline F operator*(const F& a, const F& b) {
    F y;
    EVERY_PART y.v[part] = a.v[part] * b.v[part];
    return y;
}
inline F operator/(const F& a, const F& b) {
    F y;
    EVERY_PART y.v[part] = a.v[part] / b.v[part];
    return y;
}
inline void add_product(F& sum, float a, const F& b) {
    EVERY_PART sum.v[part] += a * b.v[part];
}
inline void add_product(F& sum, const F& a, const F& b) {
    EVERY_PART sum.v[part] += a.v[part] * b.v[part];
}
inline F larger(const F& a, const F& b) {
    F y;
    EVERY_PART y.v[part] = a.v[part] > b.v[part] ? a.v[part] : b.v[part];
    return y;
}
inline F magnitude(const F& a) {
    F y;
    EVERY_PART y.v[part] = (Floats)((Ints)a.v[part] & 0x7fffffff);
    return y;
}
inline float sum_of(const F& a) {
    Floats s = a.v[0];
    for (int part = 1; part < PARTS; part++) s += a.v[part];
    float total = 0;
    for (int i = 0; i < EACH; i++) total += s[i];
    return total;
}
inline float most_of(const F& a) {
    Floats s = a.v[0];
    for (int part = 1; part < PARTS; part++) s = s > a.v[part] ? s : a.v[part];
    float most = s[0];
    for (int i = 1; i < EACH; i++) most = most > s[i] ? most : s[i];
    return most;
}

constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: adding it leaves a float no place for a fraction

// exp by 2^n * e^r, |r| <= log(2) / 2, e^r by its Taylor series to the seventh power: 2 units in the last place
inline F exponent(const F& x) {
    F y;
    EVERY_PART {
        Floats a = x.v[part];
        a = a < -87.0f ? -87.0f - Floats{} : a;
        a = a > 88.0f ? 88.0f - Floats{} : a;
        Floats n = (a * 1.44269504088896341f + ROUNDER) - ROUNDER;
        Floats r = a - n * 0.693145751953125f;
        r = r - n * 1.42860682030941723212e-6f;
        Floats e = 1.0f / 5040 - Floats{};
        e = e * r + 1.0f / 720;
        e = e * r + 1.0f / 120;
        e = e * r + 1.0f / 24;
        e = e * r + 1.0f / 6;
        e = e * r + 0.5f;
        e = e * r + 1.0f;
        e = e * r + 1.0f;
        Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
        y.v[part] = e * (Floats)power;
    }
    return y;
}

// While many rows go over one panel, each brings its share of the next one nearer, which else is waited for.
struct Soon {
    const char* from;
    int64_t each;  // bytes for each part of the work
    void fetch(int64_t part) const {
        for (int64_t i = 0; i < each; i += 64) __builtin_prefetch(from + part * each + i, 0, 3);
    }
};

// ---- products in float32 and bfloat16 -------------------------------------------------------------------------------

// Few rows do little with what they read, and wait for it: it is asked for this many bytes before. Processors look ahead
// by themselves, but not past a page.
constexpr int64_t AHEAD = 4096;
template <int R>
inline void ask(const void* at) {
    if (R <= 2) __builtin_prefetch((const char*)at + AHEAD, 0, 3);
}

template <int R>
inline void put(const F* sum, float* c, int64_t stride, bool more) {
    EVERY_ROW {
        F y = sum[r];
        if (more) y = y + load(c + r * stride);
        store(c + r * stride, y);
    }
}

// R rows times 16 columns. Few rows are summed in several parts, for one sum must wait for itself at every step.
template <int R>
inline void tile_float(const float* a, int64_t a_stride, const float* w, int64_t w_stride, int64_t k, float* c,
                       int64_t c_stride, bool more) {
    constexpr int PHASES = R == 1 ? 4 : R == 2 ? 2 : 1;
    F sum[PHASES][R] = {};
    int64_t i = 0;
    for (; i + PHASES <= k; i += PHASES) {
#pragma GCC unroll 4
        for (int phase = 0; phase < PHASES; phase++) {
            ask<R>(w + (i + phase) * w_stride);
            F b = load(w + (i + phase) * w_stride);
            EVERY_ROW add_product(sum[phase][r], a[r * a_stride + i + phase], b);
        }
    }
    for (; i < k; i++) {
        F b = load(w + i * w_stride);
        EVERY_ROW add_product(sum[0][r], a[r * a_stride + i], b);
    }
#pragma GCC unroll 4
    for (int phase = 1; phase < PHASES; phase++) EVERY_ROW sum[0][r] = sum[0][r] + sum[phase][r];
    put<R>(sum[0], c, c_stride, more);
}

template <int R>
inline void tile_bfloat(const float* a, int64_t a_stride, const uint16_t* w, int64_t k, float* c, int64_t c_stride,
                        bool more) {
    constexpr int PHASES = R == 1 ? 2 : 1;
    F sum[2 * PHASES][R] = {};
    int64_t pairs = (k + 1) / 2, i = 0;
    for (; i + PHASES <= pairs; i += PHASES) {
#pragma GCC unroll 2
        for (int phase = 0; phase < PHASES; phase++) {
            ask<R>(w + (i + phase) * 32);
            I both = load_ints(w + (i + phase) * 32);
            F even, odd;
            EVERY_PART {
                even.v[part] = (Floats)(both.v[part] << 16);
                odd.v[part] = (Floats)(both.v[part] & (int32_t)0xffff0000);
            }
            EVERY_ROW {
                add_product(sum[2 * phase][r], a[r * a_stride + 2 * (i + phase)], even);
                add_product(sum[R <= 2 ? 2 * phase + 1 : 0][r], a[r * a_stride + 2 * (i + phase) + 1], odd);
            }
        }
    }
    for (; i < pairs; i++) {
        I both = load_ints(w + i * 32);
        F even, odd;
        EVERY_PART {
            even.v[part] = (Floats)(both.v[part] << 16);
            odd.v[part] = (Floats)(both.v[part] & (int32_t)0xffff0000);
        }
        EVERY_ROW {
            add_product(sum[0][r], a[r * a_stride + 2 * i], even);
            add_product(sum[0][r], a[r * a_stride + 2 * i + 1], odd);
        }
    }
    if (R <= 2) {
#pragma GCC unroll 4
        for (int phase = 1; phase < 2 * PHASES; phase++) EVERY_ROW sum[0][r] = sum[0][r] + sum[phase][r];
    }
    put<R>(sum[0], c, c_stride, more);
}

#if defined(__AVX512BF16__)
constexpr bool PACKS_BFLOAT = true;
template <int R>
inline void tile_pairs(const uint32_t* a, int64_t a_stride, const uint16_t* w, int64_t k, float* c, int64_t c_stride,
                       bool more) {
    constexpr int PHASES = R == 1 ? 4 : R == 2 ? 2 : 1;
    __m512 sum[PHASES][R] = {};
    int64_t pairs = (k + 1) / 2, i = 0;
    for (; i + PHASES <= pairs; i += PHASES) {
#pragma GCC unroll 4
        for (int phase = 0; phase < PHASES; phase++) {
            ask<R>(w + (i + phase) * 32);
            __m512bh b = (__m512bh)_mm512_loadu_si512(w + (i + phase) * 32);
            EVERY_ROW sum[phase][r] = _mm512_dpbf16_ps(
                sum[phase][r], (__m512bh)_mm512_set1_epi32((int)a[r * a_stride + i + phase]), b);
        }
    }
    for (; i < pairs; i++) {
        __m512bh b = (__m512bh)_mm512_loadu_si512(w + i * 32);
        EVERY_ROW sum[0][r] =
            _mm512_dpbf16_ps(sum[0][r], (__m512bh)_mm512_set1_epi32((int)a[r * a_stride + i]), b);
    }
    F total[R];
    EVERY_ROW {
        __m512 s = sum[0][r];
#pragma GCC unroll 4
        for (int phase = 1; phase < PHASES; phase++) s = s + sum[phase][r];
        total[r].v[0] = (Floats)s;
    }
    put<R>(total, c, c_stride, more);
}
#else
constexpr bool PACKS_BFLOAT = false;
#endif

// ---- products in int8 -----------------------------------------------------------------------------------------------

// sum[j] += a[0..3] . w[j][0..3], a row's four bytes against those of 16 outputs.
//
// x86 multiplies unsigned by signed bytes. So weights are read as their value + 128, and 128 times the sum of a row's codes,
// kept beside it, is taken off again. AVX2 adds pairs of products in 16 bits, where 2 * 255 * 127 has no room: codes have
// 7 bits there. Rows that are never negative, what ReLU leaves, stand on the unsigned side themselves and keep all 127 steps.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool UNSIGNED = true, PAIRED = false;
#elif defined(__AVX2__)
constexpr bool UNSIGNED = true, PAIRED = true;
#else
constexpr bool UNSIGNED = false, PAIRED = false;
#endif
constexpr int MOST_CODE = PAIRED ? 63 : 127;

inline uint32_t four_of(const char* bytes) { return load_as<uint32_t>(bytes); }

template <bool POSITIVE>
inline I weights_of(const char* at) {
    I w = load_ints(at);
    if (UNSIGNED && !(PAIRED && POSITIVE)) EVERY_PART w.v[part] = w.v[part] ^ (int32_t)0x80808080;
    return w;
}

template <bool POSITIVE>
inline void dot(I& sum, uint32_t four, const I& w) {
#if defined(__AVX512VNNI__)
    const __m512i a = _mm512_set1_epi32((int)four);
    EVERY_PART sum.v[part] = (Ints)_mm512_dpbusd_epi32((__m512i)sum.v[part], (__m512i)w.v[part], a);
#elif defined(__AVXVNNI__)
    const __m256i a = _mm256_set1_epi32((int)four);
    EVERY_PART sum.v[part] = (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum.v[part], (__m256i)w.v[part], a);
#elif defined(__AVX2__)
    const __m256i a = _mm256_set1_epi32((int)four), one = _mm256_set1_epi16(1);
    EVERY_PART {
        const __m256i b = (__m256i)w.v[part];
        const __m256i pairs = POSITIVE ? _mm256_maddubs_epi16(a, b) : _mm256_maddubs_epi16(b, a);
        sum.v[part] += (Ints)_mm256_madd_epi16(pairs, one);
    }
#else
    int32_t a0 = (int8_t)four, a1 = (int8_t)(four >> 8), a2 = (int8_t)(four >> 16), a3 = (int8_t)(four >> 24);
    EVERY_PART {
        Ints x = w.v[part];
        sum.v[part] += ((x << 24) >> 24) * a0 + ((x << 16) >> 24) * a1 + ((x << 8) >> 24) * a2 + (x >> 24) * a3;
    }
#endif
}

// A row: its codes, up(k, 64) of them, then a scale a group, then a shift a group: 128 times the sum of its codes.
inline int64_t scales_at(int64_t k) { return up(k, 64); }

inline int64_t groups(int64_t k) { return (k + GROUP - 1) / GROUP; }

template <int R, bool POSITIVE>
inline void tile_bytes(const char* a, int64_t a_bytes, const char* w, int64_t k, const float* scales, float* c,
                       int64_t c_stride, bool more, const Soon& soon) {
    constexpr int PHASES = R == 1 ? 4 : R == 2 ? 2 : 1;
    constexpr bool SHIFTED = UNSIGNED && !(PAIRED && POSITIVE);
    const int64_t fours = (k + 3) / 4;
    F total[R] = {};
    for (int64_t group = 0; group < groups(k); group++) {
        I sum[PHASES][R] = {};
        if (R > 2) soon.fetch(group);
        int64_t i = group * (GROUP / 4);
        const int64_t end = i + GROUP / 4 < fours ? i + GROUP / 4 : fours;
        for (; i + PHASES <= end; i += PHASES) {
#pragma GCC unroll 4
            for (int phase = 0; phase < PHASES; phase++) {
                ask<R>(w + (i + phase) * 64);
                I b = weights_of<POSITIVE>(w + (i + phase) * 64);
                EVERY_ROW dot<POSITIVE>(sum[phase][r], four_of(a + r * a_bytes + 4 * (i + phase)), b);
            }
        }
        for (; i < end; i++) {
            I b = weights_of<POSITIVE>(w + i * 64);
            EVERY_ROW dot<POSITIVE>(sum[0][r], four_of(a + r * a_bytes + 4 * i), b);
        }
        EVERY_ROW {
            const char* beside = a + r * a_bytes + scales_at(k) + 4 * group;
            const float scale = load_as<float>(beside);
            const int32_t shift = SHIFTED ? load_as<int32_t>(beside + 4 * groups(k)) : 0;
            EVERY_PART {
                Ints s = sum[0][r].v[part];
#pragma GCC unroll 4
                for (int phase = 1; phase < PHASES; phase++) s += sum[phase][r].v[part];
                if (SHIFTED) s -= shift;
                total[r].v[part] += __builtin_convertvector(s, Floats) * scale;
            }
        }
    }
    F each = load(scales);
    EVERY_ROW total[r] = total[r] * each;
    put<R>(total, c, c_stride, more);
}

// Codes of so many numbers; their sum. What is no number has no code either, but its sum must not overflow: it wraps.
inline uint32_t round_bytes(const float* x, int64_t count, float inverse, char* out) {
    int64_t i = 0;
    uint32_t total = 0;
#if defined(__AVX2__)
    const __m256 scale = _mm256_set1_ps(inverse);
    __m256i sums = _mm256_setzero_si256();
    for (; i + 32 <= count; i += 32) {
        __m256i q[4];
        for (int j = 0; j < 4; j++) q[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), scale));
        const __m256i some = _mm256_add_epi32(q[0], q[1]), others = _mm256_add_epi32(q[2], q[3]);
        sums = _mm256_add_epi32(sums, _mm256_add_epi32(some, others));
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i*)(out + i), bytes);
    }
    uint32_t parts[8];
    _mm256_storeu_si256((__m256i*)parts, sums);
    for (int j = 0; j < 8; j++) total += parts[j];
#endif
    for (; i < count; i++) {
        out[i] = (char)(int8_t)(int)((x[i] * inverse + ROUNDER) - ROUNDER);
        total += (uint32_t)(int32_t)(int8_t)out[i];
    }
    return total;
}

inline void pack_bytes(const float* x, int64_t k, bool positive, char* out) {
    const float codes = PAIRED && positive ? 127.0f : (float)MOST_CODE;
    for (int64_t group = 0; group < groups(k); group++) {
        const float* from = x + group * GROUP;
        const int64_t count = k - group * GROUP < GROUP ? k - group * GROUP : GROUP;
        F most = all(0.0f);
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) most = larger(most, magnitude(load(from + i)));
        float largest = most_of(most);
        for (; i < count; i++) largest = fabsf(from[i]) > largest ? fabsf(from[i]) : largest;
        const uint32_t sum = round_bytes(from, count, largest > 1e-30f ? codes / largest : 0.0f, out + group * GROUP);
        const float scale = largest / codes;
        const int32_t shift = (int32_t)(128 * sum);
        memcpy(out + scales_at(k) + 4 * group, &scale, 4);
        memcpy(out + scales_at(k) + 4 * (groups(k) + group), &shift, 4);
    }
    memset(out + k, 0, (size_t)(up(k, 64) - k));
}

inline uint16_t to_bfloat(float x) {
    uint32_t bits = load_as<uint32_t>(&x);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void pack_pairs(const float* x, int64_t k, char* out) {
    uint16_t* to = (uint16_t*)out;
    for (int64_t i = 0; i < k; i++) to[i] = to_bfloat(x[i]);
    for (int64_t i = k; i < up(k, 32); i++) to[i] = 0;
}

int64_t packed_bytes(Precision precision, int64_t k) {
    if (precision == INT8) return up(scales_at(k) + 8 * groups(k), 64);
    if (precision == BFLOAT16 && PACKS_BFLOAT) return 2 * up(k, 32);
    return 0;
}

void pack(const Matrix& w, const float* x, int64_t stride, int64_t m, char* out, int64_t out_bytes) {
    for (int64_t row = 0; row < m; row++) {
        if (w.precision == INT8)
            pack_bytes(x + row * stride, w.k, w.positive, out + row * out_bytes);
        else
            pack_pairs(x + row * stride, w.k, out + row * out_bytes);
    }
}

template <int R>
inline void tile(const char* a, int64_t a_bytes, const Matrix& w, int64_t panel, int64_t from, int64_t to, float* c,
                 int64_t c_stride, bool more, const Soon& soon) {
    const char* data = (const char*)w.data + panel * w.panel_bytes();
    c += panel * LANES;
    if (w.precision == INT8) {
        if (PAIRED && w.positive)
            tile_bytes<R, true>(a, a_bytes, data, w.k, w.scales + panel * LANES, c, c_stride, more, soon);
        else
            tile_bytes<R, false>(a, a_bytes, data, w.k, w.scales + panel * LANES, c, c_stride, more, soon);
        return;
    }
    soon.fetch(0);
    if (w.precision == FLOAT32) {
        tile_float<R>((const float*)a + from, a_bytes / 4, (const float*)data + from * LANES, LANES, to - from, c,
                      c_stride, more);
    } else {
#if defined(__AVX512BF16__)
        tile_pairs<R>((const uint32_t*)a + from / 2, a_bytes / 4, (const uint16_t*)data + from * LANES, to - from, c,
                      c_stride, more);
#else
        tile_bfloat<R>((const float*)a + from, a_bytes / 4, (const uint16_t*)data + from * LANES, to - from, c,
                       c_stride, more);
#endif
    }
}

template <int R>
inline void tiles(int64_t& row, int64_t m, const char* a, int64_t a_bytes, const Matrix& w, int64_t panel, int64_t from,
                  int64_t to, float* c, int64_t c_stride, bool more, const char* next, int64_t share) {
    const int64_t parts = w.precision == INT8 ? groups(w.k) : 1;
    Soon soon = {next + row * share, (R * share + parts - 1) / parts};
    for (; row + R <= m; row += R, soon.from += R * share) {
        tile<R>(a + row * a_bytes, a_bytes, w, panel, from, to, c + row * c_stride, c_stride, more, soon);
    }
}

void multiply(const char* a, int64_t a_bytes, int64_t m, const Matrix& w, int64_t first, int64_t last, float* c,
              int64_t c_stride, bool add) {
    // Many rows go over a panel again and again, so a part of it that fits the first cache is taken at a time.
    const int64_t stretch = w.precision == INT8 || m <= 2 * ROWS ? w.k : w.precision == BFLOAT16 ? 512 : 256;
    for (int64_t panel = first; panel < last; panel++) {
        for (int64_t from = 0; from < w.k; from += stretch) {
            const int64_t to = from + stretch < w.k ? from + stretch : w.k;
            const bool more = add || from > 0;
            const int64_t bytes = w.panel_bytes() / w.k * (to - from);
            const char* next = (const char*)w.data + panel * w.panel_bytes() + w.panel_bytes() / w.k * to;
            const bool brings = w.precision == INT8 ? m > 2 : m >= 2 * ROWS;
            const int64_t share = brings ? (bytes + m - 1) / m : 0;  // by each row
            int64_t row = 0;
            if (w.precision == INT8) {
                tiles<BYTE_ROWS>(row, m, a, a_bytes, w, panel, from, to, c, c_stride, more, next, share);
            } else {
                tiles<ROWS>(row, m, a, a_bytes, w, panel, from, to, c, c_stride, more, next, share);
            }
            if (ROWS > 4) tiles<4>(row, m, a, a_bytes, w, panel, from, to, c, c_stride, more, next, share);
            tiles<2>(row, m, a, a_bytes, w, panel, from, to, c, c_stride, more, next, share);
            tiles<1>(row, m, a, a_bytes, w, panel, from, to, c, c_stride, more, next, share);
        }
    }
}

// The 16 ids from `id`, a multiple of 16, on that a mask allows and that are below `limit`, one bit each.
inline uint32_t allowed_of(const uint32_t* mask, int64_t id, int64_t limit) {
    uint32_t allowed = mask ? mask[id / 32] >> (id % 32) & 0xffff : 0xffff;
    if (id + LANES > limit) allowed &= id < limit ? (1u << (limit - id)) - 1 : 0;
    return allowed;
}

// Up to 16 numbers, -inf in place of those that are not allowed or not there.
inline F load_allowed(const float* from, int64_t count, uint32_t allowed) {
    if (allowed == 0xffff && count >= LANES) return load(from);
    float some[LANES];
    for (int64_t i = 0; i < LANES; i++) some[i] = i < count && (allowed >> i & 1) ? from[i] : -INFINITY;
    return load(some);
}

// ---- a matrix in 4 bits ---------------------------------------------------------------------------------------------

#if defined(__AVX2__) || defined(__AVX512F__)
constexpr bool NARROWS = true;

// Input k of a panel's 16 outputs; of int8 the codes.
inline F weights_at(const Matrix& w, const char* panel, int64_t k) {
    F y;
    if (w.precision == FLOAT32) return load((const float*)panel + k * LANES);
    if (w.precision == BFLOAT16) {
        I both = load_ints((const uint16_t*)panel + k / 2 * 32);
        EVERY_PART y.v[part] = (Floats)(k % 2 ? both.v[part] & (int32_t)0xffff0000 : both.v[part] << 16);
        return y;
    }
    I four = load_ints(panel + k / 4 * 64);
    EVERY_PART y.v[part] = __builtin_convertvector((four.v[part] << (int)(24 - k % 4 * 8)) >> 24, Floats);
    return y;
}

void narrow(const Matrix& w, int64_t first, int64_t last, const Narrow& to) {
    const int64_t octets = up(w.k, 8) / 8;
    for (int64_t panel = first; panel < last; panel++) {
        const char* from = (const char*)w.data + panel * w.panel_bytes();
        uint8_t* out = to.data + panel * to.panel_bytes();
        F most = all(1e-30f);
        for (int64_t k = 0; k < w.k; k++) most = larger(most, magnitude(weights_at(w, from, k)));
        const F step = most * all(1.0f / 7), inverse = all(7.0f) / most;
        store(to.scales + panel * LANES, w.precision == INT8 ? step * load(w.scales + panel * LANES) : step);
        for (int64_t i = 0; i < octets * 64; i += 64) {
            uint8_t codes[8][LANES];
            for (int64_t k = 0; k < 8; k++) {
                float rounded[LANES];
                const int64_t at = i / 8 + k;
                store(rounded, at < w.k ? weights_at(w, from, at) * inverse + all(ROUNDER) : all(ROUNDER));
                for (int64_t j = 0; j < LANES; j++) codes[k][j] = (uint8_t)(load_as<uint32_t>(rounded + j) + 8);
            }
            for (int64_t j = 0; j < 64; j++)
                out[i + j] = (uint8_t)((codes[j % 4][j / 4] & 15) | codes[4 + j % 4][j / 4] << 4);
        }
    }
}

inline void low_high(const char* at, I& low, I& high) {
    I both = load_ints(at);
    EVERY_PART {
        low.v[part] = both.v[part] & 0x0f0f0f0f;
        high.v[part] = (Ints)((Words)both.v[part] >> 4) & 0x0f0f0f0f;
    }
}

template <int R>
inline void tile_narrow(const char* a, int64_t a_bytes, const char* w, int64_t k, const float* scales, float* c,
                        int64_t c_stride) {
    const int64_t octets = up(k, 8) / 8;
    F total[R] = {};
    for (int64_t group = 0; group < groups(k); group++) {
        int64_t i = group * (GROUP / 8);
        const int64_t end = i + GROUP / 8 < octets ? i + GROUP / 8 : octets;
        I sum[R] = {};
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
        for (; i < end; i++) {
            ask<R>(w + i * 64);
            I low, high;
            low_high(w + i * 64, low, high);
            EVERY_ROW {
                dot<false>(sum[r], four_of(a + r * a_bytes + 8 * i), low);
                dot<false>(sum[r], four_of(a + r * a_bytes + 8 * i + 4), high);
            }
        }
#else
        while (i < end) {  // 16 bits have room for 16 pairs of products, at most 2 * 15 * 63 each
            const int64_t pause = i + 8 < end ? i + 8 : end;
            I pairs[R] = {};
#pragma GCC unroll 1
            for (; i < pause; i++) {
                ask<R>(w + i * 64);
                I low, high;
                low_high(w + i * 64, low, high);
                EVERY_ROW {
                    const __m256i x = _mm256_set1_epi32((int)four_of(a + r * a_bytes + 8 * i));
                    EVERY_PART pairs[r].v[part] = (Ints)_mm256_add_epi16(
                        (__m256i)pairs[r].v[part], _mm256_maddubs_epi16((__m256i)low.v[part], x));
                    const __m256i y = _mm256_set1_epi32((int)four_of(a + r * a_bytes + 8 * i + 4));
                    EVERY_PART pairs[r].v[part] = (Ints)_mm256_add_epi16(
                        (__m256i)pairs[r].v[part], _mm256_maddubs_epi16((__m256i)high.v[part], y));
                }
            }
            EVERY_ROW EVERY_PART sum[r].v[part] +=
                (Ints)_mm256_madd_epi16((__m256i)pairs[r].v[part], _mm256_set1_epi16(1));
        }
#endif
        EVERY_ROW {
            const char* beside = a + r * a_bytes + scales_at(k) + 4 * group;
            const float scale = load_as<float>(beside);
            const int32_t shift = load_as<int32_t>(beside + 4 * groups(k)) / 16;  // 8 times the codes' sum
            EVERY_PART total[r].v[part] += __builtin_convertvector(sum[r].v[part] - shift, Floats) * scale;
        }
    }
    F each = load(scales);
    EVERY_ROW store(c + r * c_stride, total[r] * each);
}

void glance(const char* a, int64_t a_bytes, int64_t m, const Narrow& w, int64_t first, int64_t last, float* c,
            int64_t c_stride) {
    for (int64_t panel = first; panel < last; panel++) {
        const char* data = (const char*)w.data + panel * w.panel_bytes();
        const float* scales = w.scales + panel * LANES;
        int64_t row = 0;
        const auto at = [&] { return c + row * c_stride + panel * LANES; };
        for (; row + 4 <= m; row += 4) tile_narrow<4>(a + row * a_bytes, a_bytes, data, w.k, scales, at(), c_stride);
        for (; row + 2 <= m; row += 2) tile_narrow<2>(a + row * a_bytes, a_bytes, data, w.k, scales, at(), c_stride);
        for (; row < m; row++) tile_narrow<1>(a + row * a_bytes, a_bytes, data, w.k, scales, at(), c_stride);
    }
}

float bounds(const float* c, const Narrow& w, int64_t first, int64_t last, float reach, int64_t limit,
             const uint32_t* mask, float* upper) {
    const F by = all(reach);
    F lower = all(-INFINITY);
    for (int64_t panel = first; panel < last; panel++, c += LANES) {
        const int64_t id = panel * LANES;
        const F here = load_allowed(c, LANES, allowed_of(mask, id, limit));
        const F far = by * load(w.scales + id);
        lower = larger(lower, here - far);
        upper[panel] = most_of(here + far);
    }
    return most_of(lower);
}
#else
constexpr bool NARROWS = false;
void narrow(const Matrix&, int64_t, int64_t, const Narrow&) {}
void glance(const char*, int64_t, int64_t, const Narrow&, int64_t, int64_t, float*, int64_t) {}
float bounds(const float*, const Narrow&, int64_t, int64_t, float, int64_t, const uint32_t*, float*) { return 0; }
#endif

// ---- rows -----------------------------------------------------------------------------------------------------------

void norm(const float* x, const float* weight, int64_t k, float scale, float* out) {
    F squares[2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= k; i += 2 * LANES) {
        F a = load(x + i), b = load(x + i + LANES);
        add_product(squares[0], a, a);
        add_product(squares[1], b, b);
    }
    float sum = sum_of(squares[0] + squares[1]);
    for (; i < k; i++) sum += x[i] * x[i];
    const float factor = scale / sqrtf(sum / (float)k + 1e-6f);
    for (i = 0; i + LANES <= k; i += LANES) store(out + i, load(x + i) * all(factor) * load(weight + i));
    for (; i < k; i++) out[i] = x[i] * factor * weight[i];
}

inline F tanh_of(const F& x) {  // 1 - 2 / (exp(2x) + 1)
    return all(1.0f) - all(2.0f) / (exponent(x + x) + all(1.0f));
}

inline F activated(Activation kind, const F& x) {
    switch (kind) {
        case RELU:
        case GATED_RELU:
            return larger(x, all(0.0f));
        case SILU:
        case GATED_SILU:
            return x / (all(1.0f) + exponent(all(0.0f) - x));
        case GATED_GELU:  // by tanh, as T5 1.1 (docs/shapes.md)
            return all(0.5f) * x * (all(1.0f) + tanh_of(all(0.7978845608028654f) * (x + all(0.044715f) * x * x * x)));
        case GELU:
            break;
    }
    F y;
    EVERY_PART for (int i = 0; i < EACH; i++) {
        float a = x.v[part][i];
        y.v[part][i] = 0.5f * a * (1.0f + erff(a * 0.70710678118654752f));
    }
    return y;
}

void activate(Activation kind, float* hidden, int64_t stride, int64_t m, int64_t f) {
    for (int64_t row = 0; row < m; row++) {
        float* at = hidden + row * stride;
        for (int64_t i = 0; i < f; i += LANES) {
            float here[LANES], gate[LANES];
            const int64_t count = f - i < LANES ? f - i : LANES;
            if (count == LANES) {
                F y = activated(kind, load(at + i));
                if (kind >= GATED_RELU) y = y * load(at + f + i);
                store(at + i, y);
                continue;
            }
            memset(here, 0, sizeof here);
            memset(gate, 0, sizeof gate);
            memcpy(here, at + i, (size_t)count * 4);
            if (kind >= GATED_RELU) memcpy(gate, at + f + i, (size_t)count * 4);
            F y = activated(kind, load(here));
            if (kind >= GATED_RELU) y = y * load(gate);
            store(here, y);
            memcpy(at + i, here, (size_t)count * 4);
        }
    }
}

// ---- attention ------------------------------------------------------------------------------------------------------

// 16 numbers of half precision as floats
inline F load_half(const uint16_t* from) {
    F y;
#if defined(__AVX512F__)
    y.v[0] = (Floats)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
    EVERY_PART y.v[part] = (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8 * part)));
#else
    EVERY_PART {
        Words w;
        for (int i = 0; i < EACH; i++) w[i] = from[part * EACH + i];
        Floats size = (Floats)((w & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112: the exponents' bias differs by it
        y.v[part] = (Floats)((Words)size | ((w & 0x8000) << 16));
    }
#endif
    return y;
}

inline uint16_t to_half(float x) {
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;  // the largest there is, never infinity
#if defined(__F16C__)
    return (uint16_t)_cvtss_sh(x, 0);
#else
    uint32_t bits = load_as<uint32_t>(&x), sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits < 0x38800000) {  // below the smallest normal half, steps of 2^-24
        float small = load_as<float>(&bits) + 0.5f;
        return (uint16_t)(sign | (load_as<uint32_t>(&small) - 0x3f000000));
    }
    bits += 0xfff + ((bits >> 13) & 1);
    return (uint16_t)(sign | ((bits - 0x38000000) >> 13));
#endif
}

inline F load_kept(const float* from) { return load(from); }
inline F load_kept(const uint16_t* from) { return load_half(from); }

// exp(scores - most) in place, zero from `count` to the next 16; their sum
inline float exponentials(float* scores, int64_t count, float most) {
    F sum = all(0.0f), shift = all(most);
    const int64_t padded = up(count, LANES);
    for (int64_t i = count; i < padded; i++) scores[i] = -INFINITY;
    for (int64_t i = 0; i < padded; i += LANES) {
        F e = exponent(load(scores + i) - shift);
        if (i + LANES > count) {
            float tail[LANES];
            store(tail, e);
            for (int64_t j = count - i; j < LANES; j++) tail[j] = 0;
            e = load(tail);
        }
        store(scores + i, e);
        sum = sum + e;
    }
    return sum_of(sum);
}

template <class T>
void attend_kept(const float* query, int64_t width, const Past& past, const float* bias, float* scores, float* out) {
    const int64_t count = past.positions, padded = up(width, LANES);
    float most = -INFINITY;
    for (int64_t at = 0; at < count; at += LANES) {
        const T* key = (const T*)(past.blocks[at / LANES] + past.key);
        // The next block lies elsewhere in memory, and this one's values are read soon.
        const char* next = at + LANES < count ? past.blocks[at / LANES + 1] + past.key : (const char*)key;
        const char* values = past.blocks[at / LANES] + past.value;
        F sum[4] = {};
        int64_t i = 0;
        for (; i + 4 <= width; i += 4) {
            for (int64_t line = 0; line < 4 * LANES * (int64_t)sizeof(T); line += 64) {
                __builtin_prefetch(next + i * LANES * (int64_t)sizeof(T) + line, 0, 3);
                __builtin_prefetch(values + i * LANES * (int64_t)sizeof(T) + line, 0, 3);
            }
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) add_product(sum[j], query[i + j], load_kept(key + (i + j) * LANES));
        }
        for (; i < width; i++) add_product(sum[0], query[i], load_kept(key + i * LANES));
        F score = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        if (at + LANES <= count) {
            if (bias) score = score + load(bias + at);
            store(scores + at, score);
            const float here = most_of(score);
            most = here > most ? here : most;
        } else {
            store(scores + at, score);
            for (int64_t j = at; j < count; j++) {
                if (bias) scores[j] += bias[j];
                most = scores[j] > most ? scores[j] : most;
            }
        }
    }
    const float sum = exponentials(scores, count, most);
    const float inverse = 1.0f / sum;
    for (int64_t first = 0; first < padded; first += 4 * LANES) {  // up to 64 columns at a time stay in registers
        const int64_t columns = padded - first < 4 * LANES ? padded - first : 4 * LANES;
        F mixed[4] = {};
        for (int64_t at = 0; at < count; at++) {
            const T* value = (const T*)(past.blocks[at / LANES] + past.value) + (at % LANES) * padded + first;
            // Behind a head's values stand the next head's keys, whose turn is next.
            __builtin_prefetch((const char*)value + padded * LANES * (int64_t)sizeof(T), 0, 3);
            __builtin_prefetch((const char*)value + padded * LANES * (int64_t)sizeof(T) + 64, 0, 3);
            if (columns == 4 * LANES) {
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) add_product(mixed[j], scores[at], load_kept(value + j * LANES));
            } else {
                for (int64_t j = 0; j * LANES < columns; j++)
                    add_product(mixed[j], scores[at], load_kept(value + j * LANES));
            }
        }
        for (int64_t j = 0; j * LANES < columns; j++) {
            const int64_t begin = first + j * LANES, left = width - begin;
            F y = mixed[j] * all(inverse);
            if (left >= LANES) {
                store(out + begin, y);
            } else if (left > 0) {
                float tail[LANES];
                store(tail, y);
                memcpy(out + begin, tail, (size_t)left * 4);
            }
        }
    }
}

void attend(bool half, const float* query, int64_t width, const Past& past, const float* bias, float* scores,
            float* out) {
    if (half)
        attend_kept<uint16_t>(query, width, past, bias, scores, out);
    else
        attend_kept<float>(query, width, past, bias, scores, out);
}

int64_t attend_all_floats(int64_t length, int64_t width) {
    const int64_t padded = up(length, LANES), wide = up(width, LANES);
    return padded * width + padded * wide + ROWS * padded + ROWS * wide;
}

template <int R>
inline void attend_rows(const float* query, int64_t stride, const float* keys, const float* values, int64_t length,
                        int64_t width, const float* bias, float* scores, float* mixed, float* out, int64_t out_stride) {
    const int64_t padded = up(length, LANES), wide = up(width, LANES);
    for (int64_t at = 0; at < padded; at += LANES)
        tile_float<R>(query, stride, keys + at * width, LANES, width, scores + at, padded, false);
    float inverse[R];
    for (int r = 0; r < R; r++) {
        float* line = scores + r * padded;
        float most = -INFINITY;
        F many = all(-INFINITY);
        int64_t i = 0;
        for (; i + LANES <= length; i += LANES) {
            F y = load(line + i) + load(bias - r + i);
            store(line + i, y);
            many = larger(many, y);
        }
        if (i) most = most_of(many);
        for (; i < length; i++) {
            line[i] += bias[i - r];
            most = line[i] > most ? line[i] : most;
        }
        inverse[r] = 1.0f / exponentials(line, length, most);
    }
    for (int64_t at = 0; at < wide; at += LANES)
        tile_float<R>(scores, padded, values + at, wide, length, mixed + at, wide, false);
    for (int r = 0; r < R; r++)
        for (int64_t i = 0; i < width; i++) out[r * out_stride + i] = mixed[r * wide + i] * inverse[r];
}

void attend_all(const float* query, const float* key, const float* value, int64_t stride, int64_t length, int64_t width,
                const float* bias, float* scratch, float* out, int64_t out_stride) {
    const int64_t padded = up(length, LANES), wide = up(width, LANES);
    float *keys = scratch, *values = keys + padded * width, *scores = values + padded * wide,
          *mixed = scores + ROWS * padded;
    for (int64_t at = 0; at < padded; at++) {  // keys in panels of 16, values in rows of whole vectors
        for (int64_t i = 0; i < width; i++)
            keys[(at / LANES * width + i) * LANES + at % LANES] = at < length ? key[at * stride + i] : 0.0f;
        for (int64_t i = 0; i < wide; i++) values[at * wide + i] = at < length && i < width ? value[at * stride + i] : 0.0f;
    }
    int64_t row = 0;
    for (; row + ROWS <= length; row += ROWS)
        attend_rows<ROWS>(query + row * stride, stride, keys, values, length, width, bias - row, scores, mixed,
                          out + row * out_stride, out_stride);
    for (; row < length; row++)
        attend_rows<1>(query + row * stride, stride, keys, values, length, width, bias - row, scores, mixed,
                       out + row * out_stride, out_stride);
}

void keep_as(const float* key, const float* value, int64_t width, int64_t slot, float* keys, float* values) {
    for (int64_t i = 0; i < width; i++) keys[i * LANES + slot] = key[i];
    memcpy(values + slot * up(width, LANES), value, (size_t)width * 4);
}

void keep_as(const float* key, const float* value, int64_t width, int64_t slot, uint16_t* keys, uint16_t* values) {
    values += slot * up(width, LANES);
    int64_t i = 0;
#if defined(__F16C__)
    const __m256 least = _mm256_set1_ps(-65504.0f), most = _mm256_set1_ps(65504.0f);
    const auto halves = [&](const float* from) {
        return _mm256_cvtps_ph(_mm256_min_ps(_mm256_max_ps(_mm256_loadu_ps(from), least), most), 0);
    };
    for (; i + 8 <= width; i += 8) {
        _mm_storeu_si128((__m128i*)(values + i), halves(value + i));
        uint16_t eight[8];
        _mm_storeu_si128((__m128i*)eight, halves(key + i));
        for (int64_t j = 0; j < 8; j++) keys[(i + j) * LANES + slot] = eight[j];
    }
#endif
    for (; i < width; i++) {
        keys[i * LANES + slot] = to_half(key[i]);
        values[i] = to_half(value[i]);
    }
}

void keep(bool half, const float* key, const float* value, int64_t width, int64_t slot, char* keys, char* values) {
    if (half)
        keep_as(key, value, width, slot, (uint16_t*)keys, (uint16_t*)values);
    else
        keep_as(key, value, width, slot, (float*)keys, (float*)values);
}

// ---- logits ---------------------------------------------------------------------------------------------------------

Best best(const float* logits, int64_t count, int64_t id, int64_t limit, const uint32_t* mask, bool sums) {
    Best found;
    found.most = found.value = -INFINITY;
    if (sums) {
        F many = all(-INFINITY);
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) many = larger(many, load(logits + i));
        found.most = i ? most_of(many) : -INFINITY;
        for (; i < count; i++) found.most = logits[i] > found.most ? logits[i] : found.most;
        F sum = all(0.0f), shift = all(found.most);
        for (i = 0; i + LANES <= count; i += LANES) sum = sum + exponent(load(logits + i) - shift);
        found.sum = sum_of(sum);
        for (; i < count; i++) found.sum += expf(logits[i] - found.most);
    }
    // The largest of every stretch of 16 vectors, so that its id is looked for in one of them alone.
    const int64_t end = limit - id < count ? limit - id : count;
    int64_t at = -1;
    for (int64_t first = 0; first < end; first += LANES * LANES) {
        const int64_t last = first + LANES * LANES < end ? first + LANES * LANES : end;
        F many = all(-INFINITY);
        for (int64_t i = first; i < last; i += LANES) {
            const uint32_t allowed = mask ? allowed_of(mask, id + i, limit) : 0xffff;
            if (allowed) many = larger(many, load_allowed(logits + i, end - i, allowed));
        }
        const float here = most_of(many);
        if (here > found.value) {
            found.value = here;
            at = first;
        }
    }
    for (int64_t i = at; at >= 0 && i < end; i++) {
        const int64_t it = id + i;
        if (logits[i] == found.value && (!mask || (mask[it / 32] >> (it % 32) & 1))) {
            found.id = it;
            break;
        }
    }
    return found;
}

void exponential(const float* logits, int64_t count, float most, float temperature, float* p) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(p + i, exponent((load(logits + i) - all(most)) / all(temperature)));
    for (; i < count; i++) p[i] = expf((logits[i] - most) / temperature);
}

constexpr Kernels table(const char* name) {
    return {name,     MOST_CODE,
            packed_bytes, pack,
            multiply, NARROWS ? narrow : nullptr,
            NARROWS ? glance : nullptr, NARROWS ? bounds : nullptr,
            norm,     activate,
            attend,   attend_all,
            attend_all_floats, keep,
            best,     exponential};
}

}  // namespace
}  // namespace dn
