// Embedding: rows copied from the table, which lies in rows or, where the head reads it too, in panels: element k of row
// i stands at [i / 16][k][i % 16].

#include "kernel.h"
#include "panels.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void embed(const Args& args, Team& team) {
    const View &table = args.in(1), &out = args.out(0);
    const int64_t* ids = args.in(0).as<int64_t>();
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        std::memcpy(out.row<float>(row) + begin, table.row<float>(ids[row]) + begin, 4 * (end - begin));
    });
}

void embed_panels(const Args& args, Team& team) {
    const View& out = args.out(0);
    const int64_t* ids = args.in(0).as<int64_t>();
    const float* table = args.in(1).as<float>();
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        const float* from = table + ids[row] / kPanel * out.width * kPanel + ids[row] % kPanel;
        float* to = out.row<float>(row);
        for (int64_t column = begin; column < end; ++column) to[column] = from[column * kPanel];
    });
}

}  // namespace

ALLOTROPE_KERNELS({"embed", embed}, {"embed_panels", embed_panels})

}  // namespace allotrope::ALLOTROPE_ISA
