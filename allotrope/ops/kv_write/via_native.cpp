// Keys and values into their pages, in fewer bits where the cache is narrow. Numbers: form (as in kvrows.h), heads.

#include "kernel.h"
#include "kvrows.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

// Rounded to nearest, ties to even; |value| ≤ 448.
uint8_t to_fp8(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
    bits &= 0x7FFFFFFF;
    if (bits < 0x3C800000) return sign | static_cast<uint8_t>(std::nearbyint(std::fabs(value) * 512));  // below 2⁻⁶
    bits += 0x7FFFF + (bits >> 20 & 1);
    return sign | static_cast<uint8_t>((bits >> 20) - (120 << 3));
}

// One head's codes and scale. A head that is not finite is all zeros, and its scale NaN.
void code(uint8_t* codes, float* scale, const float* values, int64_t width, int64_t form) {
    const float top = form == kInt8 ? 127.0f : 448.0f;
    float peak = 0;
    bool finite = true;
    for (int64_t i = 0; i < width; ++i) {
        const float size = std::fabs(values[i]);
        finite &= size <= 3.402823466e38f;
        peak = size > peak ? size : peak;
    }
    if (!finite) {
        std::memset(codes, 0, width);
        *scale = __builtin_nanf("");
        return;
    }
    float step = peak / top;
    step = step < 1.17549435e-38f ? 1.17549435e-38f : step;
    for (int64_t i = 0; i < width; ++i) {
        float value = values[i] / step;
        value = value > top ? top : value < -top ? -top : value;
        codes[i] = form == kInt8 ? static_cast<uint8_t>(static_cast<int>(std::nearbyint(value))) : to_fp8(value);
    }
    *scale = step;
}

void halve(uint16_t* to, const float* values, int64_t width) {
    int64_t at = 0;
    for (; at + kLanes <= width; at += kLanes) narrow_half(to + at, load(values + at));
    if (at == width) return;
    uint16_t some[kLanes];
    narrow_half(some, load_some(values + at, width - at));
    std::memcpy(to + at, some, 2 * (width - at));
}

// Where a slot of a cache is.
inline char* place(const View& cache, int64_t slot) { return cache.paged<char>(slot / cache.page, slot % cache.page); }

// Forms without scales know of no heads.
void write_rows(const Args& args, const Team& team, bool half) {
    const int64_t* slots = args.in(2).as<int64_t>();
    const int64_t width = args.in(0).width;
    const Share mine(2 * args.in(0).rows, team);
    for (int64_t at = mine.begin; at < mine.end; ++at) {
        const int64_t row = at / 2;
        const int which = static_cast<int>(at % 2);
        const float* from = args.in(which).row<float>(row);
        char* to = place(args.out(which), slots[row]);
        if (half)
            halve(reinterpret_cast<uint16_t*>(to), from, width);
        else
            std::memcpy(to, from, 4 * width);
    }
}

void kv_write(const Args& args, Team& team) {
    const int64_t* slots = args.in(2).as<int64_t>();
    const int64_t form = args.whole(0), heads = args.whole(1), width = args.in(0).width, head_dim = width / heads;
    if (!is_scaled(form)) return write_rows(args, team, form == kHalf);
    const Share mine(2 * args.in(0).rows * heads, team);
    for (int64_t at = mine.begin; at < mine.end; ++at) {
        const int64_t head = at % heads, row = at / heads / 2, which = at / heads % 2;
        const float* from = args.in(static_cast<int>(which)).row<float>(row) + head * head_dim;
        char* to = place(args.out(static_cast<int>(which)), slots[row]);
        float scale;
        code(reinterpret_cast<uint8_t*>(to) + head * head_dim, &scale, from, head_dim, form);
        const int64_t scales = scales_at(heads, head_dim);
        std::memcpy(to + scales + 4 * head, &scale, sizeof scale);
        if (head == 0) std::memset(to + heads * head_dim, 0, scales - heads * head_dim);
    }
}

}  // namespace

ALLOTROPE_KERNELS({"kv_write", kv_write})

}  // namespace allotrope::ALLOTROPE_ISA
