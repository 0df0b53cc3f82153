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

    // Rows [row, row + count) of panel `panel`: their sums lie `step` apart, and each has a scale of its own if there are
    // any.
    __attribute__((noinline)) void operator()(int64_t row, int64_t count, int64_t panel, const W* sums, int64_t step,
                                              const float* row_scales = nullptr) const {
        const int64_t column = panel * kPanel;
        const bool whole = column + kPanel <= out.width;
        W by{};
        if (scales != nullptr) by = load_wide(scales + column);
        if (whole && row_scales != nullptr && !residual && curve == Curve::none) {  // what most codes need
            W more{};
            if (bias) more = load_wide(bias.as<float>() + column);
            for (int64_t i = 0; i < count; ++i) {
                W value = sums[i * step] * wide(row_scales[i]);
                if (scales != nullptr) value = value * by;
                if (bias) value = value + more;
                store_wide(out.row<float>(row + i) + column, value);
            }
            return;
        }
        for (int64_t i = 0; i < count; ++i) {
            W value = sums[i * step];
            if (row_scales != nullptr) value = value * wide(row_scales[i]);
            if (scales != nullptr) value = value * by;
            if (whole)
                ALLOTROPE_PARTS(p) part<true>(row + i, column + p * kLanes, value.at[p]);
            else
                ALLOTROPE_PARTS(p) part<false>(row + i, column + p * kLanes, value.at[p]);
        }
    }

   private:
    // `kWhole`: there are outputs for all lanes.
    template <bool kWhole>
    ALLOTROPE_INLINE void part(int64_t row, int64_t column, F value) const {
        const int64_t left = kWhole ? kLanes : out.width - column;
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
