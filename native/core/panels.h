// Panels: sixteen outputs side by side, whatever the width of the registers, and the ways to read them.
//
// A packed weight is a row of panels, each with the sixteen outputs' weights for one input next to each other:
//
//   panels  [out/16][in][16]       fp32, fp16, bf16: an element each
//   quads   [out/16][in/4][16][4]  bytes: four of an output next to each other, as a dot product of bytes takes them.
//                                  A byte holds a code of 8 bits, or two of 4, the even input in its low half.
//
// Outputs are filled up to sixteen, bytes to four, with zeros. A reader gives a panel's weights as fp32, input after
// input. Whoever sums does it input after input, too, in blocks of fixed length whose sums are then added up: an
// output's bits depend on nothing but its row and its weights.

#pragma once

#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int kPanel = 16;
constexpr int kParts = kPanel / kLanes;

struct W {  // sixteen fp32
    F at[kParts];
};

struct N {  // sixteen int32, or 64 bytes
    I at[kParts];
};

#define ALLOTROPE_PARTS(i) _Pragma("GCC unroll 4") for (int i = 0; i < kParts; ++i)
#define ALLOTROPE_UNROLL(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); ++i)

ALLOTROPE_INLINE W wide(float value) {
    W result;
    ALLOTROPE_PARTS(i) result.at[i] = splat(value);
    return result;
}

ALLOTROPE_INLINE N repeat(int32_t value) {
    N result;
    ALLOTROPE_PARTS(i) result.at[i] = value - I{};
    return result;
}

// Register by register: as one piece, GCC copies through the stack in halves of a register, and whoever reads a whole one
// back waits for both.
ALLOTROPE_INLINE W load_wide(const float* from) {
    W result;
    ALLOTROPE_PARTS(i) result.at[i] = load(from + i * kLanes);
    return result;
}

ALLOTROPE_INLINE N load_whole(const void* from) {
    N result;
    ALLOTROPE_PARTS(i) std::memcpy(&result.at[i], static_cast<const char*>(from) + i * sizeof(I), sizeof(I));
    return result;
}

ALLOTROPE_INLINE void store_wide(float* to, const W& value) { ALLOTROPE_PARTS(i) store(to + i * kLanes, value.at[i]); }

ALLOTROPE_INLINE W fma(const W& a, const W& b, const W& c) {
    W result;
    ALLOTROPE_PARTS(i) result.at[i] = fma(a.at[i], b.at[i], c.at[i]);
    return result;
}

ALLOTROPE_INLINE W operator+(const W& a, const W& b) {
    W result;
    ALLOTROPE_PARTS(i) result.at[i] = a.at[i] + b.at[i];
    return result;
}

ALLOTROPE_INLINE W operator*(const W& a, const W& b) {
    W result;
    ALLOTROPE_PARTS(i) result.at[i] = a.at[i] * b.at[i];
    return result;
}

ALLOTROPE_INLINE W to_wide(const N& value) {
    W result;
    ALLOTROPE_PARTS(i) result.at[i] = __builtin_convertvector(value.at[i], F);
    return result;
}

// Sixteen fp16 or bf16 as fp32: exact.
ALLOTROPE_INLINE W load_half(const uint16_t* from) {
    W result;
    ALLOTROPE_PARTS(i) result.at[i] = widen_half(from + i * kLanes);
    return result;
}

ALLOTROPE_INLINE W load_brain(const uint16_t* from) {
    W result;
    ALLOTROPE_PARTS(i) result.at[i] = widen_brain(from + i * kLanes);
    return result;
}

// The readers. `kInputs` inputs come in one piece, `Raw`, of which `value` gives one.

struct Fp32 {
    static constexpr int kInputs = 1, kBytes = 64;
    using Raw = W;
    static ALLOTROPE_INLINE Raw raw(const char* at) { return load_wide(reinterpret_cast<const float*>(at)); }
    static ALLOTROPE_INLINE W value(const Raw& raw, int) { return raw; }
};

struct Fp16 {
    static constexpr int kInputs = 1, kBytes = 32;
    using Raw = W;
    static ALLOTROPE_INLINE Raw raw(const char* at) { return load_half(reinterpret_cast<const uint16_t*>(at)); }
    static ALLOTROPE_INLINE W value(const Raw& raw, int) { return raw; }
};

struct Bf16 {
    static constexpr int kInputs = 1, kBytes = 32;
    using Raw = W;
    static ALLOTROPE_INLINE Raw raw(const char* at) { return load_brain(reinterpret_cast<const uint16_t*>(at)); }
    static ALLOTROPE_INLINE W value(const Raw& raw, int) { return raw; }
};

struct Int8 {
    static constexpr int kInputs = 4, kBytes = 64;
    using Raw = N;
    static ALLOTROPE_INLINE Raw raw(const char* at) { return load_whole(at); }
    static ALLOTROPE_INLINE W value(const Raw& raw, int input) {
        W result;
        ALLOTROPE_PARTS(i) result.at[i] = __builtin_convertvector((raw.at[i] << (24 - 8 * input)) >> 24, F);
        return result;
    }
};

struct Fp8 {  // e4m3
    static constexpr int kInputs = 4, kBytes = 64;
    using Raw = N;
    static ALLOTROPE_INLINE Raw raw(const char* at) { return load_whole(at); }
    static ALLOTROPE_INLINE W value(const Raw& raw, int input) {
        W result;
        ALLOTROPE_PARTS(i) {
            const I byte = raw.at[i] << (24 - 8 * input);
            const I size = (byte & 0x7F000000) >> 4;  // exponent and mantissa where fp32 has them
            const F normal = (F)(size + (120 << 23)), tiny = (F)(size + (121 << 23)) - 0x1p-6f;
            const F found = select(size < (1 << 23), tiny, normal);
            const I bits = size == (0x7F << 20) ? size | 0x7FC00000 : (I)found;  // of its codes the only NaN
            result.at[i] = (F)(bits | (byte & (I{} + INT32_MIN)));
        }
        return result;
    }
};

template <bool kSigned>
struct Int4 {
    static constexpr int kInputs = 8, kBytes = 64;
    using Raw = N;
    static ALLOTROPE_INLINE Raw raw(const char* at) { return load_whole(at); }
    static ALLOTROPE_INLINE W value(const Raw& raw, int input) {
        W result;
#if defined(__AVX512F__)
        const __m512 table = kSigned ? _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)
                                     : _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        result.at[0] = (F)_mm512_maskz_permutexvar_ps(0xFFFF, (__m512i)(raw.at[0] >> (4 * input)), table);
#else
        ALLOTROPE_PARTS(i) {
            const I high = raw.at[i] << (28 - 4 * input);
            result.at[i] = __builtin_convertvector(kSigned ? high >> 28 : (high >> 28) & 15, F);
        }
#endif
        return result;
    }
};

}  // namespace allotrope::ALLOTROPE_ISA
