#pragma once

#include <cstdint>

namespace retrv {

// Keys and values in pages, [pages][page_size][heads][width] each with strides of its own in
// numbers, and the page list of each sequence or node, `most` entries apart.
struct PagedCache {
  const void* keys;
  const void* values;
  int64_t dtype;  // a Dtype
  int64_t page_size, heads, width;
  int64_t page_stride, row_stride, head_stride;
  const int64_t* page_table;
  int64_t most;
};

}  // namespace retrv
