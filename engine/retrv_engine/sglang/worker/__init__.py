"""What runs in an SGLang server's processes: launcher, model, processor, sampler.

Of our other modules these import :mod:`retrv_engine.sglang.wire_format` alone.
"""
