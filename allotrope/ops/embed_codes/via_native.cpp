// Embedding from codes in quads: an output's column of its panel, widened as the linear layers widen it.

#include "kernel.h"
#include "tiles.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

constexpr int64_t kPiece = 64;

template <class Reader>
void rows_of(const Args& args, const Team& team, bool signed_or_none) {
    const View &ids = args.in(0), &scales = args.in(2), &zeros = args.in(3), &out = args.out(0);
    constexpr int64_t kInputs = Reader::kInputs;
    const int64_t pieces = (out.width + kInputs - 1) / kInputs;
    const int64_t panels = args.in(1).rows * args.in(1).width / (pieces * kPiece);
    Groups groups;
    groups.count = scales.rows * scales.width / (panels * kPanel);
    groups.size = out.width / groups.count;
    if (scales.dtype == Dtype::f32)
        groups.wide = scales.as<float>();
    else
        groups.scales = scales.as<uint16_t>();
    groups.zeros = signed_or_none ? nullptr : zeros.as<uint8_t>();
    const Share mine(out.rows, team);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
        const int64_t id = ids.as<int64_t>()[row], panel = id / kPanel, lane = id % kPanel;
        const char* at = args.in(1).as<char>() + panel * pieces * kPiece;
        float* to = out.row<float>(row);
        for (int64_t input = 0; input < out.width; input += kInputs, at += kPiece) {
            const auto raw = Reader::raw(at);
            for (int64_t i = 0; i < kInputs && input + i < out.width; ++i) {
                const int64_t group = groups.at(input + i);
                W value = Reader::value(raw, static_cast<int>(i));
                if (groups.zeros != nullptr) {
                    const W zero = to_wide(groups.zero(panel, group));
                    ALLOTROPE_PARTS(p) value.at[p] -= zero.at[p];
                }
                value = value * groups.scale(panel, group);
                to[input + i] = value.at[lane / kLanes][lane % kLanes];
            }
        }
    }
}

void int8(const Args& args, Team& team) { rows_of<Int8>(args, team, true); }
void fp8(const Args& args, Team& team) { rows_of<Fp8>(args, team, true); }
void int4(const Args& args, Team& team) {
    if (args.in(3))
        rows_of<Int4<false>>(args, team, false);
    else
        rows_of<Int4<true>>(args, team, true);
}

}  // namespace

ALLOTROPE_KERNELS({"embed_int8", int8}, {"embed_int4", int4}, {"embed_fp8", fp8})

}  // namespace allotrope::ALLOTROPE_ISA
