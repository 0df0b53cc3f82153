// Learned positions: each row plus the table's row for its position. Numbers: offset.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void add_positions(const Args& args, Team& team) {
    const View &x = args.in(0), &table = args.in(1), &out = args.out(0);
    const int64_t *positions = args.in(2).as<int64_t>(), offset = args.whole(0);
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        const float *a = x.row<float>(row), *b = table.row<float>(positions[row] + offset);
        float* to = out.row<float>(row);
        over(
            begin, end, [&](int64_t at) { store(to + at, load(a + at) + load(b + at)); },
            [&](int64_t at, int64_t left) { store_some(to + at, load_some(a + at, left) + load_some(b + at, left), left); });
    });
}

}  // namespace

ALLOTROPE_KERNELS({"add_positions", add_positions, nullptr, Kind::rows})

}  // namespace allotrope::ALLOTROPE_ISA
