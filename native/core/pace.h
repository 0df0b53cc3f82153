// How many of the threads that there are a program's steps run on: fewer, while fewer are faster.
//
// Threads meet at every call's end, so one that shares its core with another process holds all of them up, and a step on
// two cores can take longer than all its work would on one. What tells is the time by the clock over the time of work:
// about 1/n on n free cores, 1 on a free core, and more where others run too. Where it is far from 1/n, a thread fewer is
// tried for a moment, and the better of the two kept; now and then a thread more. A step's bits are the same on any number.

#pragma once

#include <cstdint>

#include "pool.h"

namespace allotrope {

class Pace {
   public:
    explicit Pace(int most) : most_(most), size_(most) {}
    int most() const { return most_; }
    int size() const { return size_; }  // of the next step's team
    void note(const Cost& cost);        // of the last one

   private:
    void decide(double slowness, int64_t lasted_ns);

    int most_, size_;
    int poor_ = 0;               // windows in a row that were poor
    int settled_ = 0;            // while another size is tried: the one that it must beat; else 0
    double settled_slowness_ = 0;
    int64_t wall_ns_ = 0, work_ns_ = 0;  // of this window
    int64_t rest_ns_ = 0;                // until another size may be tried
};

}  // namespace allotrope
