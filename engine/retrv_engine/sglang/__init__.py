"""The SGLang engine: an SGLang server serves the requests.

The code runs in two kinds of processes that talk over HTTP:

* The modules of this package run in our process. They start the server or find one, send it
  prompts and read its answers.
* The modules of :mod:`retrv_engine.sglang.worker` run in the server's processes. They make SGLang
  load our checkpoints and sample by our rules.

Neither side imports the other. Both import :mod:`retrv_engine.sglang.wire_format`.
"""
