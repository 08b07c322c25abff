#pragma once

#include "csrc/pooling.h"
#include "pool_tokens/native.h"

namespace retrv {
namespace {

template <class V, class T>
void pool_item(const T* rows, const float* scales, int64_t count, int64_t width, float eps,
               Pooling<V>& pooling) {
  for (int64_t first = 0; first < count; first += Pooling<V>::kBlock) {
    const int64_t left = count - first;
    const auto row = [&](int64_t i) { return rows + (first + i) * width; };
    pooling.add(row, left < Pooling<V>::kBlock ? left : Pooling<V>::kBlock,
                [&](int64_t i, float squares) {
                  const float scale = scales ? scales[first + i] : 1.0f;
                  return scale / __builtin_sqrtf(scale * scale * squares / width + eps);
                });
  }
}

template <class V, class T>
void pool_items(const T* features, const float* scales, const int64_t* offsets, int64_t items,
                int64_t width, const float* queries, int64_t heads, float eps, float* out,
                int threads) {
  // Waking a second thread takes about as long as reading 64 KB.
  const bool worth_it = threads > 1 && items > 1 && offsets[items] * width > (1 << 14);
#pragma omp parallel num_threads(threads) if (worth_it)
  {
    Pooling<V> pooling(heads, width);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < items; ++item) {
      const int64_t first = offsets[item];
      pooling.start(queries, width);
      pool_item<V>(features + first * width, scales ? scales + first : nullptr,
                   offsets[item + 1] - first, width, eps, pooling);
      pooling.finish(out + item * heads * width);
    }
  }
}

}  // namespace

template <Isa isa>
void pool_tokens(const void* features, Dtype dtype, const float* scales, const int64_t* offsets,
                 int64_t items, int64_t width, const float* queries, int64_t heads, float eps,
                 float* out, int threads) {
  with_dtype(dtype, features, [&](const auto* rows) {
    pool_items<Simd<isa>>(rows, scales, offsets, items, width, queries, heads, eps, out, threads);
  });
}

}  // namespace retrv
