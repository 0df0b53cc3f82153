// What attention works on: queries of a request, a split of its keys, and a thread's memory for them.

#pragma once

#include "kernel.h"
#include "kvrows.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

constexpr int64_t kKeys = 128;
constexpr int64_t kTile = 64;
constexpr int64_t kMany = 16;     // queries of a tile for which turning its keys pays
constexpr float kLeast = -1e30f;  // stands for the largest of no finite scores: e^(−inf − kLeast) is 0 and not NaN

inline int64_t padded_to_lanes(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

struct Shape {
    int64_t heads, kv_heads, head_dim, group, padded, window, form, scales;
    float scale;

    explicit Shape(const Args& args)
        : heads(args.whole(0)),
          kv_heads(args.whole(1)),
          head_dim(args.whole(2)),
          group(heads / kv_heads),
          padded(padded_to_lanes(head_dim)),
          window(args.whole(4)),
          form(args.whole(5)),
          scales(scales_at(kv_heads, head_dim)),
          scale(static_cast<float>(args.number(3))) {}
};

// A split's result for one query: m, l, then head_dim values, padded.
struct Part {
    float* at;
    float& top() { return at[0]; }
    float& total() { return at[1]; }
    float* values() { return at + kLanes; }
    static int64_t size(int64_t padded) { return kLanes + padded; }
};

// A thread's memory for one tile.
struct Scratch {
    float* queries;  // [kTile][padded]
    float* scores;   // [kTile][kKeys]
    float* state;    // [kTile] parts: what is merged so far
    float* parts;    // [kTile] parts: a split's
    float* turned;   // keys, [kKeys / kLanes][padded][kLanes]
    float* steps;    // [kKeys]: what a key's products are scaled by
    float* widened;  // values, [kKeys][padded]
    int64_t ends[kTile];  // of what each query sees: a division for each is worth keeping
    const char* keys[kKeys];
    const char* values[kKeys];
    int64_t column;             // of the head's values in their rows
    float value_scales[kKeys];  // where the form has any

    static int64_t size(int64_t padded) {
        return kTile * (padded + kKeys + 2 * Part::size(padded)) + kKeys * (2 * padded + 1);
    }
    Scratch(float* at, const Shape& shape) {
        queries = at;
        scores = queries + kTile * shape.padded;
        state = scores + kTile * kKeys;
        parts = state + kTile * Part::size(shape.padded);
        turned = parts + kTile * Part::size(shape.padded);
        steps = turned + kKeys * shape.padded;
        widened = steps + kKeys;
    }
};

// Queries [from, to) of a request, counted over positions and a group's heads, against one key head.
struct Tile {
    int64_t request, kv_head, from, to, first_row, first_position;

    int64_t position(int64_t query, const Shape& shape) const { return first_position + (from + query) / shape.group; }
    int64_t row(int64_t query, const Shape& shape) const { return first_row + (from + query) / shape.group; }
    int64_t column(int64_t query, const Shape& shape) const {
        return (kv_head * shape.group + (from + query) % shape.group) * shape.head_dim;
    }
    int64_t count() const { return to - from; }
    int64_t end(int64_t query, const Shape& shape) const { return position(query, shape) + 1; }
    int64_t begin(int64_t query, const Shape& shape) const { return begin_of(end(query, shape), shape); }
    static int64_t begin_of(int64_t end, const Shape& shape) {
        return shape.window && end > shape.window ? end - shape.window : 0;
    }
    // Calls body(query, row, column) for each, as `row` and `column` would find them one by one.
    template <class Body>
    void for_queries(const Shape& shape, Body body) const {
        int64_t at = row(0, shape), head = from % shape.group;
        for (int64_t i = 0; i < count(); ++i) {
            body(i, at, (kv_head * shape.group + head) * shape.head_dim);
            if (++head == shape.group) head = 0, ++at;
        }
    }
    int64_t first_split(const Shape& shape) const { return begin(0, shape) / kKeys; }
    int64_t splits(const Shape& shape) const {
        return (end(count() - 1, shape) - 1) / kKeys - first_split(shape) + 1;
    }
};

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <int kForm>
inline F held(const char* row, int64_t at) {
    if constexpr (kForm == kInt8) return widen_int8(reinterpret_cast<const uint8_t*>(row) + at);
    if constexpr (kForm == kFp8) return widen_fp8(reinterpret_cast<const uint8_t*>(row) + at);
    if constexpr (kForm == kHalf) return widen_half(reinterpret_cast<const uint16_t*>(row) + at);
    return load(reinterpret_cast<const float*>(row) + at);
}

// The end of a head whose width is no whole number of vectors: beyond it lie others' keys, or nothing.
template <int kForm>
inline F held_some(const char* row, int64_t at, int64_t left) {
    if constexpr (kForm == kWide) return load_some(reinterpret_cast<const float*>(row) + at, left);
    constexpr int64_t size = kForm == kHalf ? 2 : 1;
    char whole[size * kLanes] = {};
    for (int i = 0; i < kLanes; ++i)
        if (i < left) std::memcpy(whole + size * i, row + size * (at + i), size);
    return held<kForm>(whole, 0);
}

inline float scale_of(const char* row, const Shape& shape, int64_t kv_head) {
    float scale;
    std::memcpy(&scale, row + shape.scales + 4 * kv_head, sizeof scale);
    return scale;
}

}  // namespace allotrope::ALLOTROPE_ISA
