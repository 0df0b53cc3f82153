// act(gate) · up, element by element; number 0 says which activation.

#include "kernel.h"
#include "lanes.h"
#include "maths.h"

namespace allotrope::ALLOTROPE_ISA {

namespace {

void gated(const Args& args, Team& team) {
    const View &gate = args.in(0), &up = args.in(1), &out = args.out(0);
    switch (args.whole(0)) {
        case 0: return map(out, gate, up, team, [](F a, F b) { return gelu(a) * b; });
        case 1: return map(out, gate, up, team, [](F a, F b) { return gelu_tanh(a) * b; });
        case 2: return map(out, gate, up, team, [](F a, F b) { return relu(a) * b; });
        default: return map(out, gate, up, team, [](F a, F b) { return silu(a) * b; });
    }
}

}  // namespace

ALLOTROPE_KERNELS({"gated", gated})

}  // namespace allotrope::ALLOTROPE_ISA
