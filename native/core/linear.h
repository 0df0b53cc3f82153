// What the linear layers over wide weights have in common: x, weight and bias come first.

#pragma once

#include "product.h"

namespace allotrope::ALLOTROPE_ISA {

template <class Reader>
ALLOTROPE_INLINE Product linear_product(const Args& args) {
    Product product;
    product.x = args.in(0);
    product.weights = args.in(1).as<char>();
    product.stride = up(product.x.width, Reader::kInputs) / Reader::kInputs * Reader::kBytes;
    product.finish.out = args.out(0);
    product.finish.bias = args.in(2);
    product.workspace = args.workspace;
    product.behind = args.behind;
    return product;
}

extern template void multiply<Fp32, false>(const Product&, Team&);  // in the op `linear`

}  // namespace allotrope::ALLOTROPE_ISA
