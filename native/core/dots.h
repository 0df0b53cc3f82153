// Dot products of four bytes in each int32 lane: the activation's signed, the weight's as the machine likes them, the sum
// exact.
//
// Codes of weights are signed. Where the machine multiplies unsigned with signed bytes they are made unsigned by adding
// kOffset, and a sum of products then holds kOffset · Σ activations too much. None of these ways saturates.

#pragma once

#include "panels.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace allotrope::ALLOTROPE_ISA {

#if defined(__ARM_FEATURE_DOTPROD) || (defined(__AVX2__) && !defined(__AVX512BW__))
constexpr int kOffset = 0;  // both are signed there; a code of four bits and no sign is a signed byte as well
#else
constexpr int kOffset = 128;
#endif

// Codes of 8 bits as `dot` takes them.
ALLOTROPE_INLINE N unsigned_codes(const N& codes) {
    if (kOffset == 0) return codes;
    N result;
    ALLOTROPE_PARTS(i) result.at[i] = codes.at[i] ^ static_cast<int32_t>(0x80808080);
    return result;
}

#if defined(__AVX512VNNI__)

ALLOTROPE_INLINE I dot(I sums, I weights, I given) {
    return (I)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)given);
}
ALLOTROPE_INLINE I dot_small(I sums, I weights, I given) { return dot(sums, weights, given); }

#elif defined(__AVX512BW__)

// Even and odd bytes as pairs of 16 bits: two products of 255 · 127 would saturate there, but are summed in 32.
ALLOTROPE_INLINE I dot(I sums, I weights, I given) {
    const __m512i w = (__m512i)weights, x = (__m512i)given;
    const __m512i even = _mm512_and_si512(w, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(w, 8);
    const __m512i low = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8), high = _mm512_srai_epi16(x, 8);
    return sums + (I)_mm512_madd_epi16(even, low) + (I)_mm512_madd_epi16(odd, high);
}
// Weights up to 15: 2 · 15 · 127 fits into 16 bits.
ALLOTROPE_INLINE I dot_small(I sums, I weights, I given) {
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)weights, (__m512i)given);
    return sums + (I)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}

#elif defined(__AVX2__)

// The weight's sign goes to the activation, which is no less than −127: 2 · 128 · 127 fits into 16 bits.
ALLOTROPE_INLINE I dot(I sums, I weights, I given) {
    const __m256i w = (__m256i)weights, x = _mm256_sign_epi8((__m256i)given, w);
    return sums + (I)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), x), _mm256_set1_epi16(1));
}
ALLOTROPE_INLINE I dot_small(I sums, I weights, I given) {
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)weights, (__m256i)given);
    return sums + (I)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#elif defined(__ARM_FEATURE_DOTPROD)

ALLOTROPE_INLINE I dot(I sums, I weights, I given) {
    return (I)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)given);
}
ALLOTROPE_INLINE I dot_small(I sums, I weights, I given) { return dot(sums, weights, given); }

#else

ALLOTROPE_INLINE I dot(I sums, I weights, I given) {
    for (int shift = 0; shift < 32; shift += 8) sums += ((weights >> shift) & 255) * ((given << (24 - shift)) >> 24);
    return sums;
}
ALLOTROPE_INLINE I dot_small(I sums, I weights, I given) { return dot(sums, weights, given); }

#endif

// Products of weights up to 15 as pairs of 16 bits: 15 · 127 fits eight times twice, so `kPairs` of them are added up
// before they become sums of 32.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
#define ALLOTROPE_PAIRS
constexpr int kPairs = 8;
static_assert(kPairs * 2 * 15 * 127 <= INT16_MAX);

#if defined(__AVX512BW__)
ALLOTROPE_INLINE I add_pairs(I pairs, I weights, I given) {
    I found = (I)_mm512_add_epi16((__m512i)pairs, _mm512_maddubs_epi16((__m512i)weights, (__m512i)given));
    __asm__("" : "+v"(found));  // one after the other: as a tree they would not fit into the registers
    return found;
}
ALLOTROPE_INLINE I sum_of_pairs(I pairs) { return (I)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1)); }
#else
ALLOTROPE_INLINE I add_pairs(I pairs, I weights, I given) {
    I found = (I)_mm256_add_epi16((__m256i)pairs, _mm256_maddubs_epi16((__m256i)weights, (__m256i)given));
    __asm__("" : "+x"(found));
    return found;
}
ALLOTROPE_INLINE I sum_of_pairs(I pairs) { return (I)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1)); }
#endif
#endif

// How weights lie in quads, and as what `dot` gets them. A quad's inputs are kQuads times four.
struct Bytes {
    static constexpr int kQuads = 1, kZero = kOffset;  // a code of zero as `dot` gets it
    static constexpr bool kSmall = false;              // as `dot_small` wants it
    static ALLOTROPE_INLINE void split(const N& raw, N (&quads)[kQuads]) { quads[0] = unsigned_codes(raw); }
    static ALLOTROPE_INLINE I product(I sums, I weights, I given) { return dot(sums, weights, given); }
};

// The even inputs' codes lie in the low halves of bytes, the odd ones' in the high.
template <bool kSigned>
struct Nibbles {
    static constexpr int kQuads = 2, kZero = kSigned ? 8 : 0;
    static constexpr bool kSmall = true;
    static ALLOTROPE_INLINE void split(const N& raw, N (&quads)[kQuads]) {
        constexpr int32_t sign = kSigned ? 0x08080808 : 0;
        ALLOTROPE_PARTS(i) {
            quads[0].at[i] = (raw.at[i] & 0x0F0F0F0F) ^ sign;
            quads[1].at[i] = ((raw.at[i] >> 4) & 0x0F0F0F0F) ^ sign;
        }
    }
    static ALLOTROPE_INLINE I product(I sums, I weights, I given) { return dot_small(sums, weights, given); }
};

}  // namespace allotrope::ALLOTROPE_ISA
