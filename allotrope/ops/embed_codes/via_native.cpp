// Embedding from codes in quads: an output's column of its panel, widened as the linear layers widen it.

#include "kernel.h"
#include "tiles.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

constexpr int64_t kPiece = 64, kWord = 4;  // bytes: of a panel's sixteen outputs, and of one of them

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
        const char* at = args.in(1).as<char>() + panel * pieces * kPiece + lane * kWord;
        float* to = out.row<float>(row);
        // The row's words of sixteen pieces, side by side, are read as if they were one piece.
        for (int64_t first = 0; first < pieces; first += kPanel) {
            const int64_t count = pieces - first < kPanel ? pieces - first : kPanel;
            char words[kPiece] = {};
            for (int64_t i = 0; i < count; ++i) std::memcpy(words + i * kWord, at + (first + i) * kPiece, kWord);
            const auto raw = Reader::raw(words);
            for (int64_t i = 0; i < kInputs; ++i) {
                float values[kPanel];
                store_wide(values, Reader::value(raw, static_cast<int>(i)));
                for (int64_t word = 0; word < count; ++word) {
                    const int64_t input = (first + word) * kInputs + i;
                    if (input < out.width) to[input] = values[word];
                }
            }
        }
        for (int64_t group = 0; group < groups.count; ++group) {
            const auto own = [&](const W& of_all) { return of_all.at[lane / kLanes][lane % kLanes]; };
            const float scale = own(groups.scale(panel, group));
            const float zero = groups.zeros == nullptr ? 0 : own(to_wide(groups.zero(panel, group)));
            for (int64_t input = group * groups.size; input < (group + 1) * groups.size; ++input)
                to[input] = (to[input] - zero) * scale;
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
