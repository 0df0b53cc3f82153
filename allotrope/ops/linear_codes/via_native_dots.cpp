// Linear layers over codes in quads, with activations as codes of eight bits, by dot products of bytes (dots.h) or, for
// many rows, in tiles (amx.h).

#include "codes.h"
#include "dots.h"
#include "kernel.h"
#include "linear_codes.h"

#if defined(__AMX_INT8__) || defined(ALLOTROPE_PLAIN_TILES)
#include "amx.h"
#endif

namespace allotrope::ALLOTROPE_ISA {

namespace {

template <class Form, bool kGrouped>
void codes_times_codes(const Product& product, Team& team) {
#if defined(__AMX_INT8__) || defined(ALLOTROPE_PLAIN_TILES)
    if (fits_tiles(product, kGrouped)) return multiply_in_tiles<Form, kGrouped>(product, team);
#endif
    multiply_codes<Form, kGrouped>(product, team);
}

template <class Form>
int64_t workspace(const int64_t* sizes, int threads) {
    const int64_t found = codes_workspace<Form>(sizes, threads);
#if defined(__AMX_INT8__) || defined(ALLOTROPE_PLAIN_TILES)
    const int64_t in_tiles = tiles_workspace(sizes, threads);
    if (in_tiles > found) return in_tiles;
#endif
    return found;
}

void int8(const Args& args, Team& team) {
    const bool grouped = in_groups(args);
    const Product product = codes_product(args, 4, grouped);
    if (grouped)
        codes_times_codes<Bytes, true>(product, team);
    else
        codes_times_codes<Bytes, false>(product, team);
}

void int4(const Args& args, Team& team) {
    const Product product = codes_product(args, 8, true);
    if (args.in(3))
        codes_times_codes<Nibbles<false>, true>(product, team);
    else
        codes_times_codes<Nibbles<true>, true>(product, team);
}

}  // namespace

ALLOTROPE_KERNELS({"codes_int8_int8", int8, workspace<Bytes>, Kind::linear},
                  {"codes_int4_int8", int4, workspace<Nibbles<true>>, Kind::linear})

}  // namespace allotrope::ALLOTROPE_ISA
