#pragma once

#include "csrc/scratch.h"
#include "csrc/simd.h"
#include "decoder_layers/native.h"
#include "linear/native.h"
#include "paged_attention/native.h"
#include "shared_prefix_attention/native.h"

namespace retrv {
namespace {

// Calls f(k, count) for every vector of a row: it begins at k and has `count` lanes.
template <class V, class F>
inline void vectors(int64_t width, const F& f) {
  for (int64_t k = 0; k < width; k += V::kLanes) f(k, width - k < V::kLanes ? width - k : V::kLanes);
}

// RMSNorm of one row; `out` may be `x`.
template <class V>
void rms_norm(const float* x, const float* weight, int64_t width, float eps, float* out) {
  auto squares = V::zero();
  vectors<V>(width, [&](int64_t k, int64_t count) {
    const auto values = V::load(x + k, count);
    squares = V::multiply_add(values, values, squares);
  });
  const auto factor =
      V::set(1 / __builtin_sqrtf(V::sum(squares) / static_cast<float>(width) + eps));
  vectors<V>(width, [&](int64_t k, int64_t count) {
    const auto values = V::multiply(V::load(x + k, count), factor);
    V::store(out + k, V::multiply(values, V::load(weight + k, count)), count);
  });
}

// RoPE of one head: x cos + (-x₂, x₁) sin; `sin` holds the sign.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t width, float* out) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float low = x[i], high = x[half + i];
    out[i] = low * cos[i] + high * sin[i];
    out[half + i] = high * cos[half + i] + low * sin[half + i];
  }
}

// gate = silu(gate) * up for one row; `powers` is temporary memory of the same width.
template <class V>
void gated(float* gate, const float* up, int64_t width, float* powers) {
  for (int64_t i = 0; i < width; ++i) powers[i] = -__builtin_fabsf(gate[i]);
  vectors<V>(width, [&](int64_t k, int64_t count) {
    V::store(powers + k, V::exp(V::load(powers + k, count)), count);
  });
  for (int64_t i = 0; i < width; ++i) {
    const float above = gate[i] < 0 ? gate[i] * powers[i] : gate[i];
    gate[i] = above / (1 + powers[i]) * up[i];
  }
}

inline void add(const float* x, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += x[i];
}

template <Isa isa>
struct Decoder {
  using V = Simd<isa>;
  const DecoderShape& shape;
  float eps;
  int64_t rows;
  const PagedCache& cache;
  const int64_t* pages;
  const int64_t* slots;
  const AttentionPart* parts;
  int64_t count;
  float scale;
  int threads;

  void linear(const LinearWeights& weights, const float* from, int64_t depth, int64_t width,
              float* to, int64_t ldo) const {
    retrv::linear<isa>(from, depth, rows, weights.weight, static_cast<Dtype>(shape.dtype), depth,
                       weights.scales, weights.bias, width, depth, to, ldo, threads);
  }

  // Norms and rotates the heads of a row; writes queries to `query`, keys and values to the cache.
  void place(const DecoderLayer& layer, int64_t number, int64_t row, float* qkv, const float* cos,
             const float* sin, float* query) const {
    const int64_t width = shape.width;
    const int64_t at = number * shape.layer_stride + pages[row] * cache.page_stride +
                       slots[row] * cache.row_stride;
    float* keys = static_cast<float*>(const_cast<void*>(cache.keys)) + at;
    float* values = static_cast<float*>(const_cast<void*>(cache.values)) + at;
    for (int64_t h = 0; h < shape.heads + shape.kv_heads; ++h) {
      float* head = qkv + h * width;
      const bool queries = h < shape.heads;
      const float* norm = queries ? layer.q_norm : layer.k_norm;
      if (norm) rms_norm<V>(head, norm, width, eps, head);
      rotate(head, cos, sin, width,
             queries ? query + h * width : keys + (h - shape.heads) * cache.head_stride);
    }
    const float* value = qkv + (shape.heads + shape.kv_heads) * width;
    for (int64_t h = 0; h < shape.kv_heads; ++h)
      std::memcpy(values + h * cache.head_stride, value + h * width, width * sizeof(float));
  }

  void attend(int64_t number, const float* query, float* out) const {
    PagedCache own = cache;
    own.keys = static_cast<const float*>(cache.keys) + number * shape.layer_stride;
    own.values = static_cast<const float*>(cache.values) + number * shape.layer_stride;
    for (int64_t i = 0; i < count; ++i) {
      const AttentionPart& part = parts[i];
      own.page_table = part.page_table;
      own.max_pages = part.max_pages;
      const int64_t begin = part.first * shape.heads * shape.width;
      if (part.shared)
        shared_prefix_attention<isa>(query + begin, part.rows, shape.heads, own, part.lengths,
                                     part.offsets, part.count, scale, out + begin, threads);
      else
        paged_attention<isa>(query + begin, shape.heads, own, part.offsets, part.lengths,
                             part.count, scale, out + begin, threads);
    }
  }

  void run(const DecoderLayer* layers, float* x, const float* cos, const float* sin) const {
    const int64_t hidden = shape.hidden, inner = shape.inner, width = shape.width;
    const int64_t queries = shape.heads * width, keys = shape.kv_heads * width;
    const int64_t all = queries + 2 * keys;
    Floats normed(rows * hidden), qkv(rows * all), query(rows * queries), heads(rows * queries);
    Floats gate(rows * inner), up(rows * inner), out(rows * hidden), powers(rows * inner);
    const auto norm = [&](const float* weight) {
      for (int64_t row = 0; row < rows; ++row)
        rms_norm<V>(x + row * hidden, weight, hidden, eps, normed + row * hidden);
    };
    for (int64_t number = 0; number < shape.layers; ++number) {
      const DecoderLayer& layer = layers[number];
      norm(layer.attention_norm);
      linear(layer.q, normed, hidden, queries, qkv, all);
      linear(layer.k, normed, hidden, keys, qkv + queries, all);
      linear(layer.v, normed, hidden, keys, qkv + queries + keys, all);
      for (int64_t row = 0; row < rows; ++row)
        place(layer, number, row, qkv + row * all, cos + row * width, sin + row * width,
              query + row * queries);
      attend(number, query, heads);
      linear(layer.o, heads, queries, hidden, out, hidden);
      add(out, rows * hidden, x);
      norm(layer.mlp_norm);
      linear(layer.gate, normed, hidden, inner, gate, inner);
      linear(layer.up, normed, hidden, inner, up, inner);
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 1)
      for (int64_t row = 0; row < rows; ++row)
        gated<V>(gate + row * inner, up + row * inner, inner, powers + row * inner);
      linear(layer.down, gate, inner, hidden, out, hidden);
      add(out, rows * hidden, x);
    }
  }
};

}  // namespace

template <Isa isa>
void decoder_layers(const DecoderLayer* layers, const DecoderShape& shape, float eps, float* x,
                    int64_t rows, const float* cos, const float* sin, const PagedCache& cache,
                    const int64_t* pages, const int64_t* slots, const AttentionPart* parts,
                    int64_t count, float scale, int threads) {
  const Decoder<isa> decoder{shape, eps,   rows,  cache, pages,
                             slots, parts, count, scale, threads};
  decoder.run(layers, x, cos, sin);
}

}  // namespace retrv
