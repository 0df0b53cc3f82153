// Moments, as cheaply as they are to be had: the processor's counter where it runs at one pace whatever the cores do,
// else the steady clock. What a tick is worth shows by comparing two moments that were taken by both.

#pragma once

#include <chrono>
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

namespace allotrope {

inline double steady_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__x86_64__)
// Whether the time-stamp counter stands still at no frequency and in no sleep.
inline bool counter_is_even() {
    unsigned a, b, c, d;
    return __get_cpuid(0x80000007u, &a, &b, &c, &d) != 0 && (d >> 8 & 1u) != 0;
}
inline const bool kEvenCounter = counter_is_even();
#endif

inline uint64_t ticks() {
#if defined(__x86_64__)
    if (kEvenCounter) return __rdtsc();
#elif defined(__aarch64__)
    uint64_t count;
    asm volatile("mrs %0, cntvct_el0" : "=r"(count));
    return count;
#endif
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

// One moment by both clocks.
struct Moment {
    uint64_t count = ticks();
    double seconds = steady_seconds();

    // What a tick is worth, by what has passed since.
    double second_per_tick() const {
        const Moment now;
        return now.count > count ? (now.seconds - seconds) / static_cast<double>(now.count - count) : 0.0;
    }
};

}  // namespace allotrope
