// A linear layer, plainly: each output the dot product of a row and a weight's row, in vectors, then the bias.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

constexpr int64_t kBlock = 16;  // outputs that a thread takes together

float dot(const float* x, const float* w, int64_t width) {
    F sums[4] = {};
    int64_t at = 0;
    for (; at + 4 * kLanes <= width; at += 4 * kLanes)
        for (int i = 0; i < 4; ++i) sums[i] = fma(load(x + at + i * kLanes), load(w + at + i * kLanes), sums[i]);
    over(
        at, width, [&](int64_t here) { sums[0] = fma(load(x + here), load(w + here), sums[0]); },
        [&](int64_t here, int64_t left) { sums[0] = fma(load_some(x + here, left), load_some(w + here, left), sums[0]); });
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void linear(const Args& args, Team& team) {
    const View &x = args.in(0), &weight = args.in(1), &bias = args.in(2), &out = args.out(0);
    const Share mine(out.width, team, kBlock);
    for (int64_t column = mine.begin; column < mine.end; ++column)
        for (int64_t row = 0; row < out.rows; ++row)
            out.row<float>(row)[column] =
                dot(x.row<float>(row), weight.row<float>(column), x.width) + (bias ? bias.as<float>()[column] : 0.0f);
}

}  // namespace

ALLOTROPE_KERNELS({"linear", linear})

}  // namespace allotrope::ALLOTROPE_ISA
