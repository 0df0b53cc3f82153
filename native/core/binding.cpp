// The core's Python face. Arrays arrive as numbers (address, rows, width, stride, dtype, rows of a page): who calls
// keeps the memory alive, and NumPy and torch are alike to it.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "isa.h"
#include "pool.h"
#include "program.h"
#include "reading.h"
#include "series.h"
#include "step_object.h"

namespace nb = nanobind;

namespace allotrope {

namespace {

using Described = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int, int>;

View view_of(const Described& given) {
    const auto& [address, rows, width, stride, dtype, page] = given;
    return View{reinterpret_cast<void*>(address), rows, width, stride, static_cast<Dtype>(dtype), page};
}

const Isa& isa_named(const std::string& name) {
    for (const Isa& isa : isas())
        if (name == isa.name) return isa;
    throw std::invalid_argument("no kernels for " + name + " were compiled");
}

// One kernel's calls on sets of operands, an array of ins and outs each.
using Sets = std::vector<std::tuple<std::vector<Described>, std::vector<Described>>>;

std::vector<View> views_of(const std::vector<Described>& given) {
    std::vector<View> views;
    for (const Described& one : given) views.push_back(view_of(one));
    return views;
}

void make_series(Series* self, const std::string& isa, const std::string& kernel, const std::string& prelude,
                 const Sets& sets, const std::vector<double>& params, uintptr_t workspace, uintptr_t shared, int threads) {
    new (self) Series(isa_named(isa), kernel, prelude, params, reinterpret_cast<char*>(workspace),
                      reinterpret_cast<char*>(shared), threads);
    for (const auto& [ins, outs] : sets) self->add(views_of(ins), views_of(outs));
}

// One call of one kernel. A prelude's outputs lie at `shared`.
void run(const std::string& isa, const std::string& kernel, const std::string& prelude,
         const std::vector<Described>& ins, const std::vector<Described>& outs, const std::vector<double>& params,
         uintptr_t workspace, uintptr_t shared, int threads) {
    Series one(isa_named(isa), kernel, prelude, params, reinterpret_cast<char*>(workspace),
               reinterpret_cast<char*>(shared), threads);
    one.add(views_of(ins), views_of(outs));
    nb::gil_scoped_release released;
    one.run(0, 1);
}

// How many rows of logits there are; −1 if there is no room for the step: `needed` then says how many rows it has.
int64_t launch(Program& program, nb::handle step, nb::handle tokens, nb::handle logprobs, nb::handle finite) {
    if (program.log()) program.log().came();
    const StepObject given(step);
    const Held<int32_t> drawn(tokens, "tokens", true);
    const Held<float> values(logprobs, "logprobs", true);
    const Held<uint8_t> flags(finite, "finite", true);
    for (const int64_t count : {drawn.count(), values.count(), flags.count()})
        if (count != given.input().rows * given.input().repeats)
            throw nb::value_error("outputs must have an element per row and repeat");
    const StepOutput out{drawn.data(), values.data(), flags.data()};
    nb::gil_scoped_release released;
    return program.launch(given.input(), out) ? program.needed()[kLogits] : -1;
}

// Per step since the last time, a line each: seconds before the first call, then each call's.
void read_clock(Program& program, nb::handle lines) {
    const Held<double> seconds(lines, "lines", true);
    StepLog& log = program.log();
    if (seconds.count() != log.count() * log.width()) throw nb::value_error("there must be a line per step");
    log.read(seconds.data());
}

void bind_program(nb::module_& module) {
    nb::class_<Program>(module, "Program")
        .def("__init__",
             [](Program* self, const std::string& isa, int threads, int64_t page_size, int64_t longest) {
                 new (self) Program(isa_named(isa), threads, page_size, longest);
             })
        .def("fixed", [](Program& self, const Described& view) { return self.fixed(view_of(view)); })
        .def("cache", [](Program& self, const Described& view, int64_t apart) { return self.cache(view_of(view), apart); })
        .def("buffer",
             [](Program& self, int rows, int64_t width, int dtype, int region) {
                 return self.buffer(static_cast<Rows>(rows), width, static_cast<Dtype>(dtype), region);
             })
        .def("moved", [](Program& self, int slot, uintptr_t to) { self.moved(slot, reinterpret_cast<char*>(to)); })
        .def("part", &Program::part)
        .def("step", &Program::step)
        .def("call", [](Program& self, int rows) { self.call(static_cast<Rows>(rows)); })
        .def("choice", &Program::choice)
        .def("behind", &Program::behind)
        .def("plainly", &Program::plainly)
        .def("fetch", &Program::fetch)
        .def("logits", &Program::logits)
        .def("sampled", &Program::sampled)
        .def("reserve",
             [](Program& self, const std::vector<int64_t>& rows, int64_t workspace, const std::vector<int64_t>& preludes,
                uintptr_t logits) { self.reserve(rows, workspace, preludes, reinterpret_cast<char*>(logits)); })
        .def("poison", &Program::poison)
        .def("launch", launch)
        .def("clock", &Program::clock)
        .def("read_clock", read_clock)
        .def("needed", &Program::needed)
        .def("repeated", &Program::repeated)
        .def("meetings", &Program::meetings)
        .def("reported", [](const Program& self) {
            return std::tuple(self.reported(), self.most_likeliest());
        })
        .def("reports", [](const Program& self) {
            return std::tuple(self.given(), self.likeliest(), self.values());
        });
}

}  // namespace

}  // namespace allotrope

NB_MODULE(_core, module) {
    using namespace allotrope;
    module.attr("digest") = ALLOTROPE_DIGEST;  // of what the core was made of
    module.attr("fetches_near") = kFetchNear;  // where no builder has timed it
    module.def("fetch", [](bool near) { __atomic_store_n(&fetch_near, near, __ATOMIC_RELAXED); });  // of calls outside programs
    // Of the one that is `chosen`, or of all if that is empty, it is asked whether the system gives what it needs.
    module.def("isas", [](const std::string& chosen) {
        std::vector<std::tuple<std::string, std::string>> found;
        for (const Isa& isa : isas()) {
            const bool asked = !*isa.lacks && (chosen.empty() || chosen == isa.name);
            found.emplace_back(isa.name, asked ? refused(isa) : isa.lacks);
        }
        return found;
    });
    module.def("kernels", [](const std::string& name) {
        std::vector<std::string> found;
        const Isa& isa = isa_named(name);
        for (const Entry* const* table = isa.tables; *table != nullptr; ++table)
            for (const Entry* entry = *table; entry->name != nullptr; ++entry) found.emplace_back(entry->name);
        return found;
    });
    module.def("team_of", [](int count) {
        nb::gil_scoped_release released;  // another engine's step may hold the threads for long
        return team_of(count);
    });
    module.def("move", [](uintptr_t from, uintptr_t to, int64_t bytes, int threads) {
        nb::gil_scoped_release released;
        return move({reinterpret_cast<const char*>(from), bytes}, reinterpret_cast<char*>(to), threads);
    });
    module.def("read_all", [](const std::vector<std::tuple<uintptr_t, int64_t>>& given, int threads) {
        std::vector<Piece> pieces;
        for (const auto& [address, bytes] : given) pieces.emplace_back(reinterpret_cast<const char*>(address), bytes);
        nb::gil_scoped_release released;
        return read_all(pieces, threads);
    });
    module.def("workspace", [](const std::string& isa, const std::string& kernel, const std::vector<int64_t>& sizes,
                               int threads) { return workspace_of(isa_named(isa), kernel, sizes, threads); });
    module.def("is_linear", [](const std::string& isa, const std::string& kernel) {
        return kind_of(isa_named(isa), kernel) == Kind::linear;
    });
    module.def("is_by_rows", [](const std::string& isa, const std::string& kernel) {
        return kind_of(isa_named(isa), kernel) == Kind::rows;
    });
    module.def("run", run);
    nb::class_<Series>(module, "Series")
        .def("__init__", make_series)
        .def("run", [](Series& self, int64_t first, int64_t count) {
            nb::gil_scoped_release released;
            return self.run(first, count);
        });
    bind_program(module);
}
