"""Servers that answer as SGLang does, and processes that seem to run them."""

from __future__ import annotations

import base64
import json
import pickle
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from engine_doubles import END_THINK, LABELS, NAMES, SIZE, Source
from torch import Tensor, nn

from retrv_engine import Request, Sampling, SGLangConfig, SGLangEngine
from retrv_engine.sglang.weights import parameters_of
from retrv_engine.sglang.wire_format import LIKELIEST, sample_of

CHECKPOINT = "of the checkpoint"
QUICK = Request([30, 31], LABELS, reason=False)


class SmallModel(nn.Module):
    """The parts of a model that the engine looks at, and a compressor."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(SIZE, 4)
        self.language_model = nn.Sequential(self.embeddings, nn.Linear(4, 4))
        self.head = nn.Linear(4, SIZE, bias=False)
        self.compressor = nn.Linear(4, 4)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


class FakeServer:
    """Serves a copy of a model: reasons with one token, then takes the first label.

    Attributes:
        asked: path and body of each request that it has read.
        computes: event; while it is clear, calls wait, and only the front end answers.
        hangs: whether it answers nothing at all.
        taken: number of requests with weights that it takes before it refuses.
    """

    def __init__(self, model: nn.Module, context: int = 100) -> None:
        self.weights = {name: one.clone() for name, one in parameters_of(model).items()}
        self.version, self.context = CHECKPOINT, context
        self.asked: list[tuple[str, Any]] = []
        self.computes, self._awake = threading.Event(), threading.Event()
        self.computes.set()
        self._awake.set()
        self.taken = 10**9
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._sockets: list[Any] = []
        poll = dict(poll_interval=0.01)
        threading.Thread(target=self._http.serve_forever, kwargs=poll, daemon=True).start()

    @property
    def hangs(self) -> bool:
        return not self._awake.is_set()

    @hangs.setter
    def hangs(self, value: bool) -> None:
        (self._awake.clear if value else self._awake.set)()

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(one == path for one, _ in list(self.asked))

    def die(self) -> None:
        """Breaks all connections and takes no more."""
        self._http.shutdown()
        self._http.server_close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.hangs = False
        self.computes.set()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON values; a list of values is streamed."""
        if path == "/model_info":
            return 200, {"weight_version": self.version}
        if path == "/server_info":
            return 200, {"max_req_input_len": self.context - 6, "max_total_num_tokens": 10**6}
        if path == "/get_weights_by_name":
            return 200, [sample_of(self.weights[name]) for name in body["name"].splitlines()]
        if path == "/update_weights_from_tensor":
            return self._take_weights(body)
        return self._generate(body) if path == "/generate" else (200, {})

    def _take_weights(self, body: Any) -> tuple[int, Any]:
        if not self.taken:
            return 400, {"success": False, "message": "no memory"}
        self.taken -= 1
        for data in body["serialized_named_tensors"]:
            self.weights |= pickle.loads(base64.b64decode(data))
        self.version = body["weight_version"] or self.version
        return 200, {"success": True}

    def _generate(self, body: Any) -> tuple[int, Any]:
        rows, new = len(body["input_ids"]), body["sampling_params"]["max_new_tokens"]
        if rows + new > self.context:
            return 400, {"error": {"message": "Requested token count exceeds the maximum"}}
        self.computes.wait()
        labels = body.get("token_ids_logprob")
        token = labels[0] if labels else END_THINK
        meta = {
            "prompt_tokens": rows,
            "cached_tokens": 0,
            "weight_version": self.version,
            "output_token_logprobs": [(-1.0, token, None)],
            "output_token_ids_logprobs": [[(-1.0 - k, one, None) for k, one in enumerate(labels)]]
            if labels
            else None,
            "input_top_logprobs": [[], [[-1.0, token]], [[-1.0, token]]],
            LIKELIEST: [token],
        }
        return 200, [{"output_ids": [token], "meta_info": meta}]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server._sockets.append(self.connection)

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path, values = self.path.partition("?")[0], json.loads(body or "null")
                server.asked.append((path, values))
                server._awake.wait()
                status, answer = server.answer(path, values)
                parts = [json.dumps(answer)]
                if isinstance(answer, list) and path == "/generate":
                    parts = [*(f"data: {json.dumps(one)}\n\n" for one in answer), "data: [DONE]\n"]
                content = "".join(parts).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError, ValueError):  # the connection is closed
                    super().handle()

        return Handler


class FakeProcess:
    """The process of a fake server, in the place of :class:`ServerProcess`.

    Attributes:
        killed: event after which the process is seen to have ended.
        ended: whether it has.
    """

    def __init__(self, server: FakeServer) -> None:
        self.server, self.url = server, server.url
        self.killed = threading.Event()
        self.log = Path("a.log")

    @property
    def ended(self) -> bool:
        return self.killed.is_set()

    def wait(self, seconds: float) -> bool:
        return self.killed.wait(min(seconds, 5.0))

    def exit_report(self) -> str:
        return "exit status 1; the end of a.log:"

    def end(self) -> None:
        self.server.die()
        self.killed.set()


def reasoning(tokens: int) -> Request:
    """A request of 3 rows, with <think>, that may write a number of tokens."""
    source = Source({k: [9] for k in range(4)})
    return Request(
        [30, 31], LABELS, range(4), source, sampling=Sampling(max_reasoning_tokens=tokens)
    )


def make_engine(model: Any, **config: Any) -> SGLangEngine:
    """An engine for a small model, on a server at a url or on fake processes."""
    checkpoint = None if "url" in config else "checkpoint"
    return SGLangEngine(model, NAMES, SGLangConfig(**config), checkpoint=checkpoint)


def until(reached: Callable[[], bool]) -> None:
    """Waits until something holds, for 5 seconds at most."""
    waiting = threading.Event()
    for _ in range(500):
        if reached():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come to pass in 5 s")


def changed(model: nn.Module, name: str) -> dict[str, Tensor]:
    """New values for one parameter."""
    return {name: dict(model.named_parameters())[name].detach() + torch.tensor(1.0)}
