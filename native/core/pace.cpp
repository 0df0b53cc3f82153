#include "pace.h"

namespace allotrope {

namespace {

constexpr int64_t kMilli = 1'000'000;
constexpr int64_t kWindow = 25 * kMilli;  // several turns of a scheduler
constexpr int64_t kRest = 20, kMostRest = 5'000 * kMilli;  // times what a trial took: one in twenty goes into asking
constexpr double kPoor = 1.6;   // times 1/n: so slow that a thread fewer may be no slower
constexpr int kSure = 3;         // windows in a row that must be so: one alone may be a process that has just been woken
constexpr double kBetter = 0.9;  // times the other: what gives up a thread

}  // namespace

void Pace::note(const Cost& cost) {
    if (most_ <= 1) return;
    wall_ns_ += cost.wall_ns;
    work_ns_ += cost.work_ns;
    if (wall_ns_ < kWindow) return;
    const double slowness = static_cast<double>(wall_ns_) / static_cast<double>(work_ns_ > 0 ? work_ns_ : 1);
    decide(slowness, wall_ns_);
    wall_ns_ = work_ns_ = 0;
}

void Pace::decide(double slowness, int64_t lasted_ns) {
    if (settled_ != 0) {
        if (slowness >= settled_slowness_ * (size_ < settled_ ? kBetter : 1)) size_ = settled_;
        rest_ns_ = kRest * lasted_ns < kMostRest ? kRest * lasted_ns : kMostRest;
        settled_ = 0;
        return;
    }
    poor_ = size_ > 1 && slowness * size_ > kPoor ? poor_ + 1 : 0;
    rest_ns_ -= lasted_ns;
    if (rest_ns_ > 0 || (poor_ > 0 && poor_ < kSure)) return;
    const int wanted = poor_ > 0 ? size_ - 1 : size_ < most_ ? size_ + 1 : size_;
    if (wanted == size_) return;
    settled_ = size_;
    settled_slowness_ = slowness;
    size_ = wanted;
}

}  // namespace allotrope
