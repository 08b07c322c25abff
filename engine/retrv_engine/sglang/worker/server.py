"""Starts an SGLang server for our checkpoints.

    python -m retrv_engine.sglang.worker.server --model-path …

SGLang's own arguments (``--tp``, ``--dp``, ``--mem-fraction-static``, …) override the defaults that
our requests need. With ``--dry-run`` they are parsed as on a machine with GPUs, and printed. SGLang
imports this module in each worker that it starts, which prepares the worker.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import uuid
from collections.abc import Sequence

from retrv_engine.sglang.wire_format import STOP_WITH_STDIN
from retrv_engine.sglang.worker.prepare import SAMPLER, prepare

DRY_RUN = "--dry-run"
DRY_RUN_ARGUMENTS = (
    "model_path",
    "tp_size",
    "dp_size",
    "mem_fraction_static",
    "kv_cache_dtype",
    "attention_backend",
    "mm_attention_backend",
    "sampling_backend",
    "schedule_policy",
    "disable_radix_cache",
    "skip_tokenizer_init",
    "incremental_streaming_output",
)

if __name__ in ("__main__", "__mp_main__"):
    prepare()


def default_arguments(cuda: bool) -> list[str]:
    """Arguments that the user's override."""
    always = ["--skip-tokenizer-init", "--sampling-backend", SAMPLER, "--schedule-policy", "lpm"]
    always += ["--incremental-streaming-output", "--skip-server-warmup"]
    # A name of its own for each start, so that engines notice a server that was restarted.
    always += ["--weight-version", uuid.uuid4().hex]
    if cuda:
        return always
    cpu = ["--device", "cpu", "--attention-backend", "torch_native"]
    cpu += ["--mm-attention-backend", "sdpa", "--grammar-backend", "none"]
    cpu += ["--disable-cuda-graph", "--disable-overlap-schedule", "--mem-fraction-static", "0.5"]
    # Without these the cache takes half of all memory, and an idle server a whole core.
    return [*always, *cpu, "--max-total-tokens", "65536", "--sleep-on-idle"]


def main(arguments: Sequence[str]) -> None:
    """Serves until the server is stopped."""
    import torch
    from sglang.launch_server import prepare_server_args, run_server
    from sglang.srt.utils import kill_process_tree

    given = [one for one in arguments if one not in (STOP_WITH_STDIN, DRY_RUN)]
    if DRY_RUN in arguments:
        parsed = prepare_server_args([*default_arguments(cuda=True), *given])
        print(json.dumps({name: getattr(parsed, name) for name in DRY_RUN_ARGUMENTS}))
        return
    if STOP_WITH_STDIN in arguments:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
    try:
        defaults = default_arguments(torch.cuda.is_available())
        run_server(prepare_server_args([*defaults, *given]))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def _stop_with_stdin() -> None:
    """Ends the server and its workers when the process that started it has ended."""
    from sglang.srt.utils import kill_process_tree

    sys.stdin.buffer.read()
    kill_process_tree(os.getpid(), include_parent=True)


if __name__ == "__main__":
    main(sys.argv[1:])
