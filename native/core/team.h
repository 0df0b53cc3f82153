// The threads that run a kernel together, and the barrier between them.

#pragma once

#include <atomic>
#include <cstdint>

namespace allotrope {

// Everyone arrives, then everyone goes on. Who waits spins for a while, for a barrier is mostly a matter of a
// microsecond, and sleeps if it takes longer: the machine may have fewer cores for us than we think.
class Barrier {
   public:
    void wait(int count);

   private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> phase_{0};
    alignas(64) std::atomic<int> sleepers_{0};
};

// One thread's place in its team.
struct Team {
    int index = 0;
    int count = 1;
    Barrier* gate = nullptr;

    __attribute__((always_inline)) void barrier() {
        if (count > 1) gate->wait(count);
    }
};

}  // namespace allotrope
