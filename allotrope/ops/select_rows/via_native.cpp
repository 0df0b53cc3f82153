// Chosen rows, copied.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void select_rows(const Args& args, Team& team) {
    const View &x = args.in(0), &out = args.out(0);
    const int64_t* index = args.in(1).as<int64_t>();
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        std::memcpy(out.row<float>(row) + begin, x.row<float>(index[row]) + begin, 4 * (end - begin));
    });
}

}  // namespace

ALLOTROPE_KERNELS({"select_rows", select_rows, nullptr, Kind::rows})

}  // namespace allotrope::ALLOTROPE_ISA
