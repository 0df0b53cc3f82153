// The residual sum and its norm, row by row. Numbers: 0 for LayerNorm or 1 for RMSNorm, eps.

#include "kernel.h"
#include "lanes.h"
#include "norms.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void add_norm(const Args& args, Team& team) {
    const View &x = args.in(0), &residual = args.in(1), &out = args.out(0), &normed = args.out(1);
    const float *weight = args.in(2).as<float>(), *bias = args.in(3).as<float>();
    const float eps = static_cast<float>(args.number(1));
    const Share mine(x.rows, team);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
        const float *a = residual.row<float>(row), *b = x.row<float>(row);
        float* total = out.row<float>(row);
        over(
            0, x.width, [&](int64_t at) { store(total + at, load(a + at) + load(b + at)); },
            [&](int64_t at, int64_t left) { store_some(total + at, load_some(a + at, left) + load_some(b + at, left), left); });
        if (args.whole(0) == 0)
            layer_norm(normed.row<float>(row), total, x.width, eps, weight, bias);
        else
            rms_norm(normed.row<float>(row), total, x.width, eps, weight);
    }
}

}  // namespace

ALLOTROPE_KERNELS({"add_norm", add_norm, nullptr, Kind::rows})

}  // namespace allotrope::ALLOTROPE_ISA
