#pragma once

#include <type_traits>

#include "csrc/vectors.h"
#include "splice_features/native.h"

namespace retrv {
namespace {

template <class V, class T, class Out>
void converted(const T* from, float scale, int64_t width, Out* to) {
  if constexpr (std::is_same_v<Out, float>)
    convert<V>(from, scale, width, to);
  else
    for (int64_t i = 0; i < width; ++i) narrow(scale * widen(from[i]), to + i);
}

template <class V, class Out>
void splice_row(const SpliceStore& store, int64_t row, int64_t width, Dtype dtype, Out* to) {
  with_dtype(static_cast<Dtype>(store.dtype), store.rows, [&](const auto* rows) {
    const auto* from = rows + row * width;
    if (static_cast<Dtype>(store.dtype) == dtype)
      std::memcpy(to, from, static_cast<size_t>(width) * sizeof *to);
    else
      converted<V>(from, store.scales ? store.scales[row] : 1.0f, width, to);
  });
}

template <class V, class Out>
void splice_rows(const SpliceStore* stores, const SpliceSpan* spans, int64_t count, int64_t width,
                 const int64_t* page_table, int64_t pages, int64_t page_size, int64_t rows,
                 Dtype dtype, Out* embeds, int64_t* positions, int64_t* slots, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * width > (1 << 14))
  {
    int64_t s = 0;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      while (s + 1 < count && spans[s + 1].out <= row) ++s;  // the rows of a thread ascend
      const SpliceSpan& span = spans[s];
      const int64_t i = row - span.out, k = span.start + i, slot = span.slot + i;
      splice_row<V>(stores[span.store], span.row + i, width, dtype, embeds + row * width);
      positions[row] = span.position + (span.width ? 0 : k);
      positions[rows + row] = span.position + (span.width ? k / span.width : k);
      positions[2 * rows + row] = span.position + (span.width ? k % span.width : k);
      slots[row] =
          page_table[span.sequence * pages + slot / page_size] * page_size + slot % page_size;
    }
  }
}

}  // namespace

template <Isa isa>
void splice_features(const SpliceStore* stores, const SpliceSpan* spans, int64_t count,
                     int64_t width, const int64_t* page_table, int64_t pages, int64_t page_size,
                     int64_t rows, Dtype dtype, void* embeds, int64_t* positions, int64_t* slots,
                     int threads) {
  with_dtype(dtype, embeds, [&](const auto* out) {
    using Out = std::remove_cv_t<std::remove_pointer_t<decltype(out)>>;
    if constexpr (!std::is_same_v<Out, int8_t>)
      splice_rows<Simd<isa>>(stores, spans, count, width, page_table, pages, page_size, rows, dtype,
                             static_cast<Out*>(embeds), positions, slots, threads);
  });
}

}  // namespace retrv
