"""The build: fetch, choose, render, split, write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retrv_r1.data.icons.cells import write_cells
from retrv_r1.data.icons.choose import Choice, choose
from retrv_r1.data.icons.concepts import hold_out
from retrv_r1.data.icons.corpus import CONCEPTS, MANIFEST, PICTURES, IconRow, Split, load_corpus
from retrv_r1.data.icons.manifest import build_request, describe, files_of, read_if_complete
from retrv_r1.data.icons.packages import fetch_all
from retrv_r1.data.icons.render import render_shards, shards_of
from retrv_r1.data.icons.sets import PACKAGE, read_sets
from retrv_r1.data.icons.splits import find_copies, rows_of
from retrv_r1.data.icons.store import Survey, survey, write_arrays
from retrv_r1.files import write_whole

_DRAFT = ".manifest.json"  # while the cells are written


@dataclass(frozen=True)
class Built:
    """A built corpus.

    Args:
        root: its folder.
        data: contents of its manifest.
        fresh: whether it was built now; False if it was complete already.
    """

    root: Path
    data: Mapping[str, Any]
    fresh: bool


def build(
    out: Path,
    *,
    seed: int = 0,
    size: int = 64,
    limit: int | None = None,
    processes: int = 2,
    console: Console | None = None,
) -> Built:
    """Builds the icon corpus under `out`.

    It may be killed and called again: packages and rendered pictures stay in `out/.cache`, every
    file is written in one step, `manifest.json` last. A complete folder is left as it is. Packages
    that lie in `out/.cache/npm` already are not fetched.

    Args:
        seed: seed of the choice of what is held out, and of the choice among styles.
        size: side of a picture in pixels.
        limit: number of icons of each set, for trials; all when None.
        processes: number of processes that render.
        console: where progress is shown; stderr when None.

    Raises:
        RetrvError: resvg-py or npm is missing, a fetch failed, or a source is damaged.
        ValueError: a size that is too small.
    """
    if size < 16:
        raise ValueError(f"size is {size}: pictures need 16 pixels or more")
    console = console or Console(stderr=True)
    packages = fetch_all(out, console.print)
    request = build_request(out, seed, size, limit)
    if done := read_if_complete(out, request):
        return Built(out, done, fresh=False)
    (out / MANIFEST).unlink(missing_ok=True)
    console.print("reading the sets")
    choice = choose(read_sets(packages[PACKAGE]), seed)
    shards = shards_of(choice.icons, out / ".cache" / "pictures", size, limit)
    count = sum(len(shard.icons) for shard in shards)
    with _bar(console, "render", count) as progress:
        render_shards(shards, size, processes=processes, progress=progress)
    held = _held_out(choice, seed)
    with _bar(console, "compare", count) as progress:
        found = survey(shards, held, progress)
    choice.dropped |= {reason: dict(sets) for reason, sets in found.dropped.items()}
    copies = find_copies(found.kept)
    rows = rows_of(found.kept, held, copies)
    write_arrays(out, shards, found.kept, size)
    _write_lines(out, choice, found, held, rows)
    data = describe(request, choice, rows, copies)
    write_whole(out / _DRAFT, json.dumps(data))
    data["cells"] = write_cells(load_corpus(out, _DRAFT), out, seed=seed)
    (out / _DRAFT).unlink()
    data["files"] = files_of(out)
    write_whole(out / MANIFEST, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    return Built(out, data, fresh=True)


def _held_out(choice: Choice, seed: int) -> dict[str, Split]:
    """Concepts that are held out, by the families that drew them."""
    families: dict[str, set[str]] = {}
    for icon in choice.icons:
        families.setdefault(icon.code, set()).add(icon.family)
    return hold_out(families, seed)


def _write_lines(
    out: Path,
    choice: Choice,
    found: Survey,
    held: Mapping[str, Split],
    rows: Sequence[IconRow],
) -> None:
    """Writes the rows, and what is known of concepts.

    A held-out name is no alias of a concept in training.
    """
    lines = (json.dumps(row.line(), ensure_ascii=False) + "\n" for row in rows)
    write_whole(out / PICTURES, "".join(lines))
    families = {row.family: row.hand_split for row in rows if row.hand_split != "train"}
    drawn = {row.code for row in rows}
    aliases: dict[str, list[str]] = {}
    for code in sorted(drawn):
        names = {*choice.aliases.get(code, ()), *found.twins.get(code, ())}
        if same := sorted(n for n in names if held.get(n) == held.get(code) and n != code):
            aliases[code] = same
    concepts = {
        "aliases": aliases,
        "categories": {c: names for c, names in choice.categories.items() if c in drawn},
        "splits": {code: held[code] for code in sorted(held) if code in drawn},
        "families": dict(sorted(families.items())),
    }
    write_whole(out / CONCEPTS, json.dumps(concepts, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; gives the function that advances it."""
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
