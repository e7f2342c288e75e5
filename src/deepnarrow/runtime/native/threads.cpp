#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dn {

// Between two loops of a step lie microseconds: who waits looks often before it sleeps, for waking takes longer than a
// whole loop.
constexpr int LOOKS = 4000;
constexpr int64_t BROUGHT = 512;  // lines of 64 bytes that a thread brings nearer: they stay in its second cache

static inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

Threads::Threads(int count) : stretches_((size_t)count), bringers_((size_t)count) {
    for (int thread = 1; thread < count; thread++) workers_.emplace_back([this, thread] { work(thread); });
}

Threads::~Threads() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        over_ = true;
        round_++;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Threads::run(int64_t tasks, Call call, const void* with) {
    call_ = call;
    with_ = with;
    const int64_t threads = count();
    for (int64_t i = 0; i < threads; i++) {
        stretches_[(size_t)i].next = tasks * i / threads;
        stretches_[(size_t)i].end = tasks * (i + 1) / threads;
    }
    open_ = true;
    round_++;
    if (asleep_ > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take(0);
    // Who has not come by now is not waited for: it finds the loop closed.
    open_ = false;
    for (int looks = 0; inside_ > 0; looks++) {
        if (looks < LOOKS)
            wait_a_little(0);
        else
            std::this_thread::yield();  // another process has the core that the work is to be done on
    }
}

void Threads::take(int thread) {
    for (int i = 0; i < count(); i++) {
        Stretch& stretch = stretches_[(size_t)((thread + i) % count())];
        for (int64_t task = stretch.next++; task < stretch.end; task = stretch.next++) call_(with_, task, thread);
    }
}

void Threads::wait_a_little(int thread) {
    Bringer& mine = bringers_[(size_t)thread];
    const char* from = stretches_[(size_t)thread].soon.load(std::memory_order_relaxed);
    if (from != mine.from) {
        mine.from = from;
        mine.lines = 0;
    }
    if (from && mine.lines < BROUGHT)
        __builtin_prefetch(from + 64 * mine.lines++, 0, 2);
    else
        pause();
}

void Threads::work(int thread) {
    uint32_t seen = 0;
    while (true) {
        int looks = 0;
        while (round_ == seen && looks < LOOKS) {
            wait_a_little(thread);
            looks++;
        }
        if (round_ == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            asleep_++;
            wake_.wait(lock, [&] { return round_ != seen; });
            asleep_--;
        }
        seen = round_;
        if (over_) return;
        inside_++;
        if (open_) take(thread);
        inside_--;
    }
}

}  // namespace dn
