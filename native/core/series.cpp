#include "series.h"

#include <stdexcept>

#include "pool.h"
#include "ticks.h"

namespace allotrope {

namespace {

Kernel named(const Isa& isa, const std::string& name) {
    const Kernel found = find_kernel(isa, name);
    if (found == nullptr) throw std::invalid_argument("no kernel is named " + name);
    return found;
}

}  // namespace

Series::Series(const Isa& isa, const std::string& kernel, const std::string& prelude, const std::vector<double>& params,
               char* workspace, char* shared, int threads)
    : kernel_(named(isa, kernel)), params_(params), workspace_(workspace), shared_(shared), threads_(threads) {
    if (!prelude.empty()) prelude_ = named(isa, prelude);
}

void Series::add(const std::vector<View>& ins, const std::vector<View>& outs) {
    Set& set = *sets_.emplace_back(std::make_unique<Set>());
    for (const auto* group : {&ins, &outs}) set.views.insert(set.views.end(), group->begin(), group->end());
    for (const View& view : set.views) set.places.push_back(&view);
    set.args = Args{set.places.data(), set.places.data() + ins.size(), params_.data(), workspace_, shared_};
}

void Series::work(Team& team) {
    if (prelude_ != nullptr) {
        Args before = sets_[0]->args;
        before.workspace = shared_;
        prelude_(before, team);
    }
    team.barrier();
    const double began = team.index == 0 ? steady_seconds() : 0;
    for (int64_t call = first_; call < first_ + count_; ++call) {
        kernel_(sets_[static_cast<size_t>(call) % sets_.size()]->args, team);
        team.barrier();
    }
    if (team.index == 0) took_ = steady_seconds() - began;
}

double Series::run(int64_t first, int64_t count) {
    if (sets_.empty()) throw std::invalid_argument("there is nothing to call the kernel with");
    first_ = first, count_ = count;
    run_team(threads_, [](void* series, Team& team) { static_cast<Series*>(series)->work(team); }, this);
    return took_;
}

}  // namespace allotrope
