#pragma once

#include "csrc/attention.h"
#include "shared_prefix_attention/native.h"

namespace retrv {
namespace {

// A node is split into chunks of keys and tiles of rows; a task is one chunk, one tile and one
// cache head. A chunk gives a partial result for each row of its node.
struct Nodes {
  static constexpr int64_t kChunk = 256;  // keys: enough tasks for threads, few partial results

  const int64_t* lengths;
  const int64_t* rows;  // [nodes][2]
  int64_t count;

  int64_t first(int64_t node) const { return rows[2 * node]; }
  int64_t width(int64_t node) const { return rows[2 * node + 1] - rows[2 * node]; }
  int64_t chunks(int64_t node) const { return (lengths[node] + kChunk - 1) / kChunk; }
};

// Partial results [partials][heads] of rows, not divided by the sum of weights.
struct Partials {
  float* sums;  // [width]
  float* largest;
  float* total;
};

template <class V, class T>
void attend_chunk(Attention<V, T>& attention, const T* query, int64_t heads,
                  const PagedCache& cache, const Nodes& nodes, int64_t node, int64_t chunk,
                  int64_t tile, int64_t tile_rows, int64_t head, int64_t partial,
                  const Partials& partials) {
  const int64_t group = heads / cache.heads, from = tile * tile_rows;
  const int64_t to = from + tile_rows < nodes.width(node) ? from + tile_rows : nodes.width(node);
  const int64_t key = chunk * Nodes::kChunk;
  const int64_t end =
      key + Nodes::kChunk < nodes.lengths[node] ? key + Nodes::kChunk : nodes.lengths[node];
  attention.start();
  for (int64_t row = from; row < to; ++row)
    for (int64_t g = 0; g < group; ++g)
      attention.add(query + ((nodes.first(node) + row) * heads + head * group + g) * cache.width,
                    end);
  attention.attend(cache.page_table + node * cache.max_pages, head, key, end);
  for (int64_t row = from; row < to; ++row)
    for (int64_t g = 0; g < group; ++g) {
      const int64_t i = (row - from) * group + g;
      const int64_t place = (partial + row) * heads + head * group + g;
      attention.finish(i, partials.sums + place * cache.width, false);
      partials.largest[place] = attention.largest(i);
      partials.total[place] = attention.total(i);
    }
}

// Merges the partial results of all chunks that cover one head of one row, by log-sum-exp.
template <class V>
void merge(const Nodes& nodes, const int64_t* first_partial, int64_t row, int64_t head,
           int64_t heads, int64_t width, const Partials& partials, float* out) {
  const auto each = [&](const auto& visit) {
    for (int64_t node = 0; node < nodes.count; ++node) {
      const int64_t own = row - nodes.first(node);
      if (own < 0 || own >= nodes.width(node)) continue;
      for (int64_t chunk = 0; chunk < nodes.chunks(node); ++chunk)
        visit((first_partial[node] + chunk * nodes.width(node) + own) * heads + head);
    }
  };
  float largest = -__builtin_inff(), total = 0;
  each([&](int64_t place) {
    if (partials.largest[place] > largest) largest = partials.largest[place];
  });
  for (int64_t k = 0; k < width; ++k) out[k] = 0;
  each([&](int64_t place) {
    const float weight = __builtin_expf(partials.largest[place] - largest);
    total += weight * partials.total[place];
    for (int64_t k = 0; k < width; ++k) out[k] += weight * partials.sums[place * width + k];
  });
  if (total != 0) scale<V>(out, width, 1 / total);
}

template <class V, class T>
void attend_tree(const T* query, int64_t rows, int64_t heads, const PagedCache& cache,
                 const Nodes& nodes, float scale, float* out, int threads) {
  const int64_t group = heads / cache.heads;
  const int64_t tile_rows = group < Attention<V, T>::kRows ? Attention<V, T>::kRows / group : 1;
  Scratch scratch(2 * (nodes.count + 1) * static_cast<int64_t>(sizeof(int64_t)));
  int64_t* first_task = scratch.as<int64_t>();
  int64_t* first_partial = first_task + nodes.count + 1;
  first_task[0] = first_partial[0] = 0;
  for (int64_t node = 0; node < nodes.count; ++node) {
    const int64_t tiles = (nodes.width(node) + tile_rows - 1) / tile_rows;
    first_task[node + 1] = first_task[node] + nodes.chunks(node) * tiles * cache.heads;
    first_partial[node + 1] = first_partial[node] + nodes.chunks(node) * nodes.width(node);
  }
  const int64_t places = first_partial[nodes.count] * heads;
  Floats sums(places * cache.width), largest(places), total(places);
  const Partials partials{sums, largest, total};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Attention<V, T> attention(cache, group, scale);
    int64_t node = 0;
#pragma omp for schedule(monotonic : dynamic)
    for (int64_t task = 0; task < first_task[nodes.count]; ++task) {
      while (first_task[node + 1] <= task) ++node;  // the tasks of a thread ascend
      const int64_t own = task - first_task[node], chunk = own / cache.heads % nodes.chunks(node);
      attend_chunk(attention, query, heads, cache, nodes, node, chunk,
                   own / cache.heads / nodes.chunks(node), tile_rows, own % cache.heads,
                   first_partial[node] + chunk * nodes.width(node), partials);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * heads; ++i)
      merge<V>(nodes, first_partial, i / heads, i % heads, heads, cache.width, partials,
               out + i * cache.width);
  }
}

}  // namespace

template <Isa isa>
void shared_prefix_attention(const void* query, int64_t rows, int64_t heads,
                             const PagedCache& cache, const int64_t* lengths,
                             const int64_t* node_rows, int64_t nodes, float scale, float* out,
                             int threads) {
  with_dtype(static_cast<Dtype>(cache.dtype), query, [&](const auto* values) {
    attend_tree<Simd<isa>>(values, rows, heads, cache, Nodes{lengths, node_rows, nodes}, scale, out,
                           threads);
  });
}

}  // namespace retrv
