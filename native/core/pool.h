// The process's threads: persistent, pinned where they have the machine to themselves, asleep when nothing is to do.

#pragma once

#include <cstdint>

#include "team.h"

namespace allotrope {

using Job = void (*)(void* context, Team& team);

// What a job took: by the clock; of processors, without waiting; and how long its threads, together, were ready to run
// and did not, because others' threads did.
struct Cost {
    int64_t wall_ns = 0, work_ns = 0, stolen_ns = 0;
};

// How many of `count` threads there are: fewer where the system gives no more.
int team_of(int count);

// Run `job` on `count` threads, or as many as there are, the caller being the first; returns when all are done. One at a
// time. Measuring the cost takes a microsecond.
void run_team(int count, Job job, void* context, Cost* cost = nullptr);

}  // namespace allotrope
