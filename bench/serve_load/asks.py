"""What the clients ask: all modes, lists of all sizes, texts and pictures."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

PICTURES = Path(__file__).parents[2] / "examples" / "demo"
MODES = ("fast", "reason", "auto", "stream")
"""Modes of a ranking; ``stream`` is reasoning that comes as events."""

SIZES, WEIGHTS = (2, 8, 20, 50, 120), (25, 35, 25, 12, 3)
"""Documents of a list and how often they are asked for; more than 50 need several windows."""

WORDS = (
    "red",
    "green",
    "blue",
    "apple",
    "car",
    "fire",
    "engine",
    "bird",
    "house",
    "tree",
    "hat",
    "fish",
)
TEXTS = 300
"""Texts that documents are drawn from; few, so that their features are soon known."""

LEAVES = 1 / 3
"""Share of the requests whose client hangs up."""

Place: TypeAlias = Literal["body", "wait", "answer"]
"""Where a client hangs up: with half of its body sent, while it waits, and with some of its
answer read."""


@dataclass(frozen=True)
class Ask:
    """One request.

    Args:
        id: its name, which the server repeats; no other has it.
        mode: one of :data:`MODES`.
        body: what is sent.
        documents: documents in it; each has ``id`` and its place as its own id.
        leaves: where the client hangs up; None for one that waits for its answer.
        patience: seconds that a client waits that hangs up while it waits.
    """

    id: str
    mode: str
    body: bytes
    documents: int
    leaves: Place | None = None
    patience: float = 0.0


class Asks:
    """Makes the requests of one client; they follow from the seed and the client's number."""

    def __init__(self, client: int, seed: int, pictures: Sequence[bytes]) -> None:
        self._client, self._count = client, 0
        self._chance = random.Random(f"{seed} {client}")
        self._pictures = [
            f"data:image/png;base64,{base64.b64encode(one).decode()}" for one in pictures
        ]

    def next(self) -> Ask:
        """The next request."""
        chance = self._chance
        name, mode = self._name(), chance.choice(MODES)
        size = chance.choices(SIZES, WEIGHTS)[0]
        body = self._body(name, mode, size)
        leaves: Place | None = None
        if chance.random() < LEAVES:
            leaves = chance.choice(("body", "wait", "answer"))
        return Ask(name, mode, body, size, leaves, patience=chance.expovariate(1.0))

    def of(self, mode: str, size: int) -> bytes:
        """The body of a further request of a mode and size."""
        return self._body(self._name(), mode, size)

    def _name(self) -> str:
        self._count += 1
        return f"load-{self._client}-{self._count}"

    def _body(self, name: str, mode: str, size: int) -> bytes:
        documents = [{**self._document(), "id": f"{name}/{place}"} for place in range(size)]
        body: dict[str, Any] = {
            "query": f"{self._chance.choice(WORDS)} number {name}",
            "documents": documents,
            "retrv": {"mode": "reason" if mode == "stream" else mode},
        }
        if mode == "stream":
            body["stream"] = True
        return json.dumps(body).encode()

    def pause(self) -> float:
        """Seconds between two requests of a client."""
        return self._chance.uniform(0, 0.2)

    def _document(self) -> dict[str, str]:
        if self._pictures and self._chance.random() < 0.2:
            return {"image": self._chance.choice(self._pictures)}
        number = self._chance.randrange(TEXTS)
        first, second = WORDS[number % len(WORDS)], WORDS[number // len(WORDS) % len(WORDS)]
        return {"text": f"a {first} with a {second}, picture {number}"}


def demo_pictures() -> list[bytes]:
    """The pictures of the demo."""
    return [path.read_bytes() for path in sorted(PICTURES.glob("*.png"))]
