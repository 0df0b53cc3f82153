// The kernels and the thread pool by themselves, for sanitizers: `check FILE` makes the calls that cases.py wrote down
// again, by every instruction set that this machine has and by teams of several sizes, each operand in memory of exactly
// its size. A call must give the same bits whatever the team, touch nothing between rows, and by the instruction set
// that the file was made with give the bits that stand there.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"
#include "pool.h"

namespace {

using namespace allotrope;

constexpr uint32_t kAbsent = 0xFFFFFFFF;
constexpr double kAlike = 1e-3;  // of the largest value, between instruction sets: what is wrong is wrong by more
const std::vector<int> kTeams = {1, 2, 3, 5};

struct Free {
    void operator()(char* at) const { std::free(at); }
};
using Bytes = std::unique_ptr<char, Free>;

Bytes memory(size_t size) {
    void* at = nullptr;
    if (posix_memalign(&at, 64, size ? size : 1) != 0) throw std::bad_alloc();
    std::memset(at, 0xFF, size);
    return Bytes(static_cast<char*>(at));
}

struct Block {
    std::string before, after;  // `after` is empty where nothing is written
};

struct Operand {
    uint32_t block;
    int64_t rows, width, stride;
    uint32_t dtype;
    int32_t page;
};

struct Call {
    std::string kernel, prelude;
    std::vector<double> numbers;
    uint32_t ins;
    std::vector<Operand> operands;
    std::vector<Block> blocks;
    std::vector<int64_t> rooms;  // by team, then what the prelude makes
};

class File {
   public:
    explicit File(const char* path) : in_(path, std::ios::binary) {
        if (!in_) throw std::runtime_error(std::string("cannot read ") + path);
    }
    bool more() { return in_.peek() != EOF; }
    template <class T>
    T one() {
        T value{};
        take(&value, sizeof value);
        return value;
    }
    template <class T>
    std::vector<T> some() {
        std::vector<T> found(one<uint32_t>());
        for (T& value : found) value = one<T>();
        return found;
    }
    std::string text(int64_t size) {
        std::string found(static_cast<size_t>(size), '\0');
        take(found.data(), found.size());
        return found;
    }
    std::string word() { return text(one<uint32_t>()); }
    Call call() {
        Call found;
        found.kernel = word();
        found.prelude = word();
        found.numbers = some<double>();
        found.ins = some<uint32_t>().at(0);
        found.operands.resize(one<uint32_t>());
        for (Operand& operand : found.operands) {
            operand.block = one<uint32_t>();
            operand.rows = one<int64_t>();
            operand.width = one<int64_t>();
            operand.stride = one<int64_t>();
            operand.dtype = one<uint32_t>();
            operand.page = one<int32_t>();
        }
        found.blocks.resize(one<uint32_t>());
        for (Block& block : found.blocks) {
            const int64_t size = one<int64_t>();
            const bool written = one<uint32_t>() != 0;
            block.before = text(size);
            if (written) block.after = text(size);
        }
        found.rooms = some<int64_t>();
        return found;
    }

   private:
    void take(void* to, size_t size) {
        if (!in_.read(static_cast<char*>(to), static_cast<std::streamsize>(size)))
            throw std::runtime_error("the file ends within a call");
    }
    std::ifstream in_;
};

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
        views.push_back(View{at, one.rows, one.width, one.stride, static_cast<Dtype>(one.dtype), one.page});
    }
    std::vector<const View*> places;
    for (const View& view : views) places.push_back(&view);
    const Bytes room = memory(static_cast<size_t>(call.rooms.at(team)));
    const Bytes shared = memory(static_cast<size_t>(call.rooms.back()));
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

}  // namespace

int main(int count, char** words) {
    if (count != 2) {
        std::fputs("check FILE, as native/test/cases.py writes it\n", stderr);
        return 2;
    }
    int wrong = pool(), calls = 0;
    File file(words[1]);
    const std::string recorded = file.word();
    for (; file.more(); ++calls) {
        const Call call = file.call();
        for (const Isa& isa : isas())
            if (!*isa.lacks) wrong += checked(call, isa, recorded == isa.name);
    }
    std::printf("%d calls, %d wrong\n", calls, wrong);
    return wrong != 0;
}
