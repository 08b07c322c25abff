#include "splice_features/native_impl.h"

template void retrv::splice_features<retrv::Isa::kScalar>(const SpliceStore*, const SpliceSpan*,
                                                          int64_t, int64_t, const int64_t*, int64_t,
                                                          int64_t, int64_t, Dtype, void*, int64_t*,
                                                          int64_t*, int);
