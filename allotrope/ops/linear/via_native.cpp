// Linear layers over fp32 in panels.

#include "kernel.h"
#include "linear.h"

namespace allotrope::ALLOTROPE_ISA {

template void multiply<Fp32, false>(const Product&, Team&);

namespace {

void linear(const Args& args, Team& team) { multiply<Fp32, false>(linear_product<Fp32>(args), team); }

}  // namespace

ALLOTROPE_KERNELS({"linear", linear, product_workspace<Fp32>, Kind::linear})

}  // namespace allotrope::ALLOTROPE_ISA
