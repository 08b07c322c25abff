"""What the server says of itself: health, the model, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from retrv_r1 import __version__
from retrv_r1.serve.dialects import DIALECTS
from retrv_r1.serve.handing import default_mode
from retrv_r1.serve.metrics import Metrics, Observed
from retrv_r1.serve.pictures import PicturePolicy
from retrv_r1.serve.service import Health, RerankService
from retrv_r1.serve.settings import Settings

LOADING_RETRY = 2
"""Seconds after which a client may ask again while the model is being loaded."""


class About:
    """What the routes about the server do.

    Args:
        policy: which pictures are taken.
        started: Unix time of the start.
    """

    def __init__(
        self,
        service: RerankService,
        settings: Settings,
        metrics: Metrics,
        policy: PicturePolicy,
        started: int,
    ) -> None:
        self.service, self.settings, self.metrics = service, settings, metrics
        self.policy, self.started = policy, started
        self._health = Health("loading")
        metrics.watch(self._observe)

    async def health(self, request: Request) -> Response:
        """200 when requests are answered, else 503: while loading, draining, or after a failure."""
        health = await self.service.health()
        if health.ready:
            return JSONResponse({"status": "ready"})
        headers = {"Retry-After": str(LOADING_RETRY)}
        return JSONResponse({"status": health.state}, 503, headers)

    async def models(self, request: Request) -> Response:
        """The one model, in the form of OpenAI's list."""
        model = {
            "id": self.settings.model,
            "object": "model",
            "created": self.started,
            "owned_by": "retrv-r1",
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def info(self, request: Request) -> Response:
        """The model and the limits; the first fields are those of TEI, which its clients read."""
        limits, reranker = self.settings.limits, self.service.reranker
        about: dict[str, Any] = {
            "model_id": self.settings.model,
            "model_sha": None,
            "model_dtype": None,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_concurrent_requests": limits.max_requests,
            "max_input_length": None,
            "max_client_batch_size": limits.max_documents,
            "auto_truncate": True,
            "version": __version__,
            "limits": vars(limits) | self.policy.limits(),
            "dialects": [one.name for one in DIALECTS],
            "deadline_seconds": self.settings.deadline,
        }
        if reranker is not None:
            about |= {
                "model_dtype": str(reranker.model.dtype).removeprefix("torch."),
                "max_input_length": reranker.processor.max_text_tokens,
                "device": str(reranker.model.device),
                "window": reranker.window,
                "default_mode": self.settings.mode or default_mode(reranker),
            }
        return JSONResponse(about)

    async def render_metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        self._health = await self.service.health()
        body, kind = await asyncio.to_thread(self.metrics.render)
        return Response(body, headers={"Content-Type": kind})

    def _observe(self) -> Observed:
        """The state of the service, at the last question for metrics; may wait for a moment."""
        health, reranker = self._health, self.service.reranker
        engine, features = reranker.stats() if reranker is not None else (None, None)
        return Observed(health.ready, health.running, health.waiting, engine, features)
