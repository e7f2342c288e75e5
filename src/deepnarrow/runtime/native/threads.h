// A few threads that share one loop at a time. The caller is one of them.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace dn {

class Threads {
  public:
    explicit Threads(int count);  // the caller included
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int count() const { return (int)workers_.size() + 1; }

    // Where a thread's next loop but one will read: while it waits it brings the first of it nearer.
    void soon(int thread, const char* from) { stretches_[(size_t)thread].soon.store(from, std::memory_order_relaxed); }

    // work(task, thread) for every task of 0 .. tasks-1, each once; back when all are done. Each thread has its own stretch
    // of tasks, one after the other as the weights lie in memory, and then helps with those of others.
    template <class Work>
    void each(int64_t tasks, const Work& work) {
        if (tasks <= 1 || workers_.empty()) {
            for (int64_t task = 0; task < tasks; task++) work(task, 0);
            return;
        }
        run(tasks, [](const void* with, int64_t task, int thread) { (*(const Work*)with)(task, thread); }, &work);
    }

  private:
    using Call = void (*)(const void*, int64_t, int);
    void run(int64_t tasks, Call call, const void* with);
    void work(int thread);
    void take(int thread);
    void wait_a_little(int thread);

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint32_t> round_{0};
    std::atomic<bool> open_{false}, over_{false};
    std::atomic<int> inside_{0}, asleep_{0};
    struct alignas(64) Stretch {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
        std::atomic<const char*> soon{nullptr};
    };
    std::vector<Stretch> stretches_;
    struct alignas(64) Bringer {  // of each thread alone
        const char* from = nullptr;
        int64_t lines = 0;  // brought of what begins there
    };
    std::vector<Bringer> bringers_;
    Call call_ = nullptr;
    const void* with_ = nullptr;
};

}  // namespace dn
