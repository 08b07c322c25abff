"""What runs in the processes of an SGLang server: launcher, model, processor, sampler.

The only module of ours outside this package that they share with our process is
:mod:`retrv_engine.sglang.wire_format`.
"""
