#pragma once

#include <cstdint>

#include "csrc/cache.h"
#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// The parameters of a linear layer. `scales` (for int8 weights) and `bias` may be null.
struct LinearWeights {
  const void* weight;
  const float* scales;
  const float* bias;
};

// The parameters of a decoder layer; q_norm and k_norm may be null. native.py writes this layout.
struct DecoderLayer {
  LinearWeights q, k, v, o, gate, up, down;
  const float* attention_norm;
  const float* mlp_norm;
  const float* q_norm;
  const float* k_norm;
};

// What all layers have in common. native.py writes this layout.
struct DecoderShape {
  int64_t layers, hidden, heads, kv_heads, width, inner;
  int64_t dtype;         // Dtype of the linear layers' weights
  int64_t layer_stride;  // elements between the cached keys of two layers
};

// Rows that attend in one call: with `shared` by shared_prefix_attention, whose node_rows are
// `offsets`, otherwise by paged_attention. native.py writes this layout.
struct AttentionPart {
  int64_t shared, first, rows;
  const int64_t* page_table;
  int64_t max_pages;
  const int64_t* offsets;
  const int64_t* lengths;
  int64_t count;
};

// Runs x [rows][hidden] through all layers, in place. Each layer first writes the keys and values
// of a row to page pages[row], slot slots[row] of its cache. `cache` holds the addresses of the
// first layer's keys and values. cos and sin are [rows][width], with the first half of sin negated.
template <Isa isa>
void decoder_layers(const DecoderLayer* layers, const DecoderShape& shape, float eps, float* x,
                    int64_t rows, const float* cos, const float* sin, const PagedCache& cache,
                    const int64_t* pages, const int64_t* slots, const AttentionPart* parts,
                    int64_t count, float scale, int threads);

}  // namespace retrv
