// Activations, element by element; number 0 says which.

#include "kernel.h"
#include "lanes.h"
#include "maths.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void activation(const Args& args, Team& team) {
    const View &x = args.in(0), &out = args.out(0);
    switch (args.whole(0)) {
        case 0: return map(out, x, team, gelu);
        case 1: return map(out, x, team, gelu_tanh);
        case 2: return map(out, x, team, relu);
        default: return map(out, x, team, silu);
    }
}

}  // namespace

ALLOTROPE_KERNELS({"activation", activation})

}  // namespace allotrope::ALLOTROPE_ISA
