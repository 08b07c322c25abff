#pragma once

#include <cstdint>

#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// out[i][j] = scales[j] * sum_k x[i][k] * weight[j][k] + bias[j]; `scales` and `bias` may be null.
// x [rows][depth] and weight [width][depth] have rows some numbers apart, out [rows][width] has
// not.
template <Isa isa>
void linear(const float* x, int64_t ldx, int64_t rows, const void* weight, Dtype dtype, int64_t ldw,
            const float* scales, const float* bias, int64_t width, int64_t depth, float* out,
            int threads);

}  // namespace retrv
