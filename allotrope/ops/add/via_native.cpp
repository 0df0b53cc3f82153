// The residual sum: one addition per element.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void add(const Args& args, Team& team) {
    const View &a = args.in(0), &b = args.in(1), &out = args.out(0);
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        const float *x = a.row<float>(row), *y = b.row<float>(row);
        float* to = out.row<float>(row);
        over(
            begin, end, [&](int64_t at) { store(to + at, load(x + at) + load(y + at)); },
            [&](int64_t at, int64_t left) { store_some(to + at, load_some(x + at, left) + load_some(y + at, left), left); });
    });
}

}  // namespace

ALLOTROPE_KERNELS({"add", add})

}  // namespace allotrope::ALLOTROPE_ISA
