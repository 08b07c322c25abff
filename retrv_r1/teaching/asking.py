"""Asks a teacher about many lists: several requests in flight, retried, and kept one by one.

The client is the ``openai`` package's. It repeats a request that failed on the way, waits longer
each time, and as long as a ``Retry-After`` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from retrv_kernels.extras import install_command
from retrv_r1.teaching.journal import ChainFile, Reply, TeachingError
from retrv_r1.teaching.judging import Verdict, judge
from retrv_r1.teaching.prompt import Question, Show

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_MOST_BAD = 10
"""Requests in a row that the endpoint may call bad before that is taken for a fault of all."""


@dataclass(frozen=True)
class Teacher:
    """An endpoint, and how it is asked.

    Args:
        url: address of the API, such as ``http://127.0.0.1:8000/v1``.
        model: name of the model.
        key: API key; None for a server without one.
        together: most requests in flight.
        tries: replies that are asked for until one is taken.
        retries: times that a request is repeated that fails on the way.
        seconds: time limit of a request.
        temperature: temperature of the replies.
        max_tokens: tokens of a reply.
        side: side in pixels to which pictures are shrunk.
    """

    url: str
    model: str
    key: str | None = None
    together: int = 8
    tries: int = 1
    retries: int = 6
    seconds: float = 180.0
    temperature: float = 0.7
    max_tokens: int = 2048
    side: int = 448


def ask_all(
    teacher: Teacher,
    questions: Iterable[Question],
    show: Callable[[Question], Show],
    chains: ChainFile,
    told: Callable[[], None] = lambda: None,
) -> None:
    """Asks about every list, and keeps what is said of each at once.

    Args:
        questions: lists that ``chains`` does not have yet.
        show: function that opens the pictures of a list.
        told: function that is called after each list.
    Raises:
        TeachingError: the endpoint cannot be used; what was said so far is kept.
        ItemError: a picture cannot be used.
    """
    if not find_spec("openai"):
        raise TeachingError(f"asking a teacher needs a client: {install_command('teacher')}")
    asyncio.run(_Asking(teacher, show, chains, told).all(iter(questions)))


@dataclass
class _Asking:
    teacher: Teacher
    show: Callable[[Question], Show]
    chains: ChainFile
    told: Callable[[], None]
    bad: int = 0

    async def all(self, questions: Iterator[Question]) -> None:
        from openai import AsyncOpenAI

        teacher = self.teacher
        async with AsyncOpenAI(
            base_url=teacher.url,
            api_key=teacher.key or "none",
            max_retries=teacher.retries,
            timeout=teacher.seconds,
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(teacher.together):
                        group.create_task(self._some(client, questions))
            except* Exception as errors:
                first: BaseException = errors
                while isinstance(first, BaseExceptionGroup):
                    first = first.exceptions[0]
                raise first from None

    async def _some(self, client: AsyncOpenAI, questions: Iterator[Question]) -> None:
        """Asks about one list after the other, as long as there are some."""
        for question in questions:
            reply = await self._one(client, question)
            self.chains.add(question.asked, reply)
            self.told()

    async def _one(self, client: AsyncOpenAI, question: Question) -> Reply:
        teacher, reply = self.teacher, Reply(Verdict())
        messages = await asyncio.to_thread(question.messages, self.show(question), teacher.side)
        for _ in range(teacher.tries):
            read, written = reply.tokens
            reply = await self._reply(client, question, messages)
            reply.tokens = read + reply.tokens[0], written + reply.tokens[1]
            if reply.verdict.chain is not None:
                break
        return reply

    async def _reply(
        self, client: AsyncOpenAI, question: Question, messages: list[dict[str, Any]]
    ) -> Reply:
        import openai

        teacher = self.teacher
        with self._clear_errors():
            try:
                got = await client.chat.completions.create(
                    model=teacher.model,
                    messages=messages,
                    temperature=teacher.temperature,
                    max_tokens=teacher.max_tokens,
                )
            except openai.BadRequestError as error:  # too long, or filtered: one list's own fault
                self.bad += 1
                if self.bad >= _MOST_BAD:
                    raise
                return Reply(Verdict(rejected="refused"), str(error))
        self.bad = 0
        tokens = (got.usage.prompt_tokens, got.usage.completion_tokens) if got.usage else (0, 0)
        if not got.choices:
            return Reply(Verdict(rejected="refused"), "", tokens)
        choice = got.choices[0]
        text = choice.message.content or ""
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return Reply(Verdict(rejected="refused"), choice.message.refusal or text, tokens)
        if choice.finish_reason == "length":
            return Reply(Verdict(rejected="cut off"), text, tokens)
        return Reply(judge(text, question), text, tokens)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Errors of the client as ours, which say what to do."""
        import openai

        teacher = self.teacher
        again = "what was said so far is kept, and the same command goes on"
        try:
            yield
        except openai.AuthenticationError as error:
            raise TeachingError(f"{teacher.url} refuses the API key: give the right one") from error
        except openai.PermissionDeniedError as error:
            raise TeachingError(
                f"{teacher.url} does not let this key use {teacher.model}: give another ({error})"
            ) from error
        except openai.NotFoundError as error:
            raise TeachingError(
                f"{teacher.url} has no model {teacher.model!r}, or it is not the address of an API "
                f"(it often ends in /v1): {error}"
            ) from error
        except openai.RateLimitError as error:
            raise TeachingError(
                f"{teacher.url} limits the rate, even after {teacher.retries} retries: ask for "
                f"fewer together, or later; {again} ({error})"
            ) from error
        except openai.APIConnectionError as error:
            raise TeachingError(
                f"no answer from {teacher.url} after {teacher.retries} retries ({error}): is it "
                f"up, and the address right? {again}"
            ) from error
        except openai.OpenAIError as error:
            raise TeachingError(f"{teacher.url} cannot answer: {error}; {again}") from error
