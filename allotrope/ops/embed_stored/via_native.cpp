// Embedding from a table in 16 bits, widened: in rows, or in panels, where a row is an output's column of its panel.

#include "kernel.h"
#include "panels.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

inline F widened(const uint16_t* from, Fp16) { return widen_half(from); }
inline F widened(const uint16_t* from, Bf16) { return widen_brain(from); }

template <class Reader>
void from_rows(const Args& args, Team& team) {
    const View &table = args.in(1), &out = args.out(0);
    const int64_t* ids = args.in(0).as<int64_t>();
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        const uint16_t* from = table.row<uint16_t>(ids[row]);
        float* to = out.row<float>(row);
        for (; begin + kLanes <= end; begin += kLanes) store(to + begin, widened(from + begin, Reader{}));
        if (begin == end) return;
        uint16_t some[kLanes] = {};
        std::memcpy(some, from + begin, 2 * (end - begin));
        store_some(to + begin, widened(some, Reader{}), end - begin);
    });
}

template <class Reader>
void from_panels(const Args& args, Team& team) {
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

ALLOTROPE_KERNELS({"embed_fp16", from_rows<Fp16>}, {"embed_bf16", from_rows<Bf16>}, {"embed_panels_fp16", from_panels<Fp16>},
                  {"embed_panels_bf16", from_panels<Bf16>})

}  // namespace allotrope::ALLOTROPE_ISA
