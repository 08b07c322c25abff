#include "row_inverse_rms/native_impl.h"

template void retrv::row_inverse_rms<retrv::Isa::kAvx2>(const void*, Dtype, int64_t, int64_t, float,
                                                        float*, int);
