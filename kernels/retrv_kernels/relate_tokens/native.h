#pragma once

#include <cstdint>

#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// A pair of a candidate and a query, as offsets into the arrays of `relate_tokens`.
struct RelatePair {
  int64_t first, rows;  // the candidate's rows in `keys`
  int64_t query;        // index into `queries`
  int64_t out;          // first weight of the pair in `out`
};

// A query. Each head's columns are padded from `rows` to `padded`, a multiple of the vector size,
// and all heads together to `columns`, a multiple of kPanel. Column e * padded + j belongs to head
// e and row j. Padding holds zeros, in the keys and in the weights.
struct RelateQuery {
  int64_t rows, padded, columns;
  const float* keys;    // [heads][width / heads][padded], transposed
  const float* scores;  // [pool heads][columns]: the pooling score of each value
  const float* gram;    // products of values, or null: see relate_tokens/native.py
};

inline constexpr int64_t kPanel = 32;

// out[pair] = [pool heads][columns]: how much of each value the pair's token takes.
template <Isa isa>
void relate_tokens(const void* keys, Dtype dtype, const float* scales, int64_t width, int64_t heads,
                   int64_t pool_heads, const RelateQuery* queries, const RelatePair* pairs,
                   int64_t count, float eps, float* out, int threads);

}  // namespace retrv
