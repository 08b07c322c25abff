"""Makes a call of the service from what a request asks for: pictures decoded, defaults filled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from retrv_r1.rerank.reranker import Reranker
from retrv_r1.serve.calls import NotReady, RankCall
from retrv_r1.serve.decoding import Fit
from retrv_r1.serve.errors import ApiError
from retrv_r1.serve.limits import Held
from retrv_r1.serve.metrics import Metrics
from retrv_r1.serve.pictures import PicturePolicy, PictureReader
from retrv_r1.serve.refused import PictureRefused
from retrv_r1.serve.schema.asked import Asked
from retrv_r1.serve.schema.items import AskedItem
from retrv_r1.serve.service import RerankService
from retrv_r1.types import Item, ModeChoice

AT_ONCE = 32
"""Pictures of one request that are read at the same time."""


class ReadPicture(Protocol):
    """A picture that was read."""

    @property
    def image(self) -> Image.Image:
        """Its pixels."""
        ...


class Pictures(Protocol):
    """Reads a picture that a client has sent or named."""

    async def read(self, value: str, held: Held) -> ReadPicture:
        """The picture of a data URI, base64 or an address.

        Args:
            held: counts in bytes that are not the request's own, while they are held.
        Raises:
            PictureRefused: it cannot be read, or must not be.
            ApiError: 429; all requests together hold too much.
        """
        ...


class ModelPictures:
    """Reads pictures in the size that the model of a service reads, once it is loaded."""

    def __init__(self, service: RerankService, policy: PicturePolicy, metrics: Metrics) -> None:
        self._service, self._policy, self._metrics = service, policy, metrics
        self._reader: PictureReader | None = None

    async def read(self, value: str, held: Held) -> ReadPicture:
        """See :meth:`Pictures.read`; NotReady before the model is loaded."""
        if self._reader is None:
            reranker = self._service.reranker
            if reranker is None:
                raise NotReady("the model is being loaded")
            fit = Fit.of(reranker.processor)
            self._reader = PictureReader(self._policy, fit=fit, metrics=self._metrics)
        return await self._reader.read(value, held)

    async def aclose(self) -> None:
        """Ends what reading has started."""
        if self._reader is not None:
            await self._reader.aclose()


@dataclass(frozen=True)
class Read:
    """The pictures of a request.

    Args:
        images: by what was sent.
        seconds: that reading them took.
    """

    images: Mapping[str, Image.Image]
    seconds: float


def default_mode(reranker: Reranker | None) -> ModeChoice:
    """The mode of requests where neither they nor the settings name one."""
    threshold = getattr(reranker.model.config, "auto_threshold", None) if reranker else None
    return "fast" if threshold is None else "auto"


def to_call(asked: Asked, read: Read, mode: ModeChoice) -> RankCall:
    """The call of a list of a request; its budget is the whole one.

    Args:
        read: the request's pictures.
        mode: mode of requests that name none; several votes mean reasoning, also for ``auto``.
    """
    options = asked.options
    chosen = options.mode or mode
    if options.votes > 1 and options.mode != "fast":
        chosen = "reason"
    return RankCall(
        _item(asked.query, read.images),
        tuple(_item(document, read.images) for document in asked.documents),
        instruction=options.instruction,
        mode=chosen,
        reading=options.reading,
        top_n=asked.top_n if asked.truncate else None,  # else all are looked at for cut texts
        max_inspections=options.max_inspections,
        max_reasoning_tokens=options.max_reasoning_tokens,
        votes=options.votes,
        budget_ms=options.budget_ms,
        picture_seconds=read.seconds if any(_places([asked])) else 0.0,
        model=asked.model,
    )


async def read_all(asked: Sequence[Asked], pictures: Pictures, held: Held) -> Read:
    """Every picture of a request; one that several of its lists show is read and counted once.

    Args:
        asked: all lists of the request.
        held: counts the pictures in.
    Raises:
        ApiError: a picture cannot be read; the error names its place. 413 or 429 where the pictures
            together are too large.
    """
    began = time.perf_counter()
    places: dict[str, str] = {}
    for place, value in _places(asked):
        places.setdefault(value, place)
    free = asyncio.Semaphore(AT_ONCE)

    async def one(value: str) -> Image.Image:
        async with free:
            try:
                image = (await pictures.read(value, held)).image
            except PictureRefused as error:
                place = places[value]
                raise ApiError(error.status, error.code, f"{place}: {error}", place) from None
        held.add_pixels(image.width * image.height)
        return image

    tasks = [asyncio.create_task(one(value)) for value in places]
    try:
        images = dict(zip(places, await asyncio.gather(*tasks), strict=True))
        return Read(images, time.perf_counter() - began)
    finally:  # the first error ends the reading of the others
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _places(asked: Sequence[Asked]) -> Iterator[tuple[str, str]]:
    for one in asked:
        for item in (one.query, *one.documents):
            for value in item.pictures:
                yield item.place, value


def _item(asked: AskedItem, images: Mapping[str, Image.Image]) -> Item:
    image = images[asked.pictures[0]] if asked.pictures else None
    return Item(text=asked.text or None, image=image, id=asked.id)
