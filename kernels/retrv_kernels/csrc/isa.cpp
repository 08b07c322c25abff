#include "csrc/isa.h"

#if RETRV_X86
#include <cpuid.h>
#endif

namespace retrv {

#if RETRV_X86
namespace {

// Only recent compilers know "f16c" in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace
#endif

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas{Isa::kScalar};
#if RETRV_X86
  if (has_avx2()) isas.push_back(Isa::kAvx2);
  if (has_avx512()) isas.push_back(Isa::kAvx512);
#endif
  return isas;
}

}  // namespace retrv
