#include "reading.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "pool.h"
#include "ticks.h"

namespace allotrope {

namespace {

constexpr int64_t kLine = 64, kAhead = 4096;  // bytes; as the kernels prefetch
constexpr int64_t kChunk = 1 << 21;           // moved at a time: a huge page

// The sum of all that is there, so that nothing of it can be left out.
uint64_t sum_of(const char* at, int64_t bytes) {
    uint64_t sums[8] = {};
    for (int64_t place = 0; place + kLine <= bytes; place += kLine) {
        __builtin_prefetch(at + place + kAhead);
        uint64_t line[8];
        std::memcpy(line, at + place, kLine);
        for (int i = 0; i < 8; ++i) sums[i] += line[i];
    }
    return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

struct Reading {
    const std::vector<Piece>& pieces;
    double seconds = 0;
    volatile uint64_t sum = 0;

    void work(Team& team) {
        team.barrier();  // the clock runs from when all are awake
        const double began = team.index == 0 ? steady_seconds() : 0;
        uint64_t own = 0;
        for (const auto& [at, bytes] : pieces) {
            const int64_t lines = bytes / kLine, begin = lines * team.index / team.count;
            own += sum_of(at + begin * kLine, (lines * (team.index + 1) / team.count - begin) * kLine);
        }
        if (own == 1) sum = own;  // nobody knows that it never is
        team.barrier();
        if (team.index == 0) seconds = steady_seconds() - began;
    }
};

struct Moving {
    const Piece& piece;
    char* to;

    void work(Team& team) const {
        const auto [from, bytes] = piece;
        const int64_t chunks = (bytes + kChunk - 1) / kChunk, page = sysconf(_SC_PAGESIZE);
        const int64_t begin = chunks * team.index / team.count, end = chunks * (team.index + 1) / team.count;
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t at = chunk * kChunk, size = bytes - at < kChunk ? bytes - at : kChunk;
            std::memcpy(to + at, from + at, size);
            // Whole pages of it only; on another thread's side of a border one may stay.
            const auto first = (reinterpret_cast<intptr_t>(from + at) + page - 1) / page * page;
            const auto last = reinterpret_cast<intptr_t>(from + at + size) / page * page;
            if (first < last) madvise(reinterpret_cast<void*>(first), static_cast<size_t>(last - first), MADV_DONTNEED);
        }
    }
};

}  // namespace

double move(const Piece& piece, char* to, int threads) {
    Moving moving{piece, to};
    const double began = steady_seconds();
    run_team(threads, [](void* all, Team& team) { static_cast<const Moving*>(all)->work(team); }, &moving);
    return steady_seconds() - began;
}

double read_all(const std::vector<Piece>& pieces, int threads) {
    Reading reading{pieces};
    run_team(threads, [](void* all, Team& team) { static_cast<Reading*>(all)->work(team); }, &reading);
    return reading.seconds;
}

}  // namespace allotrope
