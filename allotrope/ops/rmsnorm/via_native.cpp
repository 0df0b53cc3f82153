// RMSNorm over each of a row's equal parts. Numbers: eps, parts.

#include "kernel.h"
#include "lanes.h"
#include "norms.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void rmsnorm(const Args& args, Team& team) {
    const View &x = args.in(0), &out = args.out(0);
    const float* weight = args.in(1).as<float>();
    const int64_t parts = args.whole(1), width = x.width / parts;
    const Share mine(x.rows * parts, team);
    for (int64_t at = mine.begin; at < mine.end; ++at) {
        const int64_t row = at / parts, column = at % parts * width;
        rms_norm(out.row<float>(row) + column, x.row<float>(row) + column, width, static_cast<float>(args.number(0)),
                 weight);
    }
}

}  // namespace

ALLOTROPE_KERNELS({"rmsnorm", rmsnorm, nullptr, Kind::rows})

}  // namespace allotrope::ALLOTROPE_ISA
