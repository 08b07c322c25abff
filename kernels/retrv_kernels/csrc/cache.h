#pragma once

#include <cstdint>

namespace retrv {

// A paged cache. Keys and values are [pages][page_size][heads][width] with the strides given here,
// counted in elements. `page_table` holds a list of pages for each sequence or node; the lists
// begin `max_pages` entries apart.
struct PagedCache {
  const void* keys;
  const void* values;
  int64_t dtype;  // a Dtype
  int64_t page_size, heads, width;
  int64_t page_stride, row_stride, head_stride;
  const int64_t* page_table;
  int64_t max_pages;
};

}  // namespace retrv
