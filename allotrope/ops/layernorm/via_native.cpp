// LayerNorm, row by row. Numbers: eps.

#include "kernel.h"
#include "lanes.h"
#include "norms.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void layernorm(const Args& args, Team& team) {
    const View &x = args.in(0), &out = args.out(0);
    const float *weight = args.in(1).as<float>(), *bias = args.in(2).as<float>();
    const Share mine(x.rows, team);
    for (int64_t row = mine.begin; row < mine.end; ++row)
        layer_norm(out.row<float>(row), x.row<float>(row), x.width, static_cast<float>(args.number(0)), weight, bias);
}

}  // namespace

ALLOTROPE_KERNELS({"layernorm", layernorm, nullptr, Kind::rows})

}  // namespace allotrope::ALLOTROPE_ISA
