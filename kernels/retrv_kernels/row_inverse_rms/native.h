#pragma once

#include <cstdint>

#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// out[i] = 1 / sqrt(mean_j(features[i, j]^2) + eps), features [rows, width] contiguous.
template <Isa isa>
void row_inverse_rms(const void* features, Dtype dtype, int64_t rows, int64_t width, float eps,
                     float* out, int threads);

}  // namespace retrv
