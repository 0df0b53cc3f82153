// Embedding from a table in panels: an output's column of its panel, widened.

#include "kernel.h"
#include "panels.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

template <class Reader>
void rows_of(const Args& args, Team& team) {
    const View &ids = args.in(0), &table = args.in(1), &out = args.out(0);
    const Share mine(out.rows, team);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
        const int64_t id = ids.as<int64_t>()[row], lane = id % kPanel;
        const char* at = table.as<char>() + id / kPanel * out.width * Reader::kBytes;
        float* to = out.row<float>(row);
        for (int64_t input = 0; input < out.width; ++input, at += Reader::kBytes)
            to[input] = Reader::value(Reader::raw(at), 0).at[lane / kLanes][lane % kLanes];
    }
}

}  // namespace

ALLOTROPE_KERNELS({"embed_fp16", rows_of<Fp16>}, {"embed_bf16", rows_of<Bf16>})

}  // namespace allotrope::ALLOTROPE_ISA
