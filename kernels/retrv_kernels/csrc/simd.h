#pragma once

// Vectors of float32, one type per instruction set with the same members: a kernel is a template
// over them, and each native_<isa>.cpp compiles it once. Loads widen float16 and bfloat16.
//
// All of it has internal linkage and calls nothing but intrinsics. Otherwise the linker would merge
// copies of one function compiled with different flags, and the AVX-512 one could run anywhere.

#include <cstdint>
#include <cstring>

#include "csrc/dtype.h"
#include "csrc/isa.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace retrv {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline float widen(Half value) {
  // The fields moved to their float32 places, the exponent is 127 - 15 too small.
  const float rebiased = from_bits((value.bits & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t infinite = (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  return from_bits(to_bits(rebiased) | infinite | sign);
}

template <Isa isa>
struct Simd;

// Eight lanes in a plain array, which the compiler keeps in the baseline's registers (SSE2, NEON).
template <>
struct Simd<Isa::kScalar> {
  static constexpr int64_t kLanes = 8;
  struct Register {
    float lane[kLanes];
  };

  static Register zero() { return {}; }

  template <class T>
  static Register load(const T* from) {
    Register value;
    for (int i = 0; i < kLanes; ++i) value.lane[i] = widen(from[i]);
    return value;
  }

  // The first `count` lanes; zeros in the others.
  template <class T>
  static Register load(const T* from, int64_t count) {
    Register value = zero();
    for (int64_t i = 0; i < count; ++i) value.lane[i] = widen(from[i]);
    return value;
  }

  static Register add(Register a, Register b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
    return a;
  }

  // a * b + c
  static Register multiply_add(Register a, Register b, Register c) {
    for (int i = 0; i < kLanes; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }

  static float sum(Register value) {
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half; ++i) value.lane[i] += value.lane[i + half];
    return value.lane[0];
  }
};

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

template <>
struct Simd<Isa::kAvx2> {
  static constexpr int64_t kLanes = 8;
  using Register = __m256;

  static Register zero() { return _mm256_setzero_ps(); }

  static Register load(const float* from) { return _mm256_loadu_ps(from); }
  static Register load(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Register load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }

  template <class T>
  static Register load(const T* from, int64_t count) {
    T padded[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
    return load(padded);
  }

  static Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register multiply_add(Register a, Register b, Register c) {
    return _mm256_fmadd_ps(a, b, c);
  }

  static float sum(Register value) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
};

#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

template <>
struct Simd<Isa::kAvx512> {
  static constexpr int64_t kLanes = 16;
  using Register = __m512;

  static Register zero() { return _mm512_setzero_ps(); }

  static Register load(const float* from) { return _mm512_loadu_ps(from); }
  static Register load(const Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Register load(const BFloat16* from) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  static Register load(const float* from, int64_t count) {
    return _mm512_maskz_loadu_ps(first(count), from);
  }
  static Register load(const Half* from, int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), from));
  }
  static Register load(const BFloat16* from, int64_t count) {
    return widened(_mm256_maskz_loadu_epi16(first(count), from));
  }

  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register multiply_add(Register a, Register b, Register c) {
    return _mm512_fmadd_ps(a, b, c);
  }

  static float sum(Register value) { return _mm512_reduce_add_ps(value); }

 private:
  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static Register widened(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
};

#endif

}  // namespace
}  // namespace retrv
