// Codes times codes, whole: activations become codes of eight bits, and sums of integers, exact, meet the scales.
//
// With a scale per output: the sum as fp32 · the row's scale · the output's. In groups: each group's sum as fp32 times the
// group's scale, added up in order, one fused multiplication and addition each; then times the row's scale.
//
// Workspace: [ codes ][ −Σ codes per group ][ scales of rows ], one for all threads, or for few rows one for each.

#pragma once

#include "coded.h"
#include "product.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int64_t kAlone = 2;  // rows that every thread encodes for itself, which takes less time than to meet

struct Coded {
    int8_t* codes;
    int32_t* sums;
    float* scales;
    int64_t inputs;  // filled up

    // Where tile `t` of `height` rows begins.
    ALLOTROPE_INLINE const int8_t* tile(int64_t t, int64_t height) const { return codes + t * height * inputs; }
};

template <class Form>
ALLOTROPE_INLINE Coded coded_at(const Product& product, int64_t rows, int64_t place) {
    const int64_t inputs = up(product.x.width, 4 * Form::kQuads), groups = product.groups.count;
    const int64_t codes = up(rows * inputs, 64), sums = up(rows * groups * 4, 64), scales = up(rows * 4, 64);
    char* at = product.workspace + place * (codes + sums + scales);
    return {reinterpret_cast<int8_t*>(at), reinterpret_cast<int32_t*>(at + codes),
            reinterpret_cast<float*>(at + codes + sums), inputs};
}

// Row `row` of the rows [first, first + rows), which lie in tiles of `height`; beyond them all is zero.
template <class Form>
void encode_row(const Product& product, int64_t first, int64_t rows, int64_t height, int64_t row, const Coded& to) {
    const Groups& groups = product.groups;
    const int64_t t = row / height;
    const Place place{to.codes + t * height * to.inputs, to.sums + t * height * groups.count, height, row % height};
    if (row < rows) {
        to.scales[row] = encode<Form>(product.x.row<float>(first + row), product.x.width, groups.size,
                                      groups.zeros != nullptr, place);
        return;
    }
    for (int64_t quad = 0; quad < to.inputs / 4; ++quad)
        std::memset(place.codes + (quad * height + place.row) * 4, 0, 4);
    for (int64_t g = 0; g < groups.count; ++g) place.sums[g * height + place.row] = 0;
}

// a · b + c rounded once, on every machine: so that sums in groups have the same bits everywhere.
ALLOTROPE_INLINE W fused(const W& a, const W& b, const W& c) {
#if defined(__AVX2__) || defined(__aarch64__)
    return fma(a, b, c);
#else
    W result;
    for (int i = 0; i < kPanel; ++i)
        result.at[i / kLanes][i % kLanes] =
            __builtin_fmaf(a.at[i / kLanes][i % kLanes], b.at[i / kLanes][i % kLanes], c.at[i / kLanes][i % kLanes]);
    return result;
#endif
}

template <class Form, bool kGrouped, int kRows, int kPanels>
void tile_of_codes(const Product& product, const Coded& coded, int64_t t, int64_t first, int64_t rows, int64_t panel) {
    constexpr int kInputs = 4 * Form::kQuads;
    const Groups& groups = product.groups;
    const char* weights = product.weights + panel * product.stride;
    const int8_t* x = coded.tile(t, kRows);
    const int32_t* offsets = coded.sums + t * kRows * groups.count;
    Ahead ahead(weights, product.stride, kPanels);
    N sums[kRows][kPanels];
    W totals[kRows][kPanels];
    if (!kGrouped) {
        ALLOTROPE_UNROLL(r, kRows) ALLOTROPE_UNROLL(c, kPanels) sums[r][c] = repeat(offsets[r]);
        dots<Form, kRows, kPanels>(weights, product.stride, x, coded.inputs / kInputs, ahead, sums);
        ALLOTROPE_UNROLL(r, kRows) ALLOTROPE_UNROLL(c, kPanels) totals[r][c] = to_wide(sums[r][c]);
    } else {
        ALLOTROPE_UNROLL(r, kRows) ALLOTROPE_UNROLL(c, kPanels) totals[r][c] = W{};
        const int64_t pieces = (groups.size + kInputs - 1) / kInputs;
        for (int64_t g = 0; g < groups.count; ++g) {
            ALLOTROPE_UNROLL(c, kPanels) {
                const bool shifted = groups.zeros != nullptr;
                N zero{};
                if (shifted) zero = groups.zero(panel + c, g);
                ALLOTROPE_UNROLL(r, kRows) {
                    sums[r][c] = repeat(offsets[g * kRows + r]);
                    if (shifted) ALLOTROPE_PARTS(p) sums[r][c].at[p] *= zero.at[p];
                }
            }
            dots<Form, kRows, kPanels>(weights, product.stride, x, pieces, ahead, sums);
            ALLOTROPE_UNROLL(c, kPanels) {
                const W scale = groups.scale(panel + c, g);
                ALLOTROPE_UNROLL(r, kRows) totals[r][c] = fused(to_wide(sums[r][c]), scale, totals[r][c]);
            }
            weights += pieces * 64;
            x += pieces * kInputs * kRows;
        }
    }
    ALLOTROPE_UNROLL(r, kRows) {
        const int64_t row = t * kRows + r;
        if (row >= rows) break;
        ALLOTROPE_UNROLL(c, kPanels) product.finish(first + row, panel + c, totals[r][c], coded.scales[row]);
    }
}

template <class Form, bool kGrouped, int kRows, int kPanels>
void panels_of_codes(const Product& product, const Coded& coded, int64_t first, int64_t rows, const Share& mine) {
    const int64_t tiles = (rows + kRows - 1) / kRows;
    int64_t panel = mine.begin;
    for (; panel + kPanels <= mine.end; panel += kPanels)
        for (int64_t t = 0; t < tiles; ++t)
            tile_of_codes<Form, kGrouped, kRows, kPanels>(product, coded, t, first, rows, panel);
    for (; panel < mine.end; ++panel)
        for (int64_t t = 0; t < tiles; ++t)
            tile_of_codes<Form, kGrouped, kRows, 1>(product, coded, t, first, rows, panel);
}

template <class Form, bool kGrouped>
void multiply_codes(const Product& product, Team& team) {
    const int64_t rows = product.finish.out.rows, chunk_rows = rows <= kTall ? height_of(rows) : chunk_of(rows, kTall);
    const Share mine(product.panels(), team);
    for (int64_t first = 0; first < rows; first += chunk_rows) {
        const int64_t here = rows - first < chunk_rows ? rows - first : chunk_rows;
        with_height(here, [&](auto height) {
            constexpr int kRows = height.value, kMost = kGrouped && kRows == kTall ? 1 : kBroad;
            constexpr int kPanels = kRows * kFlat <= kTall * kBroad / (kGrouped ? 2 : 1) ? kFlat : kMost;
            const int64_t tiles = (here + kRows - 1) / kRows;
            const Coded coded = coded_at<Form>(product, tiles * kRows, rows <= kAlone ? team.index : 0);
            if (first) team.barrier();
            const Share own(tiles * kRows, rows <= kAlone ? Team{} : team);
            for (int64_t row = own.begin; row < own.end; ++row) encode_row<Form>(product, first, here, kRows, row, coded);
            if (rows > kAlone) team.barrier();
            panels_of_codes<Form, kGrouped, kRows, kPanels>(product, coded, first, here, mine);
        });
    }
}

}  // namespace allotrope::ALLOTROPE_ISA
