// What happens to a sum before it is stored: scales, the bias, an activation, the residual; each step rounded once.

#pragma once

#include "maths.h"
#include "panels.h"

namespace allotrope::ALLOTROPE_ISA {

enum class Curve : int { none = -1, gelu, gelu_tanh, relu, silu };  // as the op `activation` numbers them

struct Finish {
    View out, bias, residual;
    const float* scales = nullptr;  // one per output, filled up to whole panels
    Curve curve = Curve::none;

    // `value` is row `row` of panel `panel`; `scale` is the row's own.
    __attribute__((noinline)) void operator()(int64_t row, int64_t panel, const W& sum, float scale = 1.0f) const {
        W value = sum;
        const int64_t column = panel * kPanel;
        if (scale != 1.0f) value = value * wide(scale);
        if (scales != nullptr) value = value * load_wide(scales + column);
        ALLOTROPE_PARTS(i) part(row, column + i * kLanes, value.at[i]);
    }

   private:
    ALLOTROPE_INLINE void part(int64_t row, int64_t column, F value) const {
        const int64_t left = out.width - column;
        if (left <= 0) return;
        float* to = out.row<float>(row) + column;
        const auto get = [&](const float* from) { return left < kLanes ? load_some(from, left) : load(from); };
        if (bias) value += get(bias.as<float>() + column);
        switch (curve) {
            case Curve::none: break;
            case Curve::gelu: value = gelu(value); break;
            case Curve::gelu_tanh: value = gelu_tanh(value); break;
            case Curve::relu: value = relu(value); break;
            case Curve::silu: value = silu(value); break;
        }
        if (residual) value = get(residual.row<float>(row) + column) + value;
        if (left < kLanes)
            store_some(to, value, left);
        else
            store(to, value);
    }
};

}  // namespace allotrope::ALLOTROPE_ISA
