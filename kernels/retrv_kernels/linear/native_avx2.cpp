#include "linear/native_impl.h"

template void retrv::linear<retrv::Isa::kAvx2>(const float*, int64_t, int64_t, const void*, Dtype,
                                               int64_t, const float*, const float*, int64_t, int64_t,
                                               float*, int64_t, int);
