#pragma once

#include "csrc/attention.h"
#include "paged_attention/native.h"

namespace retrv {
namespace {

template <class V, class T>
void attend_new_rows(const T* query, int64_t heads, const PagedCache& cache, const int64_t* offsets,
                     const int64_t* lengths, int64_t sequences, float scale, float* out,
                     int threads) {
  const int64_t group = heads / cache.heads;
  const int64_t rows = group < Attention<V, T>::kRows ? Attention<V, T>::kRows / group : 1;
  Scratch scratch((sequences + 1) * static_cast<int64_t>(sizeof(int64_t)));
  int64_t* tiles = scratch.as<int64_t>();  // of all sequences before s
  tiles[0] = 0;
  for (int64_t s = 0; s < sequences; ++s)
    tiles[s + 1] = tiles[s] + (offsets[s + 1] - offsets[s] + rows - 1) / rows;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Attention<V, T> attention(cache, group, scale);
    int64_t s = 0;
#pragma omp for schedule(monotonic : dynamic)
    for (int64_t task = 0; task < tiles[sequences] * cache.heads; ++task) {
      const int64_t tile = task / cache.heads, head = task % cache.heads;
      while (tiles[s + 1] <= tile) ++s;  // the tasks of a thread ascend
      const int64_t first = offsets[s] + (tile - tiles[s]) * rows;
      const int64_t end = first + rows < offsets[s + 1] ? first + rows : offsets[s + 1];
      const int64_t prefix = lengths[s] - offsets[s + 1];
      attention.start();
      for (int64_t row = first; row < end; ++row)
        for (int64_t g = 0; g < group; ++g)
          attention.add(query + (row * heads + head * group + g) * cache.width, prefix + row + 1);
      attention.attend(cache.page_table + s * cache.max_pages, head, 0, prefix + end);
      for (int64_t row = first; row < end; ++row)
        for (int64_t g = 0; g < group; ++g)
          attention.finish((row - first) * group + g,
                           out + (row * heads + head * group + g) * cache.width, true);
    }
  }
}

}  // namespace

template <Isa isa>
void paged_attention(const void* query, int64_t heads, const PagedCache& cache,
                     const int64_t* offsets, const int64_t* lengths, int64_t sequences, float scale,
                     float* out, int threads) {
  with_dtype(static_cast<Dtype>(cache.dtype), query, [&](const auto* rows) {
    attend_new_rows<Simd<isa>>(rows, heads, cache, offsets, lengths, sequences, scale, out,
                               threads);
  });
}

}  // namespace retrv
