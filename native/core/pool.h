// The process's threads: persistent, pinned where they have the machine to themselves, asleep when nothing is to do.

#pragma once

#include "team.h"

namespace allotrope {

constexpr int kMostThreads = 64;

using Job = void (*)(void* context, Team& team);

// Run `job` on `count` threads, the caller being the first; returns when all are done. One at a time.
void run_team(int count, Job job, void* context);

// How many CPUs this process may use: its affinity mask and its control group's quota, at most kMostThreads.
int usable_threads();

}  // namespace allotrope
