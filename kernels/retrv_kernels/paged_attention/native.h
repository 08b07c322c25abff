#pragma once

#include <cstdint>

#include "csrc/cache.h"
#include "csrc/isa.h"

namespace retrv {

// The equation in op.py. query [n][heads][width] has the cache's dtype; offsets [sequences + 1] of
// new rows; lengths [sequences] of cached rows; out [n][heads][width].
template <Isa isa>
void paged_attention(const void* query, int64_t heads, const PagedCache& cache,
                     const int64_t* offsets, const int64_t* lengths, int64_t sequences, float scale,
                     float* out, int threads);

}  // namespace retrv
