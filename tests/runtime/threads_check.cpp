// The threads that share one loop: every task once, all of it seen by the caller, whatever the count and the pace.
//
// Meant for -fsanitize=thread: what the tasks write and the caller reads is plain memory.

#include <chrono>
#include <cstdio>
#include <vector>

#include "threads.h"

int main() {
    long loops = 0;
    bool wrong = false;
    for (int count : {1, 2, 3, 7}) {
        dn::Threads threads(count);
        for (int round = 0; round < 1500; round++) {
            const int64_t tasks = round % 37;
            std::vector<long> done((size_t)tasks, 0), by((size_t)tasks, -1);
            threads.each(tasks, [&](int64_t task, int thread) {
                done[(size_t)task] += task + round;
                by[(size_t)task] = thread;
            });
            for (int64_t task = 0; task < tasks; task++)
                wrong |= done[(size_t)task] != task + round || by[(size_t)task] < 0 || by[(size_t)task] >= count;
            if (round % 300 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));  // long enough to fall asleep
            loops++;
        }
    }
    for (int turn = 0; turn < 200; turn++) {  // made and ended at once, with and without work
        dn::Threads threads(4);
        if (turn % 2) threads.each(3, [](int64_t, int) {});
    }
    printf("threads: %ld loops %s\n", loops, wrong ? "FAILED" : "passed");
    return wrong;
}
