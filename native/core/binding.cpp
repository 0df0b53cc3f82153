// The core's Python face. Arrays arrive as numbers (address, rows, width, stride, dtype, rows of a page): who calls
// keeps the memory alive, and NumPy and torch are alike to it.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "isa.h"
#include "pool.h"

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
    module.def("usable_threads", usable_threads);
    module.def("run", run);
}
