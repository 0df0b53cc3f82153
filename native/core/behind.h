// What stands behind a linear layer: an activation, a gate or a sum, which a thread computes of the outputs that it has
// just made, while they are in its nearest cache. As the ops of these names do; see `Behind` for which.

#pragma once

#include "kernel.h"
#include "maths.h"
#include "peaks.h"

namespace allotrope::ALLOTROPE_ISA {

// to[at] = what(at) for [begin, end); given a function that reads a whole vector or some of it.
template <class What>
ALLOTROPE_INLINE void fill(float* to, int64_t begin, int64_t end, What what) {
    over(
        begin, end, [&](int64_t at) { store(to + at, what([at](const float* from) { return load(from + at); })); },
        [&](int64_t at, int64_t left) {
            store_some(to + at, what([at, left](const float* from) { return load_some(from + at, left); }), left);
        });
}

template <class Act>
ALLOTROPE_INLINE void activate_row(float* to, const float* x, const float* up, int64_t begin, int64_t end, Act act) {
    if (up != nullptr)
        fill(to, begin, end, [&](auto get) { return act(get(x)) * get(up); });
    else
        fill(to, begin, end, [&](auto get) { return act(get(x)); });
}

// Outputs [begin, end) of the rows; of halves, as many of each.
inline void compute_behind(const Behind& behind, const View& x, int64_t first, int64_t rows, int64_t begin, int64_t end) {
    const View& out = *behind.out;
    end = end < out.width ? end : out.width;
    for (int64_t row = first; row < first + rows; ++row) {
        float* to = out.row<float>(row);
        const float *from = x.row<float>(row), *up = behind.gated ? from + out.width : nullptr;
        if (behind.residual != nullptr) {
            const float* sum = behind.residual->row<float>(row);
            fill(to, begin, end, [&](auto get) { return get(sum) + get(from); });
            continue;
        }
        switch (behind.curve) {
            case 0: activate_row(to, from, up, begin, end, [](F value) { return gelu(value); }); break;
            case 1: activate_row(to, from, up, begin, end, [](F value) { return gelu_tanh(value); }); break;
            case 2: activate_row(to, from, up, begin, end, [](F value) { return relu(value); }); break;
            default: activate_row(to, from, up, begin, end, [](F value) { return silu(value); }); break;
        }
    }
}

// A thread has made outputs [begin, end) of rows [first, first + rows) of `made`.
inline void go_on_behind(const Behind& behind, const View& made, int64_t first, int64_t rows, int64_t begin, int64_t end,
                         const Team& team) {
    const uint64_t began = behind.spent != nullptr ? behind.now() : 0;
    if (behind.out != nullptr) compute_behind(behind, made, first, rows, begin, end);
    if (behind.spent != nullptr) *behind.spent += behind.now() - began;
    if (behind.tops != nullptr) note_tops(made, first, rows, begin, end, behind.tops, team);
}

}  // namespace allotrope::ALLOTROPE_ISA
