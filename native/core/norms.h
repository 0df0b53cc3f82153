// LayerNorm and RMSNorm of one row, for the ops that norm.

#pragma once

#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

// Σ value(vector at), over a row in four interleaved sums: short chains, and little rounding in long rows.
template <class Value, class Rest>
inline float sum_over(int64_t width, Value value, Rest rest) {
    F sums[4] = {};
    int64_t at = 0;
    for (; at + 4 * kLanes <= width; at += 4 * kLanes)
        for (int i = 0; i < 4; ++i) sums[i] += value(at + i * kLanes);
    for (int i = 0; at + kLanes <= width; at += kLanes, ++i) sums[i] += value(at);
    if (at < width) sums[3] += rest(at, width - at);
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// to = scale(x − mean) · weight + bias. `weight` and `bias` may be absent (null).
inline void scale_row(float* to, const float* x, int64_t width, float mean, float factor, const float* weight,
                      const float* bias) {
    over(
        0, width,
        [&](int64_t at) {
            F value = (load(x + at) - mean) * factor;
            if (weight) value = value * load(weight + at);
            if (bias) value = value + load(bias + at);
            store(to + at, value);
        },
        [&](int64_t at, int64_t left) {
            F value = (load_some(x + at, left) - mean) * factor;
            if (weight) value = value * load_some(weight + at, left);
            if (bias) value = value + load_some(bias + at, left);
            store_some(to + at, value, left);
        });
}

inline void layer_norm(float* to, const float* x, int64_t width, float eps, const float* weight, const float* bias) {
    const float mean = sum_over(
                           width, [&](int64_t at) { return load(x + at); },
                           [&](int64_t at, int64_t left) { return load_some(x + at, left); }) /
                       static_cast<float>(width);
    const float squares = sum_over(
        width,
        [&](int64_t at) {
            const F centred = load(x + at) - mean;
            return centred * centred;
        },
        [&](int64_t at, int64_t left) {
            const F centred = load_some(x + at, left) - mean;
            return keep(centred * centred, left);
        });
    scale_row(to, x, width, mean, 1.0f / std::sqrt(squares / static_cast<float>(width) + eps), weight, bias);
}

inline void rms_norm(float* to, const float* x, int64_t width, float eps, const float* weight) {
    const float squares = sum_over(
        width, [&](int64_t at) { return load(x + at) * load(x + at); },
        [&](int64_t at, int64_t left) { return load_some(x + at, left) * load_some(x + at, left); });
    scale_row(to, x, width, 0.0f, 1.0f / std::sqrt(squares / static_cast<float>(width) + eps), weight, nullptr);
}

}  // namespace allotrope::ALLOTROPE_ISA
