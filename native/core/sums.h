// What sampling and scoring sum over a vocabulary: in chunks of fixed length, whose results are added in their order, so
// that how many threads share a row changes nothing.

#pragma once

#include "maths.h"
#include "peaks.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int64_t kChunk = 4096;

inline int64_t chunks_of(int64_t vocab) { return (vocab + kChunk - 1) / kChunk; }

// Of this chunk: the last one's may be shorter.
inline int64_t length_of(int64_t chunk, int64_t vocab) {
    const int64_t left = vocab - chunk * kChunk;
    return left < kChunk ? left : kChunk;
}

constexpr int kWideLanes = kLanes / 2;
using D = double __attribute__((vector_size(8 * kWideLanes)));
using L = int64_t __attribute__((vector_size(8 * kWideLanes)));
using HalfF = float __attribute__((vector_size(4 * kWideLanes)));

inline D widen(const float* from) {
    HalfF half;
    std::memcpy(&half, from, sizeof half);
    return __builtin_convertvector(half, D);
}

inline double sum(D value) {
    double whole[kWideLanes];
    std::memcpy(whole, &value, sizeof whole);
    for (int half = kWideLanes / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) whole[i] += whole[i + half];
    return whole[0];
}

inline D fma(D a, D b, D c) {
#if defined(__AVX512F__)
    return (D)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (D)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
}

// e^x for x ≤ 0, right to about an ulp; below −700 it is 0.
inline D exp_below(D x) {
    const D shift = 6755399441055744.0 - D{};  // 1.5 · 2⁵²
    const D bound = x > -700.0 ? x : -700.0 - D{};
    const D shifted = fma(bound, 1.4426950408889634 - D{}, shift), n = shifted - shift;
    D r = fma(n, -0x1.62e42feep-1 - D{}, bound);  // 33 bits of ln 2: times n that is exact
    r = fma(n, -0x1.a39ef35793c76p-33 - D{}, r);
    D series = 1.0 / 6227020800.0 - D{};
    constexpr double terms[] = {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0};
    for (const double term : terms) series = fma(series, r, 1.0 / term - D{});
    series = fma(series, r, 0.5 - D{});
    series = fma(series * r, r, r) + 1.0;
    const D found = series * (D)(((L)shifted + 1023) << 52);  // the low bits of `shifted` are n
    return x > -700.0 ? found : D{};
}

// A number's bits as an unsigned integer that orders as the numbers do; −0 is 0.
inline uint32_t ordered(float value) {
    uint32_t bits;
    value += 0.0f;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Calls body(row, chunk, first, length) for a thread's part of the chunks of so many rows.
template <class Body>
inline void for_chunks(int64_t rows, int64_t vocab, const Team& team, Body body) {
    const int64_t chunks = chunks_of(vocab);
    const Share mine(rows * chunks, team);
    for (int64_t at = mine.begin; at < mine.end; ++at) {
        const int64_t chunk = at % chunks;
        body(at / chunks, chunk, chunk * kChunk, length_of(chunk, vocab));
    }
}

// Σ e^(value − peak) over a chunk, whose values are not above it: exponentials in fp32, their sum in fp64.
inline double mass_of(const float* from, int64_t count, float peak) {
    D sums[2] = {};
    const auto add = [&](F value) {
        float whole[kLanes];
        store(whole, value);
        sums[0] += widen(whole);
        sums[1] += widen(whole + kWideLanes);
    };
    int64_t at = 0;
    for (; at + 4 * kLanes <= count; at += 4 * kLanes) {
        F some[4];
        for (int i = 0; i < 4; ++i) some[i] = load(from + at + i * kLanes) - peak;
        exps_below(some);
        for (int i = 0; i < 4; ++i) add(some[i]);
    }
    const auto one = [&](F value) {
        F some[1] = {value};
        exps_below(some);
        return some[0];
    };
    over(
        at, count, [&](int64_t here) { add(one(load(from + here) - peak)); },
        [&](int64_t here, int64_t left) { add(keep(one(load_some(from + here, left) - peak), left)); });
    return sum(sums[0] + sums[1]);
}

// The first of `count` values that equals `value`, or −1.
inline int64_t first_of(const float* from, int64_t count, float value) {
    int64_t at = 0;
    for (; at + kLanes <= count; at += kLanes) {
        if (any_of(load(from + at) == value)) break;
    }
    for (; at < count; ++at)
        if (from[at] == value) return at;
    return -1;
}

}  // namespace allotrope::ALLOTROPE_ISA
