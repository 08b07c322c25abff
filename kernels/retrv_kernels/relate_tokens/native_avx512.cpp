#include "relate_tokens/native_impl.h"

template void retrv::relate_tokens<retrv::Isa::kAvx512>(const void*, Dtype, const float*, int64_t,
                                                        int64_t, int64_t, const RelateQuery*,
                                                        const RelatePair*, int64_t, float, float*,
                                                        int);
