#pragma once

#include <cstdint>

#include "csrc/dtype.h"

namespace retrv {

// Keys and values in pages, [pages][page_size][heads][width] each, and the page list of each
// sequence or node, `most` entries apart.
struct PagedCache {
  const void* keys;
  const void* values;
  Dtype dtype;
  int64_t page_size, heads, width;
  const int64_t* page_table;
  int64_t most;
};

}  // namespace retrv
