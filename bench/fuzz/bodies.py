"""Requests that are right, nearly right, and wrong in many ways; all follow from a seed."""

from __future__ import annotations

import base64
import io
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from retrv_r1.model.tokens import LABELS, QWEN_TOKENS, RETRV_TOKENS
from retrv_r1.serve.dialects import DIALECTS, RERANK_PATHS, SCORE_PATHS

SPECIAL = (*QWEN_TOKENS, *RETRV_TOKENS, *LABELS[:5])
TEXTS = (
    *(
        "a red apple",
        "",
        " ",
        "x" * 2000,
        "\0",
        "\u2028\u202e",
        "é" * 50,
        "😀👩‍👩‍👧",
        "\ud800",
        "{}",
        "null",
    ),
    *("%s%n", "../../etc/passwd", "<script>", "' OR 1=1 --", "\r\nX-A: b", "a\nb", *SPECIAL),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1.5, 1e308, -0.0, "", "1", [], {}),
    *([[]], [None], {"": None}, {"text": {}}, {"image": []}, "fast", "reason", [0] * 100),
)
FIELDS = (
    *("model", "query", "documents", "texts", "top_n", "top_k", "return_documents", "retrv"),
    *("return_text", "truncate", "raw_scores", "stream", "rank_fields", "instruction", "text_1"),
    *("text_2", "max_tokens_per_doc", "input", "user", "truncation", "options", "__proto__"),
)
PATHS = (
    *("/", "/health", "/info", "/metrics", "/openapi.json", "/v1/models", "/rerank", "/page/x"),
    *("/page/../app.py", "/page/%2e%2e/%2e%2e/app.py", "//rerank", "/rerank/", "/\0", "/é"),
    *("/jina/rerank", "/none/rerank", "/jina/../rerank", "/" + "a" * 9000),
)
OPTIONS = ("mode", "max_inspections", "max_reasoning_tokens", "votes", "budget_ms", "stream")


@dataclass(frozen=True)
class Sent:
    """A request, as bytes.

    Attributes:
        chunks: the body in the pieces in which it arrives.
        hang_up: chunks after which the client is gone; None if it waits for the answer.
    """

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    chunks: tuple[bytes, ...] = ()
    hang_up: int | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


@cache
def pictures() -> tuple[bytes, ...]:
    """Pictures of all formats, small and sound."""
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    found = []
    for format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "PPM", "ICO", "JPEG2000"):
        buffer = io.BytesIO()
        picture.save(buffer, format)
        found.append(buffer.getvalue())
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    size = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    bomb = header + size + zlib.crc32(b"IHDR" + size).to_bytes(4, "big")
    return (*found, svg, bomb, b"", b"GIF89a", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", bytes(1000))


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes with a few of them changed, left out, doubled or put elsewhere."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.randrange(len(result) + 1)
        end = min(len(result), place + chance.choice((1, 1, 4, 16, 200)))
        kind = chance.randrange(5)
        if kind == 0:
            result[place:end] = chance.randbytes(end - place)
        elif kind == 1:
            del result[place:end]
        elif kind == 2:
            result[place:place] = result[place:end]
        elif kind == 3:
            result[place:place] = chance.choice((b"\0", b"\xff", b"{", b'"', b"\\", b"\n", b"e9"))
        elif place < len(result):
            result[place] ^= 1 << chance.randrange(8)
    return bytes(result)


@dataclass
class Maker:
    """Makes requests from a seed.

    Args:
        reasoning: share of requests that ask for reasoning, which takes long.
    """

    seed: int
    reasoning: float = 0.03
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def make(self) -> Sent:
        """The next request."""
        kinds: tuple[tuple[int, Callable[[], Sent]], ...] = (
            *((30, self._sound), (30, self._wrong_values), (15, self._wrong_pictures)),
            *((20, self._wrong_bytes), (5, self._wrong_head)),
        )
        return self.chance.choices([make for _, make in kinds], [share for share, _ in kinds])[0]()

    def _sound(self) -> Sent:
        return self._send(json.dumps(self._body()).encode())

    def _wrong_values(self) -> Sent:
        body: Any = self._body()
        for _ in range(self.chance.choice((1, 1, 2, 4))):
            self._spoil(body)
        if self.chance.random() < 0.02:
            body = self.chance.choice(VALUES)
        text = json.dumps(body, ensure_ascii=self.chance.random() < 0.5)
        if self.chance.random() < 0.03:
            text = self.chance.choice(("[" * 10_000, '{"a":' * 5000, text * 2, "NaN", "1" * 10_000))
        return self._send(text.encode("utf-8", "surrogatepass"))

    def _wrong_pictures(self) -> Sent:
        body = self._body()
        items = [self._picture(mutated(self._any_picture(), self.chance)) for _ in range(3)]
        body["documents"] = [*items, "a text"]
        return self._send(json.dumps(body).encode())

    def _wrong_bytes(self) -> Sent:
        return self._send(mutated(json.dumps(self._body()).encode(), self.chance))

    def _wrong_head(self) -> Sent:
        method = self.chance.choice(("GET", "PUT", "HEAD", "OPTIONS", "DELETE", "POST", "QUERY"))
        path = self.chance.choice(PATHS)
        name = self.chance.choice(
            (b"accept", b"content-type", b"content-length", b"range", b"host")
        )
        name = self.chance.choice((name, b"authorization", b"x-api-key", b"if-none-match"))
        value = self.chance.choice(
            (b"", b"*", b"-1", b"1e3", b"\xff\xfe", b"a" * 9000, b"bytes=0-")
        )
        sent = self._send(json.dumps(self._body()).encode())
        headers = tuple(h for h in sent.headers if h[0] != name)
        return Sent(method, path, (*headers, (name, value)), sent.chunks, sent.hang_up)

    def _send(self, body: bytes) -> Sent:
        chance = self.chance
        path = chance.choice((*RERANK_PATHS, *SCORE_PATHS))
        headers = [(b"content-type", b"application/json")]
        if chance.random() < 0.3:
            name = chance.choice(DIALECTS).name
            headers.append((b"x-retrv-dialect", name.encode()))
        if chance.random() < 0.1:
            headers.append((b"accept", b"text/event-stream"))
        if chance.random() < 0.1:
            headers.append((b"x-request-id", chance.choice((b"abc", b"\n", b"\xff", b"x" * 999))))
        if chance.random() < 0.05:
            headers[0] = (b"content-type", chance.choice((b"text/plain", b"", b"a/b;charset=x")))
        cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.choice((0, 0, 1, 3))))
        ends = [*cuts, len(body)]
        chunks = tuple(body[start:end] for start, end in zip([0, *cuts], ends, strict=True))
        hang_up = chance.randrange(len(chunks) + 1) if chance.random() < 0.05 else None
        return Sent("POST", path, tuple(headers), chunks, hang_up)

    def _body(self) -> dict[str, Any]:
        chance = self.chance
        documents = [self._item() for _ in range(chance.choice((1, 2, 3, 5, 8)))]
        names = ("texts",) if chance.random() < 0.2 else ("documents",)
        body: dict[str, Any] = {"query": self._item(), names[0]: documents}
        body["retrv"] = {"mode": "fast"}
        if chance.random() < self.reasoning:
            body["retrv"] = {"mode": "reason", "max_reasoning_tokens": 32}
        if chance.random() < 0.1:
            body = {"text_1": self._text(), "text_2": [self._text() for _ in range(3)]}
        if chance.random() < 0.2:
            body[chance.choice(("top_n", "top_k"))] = chance.randrange(5)
        if chance.random() < 0.05:
            body["stream"] = True
        return body

    def _text(self) -> str:
        return self.chance.choice(TEXTS[:1]) if self.chance.random() < 0.6 else self._odd_text()

    def _odd_text(self) -> str:
        return "".join(self.chance.choices(TEXTS, k=2))

    def _item(self) -> Any:
        if self.chance.random() < 0.8:
            text = self._text()
            return self.chance.choice(
                (text, {"text": text}, {"content": [{"type": "text", "text": text}]})
            )
        return self._picture(self.chance.choice(pictures()[:4]))

    def _any_picture(self) -> bytes:
        return self.chance.choice(pictures())

    def _picture(self, data: bytes) -> Any:
        text = base64.b64encode(data).decode()
        uri = f"data:image/png;base64,{text}"
        if self.chance.random() < 0.1:
            uri = mutated(uri.encode(), self.chance).decode("latin-1")
        return self.chance.choice(
            (
                *({"image": uri}, {"text": "a", "image": text}, {"image": {"url": uri}}),
                {"content": [{"type": "image_url", "image_url": {"url": uri}}]},
                {"type": "image", "format": "base64", "value": text},
                [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": uri}}],
            )
        )

    def _spoil(self, body: dict[str, Any]) -> None:
        chance = self.chance
        value: Any = chance.choice((*VALUES, self._odd_text(), {"image": chance.choice(TEXTS)}))
        where = chance.randrange(4)
        lists = [v for v in body.values() if isinstance(v, list) and v]
        if where == 0 and lists:
            chosen = chance.choice(lists)
            chosen[chance.randrange(len(chosen))] = value
        elif where == 1 and isinstance(body.get("retrv"), dict):
            body["retrv"][chance.choice(OPTIONS)] = value
        elif where == 2:
            body.pop(chance.choice(list(body)), None) if body else None
        else:
            body[chance.choice(FIELDS)] = value
