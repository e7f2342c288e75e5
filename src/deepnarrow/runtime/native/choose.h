// From logits to ids: the likeliest, the best few, or a draw.

#pragma once

#include "model.h"

namespace dn {

// `bests` are those of the stretches of one row of logits [vocab]. Writes `top` ids and their log-probabilities.
void choose(const Kernels& kernels, const float* logits, int64_t vocab, int64_t limit, const Wish& wish,
            const Best* bests, int64_t stretches, int64_t top, int32_t* ids, float* logs);

}  // namespace dn
