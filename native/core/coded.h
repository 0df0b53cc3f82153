// Rows of fp32 as codes of eight bits, and tiles of codes times codes.
//
// A tile of activations lies as its products read it: for every quad of weights kQuads times [rows][4]. With Nibbles
// the first holds the even inputs and the second the odd ones, as a byte does.

#pragma once

#include "dots.h"
#include "tiles.h"

namespace allotrope::ALLOTROPE_ISA {

// A row's largest magnitude; infinite or NaN if the row holds such a value.
inline float peak_of(const float* x, int64_t width) {
    I largest[4] = {};
    int64_t at = 0;
    const auto take = [&](I& into, F value) {
        const I bits = (I)value & 0x7FFFFFFF;  // NaN above infinity above all others
        into = bits > into ? bits : into;
    };
    for (; at + 4 * kLanes <= width; at += 4 * kLanes)
        for (int i = 0; i < 4; ++i) take(largest[i], load(x + at + i * kLanes));
    over(
        at, width, [&](int64_t here) { take(largest[0], load(x + here)); },
        [&](int64_t here, int64_t left) { take(largest[1], load_some(x + here, left)); });
    int32_t found = 0;
    for (const I& one : largest)
        for (int i = 0; i < kLanes; ++i) found = one[i] > found ? one[i] : found;
    float peak;
    std::memcpy(&peak, &found, 4);
    return peak;
}

constexpr float kMostCode = 127.0f;

// The scale of a row's codes by ops/rows.py: true division, at least the smallest normal. NaN if a value is not finite.
inline float scale_of(float peak) {
    if (!(peak <= 3.402823466e38f)) return __builtin_nanf("");
    const float scale = peak / kMostCode;
    return scale < 0x1p-126f ? 0x1p-126f : scale;
}

typedef int8_t Codes16 __attribute__((vector_size(16)));

// Sixteen codes: x / scale to the nearest, ties to even. What is added and taken off again leaves no fraction over.
ALLOTROPE_INLINE N codes_of(const W& x, F scale) {
    N codes;
    ALLOTROPE_PARTS(i) {
        const F steps = min(max(x.at[i] / scale, splat(-kMostCode)), splat(kMostCode));
        codes.at[i] = (I)(steps + 12582912.0f) - 0x4B400000;
    }
    return codes;
}

ALLOTROPE_INLINE Codes16 narrow(const N& codes) {
    typedef int8_t Some __attribute__((vector_size(kLanes)));
    Codes16 bytes;
    ALLOTROPE_PARTS(i) {
        const Some some = __builtin_convertvector(codes.at[i], Some);
        std::memcpy(reinterpret_cast<char*>(&bytes) + i * kLanes, &some, sizeof some);
    }
    return bytes;
}

// Where a row's codes go: row `row` of a tile of `rows`, and their sums per group.
struct Place {
    int8_t* codes;
    int32_t* sums;  // [groups][rows]
    int64_t rows, row;
};

// One row of x into its place, filled up with zeros to whole quads; returns its scale.
// `sums` are −kZero · Σ codes, or, with `plain`, −Σ codes, for each `size` inputs.
template <class Form>
float encode(const float* x, int64_t width, int64_t size, bool plain, const Place& to) {
    constexpr int kInputs = 4 * Form::kQuads;
    const float scale = scale_of(peak_of(x, width));
    const bool finite = scale == scale;
    const int32_t factor = plain ? -1 : -Form::kZero;
    const F divisor = splat(scale);
    for (int64_t begin = 0, group = 0; begin < width; begin += size, ++group) {
        const int64_t end = begin + size < width ? begin + size : width;
        N sums{};
        const auto put = [&](int64_t at, const W& values, int64_t count) {
            N codes{};
            if (finite) codes = codes_of(values, divisor);
            ALLOTROPE_PARTS(p) sums.at[p] += codes.at[p];
            Codes16 bytes = narrow(codes);
            if (Form::kQuads == 2)
                bytes = __builtin_shufflevector(bytes, bytes, 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
            int32_t quads[4];
            std::memcpy(quads, &bytes, sizeof quads);
            int8_t* place = to.codes + (at / 4 * to.rows + to.row) * 4;
            const int64_t filled = (count + kInputs - 1) / kInputs * Form::kQuads;
            for (int64_t i = 0; i < filled; ++i) std::memcpy(place + i * to.rows * 4, quads + i, 4);
        };
        int64_t at = begin;
        for (; at + kPanel <= end; at += kPanel) put(at, load_wide(x + at), kPanel);
        if (at < end) {
            alignas(64) float rest[kPanel] = {};
            std::memcpy(rest, x + at, 4 * (end - at));
            put(at, load_wide(rest), end - at);
        }
        int32_t sum = 0;
        ALLOTROPE_PARTS(p) for (int i = 0; i < kLanes; ++i) sum += sums.at[p][i];
        to.sums[group * to.rows + to.row] = factor * sum;
    }
    return scale;
}

ALLOTROPE_INLINE N given_quad(const int8_t* at) {
    int32_t quad;
    std::memcpy(&quad, at, 4);
    return repeat(quad);
}

// sums [kRows][kPanels] of code products over `count` pieces of 64 bytes a panel; `sums` begin as they are.
template <class Form, int kRows, int kPanels>
ALLOTROPE_INLINE void dots(const char* weights, int64_t stride, const int8_t* x, int64_t count, Ahead& ahead,
                           N (&sums)[kRows][kPanels]) {
    for (int64_t piece = 0; piece < count; ++piece) {
        if (kRows < kTall) ahead.fetch<kPanels>(64);
        N quads[kPanels][Form::kQuads];
        ALLOTROPE_UNROLL(c, kPanels) Form::split(load_whole(weights + c * stride), quads[c]);
        ALLOTROPE_UNROLL(q, Form::kQuads) {
            ALLOTROPE_UNROLL(r, kRows) {
                const N given = given_quad(x + (q * kRows + r) * 4);
                ALLOTROPE_UNROLL(c, kPanels) ALLOTROPE_PARTS(p) sums[r][c].at[p] =
                    Form::product(sums[r][c].at[p], quads[c][q].at[p], given.at[p]);
            }
        }
        weights += 64;
        x += Form::kQuads * kRows * 4;
    }
}

}  // namespace allotrope::ALLOTROPE_ISA
