// Queries times keys. The lanes of a key's products are added up by halves, as `sum` does it, in either way:
//
//     few queries   keys as they lie, [key][channels]: products lane by lane, then all lanes of sixteen keys at once
//     many          keys turned, [channel][keys]: what would be a lane is a vector, and no shuffle is needed

#pragma once

#include "attention_tile.h"

namespace allotrope::ALLOTROPE_ISA {

// scores[i][key] = queries[i] · key, for `kCount` queries and keys [begin, end) of a split. Products are added up lane
// by lane, and the lanes of as many keys as a vector has at once.
template <int kForm, int kCount>
void score(const Scratch& scratch, const Shape& shape, const Tile& tile, int64_t query, int64_t begin, int64_t end) {
    const float* queries = scratch.queries + query * shape.padded;
    float* scores = scratch.scores + query * kKeys;
    const int64_t first = tile.kv_head * shape.head_dim, whole = shape.head_dim / kLanes * kLanes;
    F products[kCount][kLanes];
    for (int64_t block = begin; block < end; block += kLanes) {
        const int64_t count = smaller(end - block, kLanes);
        F steps = splat(shape.scale);
        for (int64_t j = 0; j < count; ++j) {
            const char* row = scratch.keys[block + j];
            F sum[kCount] = {};
            int64_t at = 0;
            for (; at < whole; at += kLanes) {
                const F key = held<kForm>(row, first + at);
                for (int i = 0; i < kCount; ++i) sum[i] = fma(load(queries + i * shape.padded + at), key, sum[i]);
            }
            if (at < shape.head_dim) {
                const F key = held_some<kForm>(row, first + at, shape.head_dim - at);
                for (int i = 0; i < kCount; ++i) sum[i] = fma(load(queries + i * shape.padded + at), key, sum[i]);
            }
            for (int i = 0; i < kCount; ++i) products[i][j] = sum[i];
            if constexpr (is_scaled(kForm)) steps[j] *= scale_of(row, shape, tile.kv_head);
        }
        if (count == kLanes) {
            for (int i = 0; i < kCount; ++i) store(scores + i * kKeys + block, sums(products[i]) * steps);
        } else {
            for (int i = 0; i < kCount; ++i) {
                for (int64_t j = count; j < kLanes; ++j) products[i][j] = F{};
                store_some(scores + i * kKeys + block, sums(products[i]) * steps, count);
            }
        }
    }
}

// Keys [begin, end) of a split as `turned` and `steps` have them, in whole blocks; what is not theirs is zero.
template <int kForm>
void turn(const Scratch& scratch, const Shape& shape, const Tile& tile, int64_t begin, int64_t end) {
    const int64_t first = tile.kv_head * shape.head_dim;
    for (int64_t block = begin / kLanes * kLanes; block < end; block += kLanes) {
        float* to = scratch.turned + block * shape.padded;
        for (int64_t at = 0; at < shape.padded; at += kLanes) {
            const int64_t left = shape.head_dim - at;
            F rows[kLanes];
            for (int64_t j = 0; j < kLanes; ++j) {
                const int64_t key = block + j;
                if (key < begin || key >= end)
                    rows[j] = F{};
                else if (left < kLanes)
                    rows[j] = held_some<kForm>(scratch.keys[key], first + at, left);
                else
                    rows[j] = held<kForm>(scratch.keys[key], first + at);
            }
            transpose(rows);
            for (int64_t j = 0; j < kLanes; ++j) store(to + (at + j) * kLanes, rows[j]);
        }
        for (int64_t key = larger(block, begin); key < smaller(block + kLanes, end); ++key) {
            scratch.steps[key] = shape.scale;
            if constexpr (is_scaled(kForm)) scratch.steps[key] *= scale_of(scratch.keys[key], shape, tile.kv_head);
        }
    }
}

// Values [begin, end) of a split as fp32, without their scales; from now on these are the values.
template <int kForm>
void widen(Scratch& scratch, const Shape& shape, const Tile& tile, int64_t begin, int64_t end) {
    const int64_t first = tile.kv_head * shape.head_dim;
    for (int64_t key = begin; key < end; ++key) {
        float* to = scratch.widened + key * shape.padded;
        over(
            0, shape.head_dim, [&](int64_t at) { store(to + at, held<kForm>(scratch.values[key], first + at)); },
            [&](int64_t at, int64_t left) { store(to + at, held_some<kForm>(scratch.values[key], first + at, left)); });
        scratch.values[key] = reinterpret_cast<const char*>(to);
    }
    scratch.column = 0;
}

template <int kCount>
struct Sums {
    F at[kCount];
};

// Of a block of turned keys and queries: the sum over what lanes `lane`, `lane + kStep`, … of a key would hold, added up by
// halves as `sum` adds a vector's.
template <int kStep, int kCount>
ALLOTROPE_INLINE Sums<kCount> products_of(const float* queries, const float* keys, const Shape& shape, int64_t lane) {
    Sums<kCount> found{};
    if constexpr (kStep == kLanes) {
        const int64_t padded = shape.padded;
        for (int64_t at = lane; at < shape.head_dim; at += kLanes) {
            const F key = load(keys + at * kLanes);
            for (int i = 0; i < kCount; ++i) found.at[i] = fma(splat(queries[i * padded + at]), key, found.at[i]);
        }
    } else {
        found = products_of<2 * kStep, kCount>(queries, keys, shape, lane);
        if (lane + kStep >= shape.head_dim) return found;  // beyond it there are zeros
        const Sums<kCount> others = products_of<2 * kStep, kCount>(queries, keys, shape, lane + kStep);
        for (int i = 0; i < kCount; ++i) found.at[i] += others.at[i];
    }
    return found;
}

// What `score` gives, by turned keys; beside keys [begin, end) there may be others' scores, to whole blocks. Few queries
// are taken at a time, so that all halves of their sums stay in the registers.
template <int kCount>
void score_turned(const Scratch& scratch, const Shape& shape, int64_t query, int64_t begin, int64_t end) {
    constexpr int kTogether = kCount < 4 ? kCount : kLanes == 8 ? 2 : 4;  // AVX2 has few registers
    for (int64_t block = begin / kLanes * kLanes; block < end; block += kLanes) {
        const F steps = load(scratch.steps + block);
        const float* keys = scratch.turned + block * shape.padded;
        for (int64_t first = query; first < query + kCount; first += kTogether) {
            const auto found = products_of<1, kTogether>(scratch.queries + first * shape.padded, keys, shape, 0);
            for (int i = 0; i < kTogether; ++i)
                store(scratch.scores + (first + i) * kKeys + block, found.at[i] * steps);
        }
    }
}

}  // namespace allotrope::ALLOTROPE_ISA
