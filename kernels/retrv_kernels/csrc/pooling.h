#pragma once

// Softmax pooling of rows under a few queries, one block of rows at a time, with online softmax
// (Milakov & Gimelshein 2018).

#include "csrc/matmul.h"
#include "csrc/scratch.h"
#include "csrc/vectors.h"

namespace retrv {
namespace {

// out[h] = sum_i softmax_i(f_i x_i . q_h) f_i x_i for rows x_i with factors f_i(|x_i|^2).
template <class V>
class Pooling {
 public:
  static constexpr int64_t kBlock = 8;  // rows in a block: with 2,048 floats each they fit L2

  // For rows of up to `max_width` elements.
  Pooling(int64_t heads, int64_t max_width)
      : heads_(heads),
        sums_(heads * max_width),
        weights_(heads * kBlock + V::kLanes),
        largest_(heads),
        total_(heads) {}

  // Begins an item; `queries` is [heads][width].
  void start(const float* queries, int64_t width) {
    queries_ = queries;
    width_ = width;
    for (int64_t h = 0; h < heads_; ++h) {
      largest_[h] = -__builtin_inff();
      total_[h] = 0;
    }
    std::memset(sums_, 0, static_cast<size_t>(heads_ * width_) * sizeof(float));
  }

  // Adds up to kBlock rows. row(i) is the address of row i, factor(i, |x_i|^2) its factor.
  template <class Row, class Factor>
  void add(const Row& row, int64_t count, const Factor& factor) {
    float *weights = weights_, factors[kBlock];
    dots<V>(queries_, width_, heads_, row, count, width_, weights, kBlock, factors);
    for (int64_t i = 0; i < count; ++i) factors[i] = factor(i, factors[i]);
    for (int64_t h = 0; h < heads_; ++h) {
      float* own = weights + h * kBlock;
      for (int64_t i = 0; i < count; ++i) own[i] *= factors[i];
      const float before = largest_[h];
      const float block = largest_of<V>(own, count);
      const float largest = block > before ? block : before;
      if (largest != before) {
        const float shrink = __builtin_expf(before - largest);
        scale<V>(sums_ + h * width_, width_, shrink);
        total_[h] *= shrink;
        largest_[h] = largest;
      }
    }
    for (int64_t h = 0; h < heads_; ++h) {
      float* own = weights + h * kBlock;
      for (int64_t i = 0; i < count; ++i) own[i] -= largest_[h];
    }
    const int64_t used = heads_ * kBlock;
    for (int64_t i = 0; i < used; i += V::kLanes)
      V::store(weights + i, V::exp(V::load(weights + i)));
    for (int64_t h = 0; h < heads_; ++h)
      for (int64_t i = 0; i < count; ++i) {
        total_[h] += weights[h * kBlock + i];
        weights[h * kBlock + i] *= factors[i];
      }
    multiply<V>(weights, kBlock, heads_, row, count, width_, sums_, width_, true);
  }

  // Writes `out` [heads][width]; zeros if no row was added.
  void finish(float* out) {
    for (int64_t h = 0; h < heads_; ++h) {
      const float* sums = sums_ + h * width_;
      const float inverse = total_[h] == 0 ? 0 : 1 / total_[h];
      for (int64_t i = 0; i < width_; ++i) out[h * width_ + i] = sums[i] * inverse;
    }
  }

 private:
  const float* queries_ = nullptr;
  int64_t heads_, width_ = 0;
  Floats sums_, weights_, largest_, total_;
};

}  // namespace
}  // namespace retrv
