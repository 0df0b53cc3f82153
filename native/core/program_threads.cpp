// What each thread of a program does, call by call.
//
// Where rows are few, norms, sums and rotations take less time than threads need to meet. Each thread then makes all of
// their rows, in memory of its own, so nobody has to wait before he reads them: of a layer's calls only those that are
// shared out end with a barrier. The arithmetic is the same, and so is every bit.
//
// Who is done with such a call may go on to the next one that is shared out while another still reads what was shared
// before. Where that is written anew, all meet first.

#include <algorithm>
#include <set>
#include <stdexcept>
#include <utility>

#include "program.h"

namespace allotrope {

// The slots that a call writes.
std::vector<int> Program::outs_of(const Call& call) const {
    const Choice& choice = *call.choices.at(0);
    return {choice.slots.begin() + static_cast<std::ptrdiff_t>(choice.ins), choice.slots.end()};
}

// Once all calls are known; all this follows from them. What fails here, fails again.
void Program::part_threads() {
    find_places();
    check_joints();
    find_apart();
    find_own();
    find_maker();
    find_steps();
    size_scripts();
    parted_ = true;
}

void Program::find_places() {
    places_.assign(slots_.size(), {});
    for (const auto& [name, slot] : step_slots_) places_[slot].fleeting = true;
    regions_ = 1;  // 0: the logits, which lie by themselves
    for (const Buffer& buffer : buffers_) {  // a part comes after what it is a part of
        const bool part = buffer.of >= 0;
        if (!part) regions_ = std::max(regions_, buffer.region + 2);
        const int root = part ? places_[buffer.of].root : buffer.slot;
        const int region = part ? places_[root].region : root == logits_ ? 0 : buffer.region + 1;
        places_[buffer.slot] = {false, root, region, buffer.rows, -1};
    }
}

// What stands behind a layer is the next call, for the same rows, and of its width; halves end where panels do. Halves are
// shared out by themselves: not where that gives the busiest thread more to do than both together.
void Program::check_joints() {
    constexpr int64_t kPanel = 16;  // as in panels.h
    const auto refuse = [](bool wrong, const char* what) {
        if (wrong) throw std::invalid_argument(what);
    };
    for (size_t i = 0; i < calls_.size(); ++i) {
        Call& call = calls_[i];
        refuse(call.choices.empty(), "a call needs a kernel");
        if (call.out == 0) continue;
        for (const auto& choice : call.choices)
            refuse(choice->kind != Kind::linear, "nothing can stand behind a kernel that is no linear layer");
        refuse(i + 1 == calls_.size() || calls_[i + 1].rows != call.rows || calls_[i + 1].choices.empty() ||
                   outs_of(calls_[i + 1]) != std::vector<int>{call.out},
               "what stands behind a layer must be the next call");
        refuse(places_[call.out].root < 0, "what stands behind a layer must be written to a buffer");
        const int64_t halves = call.behind.gated ? 2 : 1, width = slots_[call.out]->width;
        refuse(slots_[outs_of(call).at(0)]->width != halves * width, "what stands behind a layer must have its width");
        refuse(halves == 2 && width % kPanel != 0, "halves must end where panels do");
        const int64_t panels = width / kPanel, threads = pace_.most();
        call.joins = halves == 1 || 2 * ((panels + threads - 1) / threads) <= (2 * panels + threads - 1) / threads;
    }
}

// Calls of which few rows are made by each thread: all they write are whole buffers that nobody outside reads, and that
// are written whole everywhere.
void Program::find_apart() {
    std::set<int> shared = {logits_, tokens_, logprobs_};
    for (const Call& call : calls_)
        for (const int slot : outs_of(call))
            if (places_[slot].root != slot) shared.insert(places_[slot].root);
    bool behind = false;  // then threads share it out with the layer before it
    for (Call& call : calls_) {
        call.apart = !plain_ && !std::exchange(behind, call.out != 0);
        for (const auto& choice : call.choices) call.apart &= choice->kind == Kind::rows;
        for (const int slot : outs_of(call)) call.apart &= places_[slot].root == slot && !shared.contains(slot);
    }
}

// Which operands were made so, rather than shared out, when they were last written; and the memory that each thread needs
// for them.
void Program::find_own() {
    own_bytes_ = 0;
    std::set<int> now;
    for (Call& call : calls_) {
        const auto is_own = [&](int slot) { return now.contains(places_[slot].root); };
        for (const auto& choice : call.choices) {
            choice->own.assign(choice->slots.size(), call.apart);
            std::transform(choice->slots.begin(), choice->slots.begin() + static_cast<std::ptrdiff_t>(choice->ins),
                           choice->own.begin(), is_own);
        }
        call.own_residual = call.residual != 0 && is_own(call.residual);
        for (const int slot : outs_of(call)) {
            if (!call.apart) {
                now.erase(places_[slot].root);
                continue;
            }
            now.insert(slot);
            if (places_[slot].own >= 0) continue;
            places_[slot].own = own_bytes_;
            own_bytes_ += (slots_[slot]->stride * kFewRows + 63) / 64 * 64;
        }
    }
    for (const Buffer& buffer : buffers_) {
        if (buffer.of < 0 || places_[buffer.of].own < 0) continue;
        const View& whole = *slots_[places_[buffer.slot].root];
        places_[buffer.slot].own = places_[buffer.of].own + buffer.start * (whole.stride / whole.width);
    }
}

// The layer that makes the logits notes what the sampler asks first, if it can: if nobody else writes them.
void Program::find_maker() {
    int makers = 0;
    maker_ = sampler_ = nullptr;
    for (Call& call : calls_)
        for (const int slot : outs_of(call)) {
            if (places_[slot].root == logits_) maker_ = &call, ++makers;
            if (slot == tokens_) sampler_ = &call;
        }
    bool notes = !plain_ && makers == 1 && sampler_ != nullptr && maker_->out == 0;
    for (size_t i = 0; notes && i < maker_->choices.size(); ++i) notes = maker_->choices[i]->kind == Kind::linear;
    if (!notes) maker_ = sampler_ = nullptr;
}

// Up to which numbers of rows a script is the same.
void Program::find_steps() {
    std::set<int64_t> found[kRowKinds];
    for (auto& steps : found) steps = {0, kFewRows, kJointRows};
    for (const Call& call : calls_)
        for (const auto& choice : call.choices)
            if (choice->bound > 0) found[call.rows].insert(choice->bound);
    for (int kind = 0; kind < kRowKinds; ++kind) steps_[kind].assign(found[kind].begin(), found[kind].end());
}

void Program::size_scripts() {
    size_t operands = 0;
    for (const Call& call : calls_) {
        size_t most = 0;
        for (const auto& choice : call.choices) most = std::max(most, choice->slots.size());
        operands += most + 2;  // and what stands behind it
    }
    scripts_.resize(static_cast<size_t>(pace_.most()));
    for (Script& script : scripts_) script.reserve(calls_.size(), operands, static_cast<size_t>(regions_), kRowKinds);
}

// Whether a step of other numbers of rows has the same script, but for them.
bool Program::same_shape(const std::vector<int64_t>& before) const {
    for (int kind = 0; kind < kRowKinds; ++kind)
        for (const int64_t step : steps_[kind])
            if ((before[kind] <= step) != (counts_[kind] <= step)) return false;
    return true;
}

const Script& Program::script(int thread) {
    Script& mine = scripts_[static_cast<size_t>(thread)];
    if (mine.version != version_) write_script(thread);
    if (mine.counts != counts_) mine.set_rows(counts_);
    return mine;
}

void Program::write_script(int thread) noexcept {
    Script& mine = scripts_[static_cast<size_t>(thread)];
    mine.version = version_;  // what moves from now on is found the next time
    mine.clear();
    char* const memory = own_memory_.at() + thread * own_bytes_;
    const auto view_of = [&](int slot, bool own) -> const View* {
        const Place& place = places_[slot];
        if (place.fleeting) return slots_[slot].get();
        View& view = mine.views.emplace_back(*slots_[slot]);
        mine.kinds.push_back(place.root < 0 ? -1 : static_cast<int8_t>(place.rows));
        if (own && counts_[place.rows] <= kFewRows) view.data = memory + place.own;
        return &view;
    };
    bool made = false;  // with the call before it
    for (size_t i = 0; i < calls_.size(); ++i) {
        const Call& call = calls_[i];
        const int64_t rows = counts_[call.rows];
        if (std::exchange(made, false) || rows == 0) continue;
        made = call.joins && rows <= kJointRows;
        const Choice* chosen = nullptr;
        for (const auto& choice : call.choices) {
            chosen = choice.get();
            if (chosen->bound == 0 || rows <= chosen->bound) break;
        }
        Script::Line& line = mine.lines.emplace_back();
        line.kernel = chosen->kernel, line.args = chosen->args, line.call = static_cast<int>(i);
        line.apart = call.apart && rows <= kFewRows;
        line.args.ins = mine.operands.data() + mine.operands.size();
        line.args.outs = line.args.ins + chosen->ins;
        for (size_t at = 0; at < chosen->slots.size(); ++at)
            mine.operands.push_back(view_of(chosen->slots[at], chosen->own[at] != 0));
        if (made || call.behind.tops != nullptr) {
            Behind& behind = mine.behinds.emplace_back();
            if (made) behind = call.behind, behind.out = view_of(call.out, false);
            if (made && call.residual != 0) behind.residual = view_of(call.residual, call.own_residual);
            if (made && log_ && thread == 0) behind.spent = &spent_, behind.now = ticks;
            behind.tops = call.behind.tops;
            line.args.behind = &behind;
        }
        const auto region_of = [&](size_t at) { return places_[chosen->slots[at]].region; };
        if (line.apart) {
            for (size_t at = 0; at < chosen->ins; ++at)
                if (region_of(at) >= 0) mine.read[static_cast<size_t>(region_of(at))] = 1;
            continue;
        }
        for (size_t at = chosen->ins; at < chosen->slots.size(); ++at)
            line.meets |= region_of(at) >= 0 && mine.read[static_cast<size_t>(region_of(at))];
        if (made) line.meets |= mine.read[static_cast<size_t>(places_[call.out].region)] != 0;
        std::fill(mine.read.begin(), mine.read.end(), char{0});
    }
    mine.set_rows(counts_);
}

}  // namespace allotrope
