// The core by itself, for sanitizers: `check CALLS PROGRAMS`. Programs are in programs.cpp; of CALLS it makes the calls that cases.py wrote down
// again, by every instruction set that this machine has and by teams of several sizes, each operand in memory of exactly
// its size. A call must give the same bits whatever the team, touch nothing between rows, and by the instruction set
// that the file was made with give the bits that stand there.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"
#include "pace.h"
#include "pool.h"
#include "record.h"

namespace {

using namespace allotrope;

constexpr double kAlike = 1e-3;  // of the largest value, between instruction sets: what is wrong is wrong by more
const std::vector<int> kTeams = {1, 2, 3, 5};

struct Block {
    std::string before, after;  // `after` is empty where nothing is written
};

struct Call {
    std::string kernel, prelude;
    std::vector<double> numbers;
    uint32_t ins;
    std::vector<Operand> operands;
    std::vector<Block> blocks;
    std::vector<int64_t> sizes;  // that the kernel's workspace depends on
    int64_t shared;              // bytes that the prelude makes
};

Call read_call(File& file) {
    Call found;
    found.kernel = file.word();
    found.prelude = file.word();
    found.numbers = file.some<double>();
    found.ins = file.some<uint32_t>().at(0);
    found.operands.resize(file.one<uint32_t>());
    for (Operand& operand : found.operands) operand = file.operand();
    found.blocks.resize(file.one<uint32_t>());
    for (Block& block : found.blocks) {
        const int64_t size = file.one<int64_t>();
        const bool written = file.one<uint32_t>() != 0;
        block.before = file.text(size);
        if (written) block.after = file.text(size);
    }
    found.sizes = file.some<int64_t>();
    found.shared = file.one<int64_t>();
    return found;
}

struct Job {
    Kernel prelude, kernel;
    Args before, args;
};

void run(void* context, Team& team) {
    const auto& job = *static_cast<const Job*>(context);
    if (job.prelude != nullptr) {
        job.prelude(job.before, team);
        team.barrier();
    }
    job.kernel(job.args, team);
}

// What the call leaves in the blocks that it writes.
std::vector<std::string> made(const Call& call, const Isa& isa, size_t team) {
    std::vector<Bytes> blocks;
    for (const Block& block : call.blocks) {
        blocks.push_back(memory(block.before.size()));
        std::memcpy(blocks.back().get(), block.before.data(), block.before.size());
    }
    std::vector<View> views;
    for (const Operand& one : call.operands) {
        void* at = one.block == kAbsent ? nullptr : blocks.at(one.block).get();
        views.push_back(one.view(at));
    }
    std::vector<const View*> places;
    for (const View& view : views) places.push_back(&view);
    const Bytes room = memory(static_cast<size_t>(workspace_of(isa, call.kernel, call.sizes, kTeams[team])));
    const Bytes shared = memory(static_cast<size_t>(call.shared));
    Job job{};
    job.kernel = find_kernel(isa, call.kernel);
    job.prelude = call.prelude.empty() ? nullptr : find_kernel(isa, call.prelude);
    if (job.kernel == nullptr) throw std::runtime_error("no kernel is named " + call.kernel);
    job.args = Args{places.data(), places.data() + call.ins, call.numbers.data(), room.get(), shared.get()};
    job.before = job.args;
    job.before.workspace = shared.get();
    run_team(kTeams[team], run, &job);
    std::vector<std::string> found;
    for (size_t i = 0; i < blocks.size(); ++i)
        if (!call.blocks[i].after.empty()) found.emplace_back(blocks[i].get(), call.blocks[i].after.size());
    return found;
}

// Whether fp32 results are alike but for rounding. What is between rows is NaN in both.
bool alike(const Call& call, const std::vector<std::string>& found) {
    size_t place = 0;
    for (size_t i = 0; i < call.blocks.size(); ++i) {
        const std::string& wanted = call.blocks[i].after;
        if (wanted.empty()) continue;
        const std::string& given = found.at(place++);
        bool floats = false;
        for (const Operand& operand : call.operands) floats |= operand.block == i && operand.dtype == 1;
        if (!floats) continue;
        std::vector<float> a(wanted.size() / 4), b(a.size());
        std::memcpy(a.data(), wanted.data(), a.size() * 4);
        std::memcpy(b.data(), given.data(), b.size() * 4);
        double largest = 0;
        for (const float value : a) largest = std::isfinite(value) ? std::fmax(largest, std::fabs(value)) : largest;
        for (size_t at = 0; at < a.size(); ++at) {
            const bool same = std::memcmp(&a[at], &b[at], 4) == 0 || a[at] == b[at];
            if (!same && !(std::fabs(double{a[at]} - b[at]) <= kAlike * largest)) return false;
        }
    }
    return true;
}

int checked(const Call& call, const Isa& isa, bool recorded) {
    const std::vector<std::string> alone = made(call, isa, 0);
    int wrong = 0;
    for (size_t team = 1; team < kTeams.size(); ++team) {
        if (made(call, isa, team) == alone) continue;
        std::printf("%s, %s: %d threads change bits\n", isa.name, call.kernel.c_str(), kTeams[team]);
        ++wrong;
    }
    std::vector<std::string> wanted;
    for (const Block& block : call.blocks)
        if (!block.after.empty()) wanted.push_back(block.after);
    if (recorded ? alone != wanted : !alike(call, alone)) {
        std::printf("%s, %s: not what was recorded\n", isa.name, call.kernel.c_str());
        ++wrong;
    }
    return wrong;
}

// Teams of changing sizes from several callers at a time: everyone takes part, all see what was written before a barrier.
int pool() {
    struct Counts {
        std::vector<int> first, second;
    };
    const auto job = [](void* context, Team& team) {
        auto& counts = *static_cast<Counts*>(context);
        counts.first[static_cast<size_t>(team.index)] = 1;
        team.barrier();
        for (int i = 0; i < team.count; ++i) counts.second[static_cast<size_t>(team.index)] += counts.first[static_cast<size_t>(i)];
        team.barrier();
    };
    std::vector<int> wrong(3, 0);
    const auto caller = [&](size_t who) {
        for (int i = 0; i < 200; ++i) {
            const int size = 1 + (i * 7 + static_cast<int>(who)) % 6;
            Counts counts{std::vector<int>(6, 0), std::vector<int>(6, 0)};
            run_team(size, job, &counts);
            for (int k = 0; k < 6; ++k) wrong[who] += counts.second[static_cast<size_t>(k)] != (k < size ? size : 0);
        }
    };
    std::vector<std::thread> callers;
    for (size_t who = 0; who < wrong.size(); ++who) callers.emplace_back(caller, who);
    for (std::thread& one : callers) one.join();
    const int found = wrong[0] + wrong[1] + wrong[2];
    if (found) std::printf("the pool: %d teams were not whole\n", found);
    return found;
}

// Two threads while they are worth it, one while the other shares its core, and two again. Now and then it asks.
int pace() {
    Pace pace(2);
    int wrong = 0;
    const auto mostly = [&](int wanted, double slowness_of_two, double slowness_of_one) {
        constexpr double kWork = 8e6;
        double spent = 0, otherwise = 0;
        for (int step = 0; step < 4000; ++step) {
            const bool two = pace.size() == 2;
            const double wall = kWork * (two ? slowness_of_two : slowness_of_one);
            if (step >= 1000) spent += wall;
            if (step >= 1000 && two != (wanted == 2)) otherwise += wall;
            pace.note(Cost{static_cast<int64_t>(wall), static_cast<int64_t>(kWork), 0});
        }
        return otherwise < 0.1 * spent;
    };
    wrong += !mostly(2, 0.55, 1);   // a quiet machine
    wrong += !mostly(1, 2.5, 1.1);  // someone on one core
    wrong += !mostly(1, 40, 4);     // a crowd
    wrong += !mostly(2, 0.55, 1);   // they are gone
    wrong += !mostly(2, 1.2, 1.6);  // everywhere others, and two are the better still
    if (wrong) std::printf("the pace: %d times another than the faster\n", wrong);
    return wrong;
}

}  // namespace

int main(int count, char** words) {
    if (count != 3) {
        std::fputs("check CALLS PROGRAMS, as native/test/cases.py and programs.py write them\n", stderr);
        return 2;
    }
    int wrong = pool() + pace(), calls = 0;
    File file(words[1]);
    const std::string recorded = file.word();
    for (; file.more(); ++calls) {
        const Call call = read_call(file);
        for (const Isa& isa : isas())
            if (!*isa.lacks) wrong += checked(call, isa, recorded == isa.name);
    }
    std::printf("%d calls, %d wrong\n", calls, wrong);
    wrong += programs(words[2]);
    return wrong != 0;
}
