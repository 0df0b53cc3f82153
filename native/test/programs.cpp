// Whole programs, as programs.py wrote them down: each is made again from what it was told, by every instruction set that
// this machine has, and takes the same steps. By the instruction set of the record all results must be its bits; by
// the others the logits must be alike.

#include <cmath>
#include <cstdio>

#include "program.h"
#include "record.h"

namespace allotrope {

namespace {

// Of the largest logit. Codes of activations and of keys may round to the other side.
constexpr double kAlikeLogits = 5e-2;

// A step's arrays, each in memory of exactly its size, and what it gave.
struct Step {
    std::vector<Bytes> arrays;
    std::string told;  // the tokens where the record says "the one drawn last"
    StepInput input;
    int64_t logits = 0, reported = 0, most = 0;
    std::string drawn, logprobs, finite, logit_bits;
    std::vector<float> given, values;
    std::vector<int64_t> likeliest;
};

Step read_step(File& file) {
    Step step;
    std::vector<int64_t> counts;
    const auto array = [&]() -> const char* {
        const int64_t size = file.one<int64_t>();
        const std::string held = file.text(size);
        step.arrays.push_back(memory(held.size()));
        std::memcpy(step.arrays.back().get(), held.data(), held.size());
        counts.push_back(size);
        return step.arrays.back().get();
    };
    const auto ints = [&] { return reinterpret_cast<const int32_t*>(array()); };
    const auto floats = [&] { return reinterpret_cast<const float*>(array()); };
    const auto bytes = [&] { return reinterpret_cast<const uint8_t*>(array()); };
    StepInput& in = step.input;
    in.slots = ints();
    in.rows = counts.back() / 4;
    in.starts = ints(), in.first = ints(), in.tokens = ints();
    in.tokens_in_all = counts.back() / 4;
    in.pages = ints();
    in.pages_wide = in.rows ? counts.back() / 4 / in.rows : 0;
    in.want = bytes(), in.sample = bytes();
    in.prompt_lens = ints(), in.temperature = floats(), in.top_k = ints(), in.top_p = floats(), in.min_p = floats();
    in.seeds = reinterpret_cast<const int64_t*>(array());
    in.candidates = ints(), in.page_copies = ints();
    in.copies = counts.back() / 8;
    const int32_t* targets = ints();
    if (counts.back()) in.targets = targets;
    const int32_t* target_candidates = ints();
    if (counts.back()) in.target_candidates = target_candidates;
    in.adjust_rows = ints();
    in.adjustments = counts.back() / 4;
    in.adjust_tokens = ints(), in.adjust_divide = floats(), in.adjust_add = floats();
    step.told = file.text(file.one<int64_t>());
    step.logits = file.one<int64_t>();
    if (step.logits < 0) return step;
    step.drawn = file.text(in.rows * 4), step.logprobs = file.text(in.rows * 4), step.finite = file.text(in.rows);
    step.logit_bits = file.text(file.one<int64_t>());
    step.reported = file.one<int64_t>(), step.most = file.one<int64_t>();
    step.given = file.some<float>(), step.likeliest = file.some<int64_t>(), step.values = file.some<float>();
    return step;
}

bool alike(const std::string& wanted, const char* given) {
    double largest = 0, apart = 0;
    for (size_t at = 0; at < wanted.size(); at += 4) {
        float a, b;
        std::memcpy(&a, wanted.data() + at, 4);
        std::memcpy(&b, given + at, 4);
        largest = std::fmax(largest, std::fabs(a));
        const double here = std::fabs(double{a} - b);
        apart = here <= apart ? apart : here;  // NaN stays
    }
    return apart <= kAlikeLogits * largest;
}

template <class T>
bool same(const std::vector<T>& wanted, const std::vector<T>& given) {
    return wanted.size() == given.size() && (wanted.empty() || !std::memcmp(wanted.data(), given.data(), wanted.size() * sizeof(T)));
}

// What one program was told, in order, told again.
class Again {
   public:
    Again(File& file, const Isa& isa, int threads, int64_t page, int64_t longest, bool recorded)
        : program_(isa, threads, page, longest), file_(file), isa_(isa), recorded_(recorded) {}

    int run() {
        for (std::string what = file_.word(); what != "end"; what = file_.word()) tell(what);
        return wrong_;
    }

   private:
    View block() {
        const Operand one = file_.operand();
        const std::string held = file_.text(file_.one<int64_t>());
        blocks_.push_back(memory(held.size()));
        std::memcpy(blocks_.back().get(), held.data(), held.size());
        return one.view(blocks_.back().get());
    }

    void tell(const std::string& what) {
        if (what == "fixed") return void(program_.fixed(block()));
        if (what == "cache") return cache();
        if (what == "step") return void(program_.step(file_.word()));
        if (what == "choice") return choice();
        if (what == "launch") return launch();
        const std::vector<int64_t> given = file_.some<int64_t>();
        if (what == "buffer")
            program_.buffer(static_cast<Rows>(given.at(0)), given.at(1), static_cast<Dtype>(given.at(2)),
                            static_cast<int>(given.at(3)));
        else if (what == "part") program_.part(static_cast<int>(given.at(0)), given.at(1), given.at(2));
        else if (what == "call") program_.call(static_cast<Rows>(given.at(0)));
        else if (what == "behind")
            program_.behind(static_cast<int>(given.at(0)), static_cast<int>(given.at(1)), static_cast<int>(given.at(2)),
                            given.at(3) != 0);
        else if (what == "logits") program_.logits(static_cast<int>(given.at(0)));
        else if (what == "sampled") program_.sampled(static_cast<int>(given.at(0)), static_cast<int>(given.at(1)));
        else if (what == "reserve") reserve(given);
        else throw std::runtime_error("a program is never told to " + what);
    }

    // Its pages lie apart here, with what is nobody's between them.
    void cache() {
        constexpr int64_t kGap = 64;
        const Operand one = file_.operand();
        const std::string held = file_.text(file_.one<int64_t>());
        const int64_t page = one.page * one.stride, pages = one.rows / one.page, apart = page + kGap;
        blocks_.push_back(memory(static_cast<size_t>(pages * apart - kGap)));
        for (int64_t i = 0; i < pages; ++i) std::memcpy(blocks_.back().get() + i * apart, held.data() + i * page, page);
        program_.cache(one.view(blocks_.back().get()), apart);
    }

    void choice() {
        const std::string kernel = file_.word(), prelude = file_.word();
        const auto numbers = file_.some<double>(), key = file_.some<double>();
        const auto slots = [&] {
            const std::vector<int64_t> found = file_.some<int64_t>();
            return std::vector<int>(found.begin(), found.end());
        };
        const std::vector<int> bound = slots(), ins = slots(), outs = slots();
        program_.choice(bound.at(0), kernel, numbers, ins, outs, prelude, key);
    }

    // [rows of three kinds, workspace, bytes of the logits, what each prelude needs]
    void reserve(const std::vector<int64_t>& given) {
        Bytes room = memory(static_cast<size_t>(given.at(4)));
        program_.reserve({given[0], given[1], given[2]}, given[3], {given.begin() + 5, given.end()}, room.get());
        logits_ = std::move(room);
        logits_size_ = static_cast<size_t>(given[4]);
    }

    void launch() {
        Step step = read_step(file_);
        // Another instruction set may have drawn another token: it goes on from the record's.
        if (!recorded_) step.input.tokens = reinterpret_cast<const int32_t*>(step.told.data());
        const size_t rows = static_cast<size_t>(step.input.rows);
        const Bytes drawn = memory(rows * 4), logprobs = memory(rows * 4), finite = memory(rows);
        const StepOutput out{reinterpret_cast<int32_t*>(drawn.get()), reinterpret_cast<float*>(logprobs.get()),
                             reinterpret_cast<uint8_t*>(finite.get())};
        if (++steps_ % 3 == 0) program_.clock(1);
        if (program_.log()) program_.log().came();
        program_.poison();
        std::memset(logits_.get(), 0xFF, logits_size_);
        const int64_t count = program_.launch(step.input, out) ? program_.needed()[kLogits] : -1;
        if (StepLog& log = program_.log(); log && log.count()) {
            std::vector<double> seconds(static_cast<size_t>(log.width()));
            log.read(seconds.data());
        }
        bool fits = count == step.logits;
        if (fits && count >= 0 && recorded_) {
            fits = !std::memcmp(drawn.get(), step.drawn.data(), rows * 4) &&
                   !std::memcmp(logprobs.get(), step.logprobs.data(), rows * 4) &&
                   !std::memcmp(finite.get(), step.finite.data(), rows) &&
                   !std::memcmp(logits_.get(), step.logit_bits.data(), step.logit_bits.size()) &&
                   program_.reported() == step.reported && same(step.given, program_.given()) &&
                   same(step.likeliest, program_.likeliest()) && same(step.values, program_.values());
        } else if (fits && count >= 0) {
            fits = alike(step.logit_bits, logits_.get()) && !std::memcmp(finite.get(), step.finite.data(), rows);
        }
        if (fits) return;
        std::printf("%s: step %d of a program is not what was recorded\n", isa_.name, steps_);
        ++wrong_;
    }

    Program program_;
    File& file_;
    const Isa& isa_;
    bool recorded_;
    std::vector<Bytes> blocks_;
    Bytes logits_;
    size_t logits_size_ = 0;
    int wrong_ = 0, steps_ = 0;
};

}  // namespace

int programs(const char* path) {
    int wrong = 0, made = 0;
    for (const Isa& isa : isas()) {
        if (*isa.lacks) continue;
        File file(path);
        const bool recorded = file.word() == isa.name;
        while (file.more()) {
            const int threads = static_cast<int>(file.one<int64_t>());
            const int64_t page = file.one<int64_t>(), longest = file.one<int64_t>();
            wrong += Again(file, isa, threads, page, longest, recorded).run();
            ++made;
        }
    }
    std::printf("%d programs, %d wrong\n", made, wrong);
    return wrong;
}

}  // namespace allotrope
