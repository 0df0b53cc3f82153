// Linear layers over codes in quads, widened in registers: activations stay fp32.

#include "kernel.h"
#include "linear_codes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

template <class Reader>
void by_groups(const Args& args, Team& team) {
    if (in_groups(args))
        multiply<Reader, true>(codes_product(args, Reader::kInputs, true), team);
    else
        multiply<Reader, false>(codes_product(args, Reader::kInputs, false), team);
}

void int4(const Args& args, Team& team) {
    if (args.in(3))
        multiply<Int4<false>, true>(codes_product(args, 8, true), team);
    else
        by_groups<Int4<true>>(args, team);
}

void fp8(const Args& args, Team& team) { multiply<Fp8, false>(codes_product(args, 4, false), team); }

}  // namespace

ALLOTROPE_KERNELS({"codes_int8", by_groups<Int8>, product_workspace<Int8>, Kind::linear},
                  {"codes_int4", int4, product_workspace<Int4<true>>, Kind::linear},
                  {"codes_fp8", fp8, product_workspace<Fp8>, Kind::linear})

}  // namespace allotrope::ALLOTROPE_ISA
