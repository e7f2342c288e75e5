// The network: weights as they lie in the file, inputs on their way through the encoder, rows that grow in the decoder.
//
// Shape key   n positions   d d_model   f d_ff   h heads   g key/value heads   k d_kv   v vocabulary

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace dn {

struct Shape {  // the same words as deepnarrow.shapes.Shape
    int64_t d_model, d_ff, heads, encoder_layers, decoder_layers, d_kv, kv_heads, vocab, buckets, distance;
    int32_t tie_kv, shared, activation, tied, precision, padding;
    int64_t inner() const { return heads * d_kv; }
    int64_t kv_inner() const { return kv_heads * d_kv; }
    bool gated() const { return activation >= GATED_RELU; }
    void check() const;  // throws std::invalid_argument
};

struct Block {
    const float *self_norm = nullptr, *cross_norm = nullptr, *feed_norm = nullptr;
    Matrix qkv, output, cross_query, cross_kv, cross_output, wi, wo;
};

struct Stack {
    const float *position = nullptr, *norm = nullptr;
    std::vector<Block> blocks;
};

struct Weights {
    const char* embedding = nullptr;  // rows of float32 or bfloat16; null: the output matrix has them
    Stack encoder, decoder;
    Matrix output;
};

// Where a payload of so many bytes holds what (docs/native.md); how many of them the shape has.
int64_t lay_out(const Shape& shape, const char* payload, int64_t bytes, Weights* weights);

// Memory that begins on a cache line and only grows.
class Floats {
  public:
    ~Floats();
    Floats() = default;
    Floats(const Floats&) = delete;
    Floats& operator=(const Floats&) = delete;
    float* of(int64_t count);  // room for so many; what was there is lost when it grows
    char* bytes(int64_t count) { return (char*)of((count + 3) / 4); }

  private:
    float* data_ = nullptr;
    int64_t room_ = 0;
};

struct Piece {  // of 16 positions, all layers and heads
    explicit Piece(int64_t bytes);
    ~Piece();
    Piece(const Piece&) = delete;
    Piece& operator=(const Piece&) = delete;
    char* data;
};

struct Memory {
    int64_t length = 0, bytes = 0;
    std::vector<std::unique_ptr<Piece>> pieces;
    std::vector<const char*> blocks;
};

struct Row {
    std::shared_ptr<Memory> memory;
    std::vector<std::shared_ptr<Piece>> pieces;
    std::vector<const char*> blocks;
    int64_t length = 0;
};

struct Encoding {
    std::vector<int64_t> starts;  // of each input among all tokens, and the end
    int64_t layer = 0;            // how many are done; those of the encoder, then the decoder's looks at its output
    int64_t stride = 0, memory_stride = 0;
    Floats x, hidden;
    std::vector<std::shared_ptr<Memory>> memories;
    int64_t tokens() const { return starts.back(); }
};

struct Draw {
    double uniform;
    float temperature, top_p;
    int64_t top_k;
};

struct Wish {  // what is asked for at one position
    const uint32_t* mask;  // null: all
    const Draw* draw;      // null: the likeliest
};

class Model {
  public:
    Model(const Shape& shape, const char* payload, int64_t bytes, int threads, const Kernels* kernels);

    std::unique_ptr<Encoding> begin(const std::vector<int64_t>& lengths, const int32_t* ids,
                                    const std::vector<int64_t>& prompts, const float* prompt);
    int64_t layers() const { return shape.encoder_layers + shape.decoder_layers; }
    bool advance(Encoding& encoding, int64_t layers);  // whether all is done
    void hidden(const Encoding& encoding, float* out) const;

    // `tokens` of all rows one behind the other. Afterwards logits() holds a line for each, and with wishes, `top` ids
    // below `limit` and their log-probabilities are chosen for each; `logs` may be null, which is quicker.
    void step(const std::vector<Row*>& rows, const std::vector<int64_t>& counts, const int32_t* tokens,
              const std::vector<Wish>& wishes, int64_t limit, int64_t top, int32_t* ids, float* logs);
    const float* logits(int64_t position) const { return logits_ + position * vocab_stride_; }
    void cut(Row& row, int64_t length);

    int64_t piece_bytes() const { return shape.decoder_layers * shape.kv_heads * (key_bytes() + value_bytes()); }

    const Shape shape;
    const Kernels* const kernels;
    Threads threads;
    std::mutex mutex;  // one caller at a time

  private:
    bool half() const { return shape.precision != FLOAT32; }
    int64_t kept_bytes() const { return half() ? 2 : 4; }
    int64_t key_bytes() const { return LANES * shape.d_kv * kept_bytes(); }
    int64_t value_bytes() const { return LANES * up(shape.d_kv, LANES) * kept_bytes(); }
    int64_t place(int64_t layer, int64_t head) const {
        return (layer * shape.kv_heads + head) * (key_bytes() + value_bytes());
    }

    void embed(int32_t id, float* x) const;
    const float* encoder_bias(int64_t length);
    const float* decoder_bias(int64_t length);
    void encode_layer(Encoding& encoding, const Block& block);
    void remember_layer(Encoding& encoding, int64_t layer);
    void decode_layer(const Block& block, int64_t layer, const Matrix* next);
    void grow(const std::vector<Row*>& rows, const std::vector<int64_t>& counts);
    int64_t stretch(int64_t panels) const;
    bool glances(int64_t n);  // whether a step of so many positions looks at the output matrix in 4 bits first
    void glance(const char* a, int64_t a_bytes, const float* normed, const std::vector<Wish>& wishes, int64_t limit,
                int32_t* ids);
    void attend(const float* query, int64_t stride, int64_t layer, bool cross, float* out, int64_t out_stride);

    // c = or += x . w, by all threads over w's panels; `next` is what will be multiplied by after it
    void multiply(const float* x, int64_t stride, int64_t m, const Matrix& w, float* c, int64_t c_stride, bool add,
                  const Matrix* next = nullptr);
    int64_t share_of(const Matrix& w, int64_t m) const;  // panels that a thread takes at a time
    void bring(const Matrix* w, int64_t m);              // nearer, while threads wait
    void bring(const char* data, int64_t part_bytes, int64_t parts);
    // the same by one thread alone, of which there may be many at once
    void multiply_alone(const float* x, int64_t stride, int64_t m, const Matrix& w, float* c, int64_t c_stride, bool add,
                        Floats& packed);
    void norms(const float* x, int64_t stride, int64_t m, const float* weight, float scale, float* out,
               int64_t out_stride);

    Weights weights_;
    int64_t stride_, wide_, hidden_stride_, vocab_stride_;
    Floats packed_, x_, normed_, wide_rows_, mixed_, feed_, logits_room_, encoder_bias_, decoder_bias_;
    Narrow narrow_;
    Floats narrow_data_, narrow_scales_, codes_, upper_;
    int64_t glanced_ = 0;
    struct Own {  // of each thread
        Floats packed, normed, wide, feed, scores;
    };
    std::vector<Own> own_;
    float* logits_ = nullptr;
    int64_t encoder_length_ = 0, decoder_length_ = 0;

    struct Place {  // of one position of a step
        Row* row;
        int64_t at;
    };
    std::vector<Place> places_;
};

}  // namespace dn
