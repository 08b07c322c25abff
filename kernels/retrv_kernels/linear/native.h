#pragma once

#include <cstdint>

#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// out[i][j] = scales[j] * sum_k x[i][k] * weight[j][k] + bias[j]; `scales` and `bias` may be null.
// The rows of x [rows][depth], weight [width][depth] and out [rows][width] are ldx, ldw and ldo
// elements apart.
template <Isa isa>
void linear(const float* x, int64_t ldx, int64_t rows, const void* weight, Dtype dtype, int64_t ldw,
            const float* scales, const float* bias, int64_t width, int64_t depth, float* out,
            int64_t ldo, int threads);

}  // namespace retrv
