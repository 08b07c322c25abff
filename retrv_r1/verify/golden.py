"""The scores that a checkpoint ships: plain engine, float32, one list at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrv_r1.files import write_whole
from retrv_r1.model.checkpoint import resolve
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import CheckpointError, Mode, RankedResults, RetrvError
from retrv_r1.verify.lists import CheckList, check_lists, lists_hash

FILE = "golden.json"
FORMAT = 1
MODES: tuple[Mode, ...] = ("fast", "reason")
DECIDING = ("calibration", "prompts", "max_inspections", "pad_to_square", "icm")
"""Settings of a config that decide scores and may be changed with the weights as they are. The
threshold of mode auto is none of them: golden scores are of the other two modes."""


class NoGolden(RetrvError):
    """A checkpoint without golden scores, or with stale ones."""


@dataclass(frozen=True)
class Outcome:
    """What a ranking says.

    Args:
        order: candidate numbers, best first; None where it is not known.
        scores: score of each candidate, in the order of the list.
        reasoning: what the model wrote; None where it is not known.
        inspected: candidates that the model looked at; None where they are not known.
    """

    order: tuple[int, ...] | None
    scores: tuple[float, ...]
    reasoning: str | None = None
    inspected: tuple[int, ...] | None = None

    @classmethod
    def of(cls, results: RankedResults) -> Outcome:
        """The outcome of a ranking of a whole list."""
        by_number = sorted(results, key=lambda row: row.index)
        return cls(
            tuple(row.index for row in results),
            tuple(row.score for row in by_number),
            results.reasoning,
            results.inspected,
        )


@dataclass(frozen=True)
class Case:
    """A list in a mode."""

    asked: CheckList
    mode: Mode

    @property
    def name(self) -> str:
        return f"{self.asked.name}, {self.mode}"


def cases(lists: Sequence[CheckList] | None = None) -> list[Case]:
    """Every list in every mode, all of one mode before those of the next."""
    found = check_lists() if lists is None else lists
    return [Case(one, mode) for mode in MODES for one in found]


def write_golden(
    model: str | Path,
    lists: Sequence[CheckList] | None = None,
    ranked: Callable[[int], None] = lambda count: None,
) -> Path:
    """Ranks all lists with the plain engine in float32 and writes their scores.

    Args:
        model: directory of the checkpoint, or ``"tiny"``.
        lists: lists to rank; all by default.
        ranked: called with a number of lists when they are ranked.
    Raises:
        CheckpointError: the checkpoint is not in a directory.
    """
    folder = _folder(model)
    asked = check_lists() if lists is None else list(lists)
    with Reranker.from_pretrained(folder, engine="plain", dtype="float32", device="cpu") as plain:
        outcomes = []
        for case in cases(asked):
            outcomes.append(rank_alone(plain, case))
            ranked(1)
    head = {
        "format": FORMAT,
        "about": "scores of the plain engine in float32, see `retrv-r1 verify --help`",
        "weights": weights_hash(folder),
        "config": config_hash(folder),
        "lists": lists_hash(asked),
    }
    named = {case.name: asdict(one) for case, one in zip(cases(asked), outcomes, strict=True)}
    path = folder / FILE
    write_whole(path, _one_line_each(head, named))
    return path


def _one_line_each(head: Mapping[str, Any], outcomes: Mapping[str, Any]) -> str:
    """The file's JSON, with a line for each outcome."""

    def lines(values: Mapping[str, Any]) -> str:
        pairs = [(json.dumps(one, ensure_ascii=False) for one in pair) for pair in values.items()]
        return ",\n".join(": ".join(pair) for pair in pairs)

    return f'{{\n{lines(head)},\n"outcomes": {{\n{lines(outcomes)}\n}}\n}}\n'


def rank_alone(reranker: Reranker, case: Case) -> Outcome:
    """The outcome of a list that is ranked on its own."""
    return Outcome.of(reranker.rank(case.asked.query, case.asked.candidates, mode=case.mode))


def read_golden(model: str | Path, lists: Sequence[CheckList] | None = None) -> dict[str, Outcome]:
    """The golden outcomes of a checkpoint by the names of their cases.

    Raises:
        NoGolden: it has none, or they are stale: of other weights, lists or settings; the message
            says the command that writes them.
    """
    folder = _folder(model)
    write = f"run retrv-r1 verify --write --model {model}"
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoGolden(f"{folder} has no golden scores ({FILE}); {write}") from None
    except ValueError as error:
        raise NoGolden(f"{folder / FILE} is damaged ({error}); {write}") from error
    asked = check_lists() if lists is None else list(lists)
    for field, own, what in (
        ("format", FORMAT, "of another format"),
        ("lists", lists_hash(asked), "of other lists"),
        ("weights", weights_hash(folder), "of other weights"),
        ("config", config_hash(folder), f"of other settings ({', '.join(DECIDING)})"),
    ):
        if content.get(field) != own:
            if field not in content:
                what = f"of a version that did not write their {field}"
            raise NoGolden(f"the golden scores of {folder} are stale, {what}: {write}")
    return {
        name: Outcome(
            tuple(found["order"]),
            tuple(found["scores"]),
            found["reasoning"],
            tuple(found["inspected"]),
        )
        for name, found in content["outcomes"].items()
    }


def weights_hash(folder: Path) -> str:
    """Hash of the weights of a checkpoint, its first stage not included."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def config_hash(folder: Path) -> str:
    """Hash of the settings in a checkpoint's config that decide its scores."""
    config = RetrvR1Config.from_pretrained(folder)
    decided = {name: getattr(config, name) for name in DECIDING}
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def _folder(model: str | Path) -> Path:
    found = resolve(model)
    if not isinstance(found, Path):
        raise CheckpointError(f"{model} is on the hub: download it and name its directory")
    return found
