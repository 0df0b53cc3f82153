// Linear layers over fp32 in panels, added to the residual, which may be the output's own memory.

#include "kernel.h"
#include "linear.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void linear_add(const Args& args, Team& team) {
    Product product = linear_product<Fp32>(args);
    product.finish.residual = args.in(3);
    multiply<Fp32, false>(product, team);
}

}  // namespace

ALLOTROPE_KERNELS({"linear_add", linear_add, product_workspace<Fp32>})

}  // namespace allotrope::ALLOTROPE_ISA
