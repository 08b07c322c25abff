#include "shared_prefix_attention/native_impl.h"

template void retrv::shared_prefix_attention<retrv::Isa::kAvx512>(const void*, int64_t, int64_t,
                                                                  const PagedCache&, const int64_t*,
                                                                  const int64_t*, int64_t, float,
                                                                  float*, int);
