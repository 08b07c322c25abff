#pragma once

#include <cstdint>

namespace retrv {

// Same order as DTYPES in native.py.
enum class Dtype : int { kFloat32, kFloat16, kBFloat16, kInt8 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

namespace {

// Calls f with `address` cast to a pointer to the element type of `dtype`.
template <class F>
inline void with_dtype(Dtype dtype, const void* address, const F& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(static_cast<const float*>(address));
    case Dtype::kFloat16:
      return f(static_cast<const Half*>(address));
    case Dtype::kBFloat16:
      return f(static_cast<const BFloat16*>(address));
    case Dtype::kInt8:
      return f(static_cast<const int8_t*>(address));
  }
}

}  // namespace
}  // namespace retrv
