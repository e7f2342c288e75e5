#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "choose.h"

namespace dn {

constexpr int64_t LINE = 64;          // sections and rows begin on cache lines
constexpr int64_t ALONE_ROWS = 72;    // rows that one thread takes through a whole encoder layer at a time
constexpr int64_t FEW_ROWS = 24;      // below it the threads share the columns instead
constexpr int64_t SMALL = 1 << 15;    // products that are not worth a second thread
constexpr int64_t SHORT = 1 << 12;    // nor looks at a past of so many numbers

// A step that asks for no more than the likeliest ids first looks at the output matrix in 4 bits.
constexpr int64_t GLANCE_BYTE_ROWS = 8; // of more, arithmetic is what takes the time, of which bytes need as little,
constexpr int64_t GLANCE_ROWS = 64;     // but floats much more
constexpr int64_t GLANCE_VOCAB = 4096; // of fewer, little is to be saved
constexpr int64_t GLANCE_STEPS = 8;    // from so many on the matrix has been narrowed: an answer of a word is done sooner
// The error of a glance is a sum of roundings, each within half a step: normal, with sqrt(1/12) of a step times the length of
// the row. Missing the largest takes an error of REACH sqrt(2) times that between two outputs: one in 10^12. Where the row
// was not in codes before, its own rounding comes to it, by weights of at most WEIGHT steps (root mean square).
constexpr double REACH = 5.0, WEIGHT = 4.0;

// ---- memory ---------------------------------------------------------------------------------------------------------

static void* aligned(int64_t bytes) {
    void* data = nullptr;
    if (bytes < 0 || posix_memalign(&data, LINE, (size_t)up(std::max<int64_t>(bytes, LINE), LINE))) throw std::bad_alloc();
    return data;
}

Floats::~Floats() { free(data_); }

float* Floats::of(int64_t count) {
    if (count > room_) {
        free(data_);
        data_ = nullptr;
        room_ = 0;
        data_ = (float*)aligned(4 * count);
        room_ = count;
        // what lies between a row's end and the next row is read by whole vectors and multiplied by zero weights
        memset(data_, 0, (size_t)(4 * count));
    }
    return data_;
}

Piece::Piece(int64_t bytes) : data((char*)aligned(bytes)) {
    memset(data, 0, (size_t)bytes);
}
Piece::~Piece() { free(data); }

// ---- the file -------------------------------------------------------------------------------------------------------

void Shape::check() const {
    const int64_t most = INT32_MAX;
    for (int64_t size : {d_model, d_ff, heads, encoder_layers, d_kv, kv_heads, vocab, buckets, distance})
        if (size < 1 || size > most) throw std::invalid_argument("a size of the shape is out of range");
    if (decoder_layers < 0 || decoder_layers > most) throw std::invalid_argument("decoder_layers is out of range");
    if (heads % kv_heads) throw std::invalid_argument("kv_heads does not divide the heads");
    if (shared && encoder_layers != decoder_layers) throw std::invalid_argument("shared stacks of unequal depth");
    if (buckets < 4 || distance <= buckets / 2) throw std::invalid_argument("impossible relative positions");
    if (precision < FLOAT32 || precision > INT8) throw std::invalid_argument("unknown precision");
    if (activation < RELU || activation > GATED_SILU) throw std::invalid_argument("unknown activation");
    if (inner() > most || 2 * d_ff > most) throw std::invalid_argument("a size of the shape is out of range");
}

namespace {

// Walks a payload from section to section; past its end it throws, so that no shape is walked longer than the file is.
class Walk {
  public:
    Walk(const char* payload, int64_t bytes) : payload_(payload), bytes_(bytes) {}

    const char* section(__int128 bytes) {
        const __int128 end = (__int128)at_ + bytes;
        if (end > bytes_) throw std::invalid_argument("the file is shorter than its shape");
        const char* here = payload_ + at_;
        at_ = up((int64_t)end, LINE);
        return here;
    }
    const float* vector(int64_t count) { return (const float*)section((__int128)4 * count); }
    const float* table(int64_t rows, int64_t columns) { return (const float*)section((__int128)4 * rows * columns); }
    Matrix matrix(int64_t n, int64_t k, Precision precision) {
        Matrix w;
        w.n = n;
        w.k = k;
        w.precision = precision;
        w.data = section((__int128)w.panels() * w.panel_bytes());
        if (precision == INT8) w.scales = vector(w.panels() * LANES);
        return w;
    }
    int64_t at() const { return at_; }

  private:
    const char* payload_;
    int64_t bytes_, at_ = 0;
};

void walk_stack(Walk& walk, const Shape& s, int64_t layers, bool cross, Stack* stack) {
    const Precision precision = (Precision)s.precision;
    const int64_t sides = s.tie_kv ? 1 : 2, feed = s.gated() ? 2 * s.d_ff : s.d_ff;
    stack->position = walk.table(s.buckets, s.heads);
    for (int64_t layer = 0; layer < layers; layer++) {
        Block b;
        b.self_norm = walk.vector(s.d_model);
        b.qkv = walk.matrix(s.inner() + sides * s.kv_inner(), s.d_model, precision);
        b.output = walk.matrix(s.d_model, s.inner(), precision);
        if (cross) {
            b.cross_norm = walk.vector(s.d_model);
            b.cross_query = walk.matrix(s.inner(), s.d_model, precision);
            b.cross_kv = walk.matrix(sides * s.kv_inner(), s.d_model, precision);
            b.cross_output = walk.matrix(s.d_model, s.inner(), precision);
        }
        b.feed_norm = walk.vector(s.d_model);
        b.wi = walk.matrix(feed, s.d_model, precision);
        b.wo = walk.matrix(s.d_model, s.d_ff, precision);
        b.wo.positive = s.activation == RELU;
        stack->blocks.push_back(b);
    }
    stack->norm = walk.vector(s.d_model);
}

}  // namespace

int64_t lay_out(const Shape& s, const char* payload, int64_t bytes, Weights* weights) {
    s.check();
    Walk walk(payload, bytes);
    const bool own_rows = s.precision == INT8 || !s.tied || !s.decoder_layers;
    if (own_rows) weights->embedding = walk.section((__int128)s.vocab * s.d_model * (s.precision == FLOAT32 ? 4 : 2));
    if (!s.shared) walk_stack(walk, s, s.encoder_layers, false, &weights->encoder);
    if (s.decoder_layers) {
        walk_stack(walk, s, s.decoder_layers, true, &weights->decoder);
        weights->output = walk.matrix(s.vocab, s.d_model, (Precision)s.precision);
    }
    if (s.shared) weights->encoder = weights->decoder;
    return walk.at();
}

Model::Model(const Shape& given, const char* payload, int64_t bytes, int count, const Kernels* table)
    : shape(given), kernels(table), threads(count), own_(count) {
    if (lay_out(shape, payload, bytes, &weights_) != bytes)
        throw std::invalid_argument("the file is longer than its shape");
    stride_ = up(shape.d_model, LANES);
    wide_ = up(shape.inner() + 2 * shape.kv_inner(), LANES);
    hidden_stride_ = up(shape.gated() ? 2 * shape.d_ff : shape.d_ff, LANES) + LANES;
    vocab_stride_ = up(shape.vocab, LANES);
}

// Panels that one thread takes at a time.
int64_t Model::stretch(int64_t panels) const {
    const int64_t parts = 8 * threads.count();
    return std::max<int64_t>(1, (panels + parts - 1) / parts);
}

// ---- products -------------------------------------------------------------------------------------------------------

int64_t Model::share_of(const Matrix& w, int64_t m) const {
    const int64_t panels = w.panels(), parts = 4 * threads.count();
    const bool small = threads.count() == 1 || m * w.k * w.n <= SMALL;
    return small ? panels : std::max<int64_t>(1, (panels + parts - 1) / parts);
}

void Model::bring(const Matrix* w, int64_t m) {
    if (!w) return;
    const int64_t each = share_of(*w, m), parts = (w->panels() + each - 1) / each;
    bring((const char*)w->data, each * w->panel_bytes(), parts);
}

void Model::bring(const char* data, int64_t part_bytes, int64_t parts) {
    for (int thread = 0; thread < threads.count(); thread++)
        threads.soon(thread, data + parts * thread / threads.count() * part_bytes);
}

void Model::multiply(const float* x, int64_t stride, int64_t m, const Matrix& w, float* c, int64_t c_stride, bool add,
                     const Matrix* next) {
    const char* a = (const char*)x;
    int64_t a_bytes = 4 * stride;
    if (const int64_t bytes = kernels->packed_bytes(w.precision, w.k)) {
        char* packed = packed_.bytes(m * bytes);
        if (m * w.k <= SMALL) {
            kernels->pack(w, x, stride, m, packed, bytes);
        } else {
            threads.each(m, [&](int64_t row, int) {
                kernels->pack(w, x + row * stride, stride, 1, packed + row * bytes, bytes);
            });
        }
        a = packed;
        a_bytes = bytes;
    }
    bring(next, m);
    const int64_t panels = w.panels(), each = share_of(w, m);
    threads.each((panels + each - 1) / each, [&](int64_t part, int) {
        kernels->multiply(a, a_bytes, m, w, part * each, std::min(panels, (part + 1) * each), c, c_stride, add);
    });
}

void Model::multiply_alone(const float* x, int64_t stride, int64_t m, const Matrix& w, float* c, int64_t c_stride,
                           bool add, Floats& packed) {
    const char* a = (const char*)x;
    int64_t a_bytes = 4 * stride;
    if (const int64_t bytes = kernels->packed_bytes(w.precision, w.k)) {
        a = packed.bytes(m * bytes);
        kernels->pack(w, x, stride, m, (char*)a, bytes);
        a_bytes = bytes;
    }
    kernels->multiply(a, a_bytes, m, w, 0, w.panels(), c, c_stride, add);
}

void Model::norms(const float* x, int64_t stride, int64_t m, const float* weight, float scale, float* out,
                  int64_t out_stride) {
    const auto one = [&](int64_t row, int) {
        kernels->norm(x + row * stride, weight, shape.d_model, scale, out + row * out_stride);
    };
    if (m * shape.d_model > SMALL) {
        threads.each(m, one);
    } else {
        for (int64_t row = 0; row < m; row++) one(row, 0);
    }
}

// ---- positions ------------------------------------------------------------------------------------------------------

// As in model/position.py, in float32 like there.
static int64_t bucket(int64_t offset, bool causal, int64_t buckets, int64_t far) {
    int64_t side = 0, distance;
    if (causal) {
        distance = std::max<int64_t>(0, -offset);
    } else {
        buckets /= 2;
        side = offset > 0 ? buckets : 0;
        distance = std::abs(offset);
    }
    const int64_t exact = buckets / 2;
    if (distance < exact) return side + distance;
    const float ratio = logf((float)distance / (float)exact) / (float)std::log((double)far / (double)exact);
    return side + std::min(exact + (int64_t)(ratio * (float)(buckets - exact)), buckets - 1);
}

// [heads][2 * encoder_length_ - 1], offset 0 in the middle
const float* Model::encoder_bias(int64_t length) {
    if (length > encoder_length_) {
        const int64_t room = std::max<int64_t>(length, 2 * encoder_length_), offsets = 2 * room - 1;
        float* bias = encoder_bias_.of(shape.heads * offsets);
        for (int64_t i = 0; i < offsets; i++) {
            const int64_t row = bucket(i - (room - 1), false, shape.buckets, shape.distance);
            for (int64_t head = 0; head < shape.heads; head++)
                bias[head * offsets + i] = weights_.encoder.position[row * shape.heads + head];
        }
        encoder_length_ = room;
    }
    return encoder_bias_.of(0);
}

// [heads][decoder_length_], the distance falling to 0
const float* Model::decoder_bias(int64_t length) {
    if (length > decoder_length_) {
        const int64_t room = std::max<int64_t>({length, 2 * decoder_length_, 64});
        float* bias = decoder_bias_.of(shape.heads * (room + LANES));
        for (int64_t i = 0; i < room; i++) {
            const int64_t row = bucket(i - (room - 1), true, shape.buckets, shape.distance);
            for (int64_t head = 0; head < shape.heads; head++)
                bias[head * (room + LANES) + i] = weights_.decoder.position[row * shape.heads + head];
        }
        decoder_length_ = room;
    }
    return decoder_bias_.of(0);
}

static float wide_of(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

void Model::embed(int32_t id, float* x) const {
    const int64_t d = shape.d_model;
    const bool full = shape.precision == FLOAT32;
    if (const char* rows = weights_.embedding) {
        if (full) {
            memcpy(x, rows + 4 * d * id, (size_t)(4 * d));
        } else {
            const uint16_t* row = (const uint16_t*)rows + d * id;
            for (int64_t i = 0; i < d; i++) x[i] = wide_of(row[i]);
        }
        return;
    }
    const char* panel = (const char*)weights_.output.data + id / LANES * weights_.output.panel_bytes();
    const int64_t lane = id % LANES;
    if (full) {
        for (int64_t i = 0; i < d; i++) x[i] = ((const float*)panel)[i * LANES + lane];
    } else {
        for (int64_t i = 0; i < d; i++)
            x[i] = wide_of(((const uint16_t*)panel)[i / 2 * 2 * LANES + 2 * lane + i % 2]);
    }
}

// ---- the encoder ----------------------------------------------------------------------------------------------------

std::unique_ptr<Encoding> Model::begin(const std::vector<int64_t>& lengths, const int32_t* ids,
                                       const std::vector<int64_t>& prompts, const float* prompt) {
    auto encoding = std::make_unique<Encoding>();
    encoding->starts.push_back(0);
    for (size_t i = 0; i < lengths.size(); i++) {
        const int64_t front = prompts.empty() ? 0 : prompts[i];
        if (lengths[i] < 1 || front < 0) throw std::invalid_argument("an input has no tokens");
        encoding->starts.push_back(encoding->tokens() + front + lengths[i]);
    }
    encoding->stride = stride_;
    float* x = encoding->x.of(encoding->tokens() * stride_);
    for (size_t i = 0; i < lengths.size(); i++) {
        const int64_t front = prompts.empty() ? 0 : prompts[i];
        for (int64_t j = 0; j < front; j++, x += stride_, prompt += shape.d_model)
            memcpy(x, prompt, (size_t)(4 * shape.d_model));
        for (int64_t j = 0; j < lengths[i]; j++, x += stride_, ids++) {
            if (*ids < 0 || *ids >= shape.vocab) throw std::invalid_argument("an id is outside the vocabulary");
            embed(*ids, x);
        }
    }
    return encoding;
}

// So many rows for one thread at a time that all threads end together.
static int64_t share(int64_t rows, int threads) {
    const int64_t rounds = (rows + ALONE_ROWS * threads - 1) / (ALONE_ROWS * threads), parts = rounds * threads;
    return up((rows + parts - 1) / parts, 12);
}

void Model::encode_layer(Encoding& encoding, const Block& block) {
    const Shape& s = shape;
    const int64_t n = encoding.tokens(), inner = s.inner(), group = s.heads / s.kv_heads;
    const int64_t key_at = inner, value_at = s.tie_kv ? inner : inner + s.kv_inner(), mixed_stride = up(inner, LANES);
    float* x = encoding.x.of(0);
    float* wide = wide_rows_.of(n * wide_);
    float* mixed = mixed_.of(n * mixed_stride);
    const int64_t each = share(n, threads.count()), parts = (n + each - 1) / each;

    if (n < FEW_ROWS) {
        float* normed = normed_.of(n * stride_);
        norms(x, stride_, n, block.self_norm, 1.0f, normed, stride_);
        multiply(normed, stride_, n, block.qkv, wide, wide_, false);
    } else {
        threads.each(parts, [&](int64_t part, int thread) {
            const int64_t first = part * each, rows = std::min(each, n - first);
            float* normed = own_[thread].normed.of(each * stride_);
            for (int64_t row = 0; row < rows; row++)
                kernels->norm(x + (first + row) * stride_, block.self_norm, s.d_model, 1.0f, normed + row * stride_);
            multiply_alone(normed, stride_, rows, block.qkv, wide + first * wide_, wide_, false, own_[thread].packed);
        });
    }

    const int64_t inputs = (int64_t)encoding.starts.size() - 1;
    int64_t longest = 0;
    for (int64_t i = 0; i < inputs; i++) longest = std::max(longest, encoding.starts[i + 1] - encoding.starts[i]);
    const float* bias = encoder_bias(longest);
    const int64_t offsets = 2 * encoder_length_ - 1;
    threads.each(inputs * s.heads, [&](int64_t task, int thread) {
        const int64_t input = task / s.heads, head = task % s.heads, first = encoding.starts[input],
                      length = encoding.starts[input + 1] - first;
        const float* row = wide + first * wide_;
        kernels->attend_all(row + head * s.d_kv, row + key_at + head / group * s.d_kv,
                            row + value_at + head / group * s.d_kv, wide_, length, s.d_kv,
                            bias + head * offsets + encoder_length_ - 1,
                            own_[thread].scores.of(kernels->attend_all_floats(length, s.d_kv)),
                            mixed + first * mixed_stride + head * s.d_kv, mixed_stride);
    });

    if (n < FEW_ROWS) {
        float *normed = normed_.of(n * stride_), *feed = feed_.of(n * hidden_stride_);
        multiply(mixed, mixed_stride, n, block.output, x, stride_, true);
        norms(x, stride_, n, block.feed_norm, 1.0f, normed, stride_);
        multiply(normed, stride_, n, block.wi, feed, hidden_stride_, false);
        kernels->activate((Activation)s.activation, feed, hidden_stride_, n, s.d_ff);
        multiply(feed, hidden_stride_, n, block.wo, x, stride_, true);
        return;
    }
    threads.each(parts, [&](int64_t part, int thread) {
        const int64_t first = part * each, rows = std::min(each, n - first);
        Own& own = own_[thread];
        float *at = x + first * stride_, *normed = own.normed.of(each * stride_),
              *feed = own.feed.of(each * hidden_stride_);
        multiply_alone(mixed + first * mixed_stride, mixed_stride, rows, block.output, at, stride_, true, own.packed);
        for (int64_t row = 0; row < rows; row++)
            kernels->norm(at + row * stride_, block.feed_norm, s.d_model, 1.0f, normed + row * stride_);
        multiply_alone(normed, stride_, rows, block.wi, feed, hidden_stride_, false, own.packed);
        kernels->activate((Activation)s.activation, feed, hidden_stride_, rows, s.d_ff);
        multiply_alone(feed, hidden_stride_, rows, block.wo, at, stride_, true, own.packed);
    });
}

// One decoder layer's keys and values of the encoder's output.
void Model::remember_layer(Encoding& encoding, int64_t layer) {
    const Shape& s = shape;
    const Matrix& w = weights_.decoder.blocks[layer].cross_kv;
    const int64_t n = encoding.tokens(), stride = up(w.n, LANES), value_at = s.tie_kv ? 0 : s.kv_inner();
    const float* x = encoding.x.of(0);
    const int64_t each = share(n, threads.count());
    threads.each((n + each - 1) / each, [&](int64_t part, int thread) {
        const int64_t first = part * each, rows = std::min(each, n - first);
        float* wide = own_[thread].wide.of(each * stride);
        multiply_alone(x + first * stride_, stride_, rows, w, wide, stride, false, own_[thread].packed);
        size_t input = std::upper_bound(encoding.starts.begin(), encoding.starts.end(), first) - encoding.starts.begin();
        for (int64_t row = 0; row < rows; row++) {
            while (first + row >= encoding.starts[input]) input++;
            const int64_t at = first + row - encoding.starts[input - 1];
            char* piece = encoding.memories[input - 1]->pieces[at / LANES]->data;
            for (int64_t head = 0; head < s.kv_heads; head++) {
                const float* from = wide + row * stride + head * s.d_kv;
                char* to = piece + place(layer, head);
                kernels->keep(half(), from, from + value_at, s.d_kv, at % LANES, to, to + key_bytes());
            }
        }
    });
}

bool Model::advance(Encoding& encoding, int64_t count) {
    for (; count > 0 && encoding.layer < layers(); count--, encoding.layer++) {
        if (encoding.layer < shape.encoder_layers) {
            encode_layer(encoding, weights_.encoder.blocks[encoding.layer]);
            if (encoding.layer + 1 < shape.encoder_layers) continue;
            float* x = encoding.x.of(0);
            norms(x, stride_, encoding.tokens(), weights_.encoder.norm, 1.0f, x, stride_);
            for (size_t i = 0; shape.decoder_layers && i + 1 < encoding.starts.size(); i++) {
                auto memory = std::make_shared<Memory>();
                memory->length = encoding.starts[i + 1] - encoding.starts[i];
                for (int64_t at = 0; at < memory->length; at += LANES) {
                    memory->pieces.push_back(std::make_unique<Piece>(piece_bytes()));
                    memory->blocks.push_back(memory->pieces.back()->data);
                    memory->bytes += piece_bytes();
                }
                encoding.memories.push_back(memory);
            }
        } else {
            remember_layer(encoding, encoding.layer - shape.encoder_layers);
        }
    }
    return encoding.layer == layers();
}

void Model::hidden(const Encoding& encoding, float* out) const {
    const float* x = const_cast<Encoding&>(encoding).x.of(0);
    for (int64_t row = 0; row < encoding.tokens(); row++)
        memcpy(out + row * shape.d_model, x + row * stride_, (size_t)(4 * shape.d_model));
}

// ---- the decoder ----------------------------------------------------------------------------------------------------

void Model::cut(Row& row, int64_t length) {
    if (length < 0 || length > row.length) throw std::invalid_argument("a row cannot be cut to more than it holds");
    row.length = length;
    row.pieces.resize((size_t)((length + LANES - 1) / LANES));
    row.blocks.resize(row.pieces.size());
}

// Room for the new positions; a piece that another row holds too is copied before it is written to.
void Model::grow(const std::vector<Row*>& rows, const std::vector<int64_t>& counts) {
    places_.clear();
    for (size_t i = 0; i < rows.size(); i++) {
        Row& row = *rows[i];
        const int64_t end = row.length + counts[i];
        const size_t last = (size_t)(row.length / LANES);
        if (row.length % LANES && row.pieces[last].use_count() > 1) {
            auto own = std::make_shared<Piece>(piece_bytes());
            memcpy(own->data, row.pieces[last]->data, (size_t)piece_bytes());
            row.pieces[last] = own;
            row.blocks[last] = own->data;
        }
        while ((int64_t)row.pieces.size() * LANES < end) {
            row.pieces.push_back(std::make_shared<Piece>(piece_bytes()));
            row.blocks.push_back(row.pieces.back()->data);
        }
        for (int64_t at = row.length; at < end; at++) places_.push_back({&row, at});
    }
}

void Model::attend(const float* query, int64_t stride, int64_t layer, bool cross, float* out, int64_t out_stride) {
    const Shape& s = shape;
    const int64_t n = (int64_t)places_.size(), group = s.heads / s.kv_heads;
    int64_t work = 0, longest = 0;
    for (const Place& place : places_) {
        const int64_t positions = cross ? place.row->memory->length : place.at + 1;
        work += positions;
        longest = std::max(longest, positions);
    }
    const float* bias = cross ? nullptr : decoder_bias(longest);
    const auto one = [&](int64_t task, int thread) {
        const int64_t position = task / s.heads, head = task % s.heads;
        const Place& at = places_[position];
        Past past;
        past.blocks = cross ? at.row->memory->blocks.data() : at.row->blocks.data();
        past.key = place(layer, head / group);
        past.value = past.key + key_bytes();
        past.positions = cross ? at.row->memory->length : at.at + 1;
        const float* line =
            bias ? bias + head * (decoder_length_ + LANES) + decoder_length_ - 1 - at.at : nullptr;
        kernels->attend(half(), query + position * stride + head * s.d_kv, s.d_kv, past, line,
                        own_[thread].scores.of(up(longest, LANES)), out + position * out_stride + head * s.d_kv);
    };
    if (work * s.inner() <= SHORT) {
        for (int64_t task = 0; task < n * s.heads; task++) one(task, 0);
    } else {
        threads.each(n * s.heads, one);
    }
}

void Model::decode_layer(const Block& block, int64_t layer, const Matrix* next) {
    const Shape& s = shape;
    const int64_t n = (int64_t)places_.size(), inner = s.inner(), mixed_stride = up(inner, LANES);
    float *x = x_.of(0), *normed = normed_.of(n * stride_), *wide = wide_rows_.of(n * wide_),
          *mixed = mixed_.of(n * mixed_stride), *feed = feed_.of(n * hidden_stride_);

    norms(x, stride_, n, block.self_norm, 1.0f, normed, stride_);
    multiply(normed, stride_, n, block.qkv, wide, wide_, false, &block.output);
    for (int64_t i = 0; i < n; i++) {
        char* piece = places_[i].row->pieces[(size_t)(places_[i].at / LANES)]->data;
        for (int64_t head = 0; head < s.kv_heads; head++) {
            const float* key = wide + i * wide_ + inner + head * s.d_kv;
            char* to = piece + place(layer, head);
            kernels->keep(half(), key, s.tie_kv ? key : key + s.kv_inner(), s.d_kv, places_[i].at % LANES, to,
                          to + key_bytes());
        }
    }
    attend(wide, wide_, layer, false, mixed, mixed_stride);
    multiply(mixed, mixed_stride, n, block.output, x, stride_, true, &block.cross_query);

    norms(x, stride_, n, block.cross_norm, 1.0f, normed, stride_);
    multiply(normed, stride_, n, block.cross_query, wide, wide_, false, &block.cross_output);
    attend(wide, wide_, layer, true, mixed, mixed_stride);
    multiply(mixed, mixed_stride, n, block.cross_output, x, stride_, true, &block.wi);

    norms(x, stride_, n, block.feed_norm, 1.0f, normed, stride_);
    multiply(normed, stride_, n, block.wi, feed, hidden_stride_, false, &block.wo);
    kernels->activate((Activation)s.activation, feed, hidden_stride_, n, s.d_ff);
    multiply(feed, hidden_stride_, n, block.wo, x, stride_, true, next);
}

void Model::step(const std::vector<Row*>& rows, const std::vector<int64_t>& counts, const int32_t* tokens,
                 const std::vector<Wish>& wishes, int64_t limit, int64_t top, int32_t* ids, float* logs) {
    if (!shape.decoder_layers) throw std::invalid_argument("this model is an encoder alone, which writes nothing");
    int64_t n = 0;
    for (int64_t count : counts) {
        if (count < 1) throw std::invalid_argument("a row must be given at least one token");
        n += count;
    }
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= shape.vocab) throw std::invalid_argument("an id is outside the vocabulary");
    for (size_t i = 0; i < rows.size(); i++)
        for (size_t j = 0; j < i; j++)
            if (rows[i] == rows[j]) throw std::invalid_argument("a row stands twice in one step");
    if (!n) return;

    grow(rows, counts);
    float *x = x_.of(n * stride_), *normed = normed_.of(n * stride_);
    for (int64_t i = 0; i < n; i++) embed(tokens[i], x + i * stride_);
    const auto& blocks = weights_.decoder.blocks;
    for (size_t layer = 0; layer < blocks.size(); layer++)
        decode_layer(blocks[layer], (int64_t)layer, layer + 1 < blocks.size() ? &blocks[layer + 1].qkv : nullptr);
    for (size_t i = 0; i < rows.size(); i++) rows[i]->length += counts[i];

    const float scale = shape.tied ? (float)std::pow((double)shape.d_model, -0.5) : 1.0f;
    norms(x, stride_, n, weights_.decoder.norm, scale, normed, stride_);
    logits_ = logits_room_.of(n * vocab_stride_);
    const Matrix& w = weights_.output;
    const char* a = (const char*)normed;
    int64_t a_bytes = 4 * stride_;
    if (const int64_t bytes = kernels->packed_bytes(w.precision, w.k)) {
        a = packed_.bytes(n * bytes);
        kernels->pack(w, normed, stride_, n, (char*)a, bytes);
        a_bytes = bytes;
    }
    bool drawn = top > 1;
    for (const Wish& wish : wishes) drawn = drawn || wish.draw;
    if (!wishes.empty() && !logs && !drawn && glances(n)) {
        glance(a, a_bytes, normed, wishes, limit, ids);
        return;
    }
    // A stretch of the vocabulary is looked through while it still lies in the cache of the thread that made it.
    const int64_t panels = w.panels(), each = stretch(panels), stretches = (panels + each - 1) / each;
    std::vector<Best> bests((size_t)(wishes.empty() ? 0 : stretches * n));
    bring(&weights_.decoder.blocks.front().qkv, n);
    threads.each(stretches, [&](int64_t part, int) {
        const int64_t first = part * each, last = std::min(panels, first + each);
        kernels->multiply(a, a_bytes, n, w, first, last, logits_, vocab_stride_, false);
        const int64_t id = first * LANES, count = std::min(last * LANES, shape.vocab) - id;
        for (int64_t i = 0; i < (int64_t)wishes.size(); i++)
            bests[(size_t)(i * stretches + part)] = kernels->best(logits_ + i * vocab_stride_ + id, count, id, limit,
                                                                  wishes[(size_t)i].mask, logs != nullptr);
    });
    if (wishes.empty()) return;
    const auto pick = [&](int64_t i, int) {
        choose(*kernels, logits(i), shape.vocab, limit, wishes[(size_t)i], &bests[(size_t)(i * stretches)], stretches, top,
               ids + i * top, logs ? logs + i * top : nullptr);
    };
    if (drawn) {
        threads.each(n, pick);
    } else {
        for (int64_t i = 0; i < n; i++) pick(i, 0);
    }
}

// ---- the likeliest by a glance --------------------------------------------------------------------------------------

bool Model::glances(int64_t n) {
    const Matrix& w = weights_.output;
    const int64_t most = w.precision == INT8 ? GLANCE_BYTE_ROWS : GLANCE_ROWS;
    if (!kernels->glance || n > most || w.n < GLANCE_VOCAB) return false;
    if (narrow_.data) return true;
    if (++glanced_ < GLANCE_STEPS) return false;
    narrow_.n = w.n;
    narrow_.k = w.k;
    narrow_.scales = narrow_scales_.of(w.panels() * LANES);
    narrow_.data = (uint8_t*)narrow_data_.bytes(w.panels() * narrow_.panel_bytes());
    const int64_t each = stretch(w.panels());
    threads.each((w.panels() + each - 1) / each, [&](int64_t part, int) {
        kernels->narrow(w, part * each, std::min(w.panels(), (part + 1) * each), narrow_);
    });
    return true;
}

void Model::glance(const char* a, int64_t a_bytes, const float* normed, const std::vector<Wish>& wishes, int64_t limit,
                   int32_t* ids) {
    const Matrix& w = weights_.output;
    const int64_t n = (int64_t)wishes.size(), panels = w.panels(), each = stretch(panels),
                  stretches = (panels + each - 1) / each;
    const char* codes = a;
    int64_t code_bytes = a_bytes;
    Matrix bytes = w;  // as if it were one of int8: what a glance multiplies by
    if (w.precision != INT8) {
        bytes.precision = INT8;
        code_bytes = kernels->packed_bytes(INT8, w.k);
        codes = codes_.bytes(n * code_bytes);
        kernels->pack(bytes, normed, stride_, n, (char*)codes, code_bytes);
    }
    std::vector<float> reach((size_t)n), lower((size_t)(n * stretches));
    for (int64_t i = 0; i < n; i++) {
        const float* x = normed + i * stride_;
        double squares = 0, rounded = 0;  // of the row, and of what its codes leave out
        for (int64_t from = 0; from < w.k; from += GROUP) {
            float most = 0;
            for (int64_t j = from; j < std::min(w.k, from + GROUP); j++) {
                squares += (double)x[j] * x[j];
                most = std::max(most, std::fabs(x[j]));
            }
            const double step = most / kernels->most_code;
            if (w.precision != INT8) rounded += step * step / 12 * GROUP;
        }
        reach[(size_t)i] = (float)(REACH * std::sqrt(squares / 12 + WEIGHT * WEIGHT * rounded));
    }
    float* upper = upper_.of(n * panels);
    bring(&weights_.decoder.blocks.front().qkv, n);
    threads.each(stretches, [&](int64_t part, int) {
        const int64_t first = part * each, last = std::min(panels, first + each);
        kernels->glance(codes, code_bytes, n, narrow_, first, last, logits_, vocab_stride_);
        for (int64_t i = 0; i < n; i++)
            lower[(size_t)(i * stretches + part)] =
                kernels->bounds(logits_ + i * vocab_stride_ + first * LANES, narrow_, first, last, reach[(size_t)i], limit,
                                wishes[(size_t)i].mask, upper + i * panels);
    });
    // Every panel that may hold a row's largest is computed as it would have been without glances.
    std::vector<std::pair<int64_t, int64_t>> near;
    for (int64_t i = 0; i < n; i++) {
        const auto* begin = &lower[(size_t)(i * stretches)];
        const float edge = *std::max_element(begin, begin + stretches);
        for (int64_t panel = 0; panel < panels; panel++)
            if (upper[i * panels + panel] >= edge) near.emplace_back(i, panel);
    }
    std::vector<Best> bests(near.size());
    const int64_t share = std::max<int64_t>(4, ((int64_t)near.size() + 2 * threads.count() - 1) / (2 * threads.count()));
    threads.each(((int64_t)near.size() + share - 1) / share, [&](int64_t part, int) {
        for (size_t at = (size_t)(part * share); at < std::min(near.size(), (size_t)((part + 1) * share)); at++) {
            const auto [i, panel] = near[at];
            float* line = logits_ + i * vocab_stride_;
            kernels->multiply(a + i * a_bytes, a_bytes, 1, w, panel, panel + 1, line, vocab_stride_, false);
            const int64_t id = panel * LANES, count = std::min(LANES, shape.vocab - id);
            bests[at] = kernels->best(line + id, count, id, limit, wishes[(size_t)i].mask, false);
        }
    });
    std::fill(ids, ids + n, -1);
    std::vector<float> value((size_t)n);
    for (size_t at = 0; at < near.size(); at++) {
        const int64_t i = near[at].first;
        const Best& best = bests[at];
        if (best.id < 0 || (ids[i] >= 0 && best.value <= value[(size_t)i])) continue;
        value[(size_t)i] = best.value;
        ids[i] = (int32_t)best.id;
    }
}

}  // namespace dn
