#include "waiting.h"

#include "team.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace allotrope {

namespace {

constexpr int kLooks = 64;  // between two looks at the clock

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

// std::atomic's own wait yields a few times before it sleeps.
void sleep_while(std::atomic<int>& value, int seen) {
#if defined(__linux__)
    static_assert(sizeof value == sizeof(int));
    syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
    value.wait(seen);
#endif
}

void wake_all(std::atomic<int>& value) {
#if defined(__linux__)
    constexpr int kAll = 1 << 30;
    syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, kAll, nullptr, nullptr, 0);
#else
    value.notify_all();
#endif
}

int64_t since(Clock::time_point began) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - began).count();
}

}  // namespace

Waited& waited() {
    static thread_local Waited own;
    return own;
}

Patience& patience() {
    static Patience one;
    return one;
}

// The order of the two stores and of the two looks is what no caller may lose a sleeper by: either the sleeper sees
// the new number, or the caller sees the sleeper.
void Signal::raise() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst)) wake_all(value_);
}

void Signal::wait(int seen, std::chrono::microseconds spin) {
    const auto looks = [&] {
        for (int i = 0; i < kLooks; ++i) {
            if (now() != seen) return true;
            relax();
        }
        return false;
    };
    if (looks()) return;
    const auto began = Clock::now();
    while (Clock::now() - began < spin) {
        if (!looks()) continue;
        waited().spun_ns += since(began);
        return;
    }
    waited().spun_ns += since(began);
    const auto slept = Clock::now();
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == seen) sleep_while(value_, seen);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    waited().slept_ns += since(slept);
}

void Barrier::wait(int count) {
    const int phase = phase_.now();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.raise();
        return;
    }
    phase_.wait(phase, patience().in_step());
}

void meet(Barrier& gate, int count) { gate.wait(count); }

}  // namespace allotrope
