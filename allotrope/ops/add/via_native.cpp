// The residual sum: one addition per element.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void add(const Args& args, Team& team) {
    map(args.out(0), args.in(0), args.in(1), team, [](F a, F b) { return a + b; });
}

}  // namespace

ALLOTROPE_KERNELS({"add", add, nullptr, Kind::rows})

}  // namespace allotrope::ALLOTROPE_ISA
