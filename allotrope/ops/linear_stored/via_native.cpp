// Linear layers over fp16 or bf16 in panels, widened in registers.

#include "kernel.h"
#include "linear.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

template <class Reader>
void linear_stored(const Args& args, Team& team) {
    multiply<Reader, false>(linear_product<Reader>(args), team);
}

}  // namespace

ALLOTROPE_KERNELS({"linear_fp16", linear_stored<Fp16>, product_workspace<Fp16>, Kind::linear},
                  {"linear_bf16", linear_stored<Bf16>, product_workspace<Bf16>, Kind::linear})

}  // namespace allotrope::ALLOTROPE_ISA
