// The largest of many values, piece by piece: what a sampler asks first, and a linear layer notes while it still has them
// at hand.

#pragma once

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

// A chunk's largest value, NaN if it holds one; and whether all of it is finite.
struct Peak {
    float top;
    bool finite;
};

inline bool any_of(I mask) {
    bool found = false;
    for (int i = 0; i < kLanes; ++i) found |= mask[i] != 0;
    return found;
}

inline Peak chunk_peak(const float* from, int64_t count) {
    F tops = splat(-INFINITY);
    I spoilt{}, unordered{};
    over(
        0, count,
        [&](int64_t at) {
            const F value = load(from + at);
            tops = max(value, tops);
            spoilt |= (value - value) != 0.0f;
            unordered |= value != value;
        },
        [&](int64_t at, int64_t left) {
            const F value = load_some(from + at, left);
            for (int64_t i = 0; i < left; ++i) tops[0] = value[i] > tops[0] ? value[i] : tops[0];
            spoilt |= (value - value) != 0.0f;
            unordered |= value != value;
        });
    return {any_of(unordered) ? NAN : largest(tops), !any_of(spoilt)};
}

// The largest of so many pieces' tops, which top(piece) gives; NaN if there is one.
template <class Each>
inline float top_of(int64_t pieces, Each top) {
    float found = -INFINITY;
    for (int64_t piece = 0; piece < pieces; ++piece) {
        const float here = top(piece);
        if (here != here) return here;
        found = here > found ? here : found;
    }
    return found;
}

// Of rows [first, first + rows) the outputs [begin, end), or as many of them as there are.
inline void note_tops(const View& out, int64_t first, int64_t rows, int64_t begin, int64_t end, Top* tops, const Team& team) {
    end = end < out.width ? end : out.width;
    for (int64_t row = first; row < first + rows; ++row) {
        const Peak peak = chunk_peak(out.row<float>(row) + begin, end > begin ? end - begin : 0);
        tops[row * team.count + team.index] = {peak.top, peak.finite, static_cast<int32_t>(begin)};
    }
}

}  // namespace allotrope::ALLOTROPE_ISA
