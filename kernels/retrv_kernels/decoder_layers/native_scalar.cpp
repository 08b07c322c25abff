#include "decoder_layers/native_impl.h"

template void retrv::decoder_layers<retrv::Isa::kScalar>(
    const DecoderLayer*, const DecoderShape&, float, float*, int64_t, const float*, const float*,
    const PagedCache&, const int64_t*, const int64_t*, const AttentionPart*, int64_t, float, int);
