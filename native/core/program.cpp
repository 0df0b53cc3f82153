#include "program.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "pool.h"

namespace allotrope {

namespace {

constexpr int64_t kReportChunk = 4096;  // as in sums.h
constexpr int64_t kReportRecord = 16;   // bytes of a chunk's record, or more
constexpr size_t kMostOperands = 16;
constexpr int32_t kLastDrawn = -1;      // a token that is the one drawn last for its row's slot

int64_t size_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::f64:
        case Dtype::i64: return 8;
        case Dtype::f16:
        case Dtype::bf16: return 2;
        case Dtype::u8:
        case Dtype::i8: return 1;
        default: return 4;
    }
}

template <class T>
constexpr Dtype dtype_of() {
    if constexpr (std::is_same_v<T, float>) return Dtype::f32;
    if constexpr (std::is_same_v<T, int32_t>) return Dtype::i32;
    if constexpr (std::is_same_v<T, int64_t>) return Dtype::i64;
    return Dtype::u8;
}

// Whether a step after which another was to follow has drawn what ends a row, or nothing that means anything.
bool ends_here(const StepInput& step, const StepOutput& out) {
    for (int64_t row = 0; row < step.rows; ++row)
        if (!out.finite[row]) return true;
    for (int64_t i = 0; i < step.end_pairs; ++i)
        if (out.tokens[step.ends[2 * i]] == step.ends[2 * i + 1]) return true;
    return false;
}

}  // namespace

template <class T>
View Program::view_of(const T* data, int64_t count) {
    // An empty array is there all the same: an operand without data would count as absent.
    static const T none{};
    return View{const_cast<T*>(count ? data : &none), 1, count, count * static_cast<int64_t>(sizeof(T)), dtype_of<T>(), 0};
}

Program::Program(const Isa& isa, int threads, int64_t page_size, int64_t longest)
    : isa_(isa),
      pace_(threads),
      page_size_(page_size),
      longest_(longest),
      finite_(find_kernel(isa, "finite")),
      scores_(find_kernel(isa, "scores")) {
    if (threads < 1 || page_size < 1 || longest < 1)
        throw std::invalid_argument("a program needs a thread, and pages and a context of a token or more");
    new_slot();  // slot 0: absent
}

View* Program::new_slot() { return slots_.emplace_back(std::make_unique<View>()).get(); }

int Program::fixed(const View& view) {
    *new_slot() = view;
    return static_cast<int>(slots_.size()) - 1;
}

int Program::cache(const View& view, int64_t apart) {
    caches_.push_back(fixed(view));
    slots_.back()->apart = apart;
    return caches_.back();
}

int Program::buffer(Rows rows, int64_t width, Dtype dtype, int region) {
    const int slot = fixed(View{nullptr, 0, width, width * size_of(dtype), dtype, 0});
    buffers_.push_back({slot, rows, width, -1, 0, region});
    return slot;
}

int Program::part(int of, int64_t start, int64_t width) {
    const View& whole = *slots_.at(of);
    const int slot = fixed(View{nullptr, 0, width, whole.stride, whole.dtype, 0});
    Rows rows = kTokens;
    for (const Buffer& buffer : buffers_)
        if (buffer.slot == of) rows = buffer.rows;
    buffers_.push_back({slot, rows, width, of, start, -1});
    return slot;
}

// Where the view of a step's array is to be noted; null if no step has such an array.
View** Program::place_of(const std::string& name) {
    const std::pair<const char*, View**> places[] = {
        {"tokens", &token_ids_.view},
        {"positions", &positions_.view},
        {"prompt_lens", &prompt_lens_.view},
        {"kv_slots", &kv_slots_.view},
        {"logit_rows", &logit_rows_.view},
        {"sample_rows", &sample_rows_.view},
        {"seeds", &seeds_.view},
        {"sample_positions", &sample_positions_.view},
        {"adjust_rows", &adjust_rows_.view},
        {"adjust_tokens", &adjust_tokens_.view},
        {"adjust_divide", &adjust_divide_},
        {"adjust_add", &adjust_add_},
        {"temperature", &temperature_.view},
        {"top_p", &top_p_.view},
        {"min_p", &min_p_.view},
        {"top_k", &top_k_.view},
        {"row_starts", &row_starts_},
        {"row_first", &row_first_},
        {"page_table", &page_table_},
    };
    for (const auto& [known, place] : places)
        if (name == known) return place;
    return nullptr;
}

int Program::step(const std::string& name) {
    const auto known = step_slots_.find(name);
    if (known != step_slots_.end()) return known->second;
    View** place = place_of(name);
    if (place == nullptr) throw std::invalid_argument("no step has an array named " + name);
    *place = new_slot();
    return step_slots_[name] = static_cast<int>(slots_.size()) - 1;
}

void Program::call(Rows rows) { calls_.emplace_back().rows = rows, parted_ = false; }

void Program::behind(int out, int residual, int curve, bool gated) {
    if (calls_.empty()) throw std::invalid_argument("there is no call behind which anything could stand");
    Call& call = calls_.back();
    static_cast<void>(slots_.at(out)), static_cast<void>(slots_.at(residual));  // there must be such
    call.out = out, call.residual = residual;
    call.behind.curve = curve, call.behind.gated = gated;
}

void Program::choice(int64_t bound, const std::string& kernel, const std::vector<double>& numbers,
                     const std::vector<int>& ins, const std::vector<int>& outs, const std::string& prelude,
                     const std::vector<double>& key) {
    if (calls_.empty()) throw std::invalid_argument("a choice belongs to a call");
    auto made = std::make_unique<Choice>();
    made->bound = bound;
    made->kernel = find_kernel(isa_, kernel);
    if (made->kernel == nullptr) throw std::invalid_argument("no kernel is named " + kernel);
    if (ins.size() > kMostOperands) throw std::invalid_argument("a kernel with so many operands");
    made->kind = kind_of(isa_, kernel);
    made->numbers = numbers;
    for (const auto* group : {&ins, &outs})
        for (const int slot : *group) {
            static_cast<void>(slots_.at(slot));  // there must be one
            made->slots.push_back(slot);
        }
    made->ins = ins.size();
    made->args.params = made->numbers.data();
    made->prelude = -1;
    if (!prelude.empty()) {
        for (size_t i = 0; i < keys_.size(); ++i)
            if (prelude_names_[i] == prelude && keys_[i] == key) made->prelude = static_cast<int>(i);
        if (made->prelude < 0) {
            made->prelude = static_cast<int>(keys_.size());
            keys_.push_back(key);
            prelude_names_.push_back(prelude);
            prelude_of_.push_back(made.get());
            prelude_kernels_.push_back(find_kernel(isa_, prelude));
            if (prelude_kernels_.back() == nullptr) throw std::invalid_argument("no kernel is named " + prelude);
        }
    }
    calls_.back().choices.push_back(std::move(made));
}

void Program::reserve(const std::vector<int64_t>& rows, int64_t workspace, const std::vector<int64_t>& preludes,
                      char* logits) {
    // All that can fail comes first.
    if (!parted_) part_threads();
    const auto threads = static_cast<size_t>(pace_.most());
    Memory own(static_cast<size_t>(own_bytes_) * threads);
    std::vector<Top> tops(maker_ == nullptr ? 0 : static_cast<size_t>(rows[kLogits]) * threads);
    std::vector<Memory> memory, shared;
    std::vector<int64_t> sizes;
    for (const Buffer& buffer : buffers_) {
        if (buffer.of >= 0 || buffer.slot == logits_) continue;
        if (buffer.region >= static_cast<int>(sizes.size())) sizes.resize(buffer.region + 1, 0);
        const int64_t size = slots_[buffer.slot]->stride * rows[buffer.rows];
        if (size > sizes[buffer.region]) sizes[buffer.region] = size;
    }
    for (const int64_t size : sizes) memory.emplace_back(static_cast<size_t>(size));
    Memory room(static_cast<size_t>(workspace));
    for (const int64_t size : preludes) shared.emplace_back(static_cast<size_t>(size));
    const int64_t vocab = slots_[logits_]->width, chunks = (vocab + kReportChunk - 1) / kReportChunk;
    Memory report(static_cast<size_t>((rows[kLogits] + rows[kTokens] + rows[kSamples]) * chunks * kReportRecord));

    std::swap(memory_, memory);
    std::swap(workspace_, room);
    std::swap(shared_, shared);
    std::swap(report_room_, report);
    std::swap(own_memory_, own);
    std::swap(tops_, tops);
    if (maker_ != nullptr) maker_->behind.tops = sampler_->behind.tops = tops_.data();
    ++version_;
    capacity_ = rows;
    most_tokens_ = 0;
    for (const Buffer& buffer : buffers_) {
        View& view = *slots_[buffer.slot];
        if (buffer.slot == logits_) view.data = logits;
        else if (buffer.of < 0) view.data = memory_[buffer.region].at();
        else view.data = slots_[buffer.of]->as<char>() + buffer.start * size_of(view.dtype);
    }
    for (Call& call : calls_)
        for (auto& choice : call.choices) {
            choice->args.workspace = workspace_.at();
            choice->args.shared = choice->prelude < 0 ? nullptr : shared_[choice->prelude].at();
        }
}

void Program::poison() {
    poisoned_ = true;  // larger pages would begin without it
    const auto fill = [](const Memory& memory) {
        if (memory.bytes() != 0) std::memset(memory.at(), 0xFF, memory.bytes());
    };
    for (const auto* group : {&memory_, &shared_})
        for (const Memory& memory : *group) fill(memory);
    fill(workspace_);
    fill(own_memory_);
}

// Whatever would make a kernel read or write where nothing of ours is. Token ids are the callers' to check.
void Program::check(const StepInput& step) const {
    const auto refuse = [](bool wrong, const char* what) {
        if (wrong) throw std::invalid_argument(what);
    };
    const int64_t pages = caches_.empty() ? 0 : slots_[caches_[0]]->rows / page_size_, vocab = slots_[logits_]->width;
    refuse(step.starts[0] != 0 || step.starts[step.rows] != step.tokens_in_all, "a step's rows must share out its tokens");
    for (int64_t row = 0; row < step.rows; ++row) {
        const int64_t count = step.starts[row + 1] - step.starts[row], first = step.first[row];
        refuse(count < 1, "a step's rows must have a token each, or more");
        refuse(step.sample[row] && step.want[row] == kWantNone, "a row that draws a token needs logits");
        refuse(step.slots[row] < 0, "a step's slots must not be negative");
        const int64_t last = first + count + step.repeats - 2, last_page = last / page_size_;
        refuse(first < 0 || last_page >= step.pages_wide, "a step's tokens must have pages");
        refuse(last >= longest_, "a step's tokens must lie within the longest context");
        const int32_t* held = step.pages + row * step.pages_wide;
        for (int64_t page = 0; page <= last_page; ++page)
            refuse(held[page] < 0 || held[page] >= pages, "a step's pages must be the pool's");
    }
    for (int64_t i = 0; i < 2 * step.copies; ++i)
        refuse(step.page_copies[i] < 0 || step.page_copies[i] >= pages, "pages to be copied must be the pool's");
    for (int64_t i = 0; i < step.adjustments; ++i) {
        refuse(step.adjust_rows[i] < 0 || step.adjust_rows[i] >= step.rows, "an adjustment must name a row of its step");
        refuse(step.adjust_tokens[i] < 0 || step.adjust_tokens[i] >= vocab, "an adjustment must name a token");
    }
    if (step.targets)
        for (int64_t i = 0; i < step.tokens_in_all; ++i)
            refuse(step.targets[i] >= vocab, "a target must be a token");
}

// A step that repeats follows from itself alone: each row draws its next token, and nothing else is asked of it.
void Program::check_repeats(const StepInput& step) const {
    if (log_) throw std::invalid_argument("a step that repeats cannot be timed call by call");
    bool alone = step.rows > 0 && step.copies == 0 && step.adjustments == 0 && step.targets == nullptr;
    for (int64_t row = 0; row < step.rows; ++row)
        alone &= step.starts[row + 1] - step.starts[row] == 1 && step.sample[row] && step.candidates[row] == 0;
    for (int64_t i = 0; i < step.end_pairs; ++i) alone &= step.ends[2 * i] >= 0 && step.ends[2 * i] < step.rows;
    if (!alone) throw std::invalid_argument("a step that repeats must draw one token for each row, and do nothing else");
}

// Works out which rows there are of each kind, and every array of the step. False if there is no room for so many.
bool Program::place(const StepInput& step) {
    token_ids_.clear(), positions_.clear(), prompt_lens_.clear(), kv_slots_.clear(), logit_rows_.clear();
    sample_rows_.clear(), seeds_.clear(), sample_positions_.clear(), drawn_slots_.clear();
    temperature_.clear(), top_p_.clear(), min_p_.clear(), top_k_.clear();
    adjust_rows_.clear(), adjust_tokens_.clear();
    logit_starts_.clear();
    among_.assign(static_cast<size_t>(step.rows), -1);
    for (int64_t row = 0; row < step.rows; ++row) {
        const int64_t slot = step.slots[row], start = step.starts[row], end = step.starts[row + 1];
        if (slot >= static_cast<int64_t>(drawn_.size())) drawn_.resize(static_cast<size_t>(slot) + 1, 0);
        logit_starts_.push_back(logit_rows_.count());
        for (int64_t token = start; token < end; ++token) {
            const int64_t position = step.first[row] + token - start;
            const int64_t page = step.pages[row * step.pages_wide + position / page_size_];
            token_ids_.add(step.tokens[token] == kLastDrawn ? drawn_[slot] : step.tokens[token]);
            positions_.add(position);
            prompt_lens_.add(step.prompt_lens[row]);
            kv_slots_.add(page * page_size_ + position % page_size_);
            const bool last = token == end - 1 && step.want[row] != kWantNone;
            if (last || step.want[row] == kWantAll || (step.targets && step.targets[token] >= 0)) logit_rows_.add(token);
        }
        if (!step.sample[row]) continue;
        among_[row] = sample_rows_.count();
        sample_rows_.add(logit_rows_.count() - 1);
        seeds_.add(step.seeds[row]);
        sample_positions_.add(step.first[row] + end - start);
        drawn_slots_.add(slot);
        temperature_.add(step.temperature[row]);
        top_p_.add(step.top_p[row]);
        min_p_.add(step.min_p[row]);
        top_k_.add(step.top_k[row]);
    }
    logit_starts_.push_back(logit_rows_.count());
    for (int64_t entry = 0; entry < step.adjustments; ++entry) {
        adjust_rows_.add(among_[step.adjust_rows[entry]]);
        adjust_tokens_.add(step.adjust_tokens[entry]);
    }
    const std::vector<int64_t> before = counts_;
    counts_ = {step.tokens_in_all, logit_rows_.count(), sample_rows_.count()};
    if (!same_shape(before)) ++version_;
    for (int kind = 0; kind < kRowKinds; ++kind)
        if (counts_[kind] > capacity_[kind]) return false;
    return true;
}

// Steps of many tokens go through megabytes of each buffer, and look up an address for every page of it (docs/log.md,
// "prompts on a Xeon with AMX", has what that costs).
void Program::enlarge_pages() {
    constexpr int64_t kMany = 64;
    if (poisoned_ || counts_[kTokens] < kMany || counts_[kTokens] < most_tokens_ + most_tokens_ / 2) return;
    most_tokens_ = counts_[kTokens];
    for (const Buffer& buffer : buffers_)
        if (buffer.of < 0 && buffer.slot != logits_)
            memory_[buffer.region].use(static_cast<size_t>(slots_[buffer.slot]->stride * counts_[buffer.rows]));
    workspace_.use(workspace_.bytes());
}

// Rows of the logits of which something is reported: those with candidates, then every token with a target.
void Program::report(const StepInput& step) {
    score_rows_.clear(), score_given_.clear();
    most_ = 0;
    for (int64_t row = 0; row < step.rows; ++row) {
        if (step.candidates[row] <= 0 || step.want[row] == kWantNone) continue;
        score_rows_.add(logit_starts_[row + 1] - 1);
        score_given_.add(0);
        most_ = step.candidates[row] > most_ ? step.candidates[row] : most_;
    }
    if (step.targets) {
        int64_t at = 0;
        for (int64_t row = 0; row < step.rows; ++row) {
            if (step.target_candidates && step.target_candidates[row] > most_) most_ = step.target_candidates[row];
            for (int64_t token = step.starts[row]; token < step.starts[row + 1]; ++token) {
                if (step.targets[token] < 0) continue;
                while (logit_rows_.held[at] != token) ++at;
                score_rows_.add(at);
                score_given_.add(step.targets[token]);
            }
        }
    }
    const int64_t rows = score_rows_.count(), vocab = slots_[logits_]->width;
    most_ = most_ < vocab ? most_ : vocab;
    given_values_.resize(rows);
    likeliest_.resize(rows * most_);
    values_.resize(rows * most_);
    flags_.resize(counts_[kLogits]);
    flags_view_ = view_of(flags_.data(), counts_[kLogits]);
    rows_view_ = view_of(score_rows_.held.data(), rows);
    given_view_ = view_of(score_given_.held.data(), rows);
    given_out_ = view_of(given_values_.data(), rows);
    likeliest_out_ = View{likeliest_.data(), rows, most_, 8 * most_, Dtype::i64, 0};
    values_out_ = View{values_.data(), rows, most_, 4 * most_, Dtype::f32, 0};
}

void Program::show(const StepInput& step) {
    token_ids_.show(), positions_.show(), prompt_lens_.show(), kv_slots_.show(), logit_rows_.show();
    sample_rows_.show(), seeds_.show(), sample_positions_.show(), temperature_.show(), top_p_.show(), min_p_.show();
    top_k_.show(), adjust_rows_.show(), adjust_tokens_.show();
    const auto set = [](View* place, const View& view) {
        if (place != nullptr) *place = view;
    };
    set(row_starts_, view_of(step.starts, step.rows + 1));
    set(row_first_, view_of(step.first, step.rows));
    set(adjust_divide_, view_of(step.adjust_divide, step.adjustments));
    set(adjust_add_, view_of(step.adjust_add, step.adjustments));
    set(page_table_, View{const_cast<int32_t*>(step.pages), step.rows, step.pages_wide, 4 * step.pages_wide, Dtype::i32, 0});
    for (const Buffer& buffer : buffers_) slots_[buffer.slot]->rows = counts_[buffer.rows];
}

void Program::copy_pages(Team& team) const {
    for (size_t i = team.index; i < caches_.size(); i += team.count) {
        const View& cache = *slots_[caches_[i]];
        const int64_t bytes = cache.stride * page_size_;
        for (int64_t copy = 0; copy < input_->copies; ++copy) {
            const int32_t *pair = input_->page_copies + 2 * copy;
            std::memcpy(cache.paged<char>(pair[1], 0), cache.paged<char>(pair[0], 0), bytes);
        }
    }
    team.barrier();
}

void Program::run(Team& team) {
    const Script& mine = script(team.index);
    if (input_->copies) copy_pages(team);
    for (size_t i = 0; i < prelude_of_.size(); ++i) {
        const Choice& asked = *prelude_of_[i];
        const View* operands[kMostOperands];
        for (size_t at = 0; at < asked.ins; ++at) operands[at] = slots_[asked.slots[at]].get();
        Args args = asked.args;
        args.ins = operands, args.workspace = shared_[i].at();
        prelude_kernels_[i](args, team);
    }
    if (!prelude_of_.empty() || log_) team.barrier();
    uint64_t* moment = log_ && team.index == 0 ? log_.calls() : nullptr;
    int noted = 0;
    if (moment) *moment = ticks();  // waking the team, and what all calls share, is no call's
    for (const Script::Line& line : mine.lines) {
        if (line.meets) team.barrier();
        if (line.apart) {
            Team alone;
            line.kernel(line.args, alone);
        } else {
            line.kernel(line.args, team);
            team.barrier();
        }
        if (moment == nullptr) continue;
        for (; noted < line.call; ++noted) moment[noted + 1] = moment[noted];  // calls without rows, or made with another
        moment[++noted] = ticks();
        if (line.args.behind == nullptr || line.args.behind->out == nullptr) continue;
        moment[noted + 1] = moment[noted], moment[noted] -= spent_;
        ++noted, spent_ = 0;
    }
    for (; moment && noted < static_cast<int>(calls_.size()); ++noted) moment[noted + 1] = moment[noted];
    if (counts_[kLogits] == 0) return;
    if (maker_ != nullptr) {
        for (int64_t row = team.index; row < counts_[kLogits]; row += team.count) {
            bool finite = true;
            for (int64_t thread = 0; thread < team.count; ++thread) finite &= tops_[row * team.count + thread].finite;
            flags_[row] = finite;
        }
    } else {
        const View* operands[] = {slots_[logits_].get(), &flags_view_};
        finite_(Args{operands, operands + 1, nullptr, report_room_.at(), nullptr}, team);
    }
    if (score_rows_.count() == 0) return;
    team.barrier();
    const View* scored[] = {slots_[logits_].get(), &rows_view_, &given_view_, &given_out_, &likeliest_out_, &values_out_};
    scores_(Args{scored, scored + 3, nullptr, report_room_.at(), nullptr}, team);
}

void Program::give(const StepInput& step, const StepOutput& out) {
    const int64_t* drawn = slots_[tokens_]->as<int64_t>();
    const float* logprobs = slots_[logprobs_]->as<float>();
    for (int64_t row = 0; row < step.rows; ++row) {
        bool finite = true;
        for (int64_t at = logit_starts_[row]; at < logit_starts_[row + 1]; ++at) finite &= flags_[at] != 0;
        out.tokens[row] = -1;
        out.logprobs[row] = NAN;
        if (const int64_t at = among_[row]; at >= 0) {
            out.tokens[row] = static_cast<int32_t>(drawn[at]);
            out.logprobs[row] = logprobs[at];
            finite &= !std::isnan(logprobs[at]);  // nothing was left to draw from
            drawn_[drawn_slots_.held[at]] = drawn[at];
        }
        out.finite[row] = finite;
    }
}

void Program::compute(const StepInput& step, const StepOutput& out) {
    report(step);
    show(step);
    input_ = &step;
    __atomic_store_n(&fetch_near, fetch_near_, __ATOMIC_RELAXED);
    Cost cost;
    run_team(pace_.size(), run_thread, this, pace_.most() > 1 ? &cost : nullptr);
    pace_.note(cost);
    give(step, out);
    input_ = nullptr;
}

bool Program::launch(const StepInput& step, const StepOutput& out) {
    const struct Turn {
        std::atomic<bool>& busy;
        explicit Turn(std::atomic<bool>& flag) : busy(flag) {
            if (busy.exchange(true)) throw std::runtime_error("another thread's step is being computed");
        }
        ~Turn() { busy.store(false); }
    } turn(busy_);
    if (step.repeats != 1) check_repeats(step);
    check(step);
    repeated_ = 0;
    if (!place(step)) return false;
    enlarge_pages();
    const auto began = std::chrono::steady_clock::now();
    compute(step, out);
    repeated_ = 1;
    if (log_) log_.ended();
    if (step.repeats == 1) return true;
    StepInput next = step;
    StepOutput to = out;
    next_first_.assign(step.first, step.first + step.rows);
    next_tokens_.assign(static_cast<size_t>(step.rows), kLastDrawn);
    next.first = next_first_.data(), next.tokens = next_tokens_.data();
    while (repeated_ < step.repeats && !ends_here(next, to)) {
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - began;
        if (passed.count() >= step.hold_s) break;
        for (int32_t& first : next_first_) ++first;
        to = {to.tokens + step.rows, to.logprobs + step.rows, to.finite + step.rows};
        place(next);  // as many rows as before
        compute(next, to);
        ++repeated_;
    }
    return true;
}

}  // namespace allotrope
