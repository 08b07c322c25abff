"""Launches, copies and waits of a decode step, counted on an emulated GPU.

``python tests/decode_counts.py`` prints the table of docs/gpu.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from emulated_cuda import emulate
from emulated_device import Activity, EmulatedDevice
from engine_doubles import LABELS, NAMES, Backbone, Source
from transformers import Qwen2_5_VLConfig

from retrv_engine import EngineConfig, LocalEngine, Request, Sampling

STEPS = 17  # steps counted: more than rows of a page, so that every sequence needs a new page
WARM = 3  # steps before, which do what is done only once
LAYERS = {"3B": 36, "7B": 28}
SAMPLED = dict(temperature=0.7, top_p=0.95)
KINDS: dict[str, tuple[int, dict[str, float]]] = {
    "1 greedy": (1, {}),
    "8 greedy": (8, {}),
    "8 sampled": (8, SAMPLED),
}


class StepCost(NamedTuple):
    """Maxima over several decode steps.

    Attributes:
        layer: launches of one layer of the decoder.
        rest: launches outside the layers.
        copies: copies to the device.
        waits: waits for the device.
    """

    layer: int
    rest: int
    copies: int
    waits: int


def qwen_3b(layers: int) -> Qwen2_5_VLConfig:
    """The heads of Qwen2.5-VL-3B: 16 of queries, 2 of keys, 128 wide.

    The MLP is narrow and the tower is not used, because no count depends on them.
    """
    text = dict(
        vocab_size=300,
        hidden_size=2048,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=2,
        rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
    )
    vision = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=2048)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


@dataclass
class Engine:
    """An engine on an emulated device with sequences that keep decoding."""

    device: EmulatedDevice
    layers: int
    sequences: int
    sampling: dict[str, float]
    graphs: bool | None = None
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        model = Backbone(qwen_3b(self.layers), self.dtype)
        self.device.move(model.model)
        self.engine = LocalEngine(model, NAMES, EngineConfig(cache_bytes=2**26, graphs=self.graphs))
        numbers = range(self.sequences)
        self.handles = [self.engine.submit(self._request(number)) for number in numbers]
        for _ in range(self.sequences + WARM):
            self.engine.step()
            self.check()
        assert self.engine.stats().running == self.sequences

    def _request(self, number: int) -> Request:
        """A request that keeps reasoning: it can neither inspect nor end."""
        prompt = [50 + number, *range(60, 100), 50 + number]
        sampling: Any = dict(self.sampling, seed=number, max_reasoning_tokens=1000)
        never = [NAMES.think_end, NAMES.inspect_start]
        return Request(
            prompt, LABELS, range(4), Source({}), sampling=Sampling(**sampling), banned=never
        )

    def step(self) -> Activity:
        """Runs a step; returns its counts."""
        activity = self.device.count()
        self.engine.step()
        self.check()
        return activity

    def check(self) -> None:
        """Raises the error of a request that has ended; none ends by itself."""
        for handle in self.handles:
            if handle.future.done():
                handle.result()


def counts_of(sequences: int, sampling: dict[str, float], **how: Any) -> StepCost:
    """The maxima over steps; a layer's launches are those that a second layer adds."""
    activity = []
    for layers, steps in ((1, STEPS), (2, 1)):
        with emulate() as device:
            engine = Engine(device, layers, sequences, sampling, **how)
            activity.append([engine.step() for _ in range(steps)])
    (single, *_), (double,) = activity
    assert (single.copies.total(), single.waits.total()) == (
        double.copies.total(),
        double.waits.total(),
    ), "copies and waits do not depend on the layers"
    layer = double.launches.total() - single.launches.total()
    rest = max(one.launches.total() for one in activity[0]) - layer
    copies = max(one.copies.total() for one in activity[0])
    return StepCost(layer, rest, copies, max(one.waits.total() for one in activity[0]))


def main() -> None:
    """Prints the table, and the lines that cause launches, copies and waits of a step."""
    titles = ["decode step", "a layer", "outside", *LAYERS, "copies", "waits"]
    print("|", " | ".join(titles), "|")
    print("|", " | ".join(["---", *["---:"] * (len(titles) - 1)]), "|")
    for graphs in (False, None):
        for kind, (sequences, sampling) in KINDS.items():
            layer, rest, copies, waits = counts_of(sequences, sampling, graphs=graphs)
            totals = [layer * layers + rest for layers in LAYERS.values()]
            name = kind if graphs is False else f"{kind}, a graph"
            print("|", " | ".join(map(str, [name, layer, rest, *totals, copies, waits])), "|")
    for kind, (sequences, sampling) in KINDS.items():
        with emulate() as device:
            activity = Engine(device, 1, sequences, sampling, graphs=False).step()
        for what in ("launches", "copies", "waits", "results"):
            for line, count in getattr(activity, what).most_common():
                print(f"{kind}, one layer, {what}: {count} × {line}")


if __name__ == "__main__":
    main()
