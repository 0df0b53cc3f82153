// Columns in another order.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void reorder(const Args& args, Team& team) {
    const View &x = args.in(0), &out = args.out(0);
    const int32_t* order = args.in(1).as<int32_t>();
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        const float* from = x.row<float>(row);
        float* to = out.row<float>(row);
        for (int64_t column = begin; column < end; ++column) to[column] = from[order[column]];
    });
}

}  // namespace

ALLOTROPE_KERNELS({"reorder", reorder, nullptr, Kind::rows})

}  // namespace allotrope::ALLOTROPE_ISA
