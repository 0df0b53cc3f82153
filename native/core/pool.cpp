#include "pool.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace allotrope {

namespace {

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#else
    std::this_thread::yield();
#endif
}

using Clock = std::chrono::steady_clock;
constexpr auto kSpinInStep = std::chrono::microseconds(60);   // at a barrier
constexpr auto kSpinIdle = std::chrono::microseconds(250);    // between steps: Python takes about as long
constexpr int kLooks = 64;                                    // between two looks at the clock

// Wait until `value` is no longer `seen`; true once it is, false after `most`.
template <class Changed>
bool spin(Changed changed, Clock::duration most) {
    for (int i = 0; i < kLooks; ++i) {
        if (changed()) return true;
        relax();
    }
    const auto end = Clock::now() + most;
    while (Clock::now() < end) {
        for (int i = 0; i < kLooks; ++i) {
            if (changed()) return true;
            relax();
        }
    }
    return false;
}

}  // namespace

void Barrier::wait(int count) {
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1);
        if (sleepers_.load()) phase_.notify_all();
        return;
    }
    if (spin([&] { return phase_.load(std::memory_order_acquire) != phase; }, kSpinInStep)) return;
    sleepers_.fetch_add(1);
    phase_.wait(phase);
    sleepers_.fetch_sub(1);
}

namespace {

// Who sleeps between steps looks at `round`; a step begins by raising it. Whoever is not of the step's team lets it
// pass, and nobody waits for him.
struct Pool {
    std::mutex one;  // a step at a time
    int workers = 0;
    pid_t owner = 0;
    alignas(64) std::atomic<int> round{0};
    alignas(64) std::atomic<int> sleepers{0};
    std::atomic<int> done{0};
    int count = 1;
    Job job = nullptr;
    void* context = nullptr;
    Barrier gate;
    std::atomic<int> present{0};
};

#if defined(__linux__)
// Worker `index` goes to the CPU that lies so far behind the caller's, if the team takes all that there are.
void pin(std::thread& thread, int index, int count) {
    cpu_set_t mine, one;
    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof mine, &mine) != 0 || CPU_COUNT(&mine) != count) return;
    const int here = sched_getcpu();
    int before = 0;
    for (int cpu = 0; cpu < here; ++cpu) before += CPU_ISSET(cpu, &mine) ? 1 : 0;
    int wanted = (before + index) % count;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &mine) || wanted-- != 0) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(thread.native_handle(), sizeof one, &one);
        return;
    }
}
#else
void pin(std::thread&, int, int) {}
#endif

void serve(Pool* pool, int index, int seen) {
    for (;;) {
        if (!spin([&] { return pool->round.load(std::memory_order_acquire) != seen; }, kSpinIdle)) {
            pool->sleepers.fetch_add(1);
            pool->round.wait(seen);
            pool->sleepers.fetch_sub(1);
        }
        seen = pool->round.load(std::memory_order_acquire);
        if (index < pool->count) {
            Team team{index, pool->count, &pool->gate};
            pool->job(pool->context, team);
        }
        pool->done.fetch_add(1, std::memory_order_release);
    }
}

std::atomic<Pool*> current{nullptr};
std::mutex making;

// The process's pool. A forked child has none of its parent's threads, so it gets a pool of its own.
Pool* pool_of_process() {
    Pool* found = current.load(std::memory_order_acquire);
    const pid_t here = getpid();
    if (found != nullptr && found->owner == here) return found;
    std::lock_guard<std::mutex> held(making);
    found = current.load(std::memory_order_acquire);
    if (found == nullptr || found->owner != here) {
        found = new Pool();  // never freed: its threads live as long as the process
        found->owner = here;
        current.store(found, std::memory_order_release);
    }
    return found;
}

}  // namespace

void run_team(int count, Job job, void* context) {
    if (count <= 1) {
        Team alone;
        job(context, alone);
        return;
    }
    Pool* pool = pool_of_process();
    std::lock_guard<std::mutex> held(pool->one);
    while (pool->workers < count - 1) {
        std::thread worker(serve, pool, ++pool->workers, pool->round.load());
        pin(worker, pool->workers, count);
        worker.detach();
    }
    pool->count = count;
    pool->job = job;
    pool->context = context;
    pool->done.store(0, std::memory_order_relaxed);
    pool->round.fetch_add(1);
    if (pool->sleepers.load()) pool->round.notify_all();
    Team team{0, count, &pool->gate};
    job(context, team);
    // All workers report, those that had nothing to do as well: nobody may still look at this step's fields.
    while (!spin([&] { return pool->done.load(std::memory_order_acquire) == pool->workers; }, kSpinInStep)) {
        std::this_thread::yield();
    }
}

namespace {

// CPUs' worth of time per period that a control group allows, or 0 if it does not say.
double quota() {
    double found = 0;
    if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
        char most[32];
        double period = 0;
        if (std::fscanf(file, "%31s %lf", most, &period) == 2 && std::strcmp(most, "max") != 0 && period > 0)
            found = std::atof(most) / period;
        std::fclose(file);
        return found;
    }
    double values[2] = {0, 0};
    const char* names[2] = {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"};
    for (int i = 0; i < 2; ++i) {
        if (FILE* file = std::fopen(names[i], "r")) {
            if (std::fscanf(file, "%lf", &values[i]) != 1) values[i] = 0;
            std::fclose(file);
        }
    }
    return values[0] > 0 && values[1] > 0 ? values[0] / values[1] : 0;
}

}  // namespace

int usable_threads() {
    int cpus = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
    cpu_set_t mine;
    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof mine, &mine) == 0) cpus = CPU_COUNT(&mine);
#endif
    const double allowed = quota();
    if (allowed > 0 && allowed < cpus) cpus = static_cast<int>(allowed);
    if (cpus < 1) cpus = 1;
    return cpus < kMostThreads ? cpus : kMostThreads;
}

}  // namespace allotrope
