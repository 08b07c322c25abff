#pragma once

#include <cstddef>
#include <vector>

namespace retrv {

// Weakest first; same order as ISAS in native.py.
enum class Isa : int { kScalar, kAvx2, kAvx512 };

// float32 lanes of a vector, indexed by Isa.
inline constexpr int kLanesOf[] = {8, 8, 16};

// The instruction sets that are compiled in and that this processor and operating system can run.
std::vector<Isa> runnable_isas();

// All variants of a kernel that is a template over Isa, indexed by Isa.
#if RETRV_X86
#define RETRV_VARIANTS(kernel) \
  {&kernel<::retrv::Isa::kScalar>, &kernel<::retrv::Isa::kAvx2>, &kernel<::retrv::Isa::kAvx512>}
#else
#define RETRV_VARIANTS(kernel) {&kernel<::retrv::Isa::kScalar>}
#endif

}  // namespace retrv
