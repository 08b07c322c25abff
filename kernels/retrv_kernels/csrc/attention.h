#pragma once

// Attention of a tile of query rows over cached rows, one block of keys at a time, with
// FlashAttention's online softmax (Dao 2023).

#include "csrc/cache.h"
#include "csrc/matmul.h"
#include "csrc/scratch.h"
#include "csrc/vectors.h"

namespace retrv {
namespace {

template <class V, class T>
class Attention {
 public:
  static constexpr int64_t kKeys = 64;  // in a block: with 64 rows of width 128 all fits L2
  static constexpr int64_t kRows = 64;  // in a tile; more only if a group of heads is larger

  Attention(const PagedCache& cache, int64_t group, float scale)
      : cache_(cache),
        scale_(scale),
        capacity_(group > kRows ? group : kRows),
        query_(capacity_ * cache.width),
        scores_(capacity_ * kKeys),
        sums_(capacity_ * cache.width),
        largest_(capacity_),
        total_(capacity_),
        visible_(capacity_ * static_cast<int64_t>(sizeof(int64_t))) {}

  void start() { rows_ = 0; }

  // Adds a query row [width] that sees the keys before `visible`.
  void add(const T* query, int64_t visible) {
    float* own = query_ + rows_ * cache_.width;
    for (int64_t i = 0; i < cache_.width; ++i) own[i] = scale_ * widen(query[i]);
    std::memset(sums_ + rows_ * cache_.width, 0, static_cast<size_t>(cache_.width) * sizeof(float));
    largest_[rows_] = -__builtin_inff();
    total_[rows_] = 0;
    visible_.as<int64_t>()[rows_++] = visible;
  }

  // Attends to the cached rows [first, end) of the list `pages`.
  void attend(const int64_t* pages, int64_t head, int64_t first, int64_t end) {
    const T* keys[kKeys];
    const T* values[kKeys];
    const auto place = [&](int64_t key) {
      return pages[key / cache_.page_size] * cache_.page_stride +
             key % cache_.page_size * cache_.row_stride + head * cache_.head_stride;
    };
    for (int64_t key = first; key < end && key < first + kKeys; ++key)
      prefetch(static_cast<const T*>(cache_.keys) + place(key));
    for (; first < end; first += kKeys) {
      const int64_t count = end - first < kKeys ? end - first : kKeys;
      for (int64_t j = 0; j < count; ++j) {
        keys[j] = static_cast<const T*>(cache_.keys) + place(first + j);
        values[j] = static_cast<const T*>(cache_.values) + place(first + j);
        // Prefetches this block's values and the next block's keys: pages can be anywhere in
        // memory, so the hardware prefetcher cannot predict them.
        prefetch(values[j]);
        if (first + j + kKeys < end)
          prefetch(static_cast<const T*>(cache_.keys) + place(first + j + kKeys));
      }
      dots<V>(
          query_, cache_.width, rows_, [&](int64_t j) { return keys[j]; }, count, cache_.width,
          scores_, kKeys);
      for (int64_t i = 0; i < rows_; ++i) {
        const int64_t seen = visible_.as<int64_t>()[i] - first;
        weigh(i, seen < 0 ? 0 : seen < count ? seen : count, count);
      }
      multiply<V>(
          scores_, kKeys, rows_, [&](int64_t j) { return values[j]; }, count, cache_.width, sums_,
          cache_.width, true);
    }
  }

  // Writes the result of row i, 0 if it has seen no key. Without `scaled` it is not divided by the
  // sum of weights.
  void finish(int64_t i, float* out, bool scaled) {
    const float* sums = sums_ + i * cache_.width;
    const float factor = !scaled ? 1 : total_[i] == 0 ? 0 : 1 / total_[i];
    for (int64_t k = 0; k < cache_.width; ++k) out[k] = sums[k] * factor;
  }
  float largest(int64_t i) { return largest_[i]; }
  float total(int64_t i) { return total_[i]; }

 private:
  void prefetch(const T* row) {
    for (int64_t k = 0; k < cache_.width; k += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(row + k, 0, 2);
  }

  // Turns the scores of the keys that row i sees into weights; the other keys get 0.
  void weigh(int64_t i, int64_t seen, int64_t count) {
    float* scores = scores_ + i * kKeys;
    if (seen > 0) {
      const float block = largest_of<V>(scores, seen), before = largest_[i];
      const float largest = block > before ? block : before;
      if (largest != before) {
        const float shrink = __builtin_expf(before - largest);
        scale<V>(sums_ + i * cache_.width, cache_.width, shrink);
        total_[i] *= shrink;
        largest_[i] = largest;
      }
      total_[i] += exponentials<V>(scores, seen, largest);
    }
    for (int64_t j = seen; j < count; ++j) scores[j] = 0;
  }

  const PagedCache& cache_;
  float scale_;
  int64_t capacity_, rows_ = 0;
  Floats query_, scores_, sums_, largest_, total_;
  Scratch visible_;
};

}  // namespace
}  // namespace retrv
