#pragma once

// Products of small matrices in registers: the inner loops of the kernels.

#include "csrc/simd.h"

namespace retrv {
namespace {

// sums[i][v] += sum_k a[i * lda + k] * b(k)[v * lanes], for k < depth; b(k) is the address of row
// k. With kTail the last vector of a row has `tail` lanes.
template <class V, int kRows, int kVectors, bool kTail, class B>
inline void tile(const float* a, int64_t lda, const B& b, int64_t depth, int64_t tail,
                 typename V::Register (&sums)[kRows][kVectors]) {
  for (int64_t k = 0; k < depth; ++k) {
    const auto* row = b(k);
    typename V::Register column[kVectors];
    for (int v = 0; v < kVectors; ++v)
      column[v] = kTail && v == kVectors - 1 ? V::load(row + v * V::kLanes, tail)
                                             : V::load(row + v * V::kLanes);
    for (int i = 0; i < kRows; ++i) {
      const auto factor = V::set(a[i * lda + k]);
      for (int v = 0; v < kVectors; ++v)
        sums[i][v] = V::multiply_add(factor, column[v], sums[i][v]);
    }
  }
}

// Calls f.operator()<n>(first) for blocks of n = kRows rows; the rest is halved again and again.
template <int kRows, class F>
inline void in_blocks(int64_t first, int64_t rows, const F& f) {
  for (; rows - first >= kRows; first += kRows) f.template operator()<kRows>(first);
  if constexpr (kRows > 1) {
    if (first < rows) in_blocks<kRows / 2>(first, rows, f);
  }
}

// c[rows][width] = a[rows][depth] b(depth)[width], or += with `add`; rows of `c` are ldc apart.
template <class V, class B>
struct Product {
  const float* a;
  int64_t lda;
  const B& b;
  int64_t depth, width;
  float* c;
  int64_t ldc;
  bool add;

  template <int kRows>
  void operator()(int64_t first) const {
    int64_t column = 0;
    for (; column + V::kTileVectors * V::kLanes <= width; column += V::kTileVectors * V::kLanes)
      columns<kRows, V::kTileVectors, false>(first, column);
    for (; column + V::kLanes <= width; column += V::kLanes)
      columns<kRows, 1, false>(first, column);
    if (column < width) columns<kRows, 1, true>(first, column);
  }

  template <int kRows, int kVectors, bool kTail>
  void columns(int64_t first, int64_t column) const {
    typename V::Register sums[kRows][kVectors];
    float* out = c + first * ldc + column;
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < kVectors; ++v)
        sums[i][v] = !add    ? V::zero()
                     : kTail ? V::load(out + i * ldc, width - column)
                             : V::load(out + i * ldc + v * V::kLanes);
    tile<V, kRows, kVectors, kTail>(
        a + first * lda, lda, [&](int64_t k) { return b(k) + column; }, depth, width - column,
        sums);
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < kVectors; ++v)
        if constexpr (kTail)
          V::store(out + i * ldc, sums[i][v], width - column);
        else
          V::store(out + i * ldc + v * V::kLanes, sums[i][v]);
  }
};

template <class V, class B>
inline void multiply(const float* a, int64_t lda, int64_t rows, const B& b, int64_t depth,
                     int64_t width, float* c, int64_t ldc, bool add) {
  in_blocks<V::kTileRows>(0, rows, Product<V, B>{a, lda, b, depth, width, c, ldc, add});
}

// out[i * ldo + j] = sum_k a[i * lda + k] * b(j)[k]: dot products of rows. Also writes
// squares[j] = sum_k b(j)[k]^2 unless `squares` is null.
template <class V, class B>
struct Dots {
  const float* a;
  int64_t lda;
  const B& b;
  int64_t keys, depth;
  float* out;
  int64_t ldo;
  float* squares;

  template <int kRows>
  void operator()(int64_t first) const {
    in_blocks<V::kDotKeys>(0, keys, Keys<kRows>{*this, first});
  }

  template <int kRows>
  struct Keys {
    const Dots& of;
    int64_t row;
    template <int kKeys>
    void operator()(int64_t first) const {
      if (of.squares && row == 0)
        of.block<kRows, kKeys, true>(row, first);
      else
        of.block<kRows, kKeys, false>(row, first);
    }
  };

  template <int kRows, int kKeys, bool kSquares>
  void block(int64_t row, int64_t first) const {
    typename V::Register sums[kRows][kKeys], square[kKeys];
    for (auto& of_row : sums)
      for (auto& sum : of_row) sum = V::zero();
    for (auto& sum : square) sum = V::zero();
    const auto step = [&](const auto& load_key, const auto& load_row) {
      typename V::Register key[kKeys];
      for (int j = 0; j < kKeys; ++j) {
        key[j] = load_key(b(first + j));
        if constexpr (kSquares) square[j] = V::multiply_add(key[j], key[j], square[j]);
      }
      for (int i = 0; i < kRows; ++i) {
        const auto values = load_row(a + (row + i) * lda);
        for (int j = 0; j < kKeys; ++j) sums[i][j] = V::multiply_add(values, key[j], sums[i][j]);
      }
    };
    int64_t k = 0;
    for (; k + V::kLanes <= depth; k += V::kLanes) {
      const auto load = [k](const auto* values) { return V::load(values + k); };
      step(load, load);
    }
    if (k < depth) {
      const auto load = [k, this](const auto* values) { return V::load(values + k, depth - k); };
      step(load, load);
    }
    for (int i = 0; i < kRows; ++i) {
      float* own = out + (row + i) * ldo + first;
      if constexpr (kKeys == 4)
        V::sums(sums[i], own);
      else
        for (int j = 0; j < kKeys; ++j) own[j] = V::sum(sums[i][j]);
    }
    if constexpr (kSquares)
      for (int j = 0; j < kKeys; ++j) squares[first + j] = V::sum(square[j]);
  }
};

template <class V, class B>
inline void dots(const float* a, int64_t lda, int64_t rows, const B& b, int64_t keys, int64_t depth,
                 float* out, int64_t ldo, float* squares = nullptr) {
  in_blocks<V::kDotRows>(0, rows, Dots<V, B>{a, lda, b, keys, depth, out, ldo, squares});
}

}  // namespace
}  // namespace retrv
