// Rows of the KV caches (allotrope/ops/kv_rows.py): wide, fp16, or codes of eight bits followed by a scale per head.

#pragma once

#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

enum KvForm { kWide, kInt8, kFp8, kHalf };

constexpr bool is_scaled(int64_t form) { return form == kInt8 || form == kFp8; }

inline int64_t scales_at(int64_t heads, int64_t head_dim) { return (heads * head_dim + 3) / 4 * 4; }

using KvBytes = uint8_t __attribute__((vector_size(kLanes)));
using SignedKvBytes = int8_t __attribute__((vector_size(kLanes)));

inline F widen_int8(const uint8_t* codes) {
    SignedKvBytes held;
    std::memcpy(&held, codes, sizeof held);
    return __builtin_convertvector(held, F);
}

// e4m3's exponent and mantissa, put where fp32's are, make a number 2^−120 times what is meant.
inline F widen_fp8(const uint8_t* codes) {
    KvBytes held;
    std::memcpy(&held, codes, sizeof held);
    const I wide = __builtin_convertvector(held, I);
    return (F)(((wide & 0x80) << 24) | ((wide & 0x7F) << 20)) * 0x1p120f;
}

// Finite numbers beyond fp16's largest become that, infinities NaN.
inline void narrow_half(uint16_t* to, F value) {
    const F top = splat(65504.0f), none = splat(__builtin_nanf("")), size = abs(value);
    const F bounded = size <= top ? value : value < F{} ? -top : top;
    store_half(to, size <= splat(3.402823466e38f) ? bounded : none);
}

}  // namespace allotrope::ALLOTROPE_ISA
