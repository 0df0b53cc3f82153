// What the linear layers over codes have in common: x, codes, scales, zeros and bias.

#pragma once

#include "product.h"

namespace allotrope::ALLOTROPE_ISA {

// `per_piece`: codes of an output in 64 bytes of a panel. One scale per output is left to the finish, unless `grouped`.
ALLOTROPE_INLINE Product codes_product(const Args& args, int64_t per_piece, bool grouped) {
    const View &x = args.in(0), &scales = args.in(2), &zeros = args.in(3);
    Product product;
    product.x = x;
    product.weights = args.in(1).as<char>();
    product.stride = up(x.width, per_piece) / per_piece * 64;
    product.finish.out = args.out(0);
    product.finish.bias = args.in(4);
    product.workspace = args.workspace;
    Groups& groups = product.groups;
    groups.count = scales.rows * scales.width / (product.panels() * kPanel);
    groups.size = x.width / groups.count;
    groups.block = groups.count > 1 && groups.size < kBlock ? groups.size : kBlock;
    groups.zeros = zeros ? zeros.as<uint8_t>() : nullptr;
    if (!grouped)
        product.finish.scales = scales.as<float>();
    else if (scales.dtype == Dtype::f32)
        groups.wide = scales.as<float>();
    else
        groups.scales = scales.as<uint16_t>();
    product.behind = args.behind;
    return product;
}

ALLOTROPE_INLINE bool in_groups(const Args& args) {
    const View &scales = args.in(2), &out = args.out(0);
    return scales.rows * scales.width > up(out.width, kPanel) || args.in(3);
}

}  // namespace allotrope::ALLOTROPE_ISA
