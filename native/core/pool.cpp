#include "pool.h"

#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include "waiting.h"

namespace allotrope {

namespace {

// A thread that waits for its call. Whoever is not of a step's team is not called, and nobody waits for him.
struct Worker {
    Signal call;
    std::thread::native_handle_type thread{};
};

#if defined(__linux__)
// The CPUs that the calling thread may use.
struct Cpus {
    cpu_set_t set;
    Cpus() {
        CPU_ZERO(&set);
        if (sched_getaffinity(0, sizeof set, &set) != 0) CPU_ZERO(&set);
    }
    bool operator==(const Cpus& other) const { return CPU_EQUAL(&set, &other.set); }
};
#else
struct Cpus {
    bool operator==(const Cpus&) const { return true; }
};
#endif

struct Pool {
    std::mutex one;  // a step at a time
    pid_t owner = 0;
    std::vector<std::unique_ptr<Worker>> workers;
    Cpus cpus;       // the callers', when the workers were last put in their places
    int placed = 1;  // for a team of so many
    int caller = 0;  // the CPU that the caller was on then
    unsigned steps = 0;
    // Of the step that runs: written before the calls, read by who was called until he reports.
    int count = 1;
    Job job = nullptr;
    void* context = nullptr;
    bool measured = false;
    Barrier gate;
    alignas(64) std::atomic<int> working{0};
    Signal done;
    std::atomic<int64_t> work_ns{0}, stolen_ns{0};
};

int64_t cpu_ns() {
    timespec spent{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
    return int64_t{spent.tv_sec} * 1'000'000'000 + spent.tv_nsec;
}

int64_t wall_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

// A thread's part of the job.
void take_part(Pool& pool, int index) {
    Team team{index, pool.count, &pool.gate};
    if (!pool.measured) return pool.job(pool.context, team);
    const Waited before = waited();
    const int64_t began = wall_ns(), spent = cpu_ns();
    pool.job(pool.context, team);
    const int64_t cpu = cpu_ns() - spent, wall = wall_ns() - began;
    const int64_t spun = waited().spun_ns - before.spun_ns, slept = waited().slept_ns - before.slept_ns;
    if (cpu > spun) pool.work_ns.fetch_add(cpu - spun, std::memory_order_relaxed);
    if (wall > cpu + slept) pool.stolen_ns.fetch_add(wall - cpu - slept, std::memory_order_relaxed);
}

#if defined(__linux__)
// Each worker to a CPU of its own behind the caller's, if the team takes all that there are; else wherever the caller
// may be.
void put_in_place(Pool& pool, int count) {
    const cpu_set_t& all = pool.cpus.set;
    const bool whole = CPU_COUNT(&all) == count;
    const int caller = pool.caller = sched_getcpu();
    int mine[CPU_SETSIZE], found = 0, here = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &all)) continue;
        if (cpu < caller) here = found + 1;
        mine[found++] = cpu;
    }
    for (size_t i = 0; i < pool.workers.size() && found > 0; ++i) {
        cpu_set_t one = all;
        if (whole) {
            CPU_ZERO(&one);
            CPU_SET(mine[(here + static_cast<int>(i) + 1) % found], &one);
        }
        pthread_setaffinity_np(pool.workers[i]->thread, sizeof one, &one);
    }
}
#else
void put_in_place(Pool&, int) {}
int sched_getcpu() { return 0; }
#endif

void serve(Pool* pool, Worker* self, int index) {
    // Counted, not looked up: the next call may come before this one's report is out of our hands.
    for (unsigned calls = 0;; ++calls) {
        self->call.wait(static_cast<int>(calls), patience().idle());
        take_part(*pool, index);
        if (pool->working.fetch_sub(1, std::memory_order_acq_rel) == 1) pool->done.raise();
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

// How many there are for a team of `count`: fewer where the system gives no more threads.
int hire(Pool& pool, int count) {
    while (static_cast<int>(pool.workers.size()) < count - 1) {
        pool.workers.reserve(count);
        auto made = std::make_unique<Worker>();
        try {
            std::thread thread(serve, &pool, made.get(), static_cast<int>(pool.workers.size()) + 1);
            made->thread = thread.native_handle();
            thread.detach();
        } catch (const std::system_error&) {
            return static_cast<int>(pool.workers.size()) + 1;
        }
        pool.workers.push_back(std::move(made));
    }
    return count;
}

// Workers stay in their places until the team is larger than ever, the caller has been moved, perhaps to where one of
// them is, or the process is given other CPUs, for which one step in many looks.
void place(Pool& pool, int count) {
    constexpr unsigned kOften = 256;
    if (count == 1) return;
    const bool anew = count > pool.placed || sched_getcpu() != pool.caller;
    if (!anew && pool.steps++ % kOften != 0) return;
    const Cpus now;
    if (!anew && now == pool.cpus) return;
    pool.cpus = now;
    if (count > pool.placed) pool.placed = count;
    put_in_place(pool, pool.placed);
}

// One share of stolen time for all: a spin that is too short costs a microsecond, one too long the others' time.
void learn(const Cost& cost, int count) {
    constexpr int64_t kEnough = 25;  // a twenty-fifth of the time
    patience().crowded.store(cost.stolen_ns * kEnough > cost.wall_ns * count, std::memory_order_relaxed);
}

}  // namespace

int team_of(int count) {
    if (count <= 1) return 1;
    Pool& pool = *pool_of_process();
    std::lock_guard<std::mutex> held(pool.one);
    return hire(pool, count);
}

void run_team(int count, Job job, void* context, Cost* cost) {
    if (count <= 1 && cost == nullptr) {
        Team alone;
        job(context, alone);
        return;
    }
    Pool& pool = *pool_of_process();
    std::lock_guard<std::mutex> held(pool.one);
    const int64_t began = cost == nullptr ? 0 : wall_ns();
    count = hire(pool, count);
    place(pool, count);
    pool.count = count;
    pool.job = job;
    pool.context = context;
    pool.measured = cost != nullptr;
    pool.work_ns.store(0, std::memory_order_relaxed);
    pool.stolen_ns.store(0, std::memory_order_relaxed);
    pool.working.store(count - 1, std::memory_order_relaxed);
    const int reports = pool.done.now();
    for (int i = 0; i < count - 1; ++i) pool.workers[i]->call.raise();
    take_part(pool, 0);
    if (count > 1) pool.done.wait(reports, patience().in_step());
    if (cost == nullptr) return;
    *cost = Cost{wall_ns() - began, pool.work_ns.load(std::memory_order_relaxed),
                 pool.stolen_ns.load(std::memory_order_relaxed)};
    learn(*cost, count);
}

}  // namespace allotrope
