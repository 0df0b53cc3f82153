// Codes times codes, whole: activations become codes of eight bits, and sums of integers, exact, meet the scales.
//
// With a scale per output: the sum as fp32 · the row's scale · the output's. In groups: each group's sum as fp32 times the
// group's scale, added up in order, one fused multiplication and addition each; then times the row's scale.
//
// Workspace: a `CodedRoom` for all threads, or for few rows one for each.

#pragma once

#include "coded.h"
#include "product.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int64_t kAlone = 2;  // rows that every thread encodes for itself, which takes less time than to meet

constexpr int64_t kStretch = 512;  // inputs of a tile that are encoded together, so that it is written in the nearest cache

struct Coded {
    int8_t* codes;
    int32_t* sums;
    float* scales;
    int64_t inputs;     // filled up
    int64_t size;       // inputs of which there is one sum: a group's, or a stretch's
    int64_t stretches;  // sums of a row

    // Where tile `t` of `height` rows begins.
    ALLOTROPE_INLINE int8_t* tile(int64_t t, int64_t height) const { return codes + t * height * inputs; }
    ALLOTROPE_INLINE int32_t* offsets(int64_t t, int64_t height) const { return sums + t * height * stretches; }
};

// How encoded rows lie, in bytes: [ codes ][ −Σ codes per stretch ][ scales of rows ].
struct CodedRoom {
    int64_t codes, sums, scales;

    ALLOTROPE_INLINE CodedRoom(int64_t rows, int64_t inputs, int64_t stretches)
        : codes(up(rows * inputs, 64)), sums(up(rows * stretches * 4, 64)), scales(up(rows * 4, 64)) {}

    ALLOTROPE_INLINE int64_t bytes() const { return codes + sums + scales; }
};

// The `place`th of such rooms. `inputs` are those of x, filled up.
ALLOTROPE_INLINE Coded coded_at(const Product& product, int64_t rows, int64_t inputs, bool grouped, int64_t place) {
    const int64_t size = grouped ? product.groups.size : kStretch, stretches = (product.x.width + size - 1) / size;
    const CodedRoom room(rows, inputs, stretches);
    char* at = product.workspace + place * room.bytes();
    return {reinterpret_cast<int8_t*>(at), reinterpret_cast<int32_t*>(at + room.codes),
            reinterpret_cast<float*>(at + room.codes + room.sums), inputs, size, stretches};
}

// A share of the rows [first, first + rows) in tiles of kRows: tile after tile, some inputs at a time. What is beyond them
// is zero. `kTogether`: each row's codes lie side by side; they meet signed weights, and sums are for zeros alone.
template <class Form, int kRows, bool kTogether = false>
void encode_tiles(const Product& product, int64_t first, int64_t rows, const Coded& to, const Team& team) {
    const View& x = product.x;
    const int64_t unit = to.size < kStretch ? kStretch : to.size, units = (x.width + unit - 1) / unit;
    const Share mine((rows + kRows - 1) / kRows * units, team);
    const bool shifted = product.groups.zeros != nullptr, summed = shifted || !kTogether;
    const int32_t factor = shifted ? 1 : Form::kZero;
    float scales[kRows] = {};
    for (int64_t item = mine.begin; item < mine.end; ++item) {
        const int64_t t = item / units, begin = item % units * unit;
        const int64_t end = begin + unit < x.width ? begin + unit : x.width;
        if (item == mine.begin || begin == 0)
            for (int64_t r = 0; r < kRows; ++r) {
                const int64_t row = t * kRows + r;
                scales[r] = row < rows ? scale_of(peak_of(x.row<float>(first + row), x.width)) : __builtin_nanf("");
                if (begin == 0) to.scales[row] = scales[r];
            }
        for (int64_t r = 0; r < kRows; ++r) {
            const int64_t row = t * kRows + r;  // one of none has no finite scale, so its codes are zero
            const Place place{to.tile(t, kRows), summed ? to.offsets(t, kRows) : nullptr, kRows, r, to.size, factor};
            encode<Form, kTogether>(x.row<float>(row < rows ? first + row : first), begin, end, scales[r], place);
        }
    }
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
    const int32_t* offsets = coded.offsets(t, kRows);
    Ahead ahead(weights, product.stride, kPanels);
    N sums[kRows][kPanels];
    W totals[kRows][kPanels];
    if (!kGrouped) {
        ALLOTROPE_UNROLL(r, kRows) {
            int32_t offset = 0;
            for (int64_t i = 0; i < coded.stretches; ++i) offset += offsets[i * kRows + r];
            ALLOTROPE_UNROLL(c, kPanels) sums[r][c] = repeat(offset);
        }
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
    const int64_t row = t * kRows, count = rows - row < kRows ? rows - row : kRows;
    W found[kPanels][kRows];  // what has an address is in no register
    ALLOTROPE_UNROLL(r, kRows) ALLOTROPE_UNROLL(c, kPanels) found[c][r] = totals[r][c];
    ALLOTROPE_UNROLL(c, kPanels) product.finish(first + row, count, panel + c, found[c], 1, coded.scales + row);
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
    constexpr int kTop = kGrouped ? kTallGroups : kTallCodes;
    const int64_t rows = product.finish.out.rows, chunk_rows = rows <= kTall ? up(rows, kTop) : chunk_of(rows, kTop);
    const Share mine(product.shared_panels(), team);
    for (int64_t first = 0; first < rows; first += chunk_rows) {
        const int64_t here = rows - first < chunk_rows ? rows - first : chunk_rows;
        with_height<kTop>(here, [&](auto height) {
            constexpr int kRows = height.value, kPanels = kRows <= 4 ? 1 : kBroad;
            const int64_t tiles = (here + kRows - 1) / kRows;
            const Coded coded = coded_at(product, tiles * kRows, up(product.x.width, 4 * Form::kQuads), kGrouped,
                                         rows <= kAlone ? team.index : 0);
            if (first) team.barrier();
            encode_tiles<Form, kRows>(product, first, here, coded, rows <= kAlone ? Team{} : team);
            if (rows > kAlone) team.barrier();
            product.each_share(first, here, mine, team, [&](const Share& own) {
                panels_of_codes<Form, kGrouped, kRows, kPanels>(product, coded, first, here, own);
            });
        });
    }
}

// Sums of a row at the most: a group's, or where all inputs are one, a stretch's.
ALLOTROPE_INLINE int64_t most_stretches(int64_t inputs, int64_t groups) {
    return groups > 1 ? groups : (inputs + kStretch - 1) / kStretch;
}

static_assert(kTallCodes == kTall || kTallCodes == kTallGroups);

// `Sizing` of these products, by rows, inputs and groups. Rows filled up to kTall and kTallGroups hold all tiles.
template <class Form>
int64_t codes_workspace(const int64_t* sizes, int threads) {
    const int64_t rows = sizes[0], inputs = up(sizes[1], 4 * Form::kQuads);
    const auto bytes = [&](int64_t of) {
        return CodedRoom(up(longest_chunk(of, kTall), kTallGroups), inputs, most_stretches(sizes[1], sizes[2])).bytes();
    };
    const int64_t alone = threads * bytes(rows < kAlone ? rows : kAlone), together = bytes(rows);
    return rows > kAlone && together > alone ? together : alone;
}

}  // namespace allotrope::ALLOTROPE_ISA
