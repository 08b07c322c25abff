// Python passes addresses as integers: a call costs about 2 us, against 36 for five array
// arguments. Shapes, dtypes and contiguity have been checked there.

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>

#include "csrc/isa.h"
#include "row_inverse_rms/native.h"

namespace nb = nanobind;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::vector<int> isas() {
  std::vector<int> indices;
  for (const auto isa : retrv::runnable_isas()) indices.push_back(static_cast<int>(isa));
  return indices;
}

void row_inverse_rms(int isa, uintptr_t features, int dtype, int64_t rows, int64_t width, float eps,
                     uintptr_t out, int threads) {
  static constexpr decltype(&retrv::row_inverse_rms<retrv::Isa::kScalar>) kVariants[] =
      RETRV_VARIANTS(retrv::row_inverse_rms);
  kVariants[isa](pointer<const void>(features), static_cast<retrv::Dtype>(dtype), rows, width, eps,
                 pointer<float>(out), threads);
}

}  // namespace

NB_MODULE(_native, m) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  m.def("isas", &isas);
  m.def("row_inverse_rms", &row_inverse_rms, unlocked);
}
