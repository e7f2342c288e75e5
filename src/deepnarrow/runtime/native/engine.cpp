// The plain C interface, as runtime/native.py calls it. No exception leaves it: a call that fails returns null or -1 and
// leaves its reason in the caller's `error`.

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "model.h"

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace dn;

namespace {

constexpr int32_t VERSION = 2;  // of this interface
constexpr int64_t ERROR_BYTES = 256;
#if defined(DN_EMULATED)  // a build for tests, in which other code stands for instructions that the processor lacks
constexpr bool EMULATED = true;
#else
constexpr bool EMULATED = false;
#endif

template <class Result, class Work>
Result guarded(char* error, Result failed, const Work& work) {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        strncpy(error, "out of memory", ERROR_BYTES - 1);
    } catch (const std::exception& reason) {
        strncpy(error, reason.what(), ERROR_BYTES - 1);
    }
    error[ERROR_BYTES - 1] = 0;
    return failed;
}

// Best first.
const Kernels* const* tables() {
    static const Kernels* found[8] = {};
    static const bool once = [] {
        int count = 0;
#if defined(__x86_64__)
        __builtin_cpu_init();
        const auto has = [](int supported) { return supported || EMULATED; };
        const bool wide = has(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                              __builtin_cpu_supports("avx512vnni"));
        const bool half = has(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"));
        if (wide && has(__builtin_cpu_supports("avx512bf16"))) found[count++] = kernels_avx512bf16();
        if (wide) found[count++] = kernels_avx512();
        if (half && has(__builtin_cpu_supports("avxvnni"))) found[count++] = kernels_avx2vnni();
        if (half) found[count++] = kernels_avx2();
#endif
        found[count++] = kernels_portable();
        return true;
    }();
    (void)once;
    return found;
}

}  // namespace

EXPORT int32_t dn_version() { return VERSION; }

// The name of the n-th best instruction set that this processor has; null behind the last.
EXPORT const char* dn_kernels(int32_t n) {
    if (n < 0 || n >= 8 || !tables()[n]) return nullptr;
    return tables()[n]->name;
}

EXPORT Model* dn_open(const Shape* shape, const char* payload, int64_t bytes, int32_t threads, const char* name, char* error) {
    return guarded(error, (Model*)nullptr, [&] {
        if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be from 1 to 1024");
        const Kernels* kernels = nullptr;
        for (int n = 0; n < 8 && tables()[n] && !kernels; n++)
            if (!name || !strcmp(name, tables()[n]->name)) kernels = tables()[n];
        if (!kernels) throw std::invalid_argument("this processor has no such instructions");
        return new Model(*shape, payload, bytes, threads, kernels);
    });
}

EXPORT void dn_close(Model* model) { delete model; }
EXPORT const char* dn_name(const Model* model) { return model->kernels->name; }
EXPORT int64_t dn_layers(const Model* model) { return model->layers(); }

// ids of all inputs one behind the other; prompts may be null
EXPORT Encoding* dn_begin(Model* model, int64_t inputs, const int64_t* lengths, const int32_t* ids, const int64_t* prompts,
                          const float* prompt, char* error) {
    return guarded(error, (Encoding*)nullptr, [&] {
        const std::lock_guard<std::mutex> lock(model->mutex);
        return model
            ->begin({lengths, lengths + inputs}, ids,
                    prompts ? std::vector<int64_t>(prompts, prompts + inputs) : std::vector<int64_t>(), prompt)
            .release();
    });
}

EXPORT int32_t dn_advance(Model* model, Encoding* encoding, int64_t layers, char* error) {
    return guarded(error, -1, [&] {
        const std::lock_guard<std::mutex> lock(model->mutex);
        return model->advance(*encoding, layers) ? 1 : 0;
    });
}

EXPORT int32_t dn_hidden(Model* model, const Encoding* encoding, float* out, char* error) {
    return guarded(error, -1, [&] {
        if (encoding->layer < model->shape.encoder_layers) throw std::logic_error("the encoder is not done");
        model->hidden(*encoding, out);
        return 0;
    });
}

EXPORT std::shared_ptr<Memory>* dn_memory(const Encoding* encoding, int64_t input) {
    return new std::shared_ptr<Memory>(encoding->memories[(size_t)input]);
}
EXPORT void dn_encoding_free(Encoding* encoding) { delete encoding; }
EXPORT int64_t dn_memory_length(const std::shared_ptr<Memory>* memory) { return (*memory)->length; }
EXPORT int64_t dn_memory_bytes(const std::shared_ptr<Memory>* memory) { return (*memory)->bytes; }
EXPORT void dn_memory_free(std::shared_ptr<Memory>* memory) { delete memory; }

EXPORT Row* dn_start(const std::shared_ptr<Memory>* memory) {
    Row* row = new Row;
    row->memory = *memory;
    return row;
}
EXPORT Row* dn_fork(const Row* row) { return new Row(*row); }
EXPORT void dn_row_free(Row* row) { delete row; }
EXPORT int64_t dn_row_length(const Row* row) { return row->length; }
EXPORT int64_t dn_row_pieces(const Row* row) { return (int64_t)row->pieces.size(); }
EXPORT int64_t dn_piece_bytes(const Model* model) { return model->piece_bytes(); }
EXPORT int32_t dn_cut(Model* model, Row* row, int64_t length, char* error) {
    return guarded(error, -1, [&] {
        model->cut(*row, length);
        return 0;
    });
}

// `masks` and `draws` are null or have an entry for each position, null where nothing is asked for. `logs` may be null. With
// `all`, [positions][vocab], the logits are written there and nothing is chosen.
EXPORT int32_t dn_step(Model* model, int64_t rows, Row* const* row, const int64_t* counts, const int32_t* tokens,
                       const uint32_t* const* masks, const Draw* draws, const uint8_t* drawn, int64_t limit, int64_t top,
                       int32_t* ids, float* logs, float* all, char* error) {
    return guarded(error, -1, [&] {
        const std::lock_guard<std::mutex> lock(model->mutex);
        int64_t n = 0;
        for (int64_t i = 0; i < rows; i++) n += counts[i];
        std::vector<Wish> wishes((size_t)(all ? 0 : n));
        for (size_t i = 0; i < wishes.size(); i++)
            wishes[i] = {masks ? masks[i] : nullptr, draws && drawn[i] ? draws + i : nullptr};
        model->step({row, row + rows}, {counts, counts + rows}, tokens, wishes, limit, top, ids, logs);
        for (int64_t i = 0; all && i < n; i++)
            memcpy(all + i * model->shape.vocab, model->logits(i), (size_t)(4 * model->shape.vocab));
        return 0;
    });
}
