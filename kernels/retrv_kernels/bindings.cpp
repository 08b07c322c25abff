// Python passes addresses as integers: a call takes about 2 us, against 36 us with five array
// arguments. Python has already checked shapes, dtypes and contiguity.

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <iterator>

#include "csrc/isa.h"
#include "decoder_layers/native.h"
#include "linear/native.h"
#include "paged_attention/native.h"
#include "pool_tokens/native.h"
#include "relate_tokens/native.h"
#include "shared_prefix_attention/native.h"
#include "splice_features/native.h"

namespace nb = nanobind;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::vector<int> isas() {
  std::vector<int> indices;
  for (const auto isa : retrv::runnable_isas()) indices.push_back(static_cast<int>(isa));
  return indices;
}

void pool_tokens(int isa, uintptr_t features, int dtype, uintptr_t scales, uintptr_t offsets,
                 int64_t items, int64_t width, uintptr_t queries, int64_t heads, float eps,
                 uintptr_t out, int threads) {
  static constexpr decltype(&retrv::pool_tokens<retrv::Isa::kScalar>) kVariants[] =
      RETRV_VARIANTS(retrv::pool_tokens);
  kVariants[isa](pointer<const void>(features), static_cast<retrv::Dtype>(dtype),
                 pointer<const float>(scales), pointer<const int64_t>(offsets), items, width,
                 pointer<const float>(queries), heads, eps, pointer<float>(out), threads);
}

void relate_tokens(int isa, uintptr_t keys, int dtype, uintptr_t scales, int64_t width,
                   int64_t heads, int64_t pool_heads, uintptr_t queries, uintptr_t pairs,
                   int64_t count, float eps, uintptr_t out, int threads) {
  static constexpr decltype(&retrv::relate_tokens<retrv::Isa::kScalar>) kVariants[] =
      RETRV_VARIANTS(retrv::relate_tokens);
  kVariants[isa](pointer<const void>(keys), static_cast<retrv::Dtype>(dtype),
                 pointer<const float>(scales), width, heads, pool_heads,
                 pointer<const retrv::RelateQuery>(queries),
                 pointer<const retrv::RelatePair>(pairs), count, eps, pointer<float>(out), threads);
}

void splice_features(int isa, uintptr_t stores, uintptr_t spans, int64_t count, int64_t width,
                     uintptr_t page_table, int64_t pages, int64_t page_size, int64_t rows,
                     int dtype, uintptr_t embeds, uintptr_t positions, uintptr_t slots,
                     int threads) {
  static constexpr decltype(&retrv::splice_features<retrv::Isa::kScalar>) kVariants[] =
      RETRV_VARIANTS(retrv::splice_features);
  kVariants[isa](pointer<const retrv::SpliceStore>(stores), pointer<const retrv::SpliceSpan>(spans),
                 count, width, pointer<const int64_t>(page_table), pages, page_size, rows,
                 static_cast<retrv::Dtype>(dtype), pointer<void>(embeds),
                 pointer<int64_t>(positions), pointer<int64_t>(slots), threads);
}

// The address comes from `cache_of` in paged_attention/native.py.
const retrv::PagedCache& cache(uintptr_t address) {
  return *pointer<const retrv::PagedCache>(address);
}

void paged_attention(int isa, uintptr_t query, int64_t heads, uintptr_t paged, uintptr_t offsets,
                     uintptr_t lengths, int64_t sequences, float scale, uintptr_t out,
                     int threads) {
  static constexpr decltype(&retrv::paged_attention<retrv::Isa::kScalar>) kVariants[] =
      RETRV_VARIANTS(retrv::paged_attention);
  kVariants[isa](pointer<const void>(query), heads, cache(paged), pointer<const int64_t>(offsets),
                 pointer<const int64_t>(lengths), sequences, scale, pointer<float>(out), threads);
}

void shared_prefix_attention(int isa, uintptr_t query, int64_t rows, int64_t heads, uintptr_t paged,
                             uintptr_t lengths, uintptr_t node_rows, int64_t nodes, float scale,
                             uintptr_t out, int threads) {
  static constexpr decltype(&retrv::shared_prefix_attention<retrv::Isa::kScalar>) kVariants[] =
      RETRV_VARIANTS(retrv::shared_prefix_attention);
  kVariants[isa](pointer<const void>(query), rows, heads, cache(paged),
                 pointer<const int64_t>(lengths), pointer<const int64_t>(node_rows), nodes, scale,
                 pointer<float>(out), threads);
}

void linear(int isa, uintptr_t x, int64_t ldx, int64_t rows, uintptr_t weight, int dtype,
            int64_t ldw, uintptr_t scales, uintptr_t bias, int64_t width, int64_t depth,
            uintptr_t out, int64_t ldo, int threads) {
  static constexpr decltype(&retrv::linear<retrv::Isa::kScalar>) kVariants[] =
      RETRV_VARIANTS(retrv::linear);
  kVariants[isa](pointer<const float>(x), ldx, rows, pointer<const void>(weight),
                 static_cast<retrv::Dtype>(dtype), ldw, pointer<const float>(scales),
                 pointer<const float>(bias), width, depth, pointer<float>(out), ldo, threads);
}

void decoder_layers(int isa, uintptr_t layers, uintptr_t shape, float eps, uintptr_t x,
                    int64_t rows, uintptr_t cos, uintptr_t sin, uintptr_t paged, uintptr_t pages,
                    uintptr_t slots, uintptr_t parts, int64_t count, float scale, int threads) {
  static constexpr decltype(&retrv::decoder_layers<retrv::Isa::kScalar>) kVariants[] =
      RETRV_VARIANTS(retrv::decoder_layers);
  kVariants[isa](pointer<const retrv::DecoderLayer>(layers),
                 *pointer<const retrv::DecoderShape>(shape), eps, pointer<float>(x), rows,
                 pointer<const float>(cos), pointer<const float>(sin), cache(paged),
                 pointer<const int64_t>(pages), pointer<const int64_t>(slots),
                 pointer<const retrv::AttentionPart>(parts), count, scale, threads);
}

}  // namespace

NB_MODULE(_native, m) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  m.def("isas", &isas);
  m.attr("LANES") = std::vector<int>(std::begin(retrv::kLanesOf), std::end(retrv::kLanesOf));
  m.attr("PANEL") = retrv::kPanel;
  m.def("pool_tokens", &pool_tokens, unlocked);
  m.def("relate_tokens", &relate_tokens, unlocked);
  m.def("splice_features", &splice_features, unlocked);
  m.def("paged_attention", &paged_attention, unlocked);
  m.def("shared_prefix_attention", &shared_prefix_attention, unlocked);
  m.def("linear", &linear, unlocked);
  m.def("decoder_layers", &decoder_layers, unlocked);
}
