#pragma once

#include "csrc/pooling.h"
#include "relate_tokens/native.h"

namespace retrv {
namespace {

// squares[i] += p_i G p_i for rows i, where `gram` holds G by panels of columns, [panel][column]
// [kPanel], the products below the diagonal folded into those above it.
template <class V>
struct Quadratic {
  const float* p;
  int64_t columns;
  const float* gram;
  float* squares;

  template <int kRows>
  void operator()(int64_t first) const {
    const float* rows = p + first * columns;
    typename V::Register total[kRows];
    for (auto& sum : total) sum = V::zero();
    for (int64_t panel = 0; panel < columns; panel += kPanel)
      for (int64_t part = 0; part < kPanel; part += V::kTileVectors * V::kLanes)
        add<kRows>(rows, panel, part, total);
    for (int i = 0; i < kRows; ++i) squares[first + i] = V::sum(total[i]);
  }

  template <int kRows>
  void add(const float* rows, int64_t panel, int64_t part,
           typename V::Register (&total)[kRows]) const {
    typename V::Register sums[kRows][V::kTileVectors];
    for (auto& row : sums)
      for (auto& sum : row) sum = V::zero();
    const float* own = gram + panel * columns + part;
    tile<V, kRows, V::kTileVectors, false>(
        rows, columns, [&](int64_t k) { return own + k * kPanel; }, panel + kPanel, 0, sums);
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < V::kTileVectors; ++v)
        total[i] = V::multiply_add(
            sums[i][v], V::load(rows + i * columns + panel + part + v * V::kLanes), total[i]);
  }
};

// One thread's work on a block of candidate rows.
template <class V>
class Relation {
 public:
  static constexpr int64_t kBlock = Pooling<V>::kBlock * 3;

  Relation(int64_t width, int64_t heads, int64_t most_columns)
      : width_(width),
        heads_(heads),
        depth_(width / heads),
        keys_(kBlock * width),
        weights_(kBlock * most_columns + V::kLanes) {}

  // p[i][e * padded + j] = softmax_j(scale_i k_i . q_j) of each head.
  template <class T>
  void attend(const T* keys, const float* scales, int64_t rows, const RelateQuery& query) {
    const int64_t columns = heads_ * query.padded;
    float *weights = weights_, *wide = keys_;
    for (int64_t i = 0; i < rows; ++i) {
      const float scale = scales ? scales[i] : 1.0f;
      for (int64_t k = 0; k < width_; ++k)
        wide[i * width_ + k] = scale * widen(keys[i * width_ + k]);
    }
    for (int64_t e = 0; e < heads_; ++e) {
      const float* query_keys = query.keys + e * depth_ * query.padded;
      multiply<V>(
          wide + e * depth_, width_, rows,
          [&](int64_t k) { return query_keys + k * query.padded; }, depth_, query.padded,
          weights + e * query.padded, columns, false);
    }
    for (int64_t i = 0; i < rows * heads_; ++i) softmax(weights + i * query.padded, query);
  }

  // rho_i = 1 / sqrt(p_i G p_i + eps); G comes divided by the width of the values.
  void norm(int64_t rows, const RelateQuery& query, float eps, float* factors) {
    const int64_t columns = heads_ * query.padded;
    in_blocks<V::kTileRows>(0, rows, Quadratic<V>{weights_, columns, query.gram, factors});
    for (int64_t i = 0; i < rows; ++i) factors[i] = 1 / __builtin_sqrtf(factors[i] + eps);
  }

  float* weights() { return weights_; }

 private:
  static void softmax(float* x, const RelateQuery& query) {
    const float total = exponentials<V>(x, query.rows, largest_of<V>(x, query.rows));
    scale<V>(x, query.rows, 1 / total);
    for (int64_t j = query.rows; j < query.padded; ++j) x[j] = 0;
  }

  int64_t width_, heads_, depth_;
  Floats keys_, weights_;
};

template <class V, class T>
void relate_pair(const T* keys, const float* scales, int64_t width, int64_t heads,
                 const RelateQuery& query, const RelatePair& pair, float eps,
                 Relation<V>& relation, Pooling<V>& pooling) {
  float factors[Relation<V>::kBlock];
  const int64_t columns = heads * query.padded;
  for (int64_t first = 0; first < pair.rows; first += Relation<V>::kBlock) {
    const int64_t left = pair.rows - first;
    const int64_t rows = left < Relation<V>::kBlock ? left : Relation<V>::kBlock;
    const int64_t row = pair.first + first;
    relation.attend(keys + row * width, scales ? scales + row : nullptr, rows, query);
    for (int64_t i = 0; i < rows; ++i) factors[i] = 1;
    if (query.gram) relation.norm(rows, query, eps, factors);
    for (int64_t i = 0; i < rows; i += Pooling<V>::kBlock) {
      const float* own = relation.weights() + i * columns;
      const int64_t block = rows - i < Pooling<V>::kBlock ? rows - i : Pooling<V>::kBlock;
      pooling.add([&](int64_t r) { return own + r * columns; }, block, factors + i);
    }
  }
}

}  // namespace

template <Isa isa>
void relate_tokens(const void* keys, Dtype dtype, const float* scales, int64_t width,
                   int64_t heads, int64_t pool_heads, const RelateQuery* queries,
                   const RelatePair* pairs, int64_t count, float eps, float* out, int threads) {
  using V = Simd<isa>;
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t columns = heads * queries[pairs[i].query].padded;
    most = columns > most ? columns : most;
  }
  with_dtype(dtype, keys, [&](const auto* rows) {
#pragma omp parallel num_threads(threads) if (threads > 1 && count > 1)
    {
      Relation<V> relation(width, heads, most);
      Pooling<V> pooling(pool_heads, most);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < count; ++i) {
        const RelateQuery& query = queries[pairs[i].query];
        pooling.start(query.scores, heads * query.padded);
        relate_pair(rows, scales, width, heads, query, pairs[i], eps, relation, pooling);
        pooling.finish(out + pairs[i].out);
      }
    }
  });
}

}  // namespace retrv
