#pragma once

#include <cstdint>

#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// A pair of a candidate and a query, as offsets into the arrays below.
struct RelatePair {
  int64_t first, rows;  // the candidate's rows in `keys`
  int64_t query;        // number of its query
  int64_t out;          // where its weights begin in `out`
};

// A query. Each head's columns are filled up from `rows` to `padded`, whole vectors, and all heads'
// to `columns`, whole panels: column e * padded + j is head e and row j. In what is filled up, keys
// are zeros, weights too.
struct RelateQuery {
  int64_t rows, padded, columns;
  const float* keys;    // [heads][width / heads][padded], transposed
  const float* scores;  // [pool heads][columns]: the pooling score of each value
  const float* gram;    // or null: products of values, see relate_tokens/native.py
};

inline constexpr int64_t kPanel = 32;

// out[pair] = [pool heads][columns]: how much of each value the pair's token takes.
template <Isa isa>
void relate_tokens(const void* keys, Dtype dtype, const float* scales, int64_t width, int64_t heads,
                   int64_t pool_heads, const RelateQuery* queries, const RelatePair* pairs,
                   int64_t count, float eps, float* out, int threads);

}  // namespace retrv
