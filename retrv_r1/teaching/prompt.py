"""What a teacher is asked: one list, its candidates under labels, and the form of a chain."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from retrv_r1.data.lists import CandidateList
from retrv_r1.model.chains import MOST_WORDS

FORM = f"""You find the candidate that a query asks for, and show how. Candidates are labelled \
[1], [2] and so on. Think in four steps: say what the ideal result is; rule out the easy \
candidates, so that two to four close ones are left; look closely at those that a detail decides; \
decide.

Write one line in exactly this form, and nothing else:

ideal: WORDS. close: [K] WORDS, [K] WORDS. inspect [K] WORDS; inspect [K] WORDS; best: [K]

- ideal: what the query asks for.
- close: the two to four most likely candidates, each with a short name of what it shows.
- inspect: those of them that need a closer look, each with what decides. Leave this part out if \
nothing needs it.
- best: the label of the right candidate.
- WORDS are one to {MOST_WORDS} words without punctuation. K is a candidate's number.

Example: ideal: violin. close: [3] guitar, [7] violin, [9] cello. inspect [7] violin with a bow; \
inspect [9] cello on its spike; best: [7]"""

Show = Callable[[str], Image.Image]
"""Opens a picture by its path in the data set."""


@dataclass(frozen=True)
class Shown:
    """Text and picture of a query or candidate."""

    text: str | None
    image: str | None


@dataclass(frozen=True)
class Question:
    """A list as a teacher sees it: shuffled, so that places do not tell the first stage's ranks.

    Attributes:
        order: number in the list of each candidate that is shown.
    """

    asked: CandidateList
    instruction: str
    query: Shown
    candidates: Sequence[Shown]
    order: Sequence[int]

    @classmethod
    def of(
        cls,
        asked: CandidateList,
        instruction: str,
        query: Shown,
        candidates: Sequence[Shown],
        seed: int,
    ) -> Question:
        """Shuffles a list by seed and query.

        Args:
            candidates: in the order of the list.
        """
        order = list(range(len(candidates)))
        random.Random(f"teacher {seed} {asked.cell} {asked.qid}").shuffle(order)
        return cls(asked, instruction, query, [candidates[n] for n in order], order)

    def messages(self, show: Show, side: int) -> list[dict[str, Any]]:
        """The request's messages; pictures are data URLs of at most ``side`` pixels a side."""
        content = [_text(f"{self.instruction}\nQuery:"), *_parts(self.query, show, side)]
        content.append(_text("Candidates:"))
        for label, one in enumerate(self.candidates, 1):
            content += [_text(f"[{label}]"), *_parts(one, show, side)]
        content.append(_text(f"Which of the {len(self.candidates)} candidates fits best?"))
        return [{"role": "system", "content": FORM}, {"role": "user", "content": content}]


def data_url(picture: Image.Image, side: int) -> str:
    """An RGB picture as a JPEG data URL, shrunk to at most ``side`` pixels a side."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _parts(one: Shown, show: Show, side: int) -> list[dict[str, Any]]:
    parts = []
    if one.image:
        url = data_url(show(one.image), side)
        parts.append({"type": "image_url", "image_url": {"url": url}})
    if one.text:
        parts.append(_text(one.text))
    return parts
