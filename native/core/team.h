// The threads that run a kernel together, and the barrier between them.

#pragma once

#include <cstdint>

namespace allotrope {

class Barrier;

// Everyone arrives, then everyone goes on; what was written before is seen by all after. See waiting.cpp for how one waits.
void meet(Barrier& gate, int count);

// One thread's place in its team.
struct Team {
    int index = 0;
    int count = 1;
    Barrier* gate = nullptr;

    __attribute__((always_inline)) void barrier() {
        if (count > 1) meet(*gate, count);
    }
};

}  // namespace allotrope
