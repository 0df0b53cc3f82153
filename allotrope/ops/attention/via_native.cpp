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
// after a barrier. A tile of many queries has a split's keys turned and its values widened first.
//
// Numbers: heads, kv_heads, head_dim, scale, window, form.

#include "attention_scores.h"
#include "maths.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

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
ALLOTROPE_INLINE void soften(float* scores, int64_t begin, int64_t end, Part part) {
    F tops = splat(kLeast);
    over(
        begin, end, [&](int64_t at) { tops = max(load(scores + at), tops); },
        [&](int64_t at, int64_t left) { tops = max(keep(load_some(scores + at, left), left, kLeast), tops); });
    const float peak = top(tops);
    F totals{};
    const auto weights = [&]<int kCount>(F (&held)[kCount]) {
        for (int i = 0; i < kCount; ++i) held[i] -= peak;
        exps_below(held);
    };
    constexpr int kTogether = 4;
    for (; begin + kTogether * kLanes <= end; begin += kTogether * kLanes) {
        F held[kTogether];
        for (int i = 0; i < kTogether; ++i) held[i] = load(scores + begin + i * kLanes);
        weights(held);
        for (int i = 0; i < kTogether; ++i) store(scores + begin + i * kLanes, held[i]);
        for (int i = 0; i < kTogether; ++i) totals += held[i];
    }
    over(
        begin, end,
        [&](int64_t at) {
            F held[] = {load(scores + at)};
            weights(held);
            totals += held[0];
            store(scores + at, held[0]);
        },
        [&](int64_t at, int64_t left) {
            F held[] = {load_some(scores + at, left)};
            weights(held);
            totals += keep(held[0], left);
            store_some(scores + at, held[0], left);
        });
    part.top() = peak;
    part.total() = sum(totals);
}

// `memset` and `memcpy` of so few numbers would be calls.
void clear(float* at, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) store(at + i, F{});
}

void merge(Part into, Part from, const Shape& shape, bool first) {
    if (first) {
        for (int64_t at = 0; at < Part::size(shape.padded); at += kLanes) store(into.at + at, load(from.at + at));
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
        const int64_t end = scratch.ends[query + i];
        begins[i] = smaller(larger(Tile::begin_of(end, shape) - base, 0), kKeys);
        ends[i] = larger(smaller(end - base, kKeys), begins[i]);
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
        clear(part, step);
        float* scores = scratch.scores + (query + i) * kKeys;
        if (begins[i] < ends[i]) soften(scores, begins[i], ends[i], Part{part});
        if (is_scaled(shape.form))
            for (int64_t key = begins[i]; key < ends[i]; ++key) scores[key] *= scratch.value_scales[key];
    }
    // What not all of them see is added for each by itself: weight 0 would not keep a NaN out.
    if (lowest < joint_begin)
        for (int i = 0; i < kCount; ++i)
            weigh<kForm, 1>(scratch, shape, query + i, parts + i * step, begins[i], smaller(joint_begin, ends[i]));
    weigh<kForm, kCount>(scratch, shape, query, parts, joint_begin, joint_end);
    if (joint_end < highest)
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
    tile.for_queries(shape, [&](int64_t i, int64_t row, int64_t column) {
        const float* from = q.row<float>(row) + column;
        float* to = scratch.queries + i * shape.padded;
        over(
            0, shape.head_dim, [&](int64_t at) { store(to + at, load(from + at)); },
            [&](int64_t at, int64_t left) { store(to + at, load_some(from + at, left)); });
        scratch.ends[i] = tile.first_position + (row - tile.first_row) + 1;
    });
}

void give(float* to, const Shape& shape, Part state) {
    const F total = splat(state.total());
    over(
        0, shape.head_dim, [&](int64_t at) { store(to + at, load(state.values() + at) / total); },
        [&](int64_t at, int64_t left) { store_some(to + at, load(state.values() + at) / total, left); });
}

// All queries' results, whose states lie one after the other.
void give_all(const View& out, const Shape& shape, const Tile& tile, float* states) {
    const int64_t step = Part::size(shape.padded);
    tile.for_queries(shape, [&](int64_t i, int64_t row, int64_t column) {
        give(out.row<float>(row) + column, shape, Part{states + i * step});
    });
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
            const int64_t first = tile.first_split(shape), count = tile.splits(shape);
            if (count == 1) {  // nothing is to be merged; who sees no finite score gets 0 / 0, as below
                split_of_form(scratch, shape, tile, args, first, scratch.parts);
                for (int64_t i = 0; i < tile.count(); ++i)
                    if (Part{scratch.parts + i * step}.total() == 0) clear(scratch.parts + i * step, step);
                give_all(out, shape, tile, scratch.parts);
                return;
            }
            std::memset(scratch.state, 0, 4 * tile.count() * step);
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
            give_all(out, shape, tile, scratch.state);
        });
        return;
    }
    // Few tiles, long contexts: [ scratch of each thread ][ parts: tile by tile, split by split, query by query, no gaps ]
    float* shared = room + team.count * Scratch::size(shape.padded);
    int64_t item = 0, part = 0;
    for_tiles(args, shape, [&](int64_t, const Tile& tile) {
        bool taken = false;
        for (int64_t i = 0; i < tile.splits(shape); ++i, ++item, part += tile.count()) {
            if (item % team.count != team.index) continue;
            if (!taken) take_queries(scratch, shape, tile, q);
            taken = true;
            split_of_form(scratch, shape, tile, args, tile.first_split(shape) + i, shared + part * step);
        }
    });
    team.barrier();
    int64_t first = 0, number = 0;
    for_tiles(args, shape, [&](int64_t, const Tile& tile) {
        const int64_t count = tile.splits(shape);
        for (int64_t i = 0; i < tile.count(); ++i) {
            if (number++ % team.count != team.index) continue;
            bool fresh = true;
            std::memset(scratch.state, 0, 4 * step);
            for (int64_t split = 0; split < count; ++split) {
                Part part{shared + (first + split * tile.count() + i) * step};
                if (part.total() == 0) continue;
                merge(Part{scratch.state}, part, shape, fresh);
                fresh = false;
            }
            give(out.row<float>(tile.row(i, shape)) + tile.column(i, shape), shape, Part{scratch.state});
        }
        first += count * tile.count();
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
