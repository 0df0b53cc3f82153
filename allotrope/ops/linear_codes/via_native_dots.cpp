// Linear layers over codes in quads, with activations as codes of eight bits, by dot products of bytes (dots.h).

#include "codes.h"
#include "dots.h"
#include "kernel.h"
#include "linear_codes.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void int8(const Args& args, Team& team) {
    const bool grouped = in_groups(args);
    const Product product = codes_product(args, 4, grouped);
    if (grouped)
        multiply_codes<Bytes, true>(product, team);
    else
        multiply_codes<Bytes, false>(product, team);
}

void int4(const Args& args, Team& team) {
    const Product product = codes_product(args, 8, true);
    if (args.in(3))
        multiply_codes<Nibbles<false>, true>(product, team);
    else
        multiply_codes<Nibbles<true>, true>(product, team);
}

}  // namespace

ALLOTROPE_KERNELS({"codes_int8_int8", int8}, {"codes_int4_int8", int4})

}  // namespace allotrope::ALLOTROPE_ISA
