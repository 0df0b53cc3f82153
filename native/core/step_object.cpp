#include "step_object.h"

namespace allotrope {

namespace {

constexpr int64_t kMostRepeats = 1024;
constexpr double kLongestHold = 60;  // seconds: nobody can end it from outside

// Attribute names as Python strings, made once.
struct Names {
    PyObject *slots, *starts, *first, *tokens, *pages, *prompt_lens, *top_k, *candidates, *page_copies, *want, *sample,
        *temperature, *top_p, *min_p, *seeds, *adjust, *targets, *target_candidates, *rows, *divide, *add,
        *repeats, *ends, *hold_s;
    Names() {
        const auto name = [](const char* text) { return PyUnicode_InternFromString(text); };
        slots = name("slots"), starts = name("starts"), first = name("first"), tokens = name("tokens");
        pages = name("pages"), prompt_lens = name("prompt_lens"), top_k = name("top_k"), candidates = name("candidates");
        page_copies = name("page_copies"), want = name("want"), sample = name("sample"), seeds = name("seeds");
        temperature = name("temperature"), top_p = name("top_p"), min_p = name("min_p"), adjust = name("adjust");
        targets = name("targets"), target_candidates = name("target_candidates"), rows = name("rows");
        divide = name("divide"), add = name("add");
        repeats = name("repeats"), ends = name("ends"), hold_s = name("hold_s");
    }
};

const Names& names() {
    static const Names* made = new Names();
    return *made;
}

nb::object attribute(nb::handle object, PyObject* name) {
    nb::object found = nb::steal(PyObject_GetAttr(object.ptr(), name));
    if (!found.is_valid()) throw nb::python_error();
    return found;
}

template <class T>
T* taken(Held<T>& held, nb::handle object, PyObject* name) {
    held.take(attribute(object, name), PyUnicode_AsUTF8(name));
    return held.data();
}

void check(bool fits, const char* what) {
    if (!fits) throw nb::value_error(what);
}

}  // namespace

StepObject::StepObject(nb::handle step) {
    const Names& name = names();
    StepInput& in = input_;
    in.slots = taken(slots_, step, name.slots);
    in.starts = taken(starts_, step, name.starts);
    in.first = taken(first_, step, name.first);
    in.tokens = taken(tokens_, step, name.tokens);
    in.pages = taken(pages_, step, name.pages);
    in.want = taken(want_, step, name.want);
    in.sample = taken(sample_, step, name.sample);
    in.prompt_lens = taken(prompt_lens_, step, name.prompt_lens);
    in.temperature = taken(temperature_, step, name.temperature);
    in.top_k = taken(top_k_, step, name.top_k);
    in.top_p = taken(top_p_, step, name.top_p);
    in.min_p = taken(min_p_, step, name.min_p);
    in.seeds = taken(seeds_, step, name.seeds);
    in.candidates = taken(candidates_, step, name.candidates);
    in.page_copies = taken(page_copies_, step, name.page_copies);
    taken(targets_, step, name.targets);
    taken(target_candidates_, step, name.target_candidates);
    in.rows = slots_.count();
    in.tokens_in_all = tokens_.count();
    in.copies = page_copies_.count() / 2;
    check(pages_.axes() == 2 && pages_.size(0) == in.rows, "pages must have a line per row");
    in.pages_wide = pages_.size(1);
    for (const int64_t count : {first_.count(), want_.count(), sample_.count(), prompt_lens_.count(), temperature_.count(),
                                top_k_.count(), top_p_.count(), min_p_.count(), seeds_.count(), candidates_.count()})
        check(count == in.rows, "a step's arrays do not have as many elements as there are rows");
    check(starts_.count() == in.rows + 1, "starts must have an element more than there are rows");
    if (targets_.count()) {
        check(targets_.count() == in.tokens_in_all, "targets must have an element per token");
        in.targets = targets_.data();
    }
    if (target_candidates_.count()) {
        check(target_candidates_.count() == in.rows, "target_candidates must have an element per row");
        in.target_candidates = target_candidates_.data();
    }
    if (!nb::try_cast(attribute(step, name.repeats), in.repeats)) throw nb::type_error("repeats must be a whole number");
    check(in.repeats >= 1 && in.repeats <= kMostRepeats, "a step is repeated from once to 1024 times");
    if (in.repeats != 1) {
        in.ends = taken(ends_, step, name.ends);
        check(ends_.axes() == 2 && ends_.size(1) == 2, "ends must be pairs of row and token");
        in.end_pairs = ends_.size(0);
        if (!nb::try_cast(attribute(step, name.hold_s), in.hold_s)) throw nb::type_error("hold_s must be a number");
        check(in.hold_s >= 0 && in.hold_s <= kLongestHold, "a step is held for a minute at the most");
    }
    const nb::object adjust = attribute(step, name.adjust);
    if (adjust.is_none()) return;
    in.adjust_rows = taken(adjust_rows_, adjust, name.rows);
    in.adjust_tokens = taken(adjust_tokens_, adjust, name.tokens);
    in.adjust_divide = taken(adjust_divide_, adjust, name.divide);
    in.adjust_add = taken(adjust_add_, adjust, name.add);
    in.adjustments = adjust_rows_.count();
    for (const int64_t count : {adjust_tokens_.count(), adjust_divide_.count(), adjust_add_.count()})
        check(count == in.adjustments, "an adjustment has a row, a token, a divisor and a summand");
}

}  // namespace allotrope
