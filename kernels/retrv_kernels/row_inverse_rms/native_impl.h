#pragma once

#include "csrc/simd.h"
#include "row_inverse_rms/native.h"

namespace retrv {
namespace {

template <class V, class T>
float sum_of_squares(const T* row, int64_t width) {
  constexpr int kChains = 4;  // independent sums, so that one addition need not wait for the last
  typename V::Register total[kChains];
  for (auto& chain : total) chain = V::zero();

  int64_t i = 0;
  for (; i + kChains * V::kLanes <= width; i += kChains * V::kLanes)
    for (int chain = 0; chain < kChains; ++chain) {
      const auto x = V::load(row + i + chain * V::kLanes);
      total[chain] = V::multiply_add(x, x, total[chain]);
    }
  for (; i < width; i += V::kLanes) {
    const auto x = width - i < V::kLanes ? V::load(row + i, width - i) : V::load(row + i);
    total[0] = V::multiply_add(x, x, total[0]);
  }
  return V::sum(V::add(V::add(total[0], total[1]), V::add(total[2], total[3])));
}

template <class V, class T>
void rows_of(const T* features, int64_t rows, int64_t width, float eps, float* out, int threads) {
  // Waking a second thread costs about as much as reading 64 KB.
  const bool worth_it = threads > 1 && rows * width > (1 << 15);
#pragma omp parallel for schedule(static) num_threads(threads) if (worth_it)
  for (int64_t i = 0; i < rows; ++i) {
    const float mean = sum_of_squares<V>(features + i * width, width) / static_cast<float>(width);
    out[i] = 1.0f / __builtin_sqrtf(mean + eps);
  }
}

}  // namespace

template <Isa isa>
void row_inverse_rms(const void* features, Dtype dtype, int64_t rows, int64_t width, float eps,
                     float* out, int threads) {
  using V = Simd<isa>;
  switch (dtype) {
    case Dtype::kFloat32:
      return rows_of<V>(static_cast<const float*>(features), rows, width, eps, out, threads);
    case Dtype::kFloat16:
      return rows_of<V>(static_cast<const Half*>(features), rows, width, eps, out, threads);
    case Dtype::kBFloat16:
      return rows_of<V>(static_cast<const BFloat16*>(features), rows, width, eps, out, threads);
  }
}

}  // namespace retrv
