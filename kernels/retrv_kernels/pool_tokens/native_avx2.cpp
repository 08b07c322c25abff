#include "pool_tokens/native_impl.h"

template void retrv::pool_tokens<retrv::Isa::kAvx2>(const void*, Dtype, const float*,
                                                    const int64_t*, int64_t, int64_t, const float*,
                                                    int64_t, float, float*, int);
