// Log-n: a row times ln(p + 1) / ln(length) where p + 1 > length. Numbers: length.

#include "kernel.h"
#include "lanes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void logn(const Args& args, Team& team) {
    const View &x = args.in(0), &out = args.out(0);
    const int64_t *positions = args.in(1).as<int64_t>(), length = args.whole(0);
    for_cells(out, team, [&](int64_t row, int64_t begin, int64_t end) {
        const int64_t count = positions[row] + 1;
        const double grown = std::log(static_cast<double>(count)) / std::log(static_cast<double>(length));
        const float factor = count > length ? static_cast<float>(grown) : 1.0f;
        const float* from = x.row<float>(row);
        float* to = out.row<float>(row);
        over(
            begin, end, [&](int64_t at) { store(to + at, load(from + at) * factor); },
            [&](int64_t at, int64_t left) { store_some(to + at, load_some(from + at, left) * factor, left); });
    });
}

}  // namespace

ALLOTROPE_KERNELS({"logn", logn, nullptr, Kind::rows})

}  // namespace allotrope::ALLOTROPE_ISA
