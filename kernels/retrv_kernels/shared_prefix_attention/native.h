#pragma once

#include <cstdint>

#include "csrc/cache.h"
#include "csrc/isa.h"

namespace retrv {

// The equation in op.py. query [rows][heads][width] has the cache's dtype; lengths [nodes];
// node_rows [nodes][2]; out [rows][heads][width].
template <Isa isa>
void shared_prefix_attention(const void* query, int64_t rows, int64_t heads,
                             const PagedCache& cache, const int64_t* lengths,
                             const int64_t* node_rows, int64_t nodes, float scale, float* out,
                             int threads);

}  // namespace retrv
