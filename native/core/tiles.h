// Rows times panels in fp32: tiles of a few rows and a few panels, which live in registers.
//
// An output is a sum over blocks of inputs, each summed by itself, input after input, one fused multiplication and
// addition each; the blocks' sums are then added in order, those of a group times its scale first. A tile's size changes
// nothing in that, so a row's bits are its own, among however many rows, on however many threads.

#pragma once

#include "panels.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int64_t kBlock = 256;  // inputs that are summed by themselves where there are no groups

#if defined(__AVX512F__)
constexpr int kTall = 12, kBroad = 2;  // rows of the tallest tile, and its panels: 24 of 32 registers hold sums
constexpr int kTallCodes = kTall;     // of codes
constexpr int kTallGroups = 6;         // of codes in groups, where there are sums of integers beside those of fp32
constexpr int kFlat = 4;               // panels of a tile of few rows
#elif defined(__AVX2__)
constexpr int kTall = 6, kBroad = 1;  // 12 of 16
constexpr int kTallCodes = 4;         // weights lie beside their absolute values
constexpr int kTallGroups = 4;        // sums of pairs, while totals wait on the stack
constexpr int kFlat = 2;
#elif defined(__aarch64__)
constexpr int kTall = 5, kBroad = 1;  // 20 of 32
constexpr int kTallCodes = kTall, kTallGroups = 3;
constexpr int kFlat = 2;
#else
constexpr int kTall = 2, kBroad = 1, kTallCodes = 2, kTallGroups = 2;
constexpr int kFlat = 1;
#endif

// What is read next, for few rows: the machine sees no further ahead than the instructions that it holds, and with
// several rows those cover little memory. At a panel's end the panels that follow are next.
constexpr int64_t kAhead = 4096;  // bytes; half as many where several panels are read side by side

struct Ahead {
    const char* next;  // of the first panel of those that are read together
    const char* end;   // where that panel ends, and `next` goes on in the panel that comes after them all
    int64_t stride, jump;
    bool near;

    ALLOTROPE_INLINE Ahead(const char* panel, int64_t stride, int panels)
        : next(panel + (panels == 1 ? kAhead : kAhead / 2)),
          end(panel + stride),
          stride(stride),
          jump((panels - 1) * stride),
          near(__atomic_load_n(&fetch_near, __ATOMIC_RELAXED)) {}

    template <int kPanels>
    ALLOTROPE_INLINE void fetch(int64_t bytes) {
        if (next >= end) {
            next += jump;
            end += jump + stride;
        }
        if (near)
            ALLOTROPE_UNROLL(c, kPanels) __builtin_prefetch(next + c * stride);
        else
            ALLOTROPE_UNROLL(c, kPanels) __builtin_prefetch(next + c * stride, 0, 2);
        next += bytes;
    }
};

// What stands beside a panel's codes: scales, and zeros, per block of inputs.
struct Groups {
    const uint16_t* scales = nullptr;  // fp16, or, if `wide`, fp32
    const float* wide = nullptr;
    const uint8_t* zeros = nullptr;
    int64_t count = 1;       // groups of a row; a panel's scales are [count][16]
    int64_t size = 0;        // inputs of a group
    int64_t block = kBlock;  // inputs that are summed by themselves: a group's, or so many of it

    ALLOTROPE_INLINE int64_t at(int64_t input) const { return count == 1 ? 0 : input / size; }

    ALLOTROPE_INLINE W scale(int64_t panel, int64_t group) const {
        const int64_t at = (panel * count + group) * kPanel;
        return wide != nullptr ? load_wide(wide + at) : load_half(scales + at);
    }
    ALLOTROPE_INLINE N zero(int64_t panel, int64_t group) const {
        N result;
        const uint8_t* from = zeros + (panel * count + group) * kPanel;
        typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
        ALLOTROPE_PARTS(i) {
            Bytes bytes;
            std::memcpy(&bytes, from + i * kLanes, sizeof bytes);
            result.at[i] = __builtin_convertvector(bytes, I);
        }
        return result;
    }
};

// totals [kRows][kPanels] += x [inputs][kRows] · panels, over inputs [begin, end), which begin and end with blocks.
// `weights` is the first panel's first byte for input `origin`; panels lie `stride` bytes apart.
template <class Reader, bool kGrouped, int kRows, int kPanels>
ALLOTROPE_INLINE void tile(const char* weights, int64_t stride, const float* x, int64_t origin, int64_t begin,
                           int64_t end, const Groups& groups, int64_t panel, W (&totals)[kRows][kPanels]) {
    constexpr int kInputs = Reader::kInputs;
    Ahead ahead(weights, stride, kPanels);
    for (int64_t block = begin; block < end; block += groups.block) {
        const int64_t stop = block + groups.block < end ? block + groups.block : end;
        W sums[kRows][kPanels] = {};
        W zeros[kPanels] = {};
        const bool shifted = kGrouped && groups.zeros != nullptr;
        if (shifted) ALLOTROPE_UNROLL(c, kPanels) zeros[c] = to_wide(groups.zero(panel + c, groups.at(block)));
        const char* at = weights + (block - origin) / kInputs * Reader::kBytes;
        const float* row = x + block * kRows;
        for (int64_t input = block; input < stop; input += kInputs) {
            if (kRows < kTall) ahead.fetch<kPanels>(Reader::kBytes);
            typename Reader::Raw raw[kPanels];
            ALLOTROPE_UNROLL(c, kPanels) raw[c] = Reader::raw(at + c * stride);
            ALLOTROPE_UNROLL(i, kInputs) {
                W values[kPanels];
                ALLOTROPE_UNROLL(c, kPanels) {
                    values[c] = Reader::value(raw[c], i);
                    if (shifted) ALLOTROPE_PARTS(p) values[c].at[p] -= zeros[c].at[p];
                }
                ALLOTROPE_UNROLL(r, kRows) {
                    const W given = wide(row[i * kRows + r]);
                    ALLOTROPE_UNROLL(c, kPanels) sums[r][c] = fma(given, values[c], sums[r][c]);
                }
            }
            at += Reader::kBytes;
            row += kInputs * kRows;
        }
        ALLOTROPE_UNROLL(c, kPanels) {
            if (kGrouped) {
                const W scale = groups.scale(panel + c, groups.at(block));
                ALLOTROPE_UNROLL(r, kRows) totals[r][c] = fma(sums[r][c], scale, totals[r][c]);
            } else {
                ALLOTROPE_UNROLL(r, kRows) totals[r][c] = totals[r][c] + sums[r][c];
            }
        }
    }
}

// A block of a panel as fp32, for many tiles: [inputs][16].
template <class Reader>
void widen(const char* weights, int64_t begin, int64_t end, const N* zeros, float* to) {
    const char* at = weights + begin / Reader::kInputs * Reader::kBytes;
    for (int64_t input = begin; input < end; input += Reader::kInputs, at += Reader::kBytes) {
        const typename Reader::Raw raw = Reader::raw(at);
        ALLOTROPE_UNROLL(i, Reader::kInputs) {
            W value = Reader::value(raw, i);
            if (zeros != nullptr) {
                const W zero = to_wide(*zeros);
                ALLOTROPE_PARTS(p) value.at[p] -= zero.at[p];
            }
            store_wide(to, value);
            to += kPanel;
        }
    }
}

}  // namespace allotrope::ALLOTROPE_ISA
