// The rotation. A prelude makes each row's cosines and sines once for a step, for whoever turns alike:
//
//     shared   row 0 [ dim / 2 cosines | dim / 2 sines ], row 1 …
//
// Numbers: heads, head_dim, dim, base, scaling (an index of SCALINGS), factor, low_freq, high_freq, original_len.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

enum Scaling { kNone, kLinear, kLlama3, kDynamic, kQwen };

// Of one channel pair, where it does not follow the length: in fp32, by the steps of transformers.
float fixed_frequency(const Args& args, int64_t pair) {
    const float dim = static_cast<float>(args.whole(2)), exponent = static_cast<float>(2 * pair) / dim;
    const float plain = 1.0f / std::pow(static_cast<float>(args.number(3)), exponent);
    const int64_t scaling = args.whole(4);
    const float factor = static_cast<float>(args.number(5));
    if (scaling == kLinear) return plain / factor;
    if (scaling != kLlama3) return plain;
    const float low = static_cast<float>(args.number(6)), high = static_cast<float>(args.number(7));
    const float length = static_cast<float>(args.number(8)), wavelength = static_cast<float>(2 * M_PI) / plain;
    if (wavelength > length / low) return plain / factor;
    if (wavelength < length / high) return plain;
    const float blend = (length / wavelength - low) / (high - low);
    return (1 - blend) * plain / factor + blend * plain;
}

// ln of what multiplies the base, before the exponent dim / (dim − 2).
double log_growth(const Args& args, int64_t position, int64_t prompt_len) {
    const int64_t length = args.whole(8);
    if (args.whole(4) == kDynamic) {
        int64_t reached = prompt_len > position + 1 ? prompt_len : position + 1;
        reached = reached > length ? reached : length;
        const double factor = args.number(5);
        return std::log(factor * static_cast<double>(reached) / static_cast<double>(length) - (factor - 1));
    }
    const int64_t times = (prompt_len + length - 1) / length;
    int64_t power = 1;
    while (power < times) power *= 2;
    return std::log(static_cast<double>(2 * power - 1));
}

void rotary_turns(const Args& args, Team& team) {
    const View& x = args.in(0);
    const int64_t *positions = args.in(1).as<int64_t>(), *prompt_lens = args.in(2).as<int64_t>();
    const int64_t dim = args.whole(2), pairs = dim / 2;
    const bool follows = args.whole(4) >= kDynamic;
    const double log_base = std::log(args.number(3)), stretch = dim > 2 ? static_cast<double>(dim) / (dim - 2) : 0;
    float* turns = reinterpret_cast<float*>(args.workspace);
    const Share mine(pairs, team);
    for (int64_t pair = mine.begin; pair < mine.end; ++pair) {
        const float fixed = follows ? 0.0f : fixed_frequency(args, pair);
        for (int64_t row = 0; row < x.rows; ++row) {
            float frequency = fixed;
            if (follows) {
                const double grown = log_base + log_growth(args, positions[row], prompt_lens[row]) * stretch;
                frequency = static_cast<float>(std::exp(-grown * (static_cast<double>(2 * pair) / dim)));
            }
            const float angle = static_cast<float>(positions[row]) * frequency;
            turns[row * dim + pair] = std::cos(angle);
            turns[row * dim + pairs + pair] = std::sin(angle);
        }
    }
}

void rotary(const Args& args, Team& team) {
    const View &x = args.in(0), &out = args.out(0);
    const int64_t heads = args.whole(0), head_dim = args.whole(1), dim = args.whole(2), half = dim / 2;
    const float* turns = static_cast<const float*>(args.shared);
    const Share mine(x.rows * heads, team);
    for (int64_t at = mine.begin; at < mine.end; ++at) {
        const int64_t row = at / heads, column = at % heads * head_dim;
        const float *cosines = turns + row * dim, *sines = cosines + half, *from = x.row<float>(row) + column;
        float* to = out.row<float>(row) + column;
        over(
            0, half,
            [&](int64_t i) {
                const F first = load(from + i), second = load(from + half + i), cos = load(cosines + i), sin = load(sines + i);
                store(to + i, first * cos - second * sin);
                store(to + half + i, second * cos + first * sin);
            },
            [&](int64_t i, int64_t left) {
                const F first = load_some(from + i, left), second = load_some(from + half + i, left);
                const F cos = load_some(cosines + i, left), sin = load_some(sines + i, left);
                store_some(to + i, first * cos - second * sin, left);
                store_some(to + half + i, second * cos + first * sin, left);
            });
        if (dim < head_dim) std::memcpy(to + dim, from + dim, 4 * (head_dim - dim));
    }
}

}  // namespace

ALLOTROPE_KERNELS({"rotary", rotary, nullptr, Kind::rows}, {"rotary_turns", rotary_turns})

}  // namespace allotrope::ALLOTROPE_ISA
