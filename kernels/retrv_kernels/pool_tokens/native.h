#pragma once

#include <cstdint>

#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// The equation in op.py. features [n][width], offsets [items + 1], queries [heads][width], scales
// [n] for int8 rows or null, out [items][heads][width]; all contiguous.
template <Isa isa>
void pool_tokens(const void* features, Dtype dtype, const float* scales, const int64_t* offsets,
                 int64_t items, int64_t width, const float* queries, int64_t heads, float eps,
                 float* out, int threads);

}  // namespace retrv
