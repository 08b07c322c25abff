#pragma once

#include <type_traits>

#include "csrc/scratch.h"
#include "csrc/simd.h"
#include "linear/native.h"

namespace retrv {
namespace {

template <class V>
struct LinearTile;

// Largest number of rows of x in a tile, and of sums in registers.
template <>
struct LinearTile<Simd<Isa::kScalar>> {
  static constexpr int kRows = 2, kSums = 4;
};
template <>
struct LinearTile<Simd<Isa::kAvx2>> {
  static constexpr int kRows = 4, kSums = 8;
};
template <>
struct LinearTile<Simd<Isa::kAvx512>> {
  static constexpr int kRows = 8, kSums = 24;
};

// Rows of the weights in a tile, for `rows` rows of x. At most four, because the hardware
// prefetcher does not follow more: this took one row of x from 85 to 71 ms for each 1.43 GB of
// weights on two cores of a Zen 3 (docs/LOG.md).
template <class V>
constexpr int linear_outputs(int rows) {
  const int fit = LinearTile<V>::kSums / rows;
  return fit > 4 ? 4 : fit < 1 ? 1 : fit;
}

// Copies x into blocks of `block` rows. Within a block the first vector of every row comes first,
// then the second of every row, so that a tile reads through one pointer. The last block overlaps
// the one before so that it is full.
template <class V>
void arrange(const float* x, int64_t ldx, int64_t rows, int64_t depth, int64_t block, float* to) {
  for (int64_t begin = 0; begin < rows; begin += block) {
    const float* own = x + (begin + block <= rows ? begin : rows - block) * ldx;
    for (int64_t k = 0; k < depth; k += V::kLanes)
      for (int64_t i = 0; i < block; ++i, to += V::kLanes)
        V::store(to, depth - k < V::kLanes ? V::load(own + i * ldx + k, depth - k)
                                           : V::load(own + i * ldx + k));
  }
}

template <class V, class T>
struct Linear {
  const float* x;  // as `arrange` writes it
  int64_t rows;
  const T* weight;
  int64_t ldw;
  const float* scales;
  const float* bias;
  int64_t width, depth;
  float* out;
  int64_t ldo;

  using Register = typename V::Register;

  // Outputs [first, end): a few of them for all rows of x, then the next few.
  template <int kBlock>
  void outputs(int64_t first, int64_t end) const {
    constexpr int kOutputs = linear_outputs<V>(kBlock);
    for (; first + kOutputs <= end; first += kOutputs) all_rows<kBlock, kOutputs>(first);
    for (; first < end; ++first) all_rows<kBlock, 1>(first);
  }

  // The last block overlaps the one before, so that all have kBlock rows.
  template <int kBlock, int kOutputs>
  void all_rows(int64_t first) const {
    tile<kBlock, kOutputs, true>(x, 0, first);
    const float* own = x;
    for (int64_t row = kBlock; row < rows; row += kBlock) {
      own += kBlock * round_up(depth, V::kLanes);
      tile<kBlock, kOutputs, false>(own, row + kBlock <= rows ? row : rows - kBlock, first);
    }
  }

  // Every tile size sums along k in one vector and adds its lanes in the same order, so a result
  // does not depend on the rows and outputs computed beside it.
  //
  // kAhead prefetches the next tile's weights into L2. The hardware prefetcher restarts at each row
  // of weights, and behind so many products no load is issued early enough: prefetching took
  // 8 rows x [896] x [4864 x 896] float32 from 902 to 526 us on two cores of a Zen 4.
  template <int kRows, int kOutputs, bool kAhead>
  void tile(const float* own, int64_t row, int64_t first) const {
    Register sums[kRows][kOutputs];
    for (auto& of_row : sums)
      for (auto& sum : of_row) sum = V::zero();
    const T* weights = weight + first * ldw;
    const auto step = [&](const auto& load) {
      Register column[kOutputs];
      for (int j = 0; j < kOutputs; ++j) column[j] = load(weights + j * ldw);
      for (int i = 0; i < kRows; ++i) {
        const Register values = V::load(own + i * V::kLanes);
        for (int j = 0; j < kOutputs; ++j)
          sums[i][j] = V::multiply_add(values, column[j], sums[i][j]);
      }
      own += kRows * V::kLanes;
    };
    int64_t k = 0;
    for (; k + V::kLanes <= depth; k += V::kLanes) {
      if constexpr (kAhead)
        for (int j = 0; j < kOutputs; ++j)
          __builtin_prefetch(weights + (j + kOutputs) * ldw + k, 0, 2);
      step([k](const auto* values) { return V::load(values + k); });
    }
    if (k < depth)
      step([k, this](const auto* values) { return V::load(values + k, depth - k); });
    constexpr int kCount = kRows * kOutputs;
    float totals[kCount + 3];
    for (int n = 0; n < kCount; n += 4) {
      Register four[4];
      for (int i = 0; i < 4; ++i)
        four[i] = n + i < kCount ? sums[(n + i) / kOutputs][(n + i) % kOutputs] : V::zero();
      V::sums(four, totals + n);
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kOutputs; ++j) {
        float total = totals[i * kOutputs + j];
        if (scales) total *= scales[first + j];
        if (bias) total += bias[first + j];
        out[(row + i) * ldo + first + j] = total;
      }
  }

  // Calls `outputs` with `block` as its template argument.
  template <int kBlock = 1>
  void run(int64_t block, int64_t first, int64_t end) const {
    if constexpr (kBlock < LinearTile<V>::kRows) {
      if (kBlock < block) return run<kBlock + 1>(block, first, end);
    }
    outputs<kBlock>(first, end);
  }
};

}  // namespace

template <Isa isa>
void linear(const float* x, int64_t ldx, int64_t rows, const void* weight, Dtype dtype, int64_t ldw,
            const float* scales, const float* bias, int64_t width, int64_t depth, float* out,
            int64_t ldo, int threads) {
  using V = Simd<isa>;
  if (rows == 0) return;
  // The smallest number of blocks, all of one size.
  const int64_t blocks = (rows + LinearTile<V>::kRows - 1) / LinearTile<V>::kRows;
  const int64_t block = (rows + blocks - 1) / blocks;
  Floats arranged(blocks * block * round_up(depth, V::kLanes));
  arrange<V>(x, ldx, rows, depth, block, arranged);
  with_dtype(dtype, weight, [&](const auto* weights) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(weights)>>;
    const Linear<V, T> product{arranged, rows, weights, ldw, scales, bias, width, depth, out, ldo};
    // Each thread reads one contiguous part of the weights. Parts end at a multiple of 24, which is
    // a multiple of every tile's outputs.
    const int64_t parts = threads > 1 && width * depth > (1 << 14) ? threads : 1;
    const int64_t each = round_up((width + parts - 1) / parts, 24);
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part * each, end = first + each < width ? first + each : width;
      if (first < end) product.run(block, first, end);
    }
  });
}

}  // namespace retrv
