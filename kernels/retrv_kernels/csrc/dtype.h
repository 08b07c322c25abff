#pragma once

#include <cstdint>

namespace retrv {

// In the order of DTYPES in native.py.
enum class Dtype : int { kFloat32, kFloat16, kBFloat16, kInt8 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

}  // namespace retrv
