#pragma once

// Vectors of float32: one type per instruction set, all with the same members. A kernel is a
// template over these types; each native_<isa>.cpp compiles it once. Loads widen float16, bfloat16
// and int8.
//
// Everything here has internal linkage and calls only intrinsics and the C library. Otherwise the
// linker would merge copies of a function that were compiled with different flags, and the AVX-512
// copy could run on any processor. So no standard containers here or in the kernels.

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
inline float widen(int8_t value) { return static_cast<float>(value); }
inline float widen(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline float widen(Half value) {
  // After the shift the fields are where float32 has them; the exponent is 127 - 15 too small.
  const float rebiased = from_bits((value.bits & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t infinite = (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  return from_bits(to_bits(rebiased) | infinite | sign);
}

// Round to nearest, ties to even.
inline void narrow(float value, BFloat16* out) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = 0x7fc0u;  // rounding could turn a NaN into infinity
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void narrow(float value, Half* out) {
  const uint32_t sign = (to_bits(value) >> 16) & 0x8000u, bits = to_bits(value) & 0x7fffffffu;
  uint32_t magnitude;
  if (bits > 0x7f800000u) {
    magnitude = 0x7e00u;
  } else if (bits >= 0x477ff000u) {  // values from 65520 up round to infinity
    magnitude = 0x7c00u;
  } else if (bits < 0x38800000u) {  // subnormal: adding 0.5 rounds to float16's last bit
    magnitude = to_bits(from_bits(bits) + 0.5f) - to_bits(0.5f);
  } else {
    magnitude = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | magnitude);
}

template <Isa isa>
struct Simd;

// Eight lanes in a plain array, which the compiler keeps in the baseline's registers (SSE2, NEON).
template <>
struct Simd<Isa::kScalar> {
  static constexpr int64_t kLanes = kLanesOf[static_cast<int>(Isa::kScalar)];
  static constexpr int kTileRows = 2, kTileVectors = 1;  // of a matrix product, in matmul.h
  static constexpr int kDotRows = 1, kDotKeys = 2;       // of products along rows
  struct Register {
    float lane[kLanes];
  };

  static Register zero() { return {}; }

  static Register set(float value) {
    Register all;
    for (auto& lane : all.lane) lane = value;
    return all;
  }

  template <class T>
  static Register load(const T* from) {
    Register value;
    for (int i = 0; i < kLanes; ++i) value.lane[i] = widen(from[i]);
    return value;
  }

  // The first `count` lanes; zeros, or another value, in the others.
  template <class T>
  static Register load(const T* from, int64_t count, float rest = 0) {
    Register value = set(rest);
    for (int64_t i = 0; i < count; ++i) value.lane[i] = widen(from[i]);
    return value;
  }

  static void store(float* to, Register value) { std::memcpy(to, value.lane, sizeof value.lane); }
  static void store(float* to, Register value, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = value.lane[i];
  }

  static Register add(Register a, Register b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
    return a;
  }

  static Register multiply(Register a, Register b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] *= b.lane[i];
    return a;
  }

  // a * b + c
  static Register multiply_add(Register a, Register b, Register c) {
    for (int i = 0; i < kLanes; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }

  static Register maximum(Register a, Register b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }

  static Register exp(Register x) {
    for (auto& lane : x.lane) lane = __builtin_expf(lane);
    return x;
  }

  static float sum(Register value) {
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half; ++i) value.lane[i] += value.lane[i + half];
    return value.lane[0];
  }

  // out[i] = sum(values[i]), all four at once.
  static void sums(const Register (&values)[4], float* out) {
    for (int i = 0; i < 4; ++i) out[i] = sum(values[i]);
  }

  static float largest(Register value) {
    for (int i = 1; i < kLanes; ++i)
      if (value.lane[i] > value.lane[0]) value.lane[0] = value.lane[i];
    return value.lane[0];
  }
};

// e^r for |r| <= ln(2)/2, within 2 units in the last place: the polynomial of Cephes' expf.
template <class V, class Register>
inline Register exp_near_zero(Register r) {
  Register sum = V::set(1.9875691500e-4f);
  const float rest[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                        5.0000001201e-1f};
  for (const float next : rest) sum = V::multiply_add(sum, r, V::set(next));
  return V::multiply_add(sum, V::multiply(r, r), V::add(r, V::set(1.0f)));
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

template <>
struct Simd<Isa::kAvx2> {
  static constexpr int64_t kLanes = kLanesOf[static_cast<int>(Isa::kAvx2)];
  static constexpr int kTileRows = 4, kTileVectors = 2;  // 8 sums, as many as are in flight
  static constexpr int kDotRows = 2, kDotKeys = 4;       // 8 sums, 4 keys, 1 row: 13
  using Register = __m256;

  static Register zero() { return _mm256_setzero_ps(); }
  static Register set(float value) { return _mm256_set1_ps(value); }

  static Register load(const float* from) { return _mm256_loadu_ps(from); }
  static Register load(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Register load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Register load(const int8_t* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }

  template <class T>
  static Register load(const T* from, int64_t count) {
    T padded[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
    return load(padded);
  }
  static Register load(const float* from, int64_t count, float rest = 0) {
    const __m256i own = first(count);
    return _mm256_blendv_ps(set(rest), _mm256_maskload_ps(from, own), _mm256_castsi256_ps(own));
  }

  static void store(float* to, Register value) { _mm256_storeu_ps(to, value); }
  static void store(float* to, Register value, int64_t count) {
    _mm256_maskstore_ps(to, first(count), value);
  }

  static Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register multiply(Register a, Register b) { return _mm256_mul_ps(a, b); }
  static Register multiply_add(Register a, Register b, Register c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static Register maximum(Register a, Register b) { return _mm256_max_ps(a, b); }

  // 0 below -87.3, where the result would be subnormal. Arguments are 0 or less.
  static Register exp(Register x) {
    const Register lowest = set(-87.3f);
    const Register kept = _mm256_cmp_ps(x, lowest, _CMP_NLT_UQ);
    const Register clamped = maximum(lowest, x);  // this order of operands keeps NaN
    const Register n = _mm256_round_ps(multiply(clamped, set(1.44269504089f)),
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Register r = multiply_add(n, set(-0.693359375f), clamped);
    r = multiply_add(n, set(2.12194440e-4f), r);
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(exp_near_zero<Simd>(r)), exponent);
    return _mm256_and_ps(kept, _mm256_castsi256_ps(bits));
  }

  static float sum(Register value) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }

  static void sums(const Register (&values)[4], float* out) {
    const auto pairs = [](Register a, Register b) {
      return add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    };
    const __m256d ab = _mm256_castps_pd(pairs(values[0], values[1]));
    const __m256d cd = _mm256_castps_pd(pairs(values[2], values[3]));
    const Register all = add(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }

  static float largest(Register value) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }

 private:
  static __m256i first(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  }
};

#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

template <>
struct Simd<Isa::kAvx512> {
  static constexpr int64_t kLanes = kLanesOf[static_cast<int>(Isa::kAvx512)];
  static constexpr int kTileRows = 8, kTileVectors = 2;  // 16 sums of 32 registers
  static constexpr int kDotRows = 4, kDotKeys = 4;
  using Register = __m512;

  static Register zero() { return _mm512_setzero_ps(); }
  static Register set(float value) { return _mm512_set1_ps(value); }

  static Register load(const float* from) { return _mm512_loadu_ps(from); }
  static Register load(const Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Register load(const BFloat16* from) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Register load(const int8_t* from) {
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  static Register load(const float* from, int64_t count, float rest = 0) {
    return _mm512_mask_loadu_ps(set(rest), first(count), from);
  }
  static Register load(const Half* from, int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), from));
  }
  static Register load(const BFloat16* from, int64_t count) {
    return widened(_mm256_maskz_loadu_epi16(first(count), from));
  }
  static Register load(const int8_t* from, int64_t count) {
    return widened(_mm_maskz_loadu_epi8(first(count), from));
  }

  static void store(float* to, Register value) { _mm512_storeu_ps(to, value); }
  static void store(float* to, Register value, int64_t count) {
    _mm512_mask_storeu_ps(to, first(count), value);
  }

  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register multiply(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register multiply_add(Register a, Register b, Register c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static Register maximum(Register a, Register b) { return _mm512_max_ps(a, b); }

  static Register exp(Register x) {
    const Register clamped = maximum(set(-104.0f), x);  // this order of operands keeps NaN
    const Register n = _mm512_roundscale_ps(multiply(clamped, set(1.44269504089f)),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Register r = multiply_add(n, set(-0.693359375f), clamped);
    r = multiply_add(n, set(2.12194440e-4f), r);
    return _mm512_scalef_ps(exp_near_zero<Simd>(r), n);
  }

  static float sum(Register value) { return _mm512_reduce_add_ps(value); }
  static void sums(const Register (&values)[4], float* out) {
    const auto pairs = [](Register a, Register b) {
      return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    };
    const __m512d ab = _mm512_castps_pd(pairs(values[0], values[1]));
    const __m512d cd = _mm512_castps_pd(pairs(values[2], values[3]));
    const Register all = add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(all),
                      _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  static float largest(Register value) { return _mm512_reduce_max_ps(value); }

 private:
  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static Register widened(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Register widened(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }
};

#endif

}  // namespace
}  // namespace retrv
