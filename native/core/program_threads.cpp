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

int Program::root_of(int slot) const {
    for (const Buffer& buffer : buffers_)
        if (buffer.slot == slot) return buffer.of < 0 ? slot : buffer.of;
    return -1;
}

// Equal numbers share memory. What is no buffer has −1; the logits, which lie by themselves, their own.
int Program::region_of(int slot) const {
    const int root = root_of(slot);
    for (const Buffer& buffer : buffers_)
        if (buffer.slot == root) return root == logits_ ? -2 : buffer.region;
    return -1;
}

// The slots that a call writes.
std::vector<int> Program::outs_of(const Call& call) const {
    const Choice& choice = *call.choices.at(0);
    return {choice.slots.begin() + static_cast<std::ptrdiff_t>(choice.ins), choice.slots.end()};
}

// After room was made. All this follows from the calls, and from where buffers lie.
void Program::part_threads() {
    find_apart();
    find_own();
    take_notes(capacity_[kLogits]);
    scripts_.resize(static_cast<size_t>(pace_.most()));
    ++version_;
}

// Calls of which few rows are made by each thread: all they write are whole buffers that nobody outside reads, and that
// are written whole everywhere.
void Program::find_apart() {
    std::set<int> shared = {logits_, tokens_, logprobs_};
    for (const Call& call : calls_)
        for (const int slot : outs_of(call))
            if (const int root = root_of(slot); root != slot) shared.insert(root);
    bool behind = false;  // then threads share it out with the layer before it
    for (Call& call : calls_) {
        call.apart = !plain_ && !std::exchange(behind, call.out != 0);
        for (const auto& choice : call.choices) call.apart &= choice->kind == Kind::rows;
        for (const int slot : outs_of(call)) call.apart &= root_of(slot) == slot && !shared.contains(slot);
    }
}

// The memory that each thread needs for those; and for every call which slots it reads that were made so, rather than
// shared out, when they were last written.
void Program::find_own() {
    own_.clear(), own_bytes_ = 0;
    std::set<int> now;
    for (Call& call : calls_) {
        call.own.clear();
        const auto look = [&](int slot) {
            if (now.contains(root_of(slot))) call.own.push_back(slot);
        };
        for (const auto& choice : call.choices) std::for_each_n(choice->slots.begin(), choice->ins, look);
        if (call.residual != 0) look(call.residual);
        for (const int slot : outs_of(call)) {
            if (!call.apart) {
                now.erase(root_of(slot));
                continue;
            }
            now.insert(slot);
            if (own_.emplace(slot, own_bytes_).second) own_bytes_ += (slots_[slot]->stride * kFewRows + 63) / 64 * 64;
        }
    }
    own_memory_ = Memory(static_cast<size_t>(own_bytes_ * pace_.most()));
}

// Lets the layer that makes the logits note what the sampler asks first, if it can: if nobody else writes them.
void Program::take_notes(int64_t logit_rows) {
    Call *maker = nullptr, *sampler = nullptr;
    int makers = 0;
    for (Call& call : calls_)
        for (const int slot : outs_of(call)) {
            if (root_of(slot) == logits_) maker = &call, ++makers;
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

    std::set<int> fleeting, read;
    for (const auto& [name, slot] : step_slots_) fleeting.insert(slot);
    char* const memory = own_memory_.at() + thread * own_bytes_;
    const auto view_of = [&](int slot, bool own) -> const View* {
        if (fleeting.contains(slot)) return slots_[slot].get();  // another in each step
        View& view = mine.views.emplace_back(*slots_[slot]);
        if (!own) return &view;
        for (const Buffer& buffer : buffers_) {
            if (buffer.slot != slot || counts_[buffer.rows] > kFewRows) continue;
            const int64_t item = buffer.width > 0 ? view.stride / slots_[root_of(slot)]->width : 0;
            view.data = memory + own_.at(root_of(slot)) + (buffer.of < 0 ? 0 : buffer.start * item);
        }
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
        const auto given = [&](int slot) {
            return view_of(slot, std::find(call.own.begin(), call.own.end(), slot) != call.own.end());
        };
        Line& line = mine.lines.emplace_back();
        line.kernel = chosen->kernel, line.args = chosen->args, line.call = static_cast<int>(i);
        line.apart = call.apart && rows <= kFewRows;
        line.args.ins = mine.operands.data() + mine.operands.size();
        line.args.outs = line.args.ins + chosen->ins;
        for (size_t at = 0; at < chosen->slots.size(); ++at) {
            const int slot = chosen->slots[at];
            mine.operands.push_back(at < chosen->ins ? given(slot) : view_of(slot, call.apart));
        }
        if (made || call.behind.tops != nullptr) {
            Behind& behind = mine.behinds.emplace_back();
            if (made) behind = call.behind, behind.out = view_of(call.out, false);
            if (made && call.residual != 0) behind.residual = given(call.residual);
            if (made && log_ && thread == 0) behind.spent = &spent_, behind.now = ticks;
            behind.tops = call.behind.tops;
            line.args.behind = &behind;
        }
        if (line.apart) {
            for (size_t at = 0; at < chosen->ins; ++at) read.insert(region_of(chosen->slots[at]));
            continue;
        }
        std::vector<int> outs = outs_of(call);
        if (made) outs.push_back(call.out);
        for (const int slot : outs)
            if (const int region = region_of(slot); region != -1) line.meets |= read.contains(region);
        read.clear();
    }
    mine.version = version_;
}

}  // namespace allotrope
