#pragma once

#include <cstdint>

#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// native.py writes these layouts: every member is an int64 or an address.
struct SpliceStore {
  const void* rows;
  const float* scales;  // or null
  int64_t dtype;
};

struct SpliceSpan {
  int64_t store, row, length, position, width, sequence, slot, start;  // Span of op.py
  int64_t out;  // first row in the packed batch
};

// The gather in op.py. page_table [sequences][pages], embeds [rows][width] of `dtype`, positions
// [3][rows], slots [rows].
template <Isa isa>
void splice_features(const SpliceStore* stores, const SpliceSpan* spans, int64_t count,
                     int64_t width, const int64_t* page_table, int64_t pages, int64_t page_size,
                     int64_t rows, Dtype dtype, void* embeds, int64_t* positions, int64_t* slots,
                     int threads);

}  // namespace retrv
