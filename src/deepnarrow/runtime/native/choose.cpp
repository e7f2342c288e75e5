#include "choose.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace dn {
namespace {

bool allowed(const uint32_t* mask, int64_t id) { return !mask || (mask[id / 32] >> (id % 32) & 1); }

// Ids whose logits are larger come first, of equal ones the smaller id.
struct Candidate {
    float logit;
    int64_t id;
    bool operator<(const Candidate& other) const {
        return logit > other.logit || (logit == other.logit && id < other.id);
    }
};

std::vector<Candidate> likeliest(const float* logits, int64_t end, const uint32_t* mask, int64_t count) {
    std::vector<Candidate> best;  // a heap whose front is the worst that is kept
    float edge = -std::numeric_limits<float>::infinity();
    for (int64_t id = 0; id < end; id++) {
        if ((int64_t)best.size() == count && !(logits[id] > edge)) continue;
        if (!allowed(mask, id)) continue;
        if ((int64_t)best.size() == count) {
            std::pop_heap(best.begin(), best.end());
            best.pop_back();
        }
        best.push_back({logits[id], id});
        std::push_heap(best.begin(), best.end());
        edge = best.front().logit;
    }
    std::sort_heap(best.begin(), best.end());
    return best;
}

// As model/sample.py: shares of the ids that may be drawn, then the running sum in the order of the ids.
int64_t drawn(const Kernels& kernels, const float* logits, int64_t end, const Wish& wish, float most) {
    const Draw& draw = *wish.draw;
    std::vector<float> share((size_t)end);
    kernels.exponential(logits, end, most, draw.temperature, share.data());
    float least = -std::numeric_limits<float>::infinity();
    if (draw.top_k > 0) {
        const auto best = likeliest(logits, end, wish.mask, draw.top_k);
        if ((int64_t)best.size() == draw.top_k) least = best.back().logit;
    }
    double whole = 0;
    for (int64_t id = 0; id < end; id++) {
        if (logits[id] < least || !allowed(wish.mask, id)) share[(size_t)id] = 0;
        whole += share[(size_t)id];
    }
    if (draw.top_p < 1) {
        // Shares below this one are together less than what the nucleus leaves out, so it ends before them.
        const double faint = (1.0 - draw.top_p) * whole / (double)end;
        std::vector<float> falling;
        for (float one : share)
            if (one > 0 && one >= faint) falling.push_back(one);
        std::sort(falling.begin(), falling.end(), std::greater<float>());
        double before = 0;
        float edge = 0;
        for (float one : falling) {
            if (before >= draw.top_p * whole) break;
            edge = one;
            before += one;
        }
        whole = 0;
        for (float& one : share) {
            if (one < edge) one = 0;
            whole += one;
        }
    }
    const double aim = draw.uniform * whole;
    double sum = 0;
    int64_t last = -1;
    for (int64_t id = 0; id < end; id++) {
        if (share[(size_t)id] <= 0) continue;
        sum += share[(size_t)id];
        last = id;
        if (sum > aim) break;
    }
    return last;
}

}  // namespace

void choose(const Kernels& kernels, const float* logits, int64_t vocab, int64_t limit, const Wish& wish,
            const Best* bests, int64_t stretches, int64_t top, int32_t* ids, float* logs) {
    const int64_t end = std::min(limit, vocab);
    float most = -std::numeric_limits<float>::infinity(), value = most;
    for (int64_t i = 0; i < stretches; i++) most = std::max(most, bests[i].most);
    double sum = 0;
    int64_t id = -1;
    for (int64_t i = 0; i < stretches; i++) {
        sum += bests[i].sum * std::exp((double)bests[i].most - most);
        if (bests[i].id >= 0 && (id < 0 || bests[i].value > value)) {
            value = bests[i].value;
            id = bests[i].id;
        }
    }
    const double total = most + std::log(sum);
    std::vector<int64_t> found;
    if (wish.draw && wish.draw->temperature >= 1e-6f && id >= 0) {
        const int64_t first = drawn(kernels, logits, end, wish, value);
        found.push_back(first >= 0 ? first : id);
    } else if (id >= 0) {
        found.push_back(id);
    }
    if (top > 1 && !found.empty()) {  // empty: nothing is allowed, or no logit is a number
        for (const Candidate& one : likeliest(logits, end, wish.mask, top + 1))
            if (one.id != found.front()) found.push_back(one.id);
    }
    for (int64_t i = 0; i < top; i++) {
        const bool there = i < (int64_t)found.size();
        ids[i] = there ? (int32_t)found[(size_t)i] : -1;
        if (logs) logs[i] = there ? (float)(logits[found[(size_t)i]] - total) : -std::numeric_limits<float>::infinity();
    }
}

}  // namespace dn
