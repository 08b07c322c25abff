#pragma once

#include <cstdint>

#include "csrc/cache.h"
#include "csrc/dtype.h"
#include "csrc/isa.h"

namespace retrv {

// A linear layer's parameters; scales of int8 weights, and the bias, may be null.
struct LinearWeights {
  const void* weight;
  const float* scales;
  const float* bias;
};

// The parameters of a layer; norms of queries and keys may be null. As native.py lays it out.
struct DecoderLayer {
  LinearWeights q, k, v, o, gate, up, down;
  const float* before;
  const float* between;
  const float* q_norm;
  const float* k_norm;
};

// What all layers have in common. As native.py lays it out.
struct DecoderShape {
  int64_t layers, hidden, heads, cached_heads, width, inner;
  int64_t dtype;         // a Dtype: of the linear layers' weights
  int64_t layer_stride;  // numbers from a layer's keys in the cache to the next one's
};

// Rows that attend together: by shared_prefix_attention, whose `offsets` are node_rows, or by
// paged_attention. As native.py lays it out.
struct AttentionPart {
  int64_t shared, first, rows;
  const int64_t* page_table;
  int64_t most;
  const int64_t* offsets;
  const int64_t* lengths;
  int64_t count;
};

// Takes `rows` rows x [rows][hidden] through all layers, in place. Their keys and values go to
// pages[row], slots[row] of the cache first, whose keys and values are those of the first layer.
// cos and sin are [rows][width], the sines of the first half negated.
template <Isa isa>
void decoder_layers(const DecoderLayer* layers, const DecoderShape& shape, float eps, float* x,
                    int64_t rows, const float* cos, const float* sin, const PagedCache& cache,
                    const int64_t* pages, const int64_t* slots, const AttentionPart* parts,
                    int64_t count, float scale, int threads);

}  // namespace retrv
