// The network through the library's C interface, without Python: for processors that are emulated.
//
// Standard input: the shape as native.py hands it over, the payload's bytes and the payload, then the ids of an input and
// those of an answer, each behind its count (all counts int64). Standard output: the answer's logits, float32.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "model.h"

using namespace dn;
extern "C" {
Model* dn_open(const Shape*, const char*, int64_t, int32_t, const char*, char*);
Encoding* dn_begin(Model*, int64_t, const int64_t*, const int32_t*, const int64_t*, const float*, char*);
int32_t dn_advance(Model*, Encoding*, int64_t, char*);
std::shared_ptr<Memory>* dn_memory(const Encoding*, int64_t);
Row* dn_start(const std::shared_ptr<Memory>*);
int32_t dn_step(Model*, int64_t, Row* const*, const int64_t*, const int32_t*, const uint32_t* const*, const Draw*,
                const uint8_t*, int64_t, int64_t, int32_t*, float*, float*, char*);
}

static void get(void* to, int64_t bytes) {
    if (bytes && fread(to, (size_t)bytes, 1, stdin) != 1) exit(3);
}
static int64_t count() {
    int64_t n;
    get(&n, sizeof n);
    return n;
}

int main() {
    char error[256] = "";
    Shape shape;
    get(&shape, sizeof shape);
    const int64_t bytes = count();
    char* payload = (char*)aligned_alloc(4096, (size_t)up(bytes, 4096));
    get(payload, bytes);
    const int64_t length = count();
    std::vector<int32_t> ids((size_t)length);
    get(ids.data(), 4 * length);
    const int64_t steps = count();
    std::vector<int32_t> answer((size_t)steps);
    get(answer.data(), 4 * steps);

    Model* model = dn_open(&shape, payload, bytes, 2, "portable", error);
    Encoding* encoding = model ? dn_begin(model, 1, &length, ids.data(), nullptr, nullptr, error) : nullptr;
    if (!encoding || dn_advance(model, encoding, 1000, error) != 1) {
        fprintf(stderr, "%s\n", error);
        return 2;
    }
    Row* row = dn_start(dn_memory(encoding, 0));
    std::vector<float> logits((size_t)shape.vocab);
    for (int64_t i = 0; i < steps; i++) {
        const int64_t one = 1;
        if (dn_step(model, 1, &row, &one, &answer[(size_t)i], nullptr, nullptr, nullptr, shape.vocab, 1, nullptr, nullptr,
                    logits.data(), error)) {
            fprintf(stderr, "%s\n", error);
            return 2;
        }
        fwrite(logits.data(), 4, logits.size(), stdout);
    }
    return 0;
}
