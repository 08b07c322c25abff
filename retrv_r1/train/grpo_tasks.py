"""Tasks for rollouts: the lists that a step is about, as items that a reranker takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from retrv_r1.rollout.task import Task
from retrv_r1.train.corpus import Entry, ListExample
from retrv_r1.train.pictures import PictureBank, on_white
from retrv_r1.train.sampling import ListSampler, with_default_instruction
from retrv_r1.types import Item


@dataclass(frozen=True)
class ListDraw:
    """How the lists of a step are drawn; see ``GRPOOptions``."""

    prompts: int
    sizes: tuple[int, ...]
    share: int
    hard: float
    default_instruction: float


class StepTasks(Sequence[Task]):
    """The tasks of all steps, in order; those of a step are a function of the step alone."""

    def __init__(
        self, sampler: ListSampler, bank: PictureBank, options: ListDraw, steps: int, seed: int
    ) -> None:
        self.sampler, self.bank, self.options = sampler, bank, options
        self.steps, self.seed = steps, seed
        self._last: tuple[int, list[Task]] = (-1, [])

    def __len__(self) -> int:
        return self.steps * self.options.prompts

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(f"task {number} is none of {len(self)}")
        step, place = divmod(number, self.options.prompts)
        if self._last[0] != step:
            self._last = step, self.of_step(step)
        return self._last[1][place]

    def of_step(self, step: int) -> list[Task]:
        """The tasks of a step; those that share candidates share their pictures."""
        options, rng = self.options, np.random.default_rng([self.seed, step])
        size = options.sizes[int(rng.integers(len(options.sizes)))]
        lists = self.sampler.draw(rng, options.prompts, size, options.hard, share=options.share)
        lists = with_default_instruction(lists, rng, options.default_instruction)
        return [task_of(example, self.bank) for example in lists]


def task_of(example: ListExample, bank: PictureBank) -> Task:
    """A training list as a task."""
    query, *candidates = (item_of(one, bank) for one in (example.query, *example.candidates))
    return Task(query, candidates, example.answer, example.instruction or None)


def item_of(entry: Entry, bank: PictureBank) -> Item:
    """An entry as an item; its picture is read as a picture file would be."""
    if entry.picture is None:
        return Item(text=entry.text)
    shown = on_white(bank.rgba([entry.picture]))[0].mul(255).round().byte()
    pixels = shown.permute(1, 2, 0).cpu().numpy()
    return Item(text=entry.text, image=Image.fromarray(np.ascontiguousarray(pixels)))
