"""Ranks with int8 weights, which a CPU reads faster, and keeps features of items on disk.

Run it: ``pip install 'retrv-r1[cache]'``, then ``python examples/rounded_weights.py``
"""

import tempfile
from pathlib import Path

from retrv_r1 import EngineConfig, Reranker

config = EngineConfig(weights="int8", cache_bytes=2**28)
pictures = sorted(Path(__file__).parent.glob("demo/*.png"))

with tempfile.TemporaryDirectory() as cache:  # name a folder of your own to keep it
    for run in ("first", "second"):
        with Reranker.from_pretrained("tiny", device="cpu", config=config, cache=cache) as reranker:
            results = reranker.rank("guitar", pictures)
            engine, features = reranker.stats()
        print(f"{run} run: {results[0].name}, {sum(results.timings.values()):.2f} s")
        print(f"  pictures encoded: {features.encoded}, found on disk: {features.disk_hits}")
        print(f"  rows computed: {engine.computed_rows}, tokens written: {engine.written_tokens}")
