// Vectors of fp32 as wide as the instruction set's registers, in the compiler's own vector types.
//
// Every operation is one IEEE operation per lane (contraction is off; `fma` fuses where the machine can, and then
// everywhere in this instruction set). Sums over a vector's lanes go by halves, always in the same order.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernel.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace allotrope::ALLOTROPE_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using F = float __attribute__((vector_size(4 * kLanes)));
using I = int32_t __attribute__((vector_size(4 * kLanes)));

inline F splat(float value) { return value - F{}; }  // −0 stays −0, as value + 0 would not

inline F load(const float* from) {
    F value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }

// A vector of fp16 as fp32: exact.
inline F widen_half(const uint16_t* from) {
#if defined(__AVX512F__)
    return (F)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    // The exponent's bias is off by 112 then, which one product puts right; infinities and NaN are put in their place.
    F result;
    for (int i = 0; i < kLanes; ++i) {
        const uint32_t bits = static_cast<uint32_t>(from[i] & 0x7FFF) << 13;
        const uint32_t sign = static_cast<uint32_t>(from[i] & 0x8000) << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        value *= 0x1p112f;
        uint32_t found;
        std::memcpy(&found, &value, 4);
        if ((from[i] & 0x7C00) == 0x7C00) found = bits | 0x7F800000;
        found |= sign;
        std::memcpy(&value, &found, 4);
        result[i] = value;
    }
    return result;
#endif
}

// A vector of bf16 as fp32: exact.
inline F widen_brain(const uint16_t* from) {
    typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (F)(__builtin_convertvector(halves, I) << 16);
}

// One fp32 as fp16, rounded to nearest, ties to even.
inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return sign | 0x7E00 | static_cast<uint16_t>(bits >> 13 & 0x1FF);
    if (bits >= 0x47800000) return sign | 0x7C00;
    if (bits < 0x38800000) return sign | static_cast<uint16_t>(std::nearbyint(std::fabs(value) * 0x1p24f));
    bits += 0xFFF + (bits >> 13 & 1);
    return sign | static_cast<uint16_t>((bits >> 13) - (112 << 10));
}

// A vector of fp32 as fp16, rounded so.
inline void store_half(uint16_t* to, F value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_maskz_cvtps_ph(0xFFFF, (__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes; ++i) to[i] = to_half(value[i]);
#endif
}

// The first `count` (< kLanes) elements, the others 0. Nothing beyond is read or written.
#if defined(__AVX512F__)
inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
inline F load_some(const float* from, int64_t count) { return (F)_mm512_maskz_loadu_ps(first_lanes(count), from); }
inline void store_some(float* to, F value, int64_t count) { _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)value); }
#elif defined(__AVX2__)
inline F load_some(const float* from, int64_t count) {
    alignas(64) static constexpr int32_t lanes[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
    I mask;
    std::memcpy(&mask, lanes + kLanes - count, sizeof mask);
    return (F)_mm256_maskload_ps(from, (__m256i)mask);
}

// By fours, twos and one: some machines take dozens of steps for a masked store.
inline void store_some(float* to, F value, int64_t count) {
    __m128 rest = _mm256_castps256_ps128((__m256)value);
    if (count & 4) {
        _mm_storeu_ps(to, rest);
        rest = _mm256_extractf128_ps((__m256)value, 1);
        to += 4;
    }
    if (count & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(to), rest);
        rest = _mm_movehl_ps(rest, rest);
        to += 2;
    }
    if (count & 1) _mm_store_ss(to, rest);
}
#else
inline F load_some(const float* from, int64_t count) {
    float whole[kLanes] = {};
    for (int i = 0; i < kLanes; ++i)
        if (i < count) whole[i] = from[i];
    return load(whole);
}

inline void store_some(float* to, F value, int64_t count) {
    float whole[kLanes];
    store(whole, value);
    for (int i = 0; i < kLanes; ++i)
        if (i < count) to[i] = whole[i];
}
#endif

// The first `count` lanes; the others become `other`.
inline F keep(F value, int64_t count, float other = 0) {
    I lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return lane < static_cast<int32_t>(count) ? value : splat(other);
}

// a · b + c, rounded once where the machine can.
inline F fma(F a, F b, F c) {
#if defined(__AVX512F__)
    return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    F result;
    for (int i = 0; i < kLanes; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return result;
#else
    return a * b + c;
#endif
}

inline F select(I mask, F yes, F no) { return mask ? yes : no; }
// The second where either is NaN. Compilers do not see that the portable form is one instruction.
#if defined(__AVX512F__)
inline F max(F a, F b) { return (F)_mm512_maskz_max_ps(0xFFFF, (__m512)a, (__m512)b); }
inline F min(F a, F b) { return (F)_mm512_maskz_min_ps(0xFFFF, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline F max(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }
inline F min(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a < b ? a : b; }
#endif
inline F abs(F a) { return (F)((I)a & 0x7FFFFFFF); }

// The sum of the lanes, by halves: lane i and lane i + n/2, and so on.
inline float sum(F value) {
#if defined(__AVX512F__)
    const __m512 whole = (__m512)value;
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(whole), _mm512_extractf32x8_ps(whole, 1));
#elif defined(__AVX2__)
    const __m256 half = (__m256)value;
#endif
#if defined(__AVX2__)
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
    return (value[0] + value[2]) + (value[1] + value[3]);
#endif
}

// Lane i: the sum of values[i]'s lanes, bit for bit as `sum` adds them, but for all at once.
inline F sums(const F* values) {
#if defined(__AVX512F__)
    const auto halves = [&](int i) {
        const __m512 a = (__m512)values[i], b = (__m512)values[i + 4];
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    };
    const auto fours = [&](int i) {
        const __m512 a = halves(i), b = halves(i + 8);
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    };
    const auto twos = [&](int i) {
        const __m512d a = _mm512_castps_pd(fours(i)), b = _mm512_castps_pd(fours(i + 1));
        return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    };
    const __m512 a = twos(0), b = twos(2);
    return (F)_mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
#elif defined(__AVX2__)
    const auto fours = [&](int i) {
        const __m256 a = (__m256)values[i], b = (__m256)values[i + 4];
        return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    };
    const auto twos = [&](int i) {
        const __m256d a = _mm256_castps_pd(fours(i)), b = _mm256_castps_pd(fours(i + 1));
        return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    };
    const __m256 a = twos(0), b = twos(2);
    return (F)_mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xDD));
#else
    F found{};
    for (int i = 0; i < kLanes; ++i) found[i] = sum(values[i]);
    return found;
#endif
}

// Of two vectors' first or second halves: one's lane, then the other's.
template <bool kSecond>
inline F interleaved(F a, F b) {
#if defined(__AVX512F__)
    const __m512i from = kSecond ? _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                                 : _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return (F)_mm512_permutex2var_ps((__m512)a, from, (__m512)b);
#elif defined(__AVX2__)
    const __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b), high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    return (F)_mm256_permute2f128_ps(low, high, kSecond ? 0x31 : 0x20);
#else
    constexpr int from = kSecond ? kLanes / 2 : 0;
    F found{};
    for (int i = 0; i < kLanes / 2; ++i) found[2 * i] = a[from + i], found[2 * i + 1] = b[from + i];
    return found;
#endif
}

// Rows become columns: each round doubles how many lanes of a column lie side by side.
inline void transpose(F (&rows)[kLanes]) {
    for (int round = 1; round < kLanes; round *= 2) {
        F found[kLanes];
        for (int i = 0; i < kLanes / 2; ++i) {
            found[2 * i] = interleaved<false>(rows[i], rows[i + kLanes / 2]);
            found[2 * i + 1] = interleaved<true>(rows[i], rows[i + kLanes / 2]);
        }
        for (int i = 0; i < kLanes; ++i) rows[i] = found[i];
    }
}

// The larger one, lane by lane; a NaN counts for nothing.
template <class Lanes>
inline Lanes larger_of(Lanes a, Lanes b) {
    return ((a > b) | (b != b)) ? a : b;
}

// The largest lane; NaNs count for nothing.
inline float largest(F value) {
    typedef float Four __attribute__((vector_size(16)));
    Four fours[kLanes / 4];
    std::memcpy(fours, &value, sizeof fours);
    for (int half = kLanes / 8; half; half /= 2)
        for (int i = 0; i < half; ++i) fours[i] = larger_of(fours[i], fours[i + half]);
    const Four four = fours[0], two = larger_of(four, Four{four[2], four[3], four[0], four[1]});
    return larger_of(two, Four{two[1], two[0], two[3], two[2]})[0];
}

// The largest lane of a vector without NaNs.
inline float top(F value) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m512 whole = (__m512)value;
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(whole), _mm512_extractf32x8_ps(whole, 1));
#else
    const __m256 half = (__m256)value;
#endif
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
    return largest(value);
#endif
}

// Calls whole(at) for each vector of [begin, end), and rest(at, count) for what is left at its end.
template <class Whole, class Rest>
inline void over(int64_t begin, int64_t end, Whole whole, Rest rest) {
    for (; begin + kLanes <= end; begin += kLanes) whole(begin);
    if (begin < end) rest(begin, end - begin);
}

// Calls body(row, begin, end) for a thread's part of a matrix whose elements do not depend on each other: whole rows
// where there are enough, otherwise columns in whole vectors.
template <class Body>
inline void for_cells(const View& view, const Team& team, Body body) {
    if (view.rows >= 4 * team.count || view.width < 64 * team.count) {
        const Share mine(view.rows, team);
        for (int64_t row = mine.begin; row < mine.end; ++row) body(row, int64_t{0}, view.width);
        return;
    }
    const Share mine(view.width, team, kLanes);
    for (int64_t row = 0; row < view.rows; ++row) body(row, mine.begin, mine.end);
}

// out = function(x), element by element.
template <class Function>
inline void map(const View& out, const View& x, const Team& team, Function function) {
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        const float* from = x.row<float>(row);
        float* to = out.row<float>(row);
        over(
            begin, end, [&](int64_t at) { store(to + at, function(load(from + at))); },
            [&](int64_t at, int64_t left) { store_some(to + at, function(load_some(from + at, left)), left); });
    });
}

// out = function(x, y), element by element.
template <class Function>
inline void map(const View& out, const View& x, const View& y, const Team& team, Function function) {
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        const float *left_from = x.row<float>(row), *right_from = y.row<float>(row);
        float* to = out.row<float>(row);
        over(
            begin, end, [&](int64_t at) { store(to + at, function(load(left_from + at), load(right_from + at))); },
            [&](int64_t at, int64_t left) {
                store_some(to + at, function(load_some(left_from + at, left), load_some(right_from + at, left)), left);
            });
    });
}

}  // namespace allotrope::ALLOTROPE_ISA
