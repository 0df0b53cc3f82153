// Causal attention over the pages, with online softmax.
//
// Keys fall into splits of fixed length at absolute positions. A query's result from a split is (largest score, sum of
// exponentials, weighted values), and splits are merged one after the other in the order of their keys. Whoever
// computes which split, and beside which other queries, changes no bit of that:
//
//     keys      |<- 128 ->|<- 128 ->|<-
//     a query   m l value   m l value   m l value        merged from left to right
//
// A request's queries, all heads of a group for each position, fall into tiles of kTile. Where there are tiles enough,
// a thread takes a tile with all its splits; where there are few and contexts are long, threads take splits, and merge
// after a barrier. A tile of many queries first lays a split's keys down turned, a vector for each channel of as many keys
// as it has lanes, and widens its values: products are then added up without a shuffle, lane for lane as the few do it.
//
// Numbers: heads, kv_heads, head_dim, scale, window, form.

#include "kernel.h"
#include "kvrows.h"
#include "lanes.h"
#include "maths.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

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
    const char* keys[kKeys];
    const char* values[kKeys];
    int64_t column;              // of the head's values in their rows
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
    int64_t begin(int64_t query, const Shape& shape) const {
        const int64_t last = end(query, shape);
        return shape.window && last > shape.window ? last - shape.window : 0;
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
ALLOTROPE_INLINE Sums<kCount> products_of(const float* queries, const float* keys, int64_t padded, int64_t lane) {
    Sums<kCount> found{};
    if constexpr (kStep == kLanes) {
        for (int64_t at = lane; at < padded; at += kLanes) {
            const F key = load(keys + at * kLanes);
            for (int i = 0; i < kCount; ++i) found.at[i] = fma(splat(queries[i * padded + at]), key, found.at[i]);
        }
    } else {
        found = products_of<2 * kStep, kCount>(queries, keys, padded, lane);
        const Sums<kCount> others = products_of<2 * kStep, kCount>(queries, keys, padded, lane + kStep);
        for (int i = 0; i < kCount; ++i) found.at[i] += others.at[i];
    }
    return found;
}

// What `score` gives, by turned keys; beside keys [begin, end) there may be others' scores, to whole blocks.
template <int kCount>
void score_turned(const Scratch& scratch, const Shape& shape, int64_t query, int64_t begin, int64_t end) {
    const float* queries = scratch.queries + query * shape.padded;
    for (int64_t block = begin / kLanes * kLanes; block < end; block += kLanes) {
        const F steps = load(scratch.steps + block);
        const auto found = products_of<1, kCount>(queries, scratch.turned + block * shape.padded, shape.padded, 0);
        for (int i = 0; i < kCount; ++i) store(scratch.scores + (query + i) * kKeys + block, found.at[i] * steps);
    }
}

// parts[i][at …] += Σ weights[i][key] · value[at …], for `kCount` queries, `kVectors` vectors of the values and keys
// [begin, end), in their order. `left`: elements of the last vector, if they do not fill it.
template <int kForm, int kCount, int kVectors, bool kSome = false>
inline void weigh_at(const Scratch& scratch, const float* weights, int64_t column, float* parts, int64_t step,
                     int64_t begin, int64_t end, int64_t left = 0) {
    F sum[kCount][kVectors];
    for (int i = 0; i < kCount; ++i)
        for (int n = 0; n < kVectors; ++n) sum[i][n] = load(parts + i * step + n * kLanes);
    for (int64_t key = begin; key < end; ++key) {
        F value[kVectors];
        for (int n = 0; n < kVectors; ++n) {
            const int64_t at = column + n * kLanes;
            if constexpr (kSome) value[n] = held_some<kForm>(scratch.values[key], at, left);
            else value[n] = held<kForm>(scratch.values[key], at);
        }
        for (int i = 0; i < kCount; ++i) {
            const F weight = splat(weights[i * kKeys + key]);
            for (int n = 0; n < kVectors; ++n) sum[i][n] = fma(weight, value[n], sum[i][n]);
        }
    }
    for (int i = 0; i < kCount; ++i)
        for (int n = 0; n < kVectors; ++n) store(parts + i * step + n * kLanes, sum[i][n]);
}

// The same for the whole width of a head. Few queries take several vectors at a time, so that one sum need not wait
// for another.
template <int kForm, int kCount>
void weigh(const Scratch& scratch, const Shape& shape, int64_t query, float* parts, int64_t begin, int64_t end) {
    constexpr int kVectors = kCount <= 2 ? 4 : kLanes == 16 ? 2 : 1;
    if (begin >= end) return;
    const float* weights = scratch.scores + query * kKeys;
    const int64_t first = scratch.column, step = Part::size(shape.padded);
    float* values = parts + kLanes;
    int64_t at = 0;
    for (; at + kVectors * kLanes <= shape.head_dim; at += kVectors * kLanes)
        weigh_at<kForm, kCount, kVectors>(scratch, weights, first + at, values + at, step, begin, end);
    for (; at + kLanes <= shape.head_dim; at += kLanes)
        weigh_at<kForm, kCount, 1>(scratch, weights, first + at, values + at, step, begin, end);
    if (at < shape.head_dim)
        weigh_at<kForm, kCount, 1, true>(scratch, weights, first + at, values + at, step, begin, end,
                                         shape.head_dim - at);
}

// Scores become weights e^(score − m); m and l of the query's part.
void soften(float* scores, int64_t begin, int64_t end, Part part) {
    F tops = splat(kLeast);
    over(
        begin, end, [&](int64_t at) { tops = max(load(scores + at), tops); },
        [&](int64_t at, int64_t left) { tops = max(keep(load_some(scores + at, left), left, kLeast), tops); });
    const float top = largest(tops);
    F totals{};
    over(
        begin, end,
        [&](int64_t at) {
            const F weight = exp(load(scores + at) - top);
            totals += weight;
            store(scores + at, weight);
        },
        [&](int64_t at, int64_t left) {
            const F weight = exp(load_some(scores + at, left) - top);
            totals += keep(weight, left);
            store_some(scores + at, weight, left);
        });
    part.top() = top;
    part.total() = sum(totals);
}

void merge(Part into, Part from, const Shape& shape, bool first) {
    if (first) {
        std::memcpy(into.at, from.at, 4 * Part::size(shape.padded));
        return;
    }
    const float top = from.top() > into.top() ? from.top() : into.top();
    const float old_weight = std::exp(into.top() - top), new_weight = std::exp(from.top() - top);
    into.total() = into.total() * old_weight + from.total() * new_weight;
    for (int64_t at = 0; at < shape.padded; at += kLanes)
        store(into.values() + at, load(into.values() + at) * old_weight + load(from.values() + at) * new_weight);
    into.top() = top;
}

// `kTurned`: keys are turned, and kForm is only that of the values by now.
template <int kForm, int kCount, bool kTurned>
void some_queries(Scratch& scratch, const Shape& shape, const Tile& tile, int64_t split, int64_t query, float* parts) {
    const int64_t base = split * kKeys, step = Part::size(shape.padded);
    int64_t begins[kCount], ends[kCount], lowest = kKeys, highest = 0, joint_begin = 0, joint_end = kKeys;
    for (int i = 0; i < kCount; ++i) {
        begins[i] = larger(tile.begin(query + i, shape) - base, 0);
        ends[i] = larger(smaller(tile.end(query + i, shape) - base, kKeys), begins[i]);
        lowest = smaller(lowest, begins[i]);
        highest = larger(highest, ends[i]);
        joint_begin = larger(joint_begin, begins[i]);
        joint_end = smaller(joint_end, ends[i]);
    }
    joint_end = larger(joint_begin, joint_end);
    if constexpr (kTurned)
        score_turned<kCount>(scratch, shape, query, lowest, highest);
    else
        score<kForm, kCount>(scratch, shape, tile, query, lowest, highest);
    for (int i = 0; i < kCount; ++i) {
        float* part = parts + i * step;
        std::memset(part, 0, 4 * step);
        float* scores = scratch.scores + (query + i) * kKeys;
        if (begins[i] < ends[i]) soften(scores, begins[i], ends[i], Part{part});
        if (is_scaled(shape.form))
            for (int64_t key = begins[i]; key < ends[i]; ++key) scores[key] *= scratch.value_scales[key];
    }
    // What not all of them see is added for each by itself: weight 0 would not keep a NaN out.
    for (int i = 0; i < kCount; ++i)
        weigh<kForm, 1>(scratch, shape, query + i, parts + i * step, begins[i], smaller(joint_begin, ends[i]));
    weigh<kForm, kCount>(scratch, shape, query, parts, joint_begin, joint_end);
    for (int i = 0; i < kCount; ++i)
        weigh<kForm, 1>(scratch, shape, query + i, parts + i * step, larger(joint_end, begins[i]), ends[i]);
}

template <int kForm, bool kTurned>
void all_queries(Scratch& scratch, const Shape& shape, const Tile& tile, int64_t split, float* parts) {
    const int64_t step = Part::size(shape.padded);
    int64_t query = 0;
    for (; query + 8 <= tile.count(); query += 8)
        some_queries<kForm, 8, kTurned>(scratch, shape, tile, split, query, parts + query * step);
    for (; query + 4 <= tile.count(); query += 4)
        some_queries<kForm, 4, kTurned>(scratch, shape, tile, split, query, parts + query * step);
    for (; query + 2 <= tile.count(); query += 2)
        some_queries<kForm, 2, kTurned>(scratch, shape, tile, split, query, parts + query * step);
    for (; query < tile.count(); ++query)
        some_queries<kForm, 1, kTurned>(scratch, shape, tile, split, query, parts + query * step);
}

// The parts of all of a tile's queries from one split. A query that sees nothing of it has total 0.
template <int kForm>
void one_split(Scratch& scratch, const Shape& shape, const Tile& tile, const Args& args, int64_t split, float* parts) {
    const View &k = args.in(1), &v = args.in(2), &table = args.in(5);
    const int32_t* pages = table.row<int32_t>(tile.request);
    const int64_t base = split * kKeys, page = k.page;
    const int64_t last = smaller(tile.end(tile.count() - 1, shape) - base, kKeys);
    for (int64_t key = larger(tile.begin(0, shape) - base, 0); key < last;) {  // page by page: dividing takes long
        const int64_t number = (base + key) / page, offset = (base + key) % page;
        const int64_t until = smaller(key + page - offset, last);
        const char *key_at = k.paged<char>(pages[number], offset), *value_at = v.paged<char>(pages[number], offset);
        for (; key < until; ++key, key_at += k.stride, value_at += v.stride) {
            scratch.keys[key] = key_at;
            scratch.values[key] = value_at;
        }
    }
    scratch.column = tile.kv_head * shape.head_dim;
    const int64_t first = larger(tile.begin(0, shape) - base, 0);
    if constexpr (is_scaled(kForm))
        for (int64_t key = first; key < last; ++key)
            scratch.value_scales[key] = scale_of(scratch.values[key], shape, tile.kv_head);
    if (tile.count() < kMany) return all_queries<kForm, false>(scratch, shape, tile, split, parts);
    turn<kForm>(scratch, shape, tile, first, last);
    if constexpr (kForm != kWide) widen<kForm>(scratch, shape, tile, first, last);
    all_queries<kWide, true>(scratch, shape, tile, split, parts);
}

void split_of_form(Scratch& scratch, const Shape& shape, const Tile& tile, const Args& args, int64_t split,
                   float* parts) {
    if (shape.form == kWide) return one_split<kWide>(scratch, shape, tile, args, split, parts);
    if (shape.form == kInt8) return one_split<kInt8>(scratch, shape, tile, args, split, parts);
    if (shape.form == kHalf) return one_split<kHalf>(scratch, shape, tile, args, split, parts);
    one_split<kFp8>(scratch, shape, tile, args, split, parts);
}

void take_queries(Scratch& scratch, const Shape& shape, const Tile& tile, const View& q) {
    for (int64_t i = 0; i < tile.count(); ++i) {
        float* to = scratch.queries + i * shape.padded;
        std::memcpy(to, q.row<float>(tile.row(i, shape)) + tile.column(i, shape), 4 * shape.head_dim);
        std::memset(to + shape.head_dim, 0, 4 * (shape.padded - shape.head_dim));
    }
}

void give(const View& out, const Shape& shape, const Tile& tile, int64_t query, Part state) {
    float* to = out.row<float>(tile.row(query, shape)) + tile.column(query, shape);
    const F total = splat(state.total());
    over(
        0, shape.head_dim, [&](int64_t at) { store(to + at, load(state.values() + at) / total); },
        [&](int64_t at, int64_t left) { store_some(to + at, load(state.values() + at) / total, left); });
}

// Calls body(number, tile) for every tile of the step.
template <class Body>
void for_tiles(const Args& args, const Shape& shape, Body body) {
    const int32_t *starts = args.in(3).as<int32_t>(), *first = args.in(4).as<int32_t>();
    const int64_t requests = args.in(4).width;
    int64_t number = 0;
    for (int64_t request = 0; request < requests; ++request) {
        const int64_t queries = (starts[request + 1] - starts[request]) * shape.group;
        for (int64_t from = 0; from < queries; from += kTile)
            for (int64_t head = 0; head < shape.kv_heads; ++head)
                body(number++, Tile{request, head, from, smaller(from + kTile, queries), starts[request], first[request]});
    }
}

void attention(const Args& args, Team& team) {
    const Shape shape(args);
    const View &q = args.in(0), &out = args.out(0);
    const int64_t step = Part::size(shape.padded);
    float* room = reinterpret_cast<float*>(args.workspace);
    Scratch scratch(room + team.index * Scratch::size(shape.padded), shape);
    int64_t tiles = 0, splits = 0;
    for_tiles(args, shape, [&](int64_t, const Tile& tile) {
        ++tiles;
        splits += tile.splits(shape);
    });
    if (team.count == 1 || tiles >= 2 * team.count || splits == tiles) {
        for_tiles(args, shape, [&](int64_t number, const Tile& tile) {
            if (number % team.count != team.index) return;
            take_queries(scratch, shape, tile, q);
            std::memset(scratch.state, 0, 4 * tile.count() * step);  // who sees no finite score gets 0 / 0
            const int64_t first = tile.first_split(shape), count = tile.splits(shape);
            bool fresh[kTile];
            std::memset(fresh, 1, sizeof fresh);
            for (int64_t split = first; split < first + count; ++split) {
                split_of_form(scratch, shape, tile, args, split, scratch.parts);
                for (int64_t i = 0; i < tile.count(); ++i) {
                    Part part{scratch.parts + i * step};
                    if (part.total() == 0) continue;
                    merge(Part{scratch.state + i * step}, part, shape, fresh[i]);
                    fresh[i] = false;
                }
            }
            for (int64_t i = 0; i < tile.count(); ++i) give(out, shape, tile, i, Part{scratch.state + i * step});
        });
        return;
    }
    // Few tiles, long contexts: [ scratch of each thread ][ parts: tile by tile, split by split, query by query ]
    float* shared = room + team.count * Scratch::size(shape.padded);
    int64_t item = 0;
    for_tiles(args, shape, [&](int64_t, const Tile& tile) {
        bool taken = false;
        for (int64_t i = 0; i < tile.splits(shape); ++i, ++item) {
            if (item % team.count != team.index) continue;
            if (!taken) take_queries(scratch, shape, tile, q);
            taken = true;
            split_of_form(scratch, shape, tile, args, tile.first_split(shape) + i, shared + item * kTile * step);
        }
    });
    team.barrier();
    item = 0;
    int64_t number = 0;
    for_tiles(args, shape, [&](int64_t, const Tile& tile) {
        const int64_t count = tile.splits(shape);
        for (int64_t i = 0; i < tile.count(); ++i) {
            if (number++ % team.count != team.index) continue;
            bool fresh = true;
            std::memset(scratch.state, 0, 4 * step);
            for (int64_t split = 0; split < count; ++split) {
                Part part{shared + ((item + split) * kTile + i) * step};
                if (part.total() == 0) continue;
                merge(Part{scratch.state}, part, shape, fresh);
                fresh = false;
            }
            give(out, shape, tile, i, Part{scratch.state});
        }
        item += count;
    });
}

// `Sizing` by channels of a head and the longest context. Splits are shared where there are fewer tiles than two per thread.
int64_t workspace(const int64_t* sizes, int threads) {
    const int64_t padded = padded_to_lanes(sizes[0]), splits = sizes[1] / kKeys + 1;
    const int64_t shared = threads > 1 ? (2 * threads - 1) * splits * kTile * Part::size(padded) : 0;
    return 4 * (threads * Scratch::size(padded) + shared);
}

}  // namespace

ALLOTROPE_KERNELS({"attention", attention, workspace})

}  // namespace allotrope::ALLOTROPE_ISA
