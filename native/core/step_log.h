// When the calls of a step ended, step by step, until somebody reads it: numbers in memory that was made before.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "ticks.h"

namespace allotrope {

class StepLog {
   public:
    StepLog() = default;
    StepLog(int64_t calls, int64_t steps) : width_(calls + kBefore), ticks_(static_cast<size_t>(width_ * steps)) {}

    explicit operator bool() const { return !ticks_.empty(); }
    int64_t count() const { return count_; }

    // A step has come; where its calls are noted, from when the first begins; it is over.
    void came() {
        if (here() == ticks_.data() + ticks_.size()) throw std::length_error("the clock was not read in time");
        here()[0] = ticks();
    }
    uint64_t* calls() { return here() + 1; }
    void ended() { ++count_; }

    // Per step, in seconds: how long it took before its first call, then each call. Nothing is left afterwards.
    void read(double* seconds) {
        const double tick = since_.second_per_tick();
        for (const uint64_t* row = ticks_.data(); row < here(); row += width_)
            for (int64_t i = 1; i < width_; ++i) {
                const int64_t took = static_cast<int64_t>(row[i] - row[i - 1]);  // two cores may differ by a little
                *seconds++ = took > 0 ? static_cast<double>(took) * tick : 0.0;
            }
        count_ = 0;
    }
    int64_t width() const { return width_ - 1; }

   private:
    static constexpr int64_t kBefore = 2;  // when the step came, when its first call began

    uint64_t* here() { return ticks_.data() + count_ * width_; }

    int64_t width_ = 0, count_ = 0;
    std::vector<uint64_t> ticks_;
    Moment since_;
};

}  // namespace allotrope
