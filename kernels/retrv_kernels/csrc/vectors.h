#pragma once

// Loops over one row.

#include "csrc/simd.h"

namespace retrv {
namespace {

// Sets x[i] = e^(x[i] - largest) for i < count; returns their sum.
template <class V>
inline float exponentials(float* x, int64_t count, float largest) {
  const auto shift = V::set(-largest);
  auto total = V::zero();
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    const auto e = V::exp(V::add(V::load(x + i), shift));
    total = V::add(total, e);
    V::store(x + i, e);
  }
  if (i < count) {
    const auto e = V::exp(V::add(V::load(x + i, count - i, -__builtin_inff()), shift));
    total = V::add(total, e);
    V::store(x + i, e, count - i);
  }
  return V::sum(total);
}

template <class V>
inline float largest_of(const float* x, int64_t count) {
  auto largest = V::set(-__builtin_inff());
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) largest = V::maximum(largest, V::load(x + i));
  if (i < count) largest = V::maximum(largest, V::load(x + i, count - i, -__builtin_inff()));
  return V::largest(largest);
}

template <class V>
inline void scale(float* x, int64_t count, float factor) {
  const auto all = V::set(factor);
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::store(x + i, V::multiply(V::load(x + i), all));
  if (i < count) V::store(x + i, V::multiply(V::load(x + i, count - i), all), count - i);
}

// to[i] = scale * from[i].
template <class V, class T>
inline void convert(const T* from, float scale, int64_t width, float* to) {
  const auto factor = V::set(scale);
  int64_t i = 0;
  for (; i + V::kLanes <= width; i += V::kLanes)
    V::store(to + i, V::multiply(V::load(from + i), factor));
  for (; i < width; ++i) to[i] = scale * widen(from[i]);
}

}  // namespace
}  // namespace retrv
