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

// What a row is divided by. Where the machine fuses, x · (1 / scale) is put right by what it leaves over, which rounds as a
// division does (Markstein) and takes less time; but not where that remainder is too small for fp32.
class Divisor {
 public:
    ALLOTROPE_INLINE explicit Divisor(float scale)
        : scale_(splat(scale)), inverse_(splat(1.0f / scale)), fuses_(kFuses && scale >= 0x1p-90f) {}

    ALLOTROPE_INLINE F under(F x) const {
        if (!fuses_) return x / scale_;
        const F near = x * inverse_;
        return fma(fma(-near, scale_, x), inverse_, near);
    }

 private:
#if defined(__AVX2__) || defined(__aarch64__)
    static constexpr bool kFuses = true;
#else
    static constexpr bool kFuses = false;
#endif
    F scale_, inverse_;
    bool fuses_;
};

// Sixteen codes: x / scale to the nearest, ties to even. What is added and taken off again leaves no fraction over.
ALLOTROPE_INLINE N codes_of(const W& x, const Divisor& scale) {
    N codes;
    ALLOTROPE_PARTS(i) {
        const F steps = min(max(scale.under(x.at[i]), splat(-kMostCode)), splat(kMostCode));
        codes.at[i] = (I)(steps + 12582912.0f) - 0x4B400000;
    }
    return codes;
}

ALLOTROPE_INLINE Codes16 narrow(const N& codes) {
#if defined(__AVX512F__)
    return (Codes16)_mm512_maskz_cvtepi32_epi8(0xFFFF, (__m512i)codes.at[0]);
#elif defined(__AVX2__)
    __m128i halves[2];
    for (int i = 0; i < 2; ++i) {
        const auto part = (__m256i)codes.at[i];
        halves[i] = _mm_packs_epi32(_mm256_castsi256_si128(part), _mm256_extracti128_si256(part, 1));
    }
    return (Codes16)_mm_packs_epi16(halves[0], halves[1]);
#else
    typedef int8_t Some __attribute__((vector_size(kLanes)));
    Codes16 bytes;
    ALLOTROPE_PARTS(i) {
        const Some some = __builtin_convertvector(codes.at[i], Some);
        std::memcpy(reinterpret_cast<char*>(&bytes) + i * kLanes, &some, sizeof some);
    }
    return bytes;
#endif
}

// Of each eight codes the even ones, then the odd ones.
ALLOTROPE_INLINE Codes16 parted(const Codes16& codes) {
#if defined(__AVX2__)  // the compiler would take the bytes one by one
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    return (Codes16)_mm_shuffle_epi8((__m128i)codes, order);
#else
    return Codes16{codes[0], codes[2],  codes[4],  codes[6],  codes[1], codes[3],  codes[5],  codes[7],
                   codes[8], codes[10], codes[12], codes[14], codes[9], codes[11], codes[13], codes[15]};
#endif
}

ALLOTROPE_INLINE int32_t total(const N& sums) {
    typedef int32_t Four __attribute__((vector_size(16)));
    Four fours[4];
    std::memcpy(fours, &sums, sizeof fours);
    const Four found = (fours[0] + fours[1]) + (fours[2] + fours[3]);
    return (found[0] + found[1]) + (found[2] + found[3]);
}

constexpr int64_t kInputsTogether = 64;  // where a row's codes lie side by side, so many before the next row's

// Where codes go: row `row` of a tile of `rows`, and −factor · Σ codes of each stretch of `size` inputs.
struct Place {
    int8_t* codes;
    int32_t* sums;  // [stretches][rows]; null: nobody needs them
    int64_t rows, row, size;
    int32_t factor;
};

// Inputs [begin, end) of a row, the end of which is filled up with zeros to whole quads. They begin with a stretch.
// `kTogether`: quads do not alternate with those of other rows.
template <class Form, bool kTogether>
void encode(const float* x, int64_t begin, int64_t end, float scale, const Place& to) {
    constexpr int kInputs = 4 * Form::kQuads;
    const bool finite = scale == scale;
    const Divisor divisor(scale);
    for (int64_t first = begin; first < end; first += to.size) {
        const int64_t stop = first + to.size < end ? first + to.size : end;
        N sums{};
        const auto put = [&](int64_t at, const W& values, int64_t count) {
            N codes{};
            if (finite) codes = codes_of(values, divisor);
            ALLOTROPE_PARTS(p) sums.at[p] += codes.at[p];
            Codes16 bytes = narrow(codes);
            if (Form::kQuads == 2) bytes = parted(bytes);
            const int64_t filled = (count + kInputs - 1) / kInputs * Form::kQuads;
            if (kTogether) {
                const uint64_t input = static_cast<uint64_t>(at), block = input / kInputsTogether * to.rows + to.row;
                int8_t* place = to.codes + block * kInputsTogether + input % kInputsTogether;
                if (count == kPanel)
                    std::memcpy(place, &bytes, sizeof bytes);
                else
                    std::memcpy(place, &bytes, 4 * filled);
                return;
            }
            typedef int32_t Quads __attribute__((vector_size(16)));
            const Quads quads = (Quads)bytes;
            int8_t* place = to.codes + (at / 4 * to.rows + to.row) * 4;
            ALLOTROPE_UNROLL(i, 4) {
                const int32_t quad = quads[i];
                if (count == kPanel || i < filled) std::memcpy(place + i * to.rows * 4, &quad, 4);
            }
        };
        int64_t at = first;
        for (; at + kPanel <= stop; at += kPanel) put(at, load_wide(x + at), kPanel);
        if (at < stop) {
            alignas(64) float rest[kPanel] = {};
            std::memcpy(rest, x + at, 4 * (stop - at));
            put(at, load_wide(rest), stop - at);
        }
        if (to.sums != nullptr) to.sums[first / to.size * to.rows + to.row] = -to.factor * total(sums);
    }
}

ALLOTROPE_INLINE N given_quad(const int8_t* at) {
    int32_t quad;
    std::memcpy(&quad, at, 4);
    return repeat(quad);
}

// sums [kRows][kPanels] += code products over one piece, 64 bytes of a panel; with two sums of each, the second takes
// every other quad.
template <class Form, int kRows, int kPanels, int kSums>
ALLOTROPE_INLINE void piece(const char* weights, int64_t stride, const int8_t* x, int first,
                            N (&sums)[kSums][kRows][kPanels]) {
    N quads[kPanels][Form::kQuads];
    ALLOTROPE_UNROLL(c, kPanels) Form::split(load_whole(weights + c * stride), quads[c]);
    ALLOTROPE_UNROLL(q, Form::kQuads) {
        ALLOTROPE_UNROLL(r, kRows) {
            const N given = given_quad(x + (q * kRows + r) * 4);
            ALLOTROPE_UNROLL(c, kPanels) {
                N& sum = sums[(first + q) % kSums][r][c];
                ALLOTROPE_PARTS(p) sum.at[p] = Form::product(sum.at[p], quads[c][q].at[p], given.at[p]);
            }
        }
    }
}

#if defined(ALLOTROPE_PAIRS)
// The same over so many pieces that their products still fit into 16 bits, pair by pair.
template <class Form, int kRows, int kPanels>
ALLOTROPE_INLINE void pieces_in_pairs(const char* weights, int64_t stride, const int8_t* x, Ahead& ahead,
                                      N (&sums)[kRows][kPanels]) {
    static_assert(kPairs % Form::kQuads == 0);
    N pairs[kRows][kPanels] = {};
    _Pragma("GCC unroll 1") for (int i = 0; i < kPairs / Form::kQuads; ++i) {
        if (kRows < kTall) ahead.fetch<kPanels>(64);
        N quads[kPanels][Form::kQuads];
        ALLOTROPE_UNROLL(c, kPanels) Form::split(load_whole(weights + c * stride), quads[c]);
        ALLOTROPE_UNROLL(q, Form::kQuads) {
            ALLOTROPE_UNROLL(r, kRows) {
                const N given = given_quad(x + (q * kRows + r) * 4);
                ALLOTROPE_UNROLL(c, kPanels) ALLOTROPE_PARTS(p)
                    pairs[r][c].at[p] = add_pairs(pairs[r][c].at[p], quads[c][q].at[p], given.at[p]);
            }
        }
        weights += 64;
        x += Form::kQuads * kRows * 4;
    }
    ALLOTROPE_UNROLL(r, kRows) ALLOTROPE_UNROLL(c, kPanels) ALLOTROPE_PARTS(p)
        sums[r][c].at[p] += sum_of_pairs(pairs[r][c].at[p]);
}
#endif

// sums [kRows][kPanels] += code products over `count` pieces. A sum waits for the one before it, so few of them are each
// summed in two halves: integers do not mind.
template <class Form, int kRows, int kPanels>
ALLOTROPE_INLINE void dots(const char* weights, int64_t stride, const int8_t* x, int64_t count, Ahead& ahead,
                           N (&sums)[kRows][kPanels]) {
    constexpr int kSums = kRows * kPanels < 4 ? 2 : 1, kStep = kSums > Form::kQuads ? 2 : 1;
    constexpr int64_t kWidth = Form::kQuads * kRows * 4;
    int64_t at = 0;
#if defined(ALLOTROPE_PAIRS)
    if constexpr (Form::kSmall)
        for (constexpr int kTogether = kPairs / Form::kQuads; at + kTogether <= count; at += kTogether) {
            pieces_in_pairs<Form, kRows, kPanels>(weights, stride, x, ahead, sums);
            weights += 64 * kTogether;
            x += kWidth * kTogether;
        }
#endif
    N parts[kSums][kRows][kPanels] = {};
    ALLOTROPE_UNROLL(r, kRows) ALLOTROPE_UNROLL(c, kPanels) parts[0][r][c] = sums[r][c];
    for (; at + kStep <= count; at += kStep) {
        ALLOTROPE_UNROLL(i, kStep) {
            if (kRows < kTall) ahead.fetch<kPanels>(64);
            piece<Form, kRows, kPanels, kSums>(weights + 64 * i, stride, x + i * kWidth, i, parts);
        }
        weights += 64 * kStep;
        x += kWidth * kStep;
    }
    if (kStep > 1 && at < count) piece<Form, kRows, kPanels, kSums>(weights, stride, x, 0, parts);
    ALLOTROPE_UNROLL(r, kRows) ALLOTROPE_UNROLL(c, kPanels) {
        sums[r][c] = parts[0][r][c];
        if (kSums > 1) ALLOTROPE_PARTS(p) sums[r][c].at[p] += parts[kSums - 1][r][c].at[p];
    }
}

}  // namespace allotrope::ALLOTROPE_ISA
