// Functions of vectors: exponentials, the logistic function, the normal distribution. Right to an ulp or two; NaN in,
// NaN out; the same for every lane.

#pragma once

#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

inline I whole(F value) { return __builtin_convertvector(value, I); }
inline F real(I value) { return __builtin_convertvector(value, F); }
inline F power_of_two(I exponent) { return (F)((exponent + 127) << 23); }  // −126 … 127

// e^x: x = n · ln 2 + r with |r| ≤ ln 2 / 2, e^r by its series, times 2^n in two steps so that small results fade out.
inline F exp(F x) {
    const F shift = splat(12582912.0f);  // 1.5 · 2²³: added and taken away, it rounds to the nearest integer
    const F bound = max(splat(-104.0f), min(splat(89.0f), x));  // NaN stays
    const F n = fma(bound, splat(1.44269504f), shift) - shift;
    F r = fma(n, splat(-0.693359375f), bound);
    r = fma(n, splat(2.12194440e-4f), r);
    F sum = splat(1.0f / 5040);
    sum = fma(sum, r, splat(1.0f / 720));
    sum = fma(sum, r, splat(1.0f / 120));
    sum = fma(sum, r, splat(1.0f / 24));
    sum = fma(sum, r, splat(1.0f / 6));
    sum = fma(sum, r, splat(0.5f));
    sum = fma(sum * r, r, r) + 1.0f;
#if defined(__AVX512F__)
    const F found = (F)_mm512_scalef_ps((__m512)sum, (__m512)n);
#else
    const I exponent = whole(min(n, splat(128.0f))), half = exponent >> 1;
    const F found = sum * power_of_two(half) * power_of_two(exponent - half);
#endif
    return found;
}

// e^x for x ≤ 0, which needs fewer steps; below −87 it is 0. Of several vectors at once, step by step:
// each step waits for the one before it, and a machine holds only so many that wait.
template <int kCount>
ALLOTROPE_INLINE void exps_below(F (&x)[kCount]) {
    const F shift = splat(12582912.0f);
    F bound[kCount], shifted[kCount], r[kCount], sum[kCount];
    for (int i = 0; i < kCount; ++i) bound[i] = max(splat(-87.0f), x[i]);
    for (int i = 0; i < kCount; ++i) shifted[i] = fma(bound[i], splat(1.44269504f), shift);
    for (int i = 0; i < kCount; ++i) r[i] = fma(shifted[i] - shift, splat(-0.693359375f), bound[i]);
    for (int i = 0; i < kCount; ++i) r[i] = fma(shifted[i] - shift, splat(2.12194440e-4f), r[i]);
    for (int i = 0; i < kCount; ++i) sum[i] = fma(splat(1.0f / 5040), r[i], splat(1.0f / 720));
    constexpr float terms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f};
    for (const float term : terms)
        for (int i = 0; i < kCount; ++i) sum[i] = fma(sum[i], r[i], splat(term));
    for (int i = 0; i < kCount; ++i) sum[i] = fma(sum[i] * r[i], r[i], r[i]) + 1.0f;
    for (int i = 0; i < kCount; ++i) {
        const F found = sum[i] * (F)(((I)shifted[i] + 127) << 23);  // the low bits of `shifted` are the power of two
        x[i] = x[i] < -87.0f ? F{} : found;
    }
}

// 1 / (1 + e^−x)
inline F logistic(F x) { return splat(1.0f) / (exp(-x) + 1.0f); }

// x · Φ(x). With a = |x| and t = 1 / (1 + a/4), Φ(−a) = e^(−a²/2) · P(t); P was fitted for a up to 14.
inline F gelu(F x) {
    const F a = abs(x), t = splat(1.0f) / fma(a, splat(0.25f), splat(1.0f));
    constexpr float p[] = {-3.31970805e-05f, 0.100456007f, 0.0929155797f, 0.130561054f, -0.0467409603f,
                           0.354276776f,     -0.394193143f, 0.441190839f, -0.216098413f, 0.0376654454f};
    F sum = splat(p[9]);
    for (int i = 8; i >= 0; --i) sum = fma(sum, t, splat(p[i]));
    const F tail = sum * exp(a * a * -0.5f);
    const F found = x < 0.0f ? x * tail : x - x * tail;
    return x == x ? found : x;
}

// x · (1 + tanh(y)) / 2 = x / (1 + e^−2y) with y = √(2/π) · (x + 0.044715 · x³)
inline F gelu_tanh(F x) {
    const F y = fma(x * x * x, splat(0.044715f), x) * 1.595769122f;
    return x / (exp(-y) + 1.0f);
}

inline F silu(F x) { return x / (exp(-x) + 1.0f); }

inline F relu(F x) { return x < 0.0f ? F{} : x; }  // NaN stays

}  // namespace allotrope::ALLOTROPE_ISA
