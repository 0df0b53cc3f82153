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
#include <utility>

#include "program.h"

namespace allotrope {

// The slots that a call writes.
std::vector<int> Program::outs_of(const Call& call) const {
    const Choice& choice = *call.choices.at(0);
    return {choice.slots.begin() + static_cast<std::ptrdiff_t>(choice.ins), choice.slots.end()};
}

// After room was made. All this follows from the calls, and from where buffers lie.
void Program::part_threads() {
    find_places();
    find_apart();
    find_own();
    take_notes(capacity_[kLogits]);
    scripts_.resize(static_cast<size_t>(pace_.most()));
    ++version_;
}

void Program::find_places() {
    places_.assign(slots_.size(), {});
    for (const auto& [name, slot] : step_slots_) places_[slot].fleeting = true;
    regions_ = 1;  // 0: the logits, which lie by themselves
    for (const Buffer& buffer : buffers_) {
        const int root = buffer.of < 0 ? buffer.slot : buffer.of;
        if (buffer.of < 0) regions_ = std::max(regions_, buffer.region + 2);
        const int region = buffer.of >= 0 ? places_[root].region : root == logits_ ? 0 : buffer.region + 1;
        places_[buffer.slot] = {false, root, region, buffer.rows, -1};
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
        const View& whole = *slots_[places_[buffer.slot].root];
        const int64_t begin = places_[places_[buffer.slot].root].own;
        if (buffer.of >= 0 && begin >= 0) places_[buffer.slot].own = begin + buffer.start * (whole.stride / whole.width);
    }
    own_memory_ = Memory(static_cast<size_t>(own_bytes_ * pace_.most()));
}

// Lets the layer that makes the logits note what the sampler asks first, if it can: if nobody else writes them.
void Program::take_notes(int64_t logit_rows) {
    Call *maker = nullptr, *sampler = nullptr;
    int makers = 0;
    for (Call& call : calls_)
        for (const int slot : outs_of(call)) {
            if (places_[slot].root == logits_) maker = &call, ++makers;
            if (slot == tokens_) sampler = &call;
        }
    noted_ = !plain_ && makers == 1 && sampler != nullptr && maker->out == 0;
    for (size_t i = 0; noted_ && i < maker->choices.size(); ++i) noted_ = maker->choices[i]->kind == Kind::linear;
    if (!noted_) return;
    tops_.resize(static_cast<size_t>(logit_rows * pace_.most()));
    maker->behind.tops = sampler->behind.tops = tops_.data();
}

const Program::Script& Program::script(int thread) {
    Script& mine = scripts_[static_cast<size_t>(thread)];
    if (mine.version != version_) write_script(thread);
    return mine;
}

// For the rows that the step has: who asks later finds all views where they are.
void Program::write_script(int thread) {
    Script& mine = scripts_[static_cast<size_t>(thread)];
    mine.lines.clear(), mine.operands.clear(), mine.views.clear(), mine.behinds.clear();
    size_t operands = 0;
    for (const Call& call : calls_)
        for (const auto& choice : call.choices) operands = std::max(operands, choice->slots.size() + 2);
    operands *= calls_.size();
    mine.lines.reserve(calls_.size()), mine.operands.reserve(operands), mine.views.reserve(operands);
    mine.behinds.reserve(calls_.size());  // what points into them must not move

    std::vector<char> read(static_cast<size_t>(regions_), 0);  // by region, whether a thread may still do so for itself
    char* const memory = own_memory_.at() + thread * own_bytes_;
    const auto view_of = [&](int slot, bool own) -> const View* {
        const Place& place = places_[slot];
        if (place.fleeting) return slots_[slot].get();
        View& view = mine.views.emplace_back(*slots_[slot]);
        if (own && counts_[place.rows] <= kFewRows) view.data = memory + place.own;
        return &view;
    };
    bool made = false;  // with the call before it
    for (size_t i = 0; i < calls_.size(); ++i) {
        const Call& call = calls_[i];
        const int64_t rows = counts_[call.rows];
        if (rows == 0 || std::exchange(made, false)) continue;
        made = call.out != 0 && rows <= kJointRows;
        const Choice* chosen = nullptr;
        for (const auto& choice : call.choices) {
            chosen = choice.get();
            if (chosen->bound == 0 || rows <= chosen->bound) break;
        }
        Line& line = mine.lines.emplace_back();
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
                if (region_of(at) >= 0) read[static_cast<size_t>(region_of(at))] = 1;
            continue;
        }
        for (size_t at = chosen->ins; at < chosen->slots.size(); ++at)
            line.meets |= region_of(at) >= 0 && read[static_cast<size_t>(region_of(at))];
        if (made) line.meets |= read[static_cast<size_t>(places_[call.out].region)] != 0;
        std::fill(read.begin(), read.end(), char{0});
    }
    mine.version = version_;
}

}  // namespace allotrope
