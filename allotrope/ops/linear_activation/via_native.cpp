// Linear layers over fp32 in panels, and the activation before a sum is stored; number 0 says which.

#include "kernel.h"
#include "linear.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void linear_activation(const Args& args, Team& team) {
    Product product = linear_product<Fp32>(args);
    product.finish.curve = static_cast<Curve>(args.whole(0));
    multiply<Fp32, false>(product, team);
}

}  // namespace

ALLOTROPE_KERNELS({"linear_activation", linear_activation, product_workspace<Fp32>})

}  // namespace allotrope::ALLOTROPE_ISA
