// Embedding: rows copied from the table.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void embed(const Args& args, Team& team) {
    const View &table = args.in(1), &out = args.out(0);
    const int64_t* ids = args.in(0).as<int64_t>();
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        std::memcpy(out.row<float>(row) + begin, table.row<float>(ids[row]) + begin, 4 * (end - begin));
    });
}

}  // namespace

ALLOTROPE_KERNELS({"embed", embed})

}  // namespace allotrope::ALLOTROPE_ISA
