// How threads wait for one another: a short spin, then sleep.
//
// A barrier is mostly a matter of a microsecond, so who waits looks again and again. But where others' processes want
// our cores too, the thread that is waited for may not be running, and may not run because we spin: then a spin is
// short. Nobody yields: on Linux that gives up the rest of a fair share, for milliseconds, and who sleeps instead is
// back on his core as soon as he is called.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace allotrope {

using Clock = std::chrono::steady_clock;

// What a thread spent on waiting, since it began.
struct Waited {
    int64_t spun_ns = 0, slept_ns = 0;
};
Waited& waited();

// How long a spin may take. `crowded`: threads of ours were lately kept off their cores.
struct Patience {
    std::atomic<bool> crowded{false};
    std::chrono::microseconds in_step() const { return std::chrono::microseconds(crowded.load(relaxed) ? 4 : 60); }
    // Between steps Python takes about as long.
    std::chrono::microseconds idle() const { return std::chrono::microseconds(crowded.load(relaxed) ? 4 : 250); }

   private:
    static constexpr auto relaxed = std::memory_order_relaxed;
};
Patience& patience();

// A number that changes, and those who wait until it does.
class Signal {
   public:
    int now() const { return value_.load(std::memory_order_acquire); }
    // Raises the number, after all that this thread has written, and calls who sleeps.
    void raise();
    // Returns once the number is not `seen`, with all that was written before it was raised.
    void wait(int seen, std::chrono::microseconds spin);

   private:
    alignas(64) std::atomic<int> value_{0};
    std::atomic<int> sleepers_{0};
};

// Everyone arrives, then everyone goes on.
class Barrier {
   public:
    void wait(int count);

   private:
    alignas(64) std::atomic<int> arrived_{0};
    Signal phase_;
};

}  // namespace allotrope
