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

struct Single {
    Kernel prelude, kernel;
    Args before, args;
};

void run_single(void* context, Team& team) {
    const auto& single = *static_cast<const Single*>(context);
    if (single.prelude != nullptr) {
        single.prelude(single.before, team);
        team.barrier();
    }
    single.kernel(single.args, team);
}

// One call of one kernel. A prelude's outputs lie at `shared`.
void run(const std::string& isa, const std::string& kernel, const std::string& prelude,
         const std::vector<Described>& ins, const std::vector<Described>& outs, const std::vector<double>& params,
         uintptr_t workspace, uintptr_t shared, int threads) {
    const Isa& chosen = isa_named(isa);
    Single single{};
    single.kernel = find_kernel(chosen, kernel);
    if (single.kernel == nullptr) throw std::invalid_argument("no kernel is named " + kernel);
    if (!prelude.empty() && (single.prelude = find_kernel(chosen, prelude)) == nullptr)
        throw std::invalid_argument("no kernel is named " + prelude);
    std::vector<View> views;
    for (const auto* group : {&ins, &outs})
        for (const Described& one : *group) views.push_back(view_of(one));
    std::vector<const View*> places;
    for (const View& view : views) places.push_back(&view);
    single.args = Args{places.data(), places.data() + ins.size(), params.data(), reinterpret_cast<char*>(workspace),
                       reinterpret_cast<const void*>(shared)};
    single.before = single.args;
    single.before.workspace = reinterpret_cast<char*>(shared);
    nb::gil_scoped_release released;
    run_team(threads, run_single, &single);
}

// How many rows of logits there are; −1 if there is no room for the step: `needed` then says how many rows it has.
int64_t launch(Program& program, nb::handle step, nb::handle tokens, nb::handle logprobs, nb::handle finite,
            nb::handle call_s) {
    const StepObject given(step);
    const Held<int32_t> drawn(tokens, "tokens", true);
    const Held<float> values(logprobs, "logprobs", true);
    const Held<uint8_t> flags(finite, "finite", true);
    Held<double> seconds;
    StepOutput out{drawn.data(), values.data(), flags.data()};
    if (!call_s.is_none()) {
        seconds.take(call_s, "call_s", true);
        out.call_s = seconds.data();
    }
    nb::gil_scoped_release released;
    return program.launch(given.input(), out) ? program.needed()[kLogits] : -1;
}

void bind_program(nb::module_& module) {
    nb::class_<Program>(module, "Program")
        .def("__init__",
             [](Program* self, const std::string& isa, int threads, int64_t page_size) {
                 new (self) Program(isa_named(isa), threads, page_size);
             })
        .def("fixed", [](Program& self, const Described& view) { return self.fixed(view_of(view)); })
        .def("cache", [](Program& self, const Described& view) { return self.cache(view_of(view)); })
        .def("buffer", [](Program& self, int rows, int64_t width,
                          int dtype) { return self.buffer(static_cast<Rows>(rows), width, static_cast<Dtype>(dtype)); })
        .def("part", &Program::part)
        .def("step", &Program::step)
        .def("call", [](Program& self, int rows) { self.call(static_cast<Rows>(rows)); })
        .def("choice", &Program::choice)
        .def("logits", &Program::logits)
        .def("sampled", &Program::sampled)
        .def("reserve",
             [](Program& self, const std::vector<int64_t>& rows, int64_t workspace, const std::vector<int64_t>& preludes,
                uintptr_t logits) { self.reserve(rows, workspace, preludes, reinterpret_cast<char*>(logits)); })
        .def("poison", &Program::poison)
        .def("launch", launch, nb::arg("step"), nb::arg("tokens"), nb::arg("logprobs"), nb::arg("finite"),
             nb::arg("call_s").none())
        .def("needed", &Program::needed)
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
    module.def("isas", [] {
        std::vector<std::tuple<std::string, std::string>> found;
        for (const Isa& isa : isas()) found.emplace_back(isa.name, isa.lacks);
        return found;
    });
    module.def("kernels", [](const std::string& name) {
        std::vector<std::string> found;
        const Isa& isa = isa_named(name);
        for (const Entry* const* table = isa.tables; *table != nullptr; ++table)
            for (const Entry* entry = *table; entry->name != nullptr; ++entry) found.emplace_back(entry->name);
        return found;
    });
    module.def("run", run);
    bind_program(module);
}
