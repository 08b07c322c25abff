"""SGLang's server for our checkpoints.

    python -m retrv_engine.sglang.worker.server --model-path …

It takes SGLang's own arguments (``--tp``, ``--dp``, ``--mem-fraction-static``, …) over the ones
that our requests need; with ``--dry-run`` they are read as on a machine with GPUs, and printed.
SGLang starts its workers anew from this module, so that they are prepared as well.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence

from retrv_engine.sglang.worker.prepare import SAMPLER, prepare

WATCH = "--stop-with-stdin"
DRY = "--dry-run"

SHOWN = (
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


def defaults(cuda: bool) -> list[str]:
    """Arguments that stand before the user's."""
    always = ["--skip-tokenizer-init", "--sampling-backend", SAMPLER, "--schedule-policy", "lpm"]
    always += ["--incremental-streaming-output", "--skip-server-warmup"]
    if cuda:
        return always
    slow = ["--device", "cpu", "--attention-backend", "torch_native"]
    slow += ["--mm-attention-backend", "sdpa", "--grammar-backend", "none"]
    slow += ["--disable-cuda-graph", "--disable-overlap-schedule", "--mem-fraction-static", "0.5"]
    # Half of all memory and a whole core for waiting, otherwise.
    return [*always, *slow, "--max-total-tokens", "65536", "--sleep-on-idle"]


def main(arguments: Sequence[str]) -> None:
    """Serves until it is told to stop."""
    import torch
    from sglang.launch_server import prepare_server_args, run_server
    from sglang.srt.utils import kill_process_tree

    asked = [one for one in arguments if one not in (WATCH, DRY)]
    if DRY in arguments:
        read = prepare_server_args([*defaults(cuda=True), *asked])
        print(json.dumps({name: getattr(read, name) for name in SHOWN}))
        return
    if WATCH in arguments:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
    try:
        run_server(prepare_server_args([*defaults(torch.cuda.is_available()), *asked]))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def _stop_with_stdin() -> None:
    """Ends everything when whoever started this is gone."""
    from sglang.srt.utils import kill_process_tree

    sys.stdin.buffer.read()
    kill_process_tree(os.getpid(), include_parent=True)


if __name__ == "__main__":
    main(sys.argv[1:])
