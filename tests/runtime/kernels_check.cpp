// The kernels of one instruction set against the plainest sums in double precision, at sizes that end everywhere.
//
// Every buffer is exactly as large as the contract in kernels.h says, so that under -fsanitize=address a read or a write
// beside it is found. Compiled with -DCHECKED=kernels_avx2 and the like; prints a line for each function and how far off
// its worst number was, as a share of what is allowed; exits with 1 where that passes 1.
//
// Shape key   m rows   n outputs   k inputs   l positions   w width of a head

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels.h"

using namespace dn;

static const Kernels& kernels = *CHECKED();
static std::mt19937 dice(7);
static bool failed = false;

template <class T>
struct Exact {  // an array whose end is the end of its memory, at a multiple of 64
    T* data;
    explicit Exact(int64_t count) : data((T*)::operator new[]((size_t)(count ? count : 1) * sizeof(T), std::align_val_t(64))) {}
    ~Exact() { ::operator delete[](data, std::align_val_t(64)); }
    Exact(const Exact&) = delete;
    operator T*() { return data; }
};

static float draw() { return std::normal_distribution<float>()(dice); }
static void fill(float* to, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = draw();
}

static double round_bfloat(double x) {
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    memcpy(&f, &bits, 4);
    return f;
}

static double round_half(double x) {  // to the nearest of 11 bits, ties to even; steps of 2^-24 below 2^-14
    if (std::fabs(x) > 65504) return x > 0 ? 65504 : -65504;
    int power = 0;
    std::frexp(x, &power);
    const double step = std::ldexp(1.0, std::max(power, -13) - 11);
    return std::nearbyint(x / step) * step;
}

static double of_half(uint16_t bits) {
    const int power = bits >> 10 & 31, rest = bits & 1023;
    const double size = power ? std::ldexp(1024 + rest, power - 25) : std::ldexp(rest, -24);
    return bits & 0x8000 ? -size : size;
}

struct Worst {
    const char* name;
    double share = 0;
    long count = 0;
    explicit Worst(const char* name) : name(name) {}
    void see(double got, double wanted, double allowed) {
        const double here = got == wanted ? 0 : std::fabs(got - wanted) / allowed;
        if (!(here <= share)) share = here;  // NaN too
        count++;
    }
    void must(bool right) { see(right ? 0 : 2, 0, 1); }
    ~Worst() {
        const bool wrong = !(share <= 1);
        printf("%s %s: %ld numbers, the worst at %.3f of what is allowed%s\n", kernels.name, name, count, share,
               wrong ? ": WRONG" : "");
        failed |= wrong;
    }
};

static void check_multiply(Precision precision, const char* name, bool positive = false) {
    const double codes = positive ? 127 : kernels.most_code;
    Worst worst(name);
    for (int64_t n : {1, 16, 40}) {
        for (int64_t k : {1, 3, 16, 33, 64, 127, 128, 130, 259, 600, 1100}) {
            for (int64_t m : {1, 2, 3, 4, 5, 7, 11, 12, 13, 14, 25, 30}) {
                if (k > 300 && m > 5 && m != 30) continue;
                Matrix matrix;
                matrix.n = n;
                matrix.k = k;
                matrix.precision = precision;
                matrix.positive = positive;
                const int64_t panels = matrix.panels(), group = precision == FLOAT32 ? 1 : precision == BFLOAT16 ? 2 : 4;
                const int64_t wide = up(k, group);
                std::vector<double> weight((size_t)(panels * LANES * wide), 0.0);  // [16 panels][wide], as computed with
                Exact<char> data(panels * matrix.panel_bytes());
                Exact<float> scales(panels * LANES);
                memset(data, 0, (size_t)(panels * matrix.panel_bytes()));
                for (int64_t row = 0; row < panels * LANES; row++) {
                    scales[row] = row < n ? 0.001f * (float)(1 + row) : 1.0f;
                    for (int64_t i = 0; row < n && i < k; i++) {
                        const int64_t at = ((row / LANES * (wide / group) + i / group) * LANES + row % LANES) * group + i % group;
                        double& w = weight[(size_t)(row * wide + i)];
                        if (precision == INT8) {
                            const int code = (int)(dice() % 255) - 127;
                            ((int8_t*)data.data)[at] = (int8_t)code;
                            w = code;
                        } else if (precision == BFLOAT16) {
                            const float f = (float)(w = round_bfloat(draw()));
                            uint32_t bits;
                            memcpy(&bits, &f, 4);
                            ((uint16_t*)data.data)[at] = (uint16_t)(bits >> 16);
                        } else {
                            w = ((float*)data.data)[at] = draw();
                        }
                    }
                }
                matrix.data = data;
                matrix.scales = scales;

                const int64_t stride = k + 3, columns = panels * LANES;  // rows that do not follow one another
                const int64_t read = precision == BFLOAT16 ? up(k, 2) : k;  // two inputs at a time, the last with zeros
                Exact<float> x((m - 1) * stride + read), c(m * columns);
                fill(x, (m - 1) * stride + read);
                for (int64_t i = 0; positive && i < (m - 1) * stride + read; i++) x[i] = x[i] > 0 ? x[i] : 0;
                if (k > 130 && m > 1) memset(x + stride, 0, 130 * 4);  // a whole group of nothing
                fill(c, m * columns);
                std::vector<float> before(c.data, c.data + m * columns);
                const int64_t bytes = kernels.packed_bytes(precision, k);
                Exact<char> packed(bytes * m);
                if (bytes) kernels.pack(matrix, x, stride, m, packed, bytes);
                const char* a = bytes ? packed.data : (const char*)x.data;
                const bool add = n == 16;
                const int64_t middle = panels / 2;  // in two shares, as threads take them
                kernels.multiply(a, bytes ? bytes : stride * 4, m, matrix, 0, middle, c, columns, add);
                kernels.multiply(a, bytes ? bytes : stride * 4, m, matrix, middle, panels, c, columns, add);

                for (int64_t row = 0; row < m; row++) {
                    std::vector<double> input((size_t)k), step((size_t)k, 0.0);
                    for (int64_t i = 0; i < k; i++) {
                        double value = x[row * stride + i];
                        if (precision == BFLOAT16 && bytes) value = round_bfloat(value);
                        if (precision == INT8) {
                            double most = 0;
                            for (int64_t j = i / GROUP * GROUP; j < std::min(k, (i / GROUP + 1) * GROUP); j++)
                                most = std::max(most, (double)std::fabs(x[row * stride + j]));
                            const double code = most > 0 ? value * codes / most : 0, whole = std::nearbyint(code);
                            value = whole * most / codes;
                            // as near to the middle of two codes as float can tell, either is right
                            if (std::fabs(std::fabs(code - std::trunc(code)) - 0.5) < 1e-4) step[(size_t)i] = most / codes;
                        }
                        input[(size_t)i] = value;
                    }
                    for (int64_t column = 0; column < columns; column++) {
                        double sum = 0, size = 0, tie = 0;
                        for (int64_t i = 0; i < k; i++) {
                            const double w = weight[(size_t)(column * wide + i)];
                            sum += input[(size_t)i] * w;
                            size += std::fabs(input[(size_t)i] * w);
                            tie += step[(size_t)i] * std::fabs(w);
                        }
                        const double scale = precision == INT8 ? (double)scales[column] : 1.0;
                        const double old = add ? (double)before[(size_t)(row * columns + column)] : 0.0;
                        worst.see(c[row * columns + column], old + sum * scale,
                                  1e-6 * (size * scale + std::fabs(old)) + tie * scale + 1e-30);
                    }
                }
            }
        }
    }
}

static void check_norm() {
    Worst worst("norm");
    for (int64_t k : {1, 5, 16, 31, 32, 48, 100, 512}) {
        Exact<float> x(k), weight(k), out(k);
        fill(x, k);
        fill(weight, k);
        kernels.norm(x, weight, k, 0.25f, out);
        double squares = 0;
        for (int64_t i = 0; i < k; i++) squares += (double)x[i] * x[i];
        for (int64_t i = 0; i < k; i++) {
            const double wanted = x[i] / std::sqrt(squares / (double)k + 1e-6) * weight[i] * 0.25;
            worst.see(out[i], wanted, 2e-6 * std::fabs(wanted));
        }
    }
}

static double activated(int kind, double x) {
    switch (kind) {
        case RELU:
        case GATED_RELU:
            return std::max(x, 0.0);
        case SILU:
        case GATED_SILU:
            return x / (1 + std::exp(-x));
        case GATED_GELU:
            return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        default:
            return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    }
}

static void check_activate() {
    Worst worst("activate");
    for (int kind = RELU; kind <= GATED_SILU; kind++) {
        for (int64_t f : {1, 15, 16, 37, 64}) {
            const int64_t m = 3, wide = kind >= GATED_RELU ? 2 * f : f, stride = wide + 2, size = (m - 1) * stride + wide;
            Exact<float> hidden(size);
            for (int64_t i = 0; i < size; i++) hidden[i] = draw() * (i % 7 ? 2.0f : 40.0f);
            std::vector<float> before(hidden.data, hidden.data + size);
            kernels.activate((Activation)kind, hidden, stride, m, f);
            for (int64_t row = 0; row < m; row++)
                for (int64_t i = 0; i < f; i++) {
                    const double x = before[(size_t)(row * stride + i)];
                    const double gate = kind >= GATED_RELU ? (double)before[(size_t)(row * stride + f + i)] : 1.0;
                    worst.see(hidden[row * stride + i], activated(kind, x) * gate, 2e-6 * (std::fabs(x * gate) + 1e-3));
                }
        }
    }
}

// What softmax over scores makes of values: wanted, and the sum of the magnitudes it was made of
static void mix(std::vector<double> scores, const std::vector<double>& value, int64_t stride, double& sum, double& size) {
    double most = -INFINITY, whole = 0;
    for (double score : scores) most = std::max(most, score);
    for (double& score : scores) whole += score = std::exp(score - most);
    sum = size = 0;
    for (size_t i = 0; i < scores.size(); i++) {
        sum += scores[i] / whole * value[i * (size_t)stride];
        size += std::fabs(scores[i] / whole * value[i * (size_t)stride]);
    }
}

static void check_attend(bool half) {
    Worst worst(half ? "attend over half precision" : "attend over float32");
    for (int64_t width : {1, 16, 20, 64, 72, 128}) {
        for (int64_t count : {1, 15, 16, 17, 32, 45}) {
            for (bool biased : {false, true}) {
                const int64_t wide = up(width, LANES), item = half ? 2 : 4, blocks = up(count, LANES) / LANES;
                Past past{nullptr, 0, width * LANES * item, count};
                std::vector<std::unique_ptr<Exact<char>>> held;
                std::vector<const char*> starts;
                const int64_t block = (width + wide) * LANES * item;
                for (int64_t i = 0; i < blocks; i++) {
                    held.push_back(std::make_unique<Exact<char>>(block));
                    memset(*held.back(), 0, (size_t)block);
                    starts.push_back(*held.back());
                }
                past.blocks = starts.data();
                std::vector<double> keys((size_t)(count * width)), values((size_t)(count * width));
                Exact<float> key(width), value(width), query(width), bias(count), scores(up(count, LANES)), out(width);
                for (int64_t at = 0; at < count; at++) {
                    fill(key, width);
                    fill(value, width);
                    char* to = *held[(size_t)(at / LANES)];
                    kernels.keep(half, key, value, width, at % LANES, to + past.key, to + past.value);
                    for (int64_t i = 0; i < width; i++) {
                        keys[(size_t)(at * width + i)] = half ? round_half(key[i]) : key[i];
                        values[(size_t)(at * width + i)] = half ? round_half(value[i]) : value[i];
                    }
                }
                fill(query, width);
                fill(bias, count);
                kernels.attend(half, query, width, past, biased ? bias.data : nullptr, scores, out);
                std::vector<double> wanted((size_t)count, 0.0);
                for (int64_t at = 0; at < count; at++) {
                    for (int64_t i = 0; i < width; i++) wanted[(size_t)at] += query[i] * keys[(size_t)(at * width + i)];
                    if (biased) wanted[(size_t)at] += bias[at];
                }
                for (int64_t i = 0; i < width; i++) {
                    double sum, size;
                    mix(wanted, {values.begin() + i, values.end()}, width, sum, size);
                    worst.see(out[i], sum, 2e-5 * size);
                }
            }
        }
    }
}

static void check_half() {
    Worst worst("half precision kept");
    for (int64_t width : {1, 37}) {
        for (int turn = 0; turn < 400; turn++) {
            Exact<float> key(width), value(width);
            Exact<uint16_t> keys(width * LANES), values(LANES * up(width, LANES));
            for (int64_t i = 0; i < width; i++) {
                key[i] = std::ldexp(draw(), (int)(dice() % 44) - 27);  // from below the smallest to beyond the largest
                value[i] = (float)of_half((uint16_t)(dice() % 0x7bff)) * (1.0f + 1.0f / 2048);  // the middle of two
            }
            const int64_t slot = turn % LANES;
            kernels.keep(true, key, value, width, slot, (char*)keys.data, (char*)values.data);
            for (int64_t i = 0; i < width; i++) {
                worst.see(of_half(keys[i * LANES + slot]), round_half(key[i]), 1e-30);
                worst.see(of_half(values[slot * up(width, LANES) + i]), round_half(value[i]), 1e-30);
            }
        }
    }
}

static void check_attend_all() {
    Worst worst("attend_all");
    for (int64_t width : {1, 16, 20, 64, 72}) {
        for (int64_t length : {1, 5, 13, 16, 17, 30, 41}) {
            const int64_t stride = 3 * width, size = (length - 1) * stride + width, out_stride = width + 1;
            Exact<float> query(size), key(size), value(size), bias(2 * length - 1);
            Exact<float> scratch(kernels.attend_all_floats(length, width)), out((length - 1) * out_stride + width);
            fill(query, size);
            fill(key, size);
            fill(value, size);
            fill(bias, 2 * length - 1);
            kernels.attend_all(query, key, value, stride, length, width, bias + length - 1, scratch, out, out_stride);
            const std::vector<double> values(value.data, value.data + size);
            for (int64_t row = 0; row < length; row++) {
                std::vector<double> wanted((size_t)length, 0.0);
                for (int64_t at = 0; at < length; at++) {
                    for (int64_t i = 0; i < width; i++)
                        wanted[(size_t)at] += (double)query[row * stride + i] * key[at * stride + i];
                    wanted[(size_t)at] += bias[length - 1 + at - row];
                }
                for (int64_t i = 0; i < width; i++) {
                    double sum, total;
                    mix(wanted, {values.begin() + i, values.end()}, stride, sum, total);
                    worst.see(out[row * out_stride + i], sum, 2e-5 * total);
                }
            }
        }
    }
}

static void check_best() {
    Worst worst("best");
    for (int64_t count : {1, 15, 16, 33, 100, 257}) {
        for (int64_t first : {0, 32, 48}) {
            for (int turn = 0; turn < 8; turn++) {
                Exact<float> logits(count);
                for (int64_t i = 0; i < count; i++) logits[i] = turn % 2 ? draw() * 9 : (float)(dice() % 3);  // ties
                const int64_t limit = turn < 3 ? first + count : turn == 3 ? first : first + count / 2 + 1;
                Exact<uint32_t> mask(up(first + count, 32) / 32);
                for (int64_t i = 0; i < up(first + count, 32) / 32; i++) mask[i] = turn == 6 ? 0 : dice() & dice() & dice();
                const bool masked = turn >= 5 || turn == 2;
                const Best best = kernels.best(logits, count, first, limit, masked ? mask.data : nullptr, true);
                const Best other = kernels.best(logits, count, first, limit, masked ? mask.data : nullptr, false);
                worst.must(other.id == best.id && other.value == best.value);
                double most = -INFINITY, sum = 0;
                int64_t id = -1;
                for (int64_t i = 0; i < count; i++) most = std::max(most, (double)logits[i]);
                for (int64_t i = 0; i < count; i++) {
                    sum += std::exp(logits[i] - most);
                    const bool allowed = first + i < limit && (!masked || mask[(first + i) / 32] >> ((first + i) % 32) & 1);
                    if (allowed && (id < 0 || logits[i] > logits[id - first])) id = first + i;
                }
                worst.see(best.most, most, 1e-30);
                worst.see(best.sum, sum, 4e-6 * sum);
                worst.see((double)best.id, (double)id, 1e-3);
                if (id >= 0) worst.see(best.value, logits[id - first], 1e-30);
            }
        }
    }
}

// A matrix in 4 bits: codes within half a step, glances the sums of these codes, bounds around them.
static void check_narrow(Precision precision, const char* name) {
    if (!kernels.narrow) return;
    Worst worst(name);
    for (int64_t n : {16, 40, 70}) {
        for (int64_t k : {1, 5, 16, 33, 64, 127, 128, 200, 260, 520}) {
            Matrix w;
            w.n = n;
            w.k = k;
            w.precision = precision;
            const int64_t columns = w.panels() * LANES, group = precision == FLOAT32 ? 1 : precision == BFLOAT16 ? 2 : 4;
            Exact<char> data(w.panels() * w.panel_bytes());
            Exact<float> scales(columns);
            memset(data, 0, (size_t)(w.panels() * w.panel_bytes()));
            std::vector<double> weight((size_t)(columns * k), 0.0);
            for (int64_t row = 0; row < columns; row++) {
                scales[row] = 0.01f * (float)(1 + row % 7);
                for (int64_t i = 0; row < n && row % 5 && i < k; i++) {
                    const int64_t at = ((row / LANES * (up(k, group) / group) + i / group) * LANES + row % LANES) * group + i % group;
                    double& value = weight[(size_t)(row * k + i)];
                    if (precision == INT8) {
                        const int code = (int)(dice() % 255) - 127;
                        ((int8_t*)data.data)[at] = (int8_t)code;
                        value = (double)code * scales[row];
                    } else if (precision == BFLOAT16) {
                        const float f = (float)(value = round_bfloat(draw()));
                        uint32_t bits;
                        memcpy(&bits, &f, 4);
                        ((uint16_t*)data.data)[at] = (uint16_t)(bits >> 16);
                    } else {
                        value = ((float*)data.data)[at] = draw();
                    }
                }
            }
            w.data = data;
            w.scales = scales;
            Narrow narrow;
            narrow.n = n;
            narrow.k = k;
            Exact<uint8_t> codes(w.panels() * narrow.panel_bytes());
            Exact<float> steps(columns);
            narrow.data = codes;
            narrow.scales = steps;
            kernels.narrow(w, 0, 1, narrow);
            kernels.narrow(w, 1, w.panels(), narrow);
            const auto code = [&](int64_t row, int64_t i) {
                const uint8_t both = codes[row / LANES * narrow.panel_bytes() + i / 8 * 64 + row % LANES * 4 + i % 4];
                return (i % 8 < 4 ? both & 15 : both >> 4) - 8;
            };
            for (int64_t row = 0; row < columns; row++) {
                double most = 1e-30;
                for (int64_t i = 0; i < k; i++) {
                    const double value = weight[(size_t)(row * k + i)];
                    most = std::max(most, std::fabs(value));
                    worst.see(code(row, i) * (double)steps[row], value, (double)steps[row] * 0.50001);
                }
                if (row < n && row % 5) worst.see(steps[row], most / 7, most * 1e-6);
            }
            for (int64_t m : {1, 2, 3, 4, 5, 8}) {
                Exact<float> x(m * k), c(m * columns), upper(w.panels());
                fill(x, m * k);
                Matrix bytes = w;
                bytes.precision = INT8;
                const int64_t size = kernels.packed_bytes(INT8, k);
                Exact<char> packed(m * size);
                kernels.pack(bytes, x, k, m, packed, size);
                kernels.glance(packed, size, m, narrow, 0, 1, c, columns);
                kernels.glance(packed, size, m, narrow, 1, w.panels(), c, columns);
                for (int64_t row = 0; row < m; row++) {
                    std::vector<double> input((size_t)k);
                    double slack = 0;  // of codes as near to the middle of two as float can tell
                    for (int64_t i = 0; i < k; i++) {
                        double most = 0;
                        for (int64_t j = i / GROUP * GROUP; j < std::min(k, (i / GROUP + 1) * GROUP); j++)
                            most = std::max(most, (double)std::fabs(x[row * k + j]));
                        const double fine = x[row * k + i] * kernels.most_code / most;
                        input[(size_t)i] = std::nearbyint(fine) * most / kernels.most_code;
                        if (std::fabs(std::fabs(fine - std::trunc(fine)) - 0.5) < 1e-4) slack += 7 * most / kernels.most_code;
                    }
                    for (int64_t column = 0; column < columns; column++) {
                        double sum = 0, size_of = 0;
                        for (int64_t i = 0; i < k; i++) {
                            sum += input[(size_t)i] * code(column, i);
                            size_of += std::fabs(input[(size_t)i] * 8);
                        }
                        worst.see(c[row * columns + column], sum * steps[column],
                                  (double)steps[column] * (2e-6 * size_of + slack) + 1e-30);
                    }
                    const float reach = 0.7f;
                    Exact<uint32_t> mask(up(columns, 32) / 32);
                    for (int64_t i = 0; i < up(columns, 32) / 32; i++) mask[i] = row ? dice() : 0xffffffffu;
                    const int64_t limit = row % 2 ? n - 3 : n;
                    float lower = -INFINITY;
                    for (int64_t panel = 0; panel < w.panels(); panel++) {
                        float highest = -INFINITY;
                        for (int64_t id = panel * LANES; id < std::min(limit, (panel + 1) * LANES); id++) {
                            if (!(mask[id / 32] >> (id % 32) & 1)) continue;
                            lower = std::max(lower, c[row * columns + id] - reach * steps[id]);
                            highest = std::max(highest, c[row * columns + id] + reach * steps[id]);
                        }
                        const float got = kernels.bounds(c + row * columns + panel * LANES, narrow, panel, panel + 1, reach, limit,
                                                         row ? mask.data : nullptr, upper);
                        worst.see(upper[panel], highest, 1e-5 * (1 + std::fabs(highest)));
                        worst.must(got <= highest);
                    }
                    const float got = kernels.bounds(c + row * columns, narrow, 0, w.panels(), reach, limit,
                                                     row ? mask.data : nullptr, upper);
                    worst.see(got, lower, 1e-5 * (1 + std::fabs(lower)));
                }
            }
        }
    }
}

static void check_exponential() {
    Worst worst("exponential");
    for (int64_t count : {1, 16, 61, 128}) {
        for (float temperature : {0.3f, 1.0f, 7.0f}) {
            Exact<float> logits(count), p(count);
            for (int64_t i = 0; i < count; i++) logits[i] = -std::fabs(draw()) * 5;
            kernels.exponential(logits, count, 0.5f, temperature, p);
            for (int64_t i = 0; i < count; i++) {
                const double power = ((double)logits[i] - 0.5) / temperature;
                worst.see(p[i], std::exp(power), std::exp(power) * 1e-6 * (2 + std::fabs(power)) + 1e-36);
            }
        }
    }
}

int main() {
    check_multiply(FLOAT32, "multiply float32");
    check_multiply(BFLOAT16, "multiply bfloat16");
    check_multiply(INT8, "multiply int8");
    check_multiply(INT8, "multiply int8, never negative", true);
    check_narrow(FLOAT32, "narrow float32");
    check_narrow(BFLOAT16, "narrow bfloat16");
    check_narrow(INT8, "narrow int8");
    check_norm();
    check_activate();
    check_half();
    check_attend(false);
    check_attend(true);
    check_attend_all();
    check_best();
    check_exponential();
    printf("%s %s\n", kernels.name, failed ? "FAILED" : "passed");
    return failed;
}
