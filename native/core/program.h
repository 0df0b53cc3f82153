// A plan made ready to run: slots, calls over them, and all memory that a step needs, made once.
//
// A step is one call of `launch`, and a program computes one at a time. Every thread of the team walks through all calls
// with a barrier after each but those that each computes for itself; nothing is allocated there, and nobody but them is
// waited for.

#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "isa.h"
#include "kernel.h"
#include "memory.h"
#include "pace.h"
#include "script.h"
#include "step_log.h"

namespace allotrope {

constexpr int64_t kFewRows = 2;     // that each thread makes for itself, where that takes less time than to meet
constexpr int64_t kJointRows = 16;  // of a layer and what stands behind it: more are faster one after the other

enum Rows { kTokens, kLogits, kSamples, kRowKinds };
enum Want : uint8_t { kWantNone, kWantLast, kWantAll };

// `runtime.step.StepInput`, field by field.
struct StepInput {
    int64_t rows = 0, tokens_in_all = 0, pages_wide = 0, copies = 0, adjustments = 0;
    const int32_t *slots, *starts, *first, *tokens, *pages, *prompt_lens, *top_k, *candidates, *page_copies;
    const uint8_t *want, *sample;
    const float *temperature, *top_p, *min_p;
    const int64_t* seeds;
    const int32_t *adjust_rows = nullptr, *adjust_tokens = nullptr;
    const float *adjust_divide = nullptr, *adjust_add = nullptr;
    const int32_t *targets = nullptr, *target_candidates = nullptr;  // null: nobody has any
    int64_t repeats = 1, end_pairs = 0;
    const int32_t* ends = nullptr;  // row and token, by pairs
    double hold_s = 0;
};

// Where a step's results go, row by row; of one that repeats, one go after the other.
struct StepOutput {
    int32_t* tokens;
    float* logprobs;
    uint8_t* finite;
};

class Program {
   public:
    Program(const Isa& isa, int threads, int64_t page_size, int64_t longest);

    // Slots, by number.
    int fixed(const View& view);                            // a weight or a cache
    void moved(int slot, char* to) { slots_.at(slot)->data = to, ++version_; }  // such a weight lies elsewhere now
    int cache(const View& view, int64_t apart);             // the same; pages lie so far apart, and may be copied
    int buffer(Rows rows, int64_t width, Dtype dtype, int region);  // an activation buffer; equal regions share memory
    int part(int of, int64_t start, int64_t width);         // columns of a buffer
    int step(const std::string& name);                      // what is made for each step

    // A call, made of choices: the first whose bound is not below the row count serves.
    void call(Rows rows);
    void choice(int64_t bound, const std::string& kernel, const std::vector<double>& numbers, const std::vector<int>& ins,
                const std::vector<int>& outs, const std::string& prelude, const std::vector<double>& key);
    // The call that comes next stands behind the last one, a linear layer; of few rows it is computed with it, as `Behind`
    // says. `residual` may be absent.
    void behind(int out, int residual, int curve, bool gated);
    // Every call by itself, shared out among the threads: what all else is compared with.
    void plainly() { plain_ = true; }
    void fetch(bool near) { fetch_near_ = near; }  // into which cache weights are fetched ahead, see `kernel.h`
    void logits(int slot) { logits_ = slot; }
    void sampled(int tokens, int logprobs) { tokens_ = tokens, logprobs_ = logprobs; }

    // Makes room for so many rows of each kind, a workspace, and what each prelude makes, in the order in which choices
    // first asked for them. Whoever calls gives the memory of the logits. Where memory is short, all stays as it was.
    void reserve(const std::vector<int64_t>& rows, int64_t workspace, const std::vector<int64_t>& preludes, char* logits);
    void poison();

    // Computes a step, and throws if another is being computed or this one is none; false if it has more rows of a kind
    // than room was made for. `needed` then says how many.
    bool launch(const StepInput& step, const StepOutput& out);
    const std::vector<int64_t>& needed() const { return counts_; }
    int64_t repeated() const { return repeated_; }  // how many steps the last launch was
    int64_t meetings() const { return scripts_.empty() ? 0 : scripts_[0].meetings(); }  // of all threads, in its calls

    // From now on it is noted when each call ends, in room for so many steps.
    void clock(int64_t steps) { log_ = StepLog(static_cast<int64_t>(calls_.size()), steps), ++version_; }
    StepLog& log() { return log_; }

    // Of the last step: what was to be reported, row by row.
    int64_t reported() const { return score_rows_.count(); }
    int64_t most_likeliest() const { return most_; }
    const std::vector<float>& given() const { return given_values_; }
    const std::vector<int64_t>& likeliest() const { return likeliest_; }
    const std::vector<float>& values() const { return values_; }

   private:
    struct Choice {
        int64_t bound;
        Kernel kernel;
        Kind kind;
        std::vector<double> numbers;
        std::vector<int> slots;  // ins, then outs
        std::vector<char> own;   // of these, whether each thread has the rows to itself while they are few
        size_t ins;
        int prelude;
        Args args;  // without operands
    };
    struct Call {
        Rows rows;
        std::vector<std::unique_ptr<Choice>> choices;
        Behind behind;
        int out = 0, residual = 0;  // slots of what stands behind it, which is the next call
        bool own_residual = false;  // as `own`
        bool apart = false;         // few rows are made by each thread for itself
        bool joins = false;         // few rows are made together with what stands behind it
    };
    // What is known of a slot once room was made.
    struct Place {
        bool fleeting = false;  // another in each step
        int root = -1;          // the buffer that it is, or is a part of
        int region = -1;        // equal ones share memory; of what is no buffer −1
        Rows rows = kTokens;
        int64_t own = -1;       // where it begins in the memory that each thread has to itself
    };
    struct Buffer {
        int slot;
        Rows rows;
        int64_t width;
        int of;  // −1: it is no part of another, and lies in a region
        int64_t start;
        int region;
    };
    // A step's array that grows and keeps its room.
    template <class T>
    struct Column {
        std::vector<T> held;
        View* view = nullptr;
        void clear() { held.clear(); }
        void add(T value) { held.push_back(value); }
        int64_t count() const { return static_cast<int64_t>(held.size()); }
        void show() {
            if (view) *view = view_of(held.data(), count());
        }
    };
    template <class T>
    static View view_of(const T* data, int64_t count);

    View* new_slot();
    View** place_of(const std::string& name);
    void check(const StepInput& step) const;
    void check_repeats(const StepInput& step) const;
    bool place(const StepInput& step);
    void enlarge_pages();
    void report(const StepInput& step);
    void show(const StepInput& step);
    void run(Team& team);
    void copy_pages(Team& team) const;
    void compute(const StepInput& step, const StepOutput& out);
    void part_threads();
    void find_places();
    void check_joints();
    void find_apart();
    void find_own();
    void find_maker();
    void find_steps();
    void size_scripts();
    bool same_shape(const std::vector<int64_t>& before) const;
    const Script& script(int thread);
    void write_script(int thread) noexcept;
    std::vector<int> outs_of(const Call& call) const;
    void give(const StepInput& step, const StepOutput& out);
    static void run_thread(void* context, Team& team) { static_cast<Program*>(context)->run(team); }

    const Isa& isa_;
    Pace pace_;
    int64_t page_size_, longest_;  // longest_: tokens of a context; scratch memory and tables are made for no more
    std::vector<std::unique_ptr<View>> slots_;
    std::map<std::string, int> step_slots_;
    std::vector<Buffer> buffers_;
    std::vector<int> caches_;
    std::vector<Call> calls_;
    std::vector<std::vector<double>> keys_;
    std::vector<Choice*> prelude_of_;  // the first choice that asked for it
    std::vector<Kernel> prelude_kernels_;
    std::vector<std::string> prelude_names_;
    int logits_ = -1, tokens_ = -1, logprobs_ = -1;

    std::vector<Memory> memory_;
    Memory workspace_;
    std::vector<Memory> shared_;
    std::vector<Script> scripts_;            // per thread
    std::atomic<int64_t> version_{0};        // goes up where a script would be another
    std::vector<Place> places_;              // by slot
    std::vector<int64_t> steps_[kRowKinds];  // numbers of rows up to which a script is the same, upwards
    int regions_ = 0;
    bool parted_ = false;                    // all of this is known
    Memory own_memory_;
    int64_t own_bytes_ = 0;             // of a thread
    std::vector<Top> tops_;
    Call *maker_ = nullptr, *sampler_ = nullptr;  // of logits and tokens, if the one can note what the other asks
    uint64_t spent_ = 0;                // ticks of the first thread on what stands behind a layer, while there is a clock
    bool fetch_near_ = kFetchNear;
    bool plain_ = false;
    std::vector<int64_t> capacity_ = std::vector<int64_t>(kRowKinds, 0), counts_ = capacity_;
    int64_t most_tokens_ = 0;  // of the steps for which pages were enlarged
    bool poisoned_ = false;

    std::vector<int64_t> drawn_;  // by slot, the token drawn last
    Column<int64_t> token_ids_, positions_, prompt_lens_, kv_slots_, logit_rows_, sample_rows_, seeds_, sample_positions_,
        drawn_slots_, adjust_rows_, adjust_tokens_, score_rows_, score_given_;
    Column<float> temperature_, top_p_, min_p_;
    Column<int32_t> top_k_;
    std::vector<int64_t> logit_starts_, among_;
    const StepInput* input_ = nullptr;
    std::vector<int32_t> next_first_, next_tokens_;  // of a step that repeats
    int64_t repeated_ = 0;
    StepLog log_;

    Kernel finite_, scores_;
    std::vector<uint8_t> flags_;
    std::vector<float> given_values_, values_;
    std::vector<int64_t> likeliest_;
    int64_t most_ = 0;
    View *row_starts_ = nullptr, *row_first_ = nullptr, *page_table_ = nullptr, *adjust_divide_ = nullptr,
         *adjust_add_ = nullptr;
    std::atomic<bool> busy_{false};
    View flags_view_, rows_view_, given_view_, given_out_, likeliest_out_, values_out_;
    Memory report_room_;
};

}  // namespace allotrope
