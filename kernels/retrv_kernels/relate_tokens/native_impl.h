#pragma once

#include "csrc/pooling.h"
#include "relate_tokens/native.h"

namespace retrv {
namespace {

// squares[i] = p_i G p_i for rows i. `gram` holds G by panels of columns, [panel][column][kPanel];
// the entries below the diagonal are added to those above it.
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

// Attention of a block of candidate rows over a query, for one thread.
template <class V>
class Relation {
 public:
  static constexpr int64_t kBlock = Pooling<V>::kBlock * 3;

  Relation(int64_t width, int64_t heads, int64_t max_columns)
      : width_(width),
        heads_(heads),
        depth_(width / heads),
        keys_(kBlock * width),
        weights_(kBlock * max_columns) {}

  // Returns p[i][column] = softmax_j(scale_i k_i . q_j) for each head.
  template <class T>
  const float* attend(const T* keys, const float* scales, int64_t rows, const RelateQuery& query) {
    const float* wide = widened(keys, scales, rows);
    float* weights = weights_;
    for (int64_t e = 0; e < heads_; ++e) {
      const float* query_keys = query.keys + e * depth_ * query.padded;
      multiply<V>(
          wide + e * depth_, width_, rows, [&](int64_t k) { return query_keys + k * query.padded; },
          depth_, query.padded, weights + e * query.padded, query.columns, false);
    }
    float hidden[V::kLanes];  // added to the last vector of a head
    const int64_t last = query.padded - V::kLanes;
    for (int64_t i = 0; i < V::kLanes; ++i)
      hidden[i] = last + i < query.rows ? 0 : -__builtin_inff();
    for (int64_t i = 0; i < rows; ++i) {
      float* row = weights + i * query.columns;
      for (int64_t e = 0; e < heads_; ++e) {
        float* own = row + e * query.padded;
        V::store(own + last, V::add(V::load(own + last), V::load(hidden)));
        softmax(own, query.padded);
      }
      for (int64_t j = heads_ * query.padded; j < query.columns; ++j) row[j] = 0;
    }
    return weights;
  }

 private:
  static void softmax(float* x, int64_t count) {
    const float total = exponentials<V>(x, count, largest_of<V>(x, count));
    scale<V>(x, count, 1 / total);
  }

  const float* widened(const float* keys, const float*, int64_t) { return keys; }
  template <class T>
  const float* widened(const T* keys, const float* scales, int64_t rows) {
    float* wide = keys_;
    for (int64_t i = 0; i < rows; ++i)
      convert<V>(keys + i * width_, scales ? scales[i] : 1.0f, width_, wide + i * width_);
    return wide;
  }

  int64_t width_, heads_, depth_;
  Floats keys_, weights_;
};

template <class V, class T>
void relate_pair(const T* keys, const float* scales, int64_t width, const RelateQuery& query,
                 const RelatePair& pair, float eps, Relation<V>& relation, Pooling<V>& pooling) {
  float squares[Relation<V>::kBlock];
  for (int64_t first = 0; first < pair.rows; first += Relation<V>::kBlock) {
    const int64_t left = pair.rows - first;
    const int64_t rows = left < Relation<V>::kBlock ? left : Relation<V>::kBlock;
    const int64_t row = pair.first + first;
    const float* p =
        relation.attend(keys + row * width, scales ? scales + row : nullptr, rows, query);
    if (query.gram)
      in_blocks<V::kTileRows>(0, rows, Quadratic<V>{p, query.columns, query.gram, squares});
    for (int64_t i = 0; i < rows; i += Pooling<V>::kBlock)
      pooling.add([&](int64_t r) { return p + (i + r) * query.columns; },
                  rows - i < Pooling<V>::kBlock ? rows - i : Pooling<V>::kBlock,
                  [&](int64_t r, float) {
                    if (!query.gram) return 1.0f;
                    // If values cancel, rounding may leave a square slightly below 0.
                    const float square = squares[i + r] < 0 ? 0 : squares[i + r];
                    return 1 / __builtin_sqrtf(square + eps);
                  });
  }
}

}  // namespace

template <Isa isa>
void relate_tokens(const void* keys, Dtype dtype, const float* scales, int64_t width, int64_t heads,
                   int64_t pool_heads, const RelateQuery* queries, const RelatePair* pairs,
                   int64_t count, float eps, float* out, int threads) {
  using V = Simd<isa>;
  int64_t max_columns = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t columns = queries[pairs[i].query].columns;
    max_columns = columns > max_columns ? columns : max_columns;
  }
  with_dtype(dtype, keys, [&](const auto* rows) {
#pragma omp parallel num_threads(threads) if (threads > 1 && count > 1)
    {
      Relation<V> relation(width, heads, max_columns);
      Pooling<V> pooling(pool_heads, max_columns);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < count; ++i) {
        const RelateQuery& query = queries[pairs[i].query];
        pooling.start(query.scores, query.columns);
        relate_pair(rows, scales, width, query, pairs[i], eps, relation, pooling);
        pooling.finish(out + pairs[i].out);
      }
    }
  });
}

}  // namespace retrv
