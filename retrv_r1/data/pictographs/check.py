"""Checks of a built directory: pools hold the positives, training shows nothing held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrv_r1.data.mbeir_lines import json_lines
from retrv_r1.types import RetrvError


class LeakError(RetrvError, ValueError):
    """A built set with a query without positive, or with held-out things in its training files."""


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return (row for row, _ in json_lines(path))


def check(root: Path) -> dict[str, int]:
    """Reads the files of a built directory and checks its splits.

    Training queries, positives, negatives, pools and texts must have no unseen concept, no
    held-out combination, no held-out translation and no picture of a val or test style. Every
    query must have a positive in its local pool and none among its negatives.

    Returns:
        Numbers of queries, candidates and training texts that were checked.

    Raises:
        LeakError: a check failed; the message names the query or candidate.
    """
    held = json.loads((root / "held_out.json").read_text(encoding="utf-8"))
    banned = {*held["texts"], *held["translation_texts"]}
    train_styles = set(held["train_styles"])
    metadata = {row["did"]: row for row in _rows(root / "metadata.jsonl")}
    queries = {row["qid"]: row for row in _rows(root / "query_metadata.jsonl")}
    hidden = {(code, lang) for code, lang, _ in held["translations"]}
    counts = {"queries": 0, "candidates": len(metadata), "training texts": 0}
    for path in sorted((root / "query").glob("*/*.jsonl")):
        local = root / "cand_pool" / "local" / f"{path.stem}_cand_pool.jsonl"
        pool = {row["did"] for row in _rows(local)}
        training = path.parent.name == "train"
        for row in _rows(path):
            counts["queries"] += 1
            positives, negatives = set(row["pos_cand_list"]), set(row["neg_cand_list"])
            if not positives & pool:
                raise LeakError(f"{path.name}: {row['qid']} has no positive in its pool")
            if positives & negatives:
                raise LeakError(f"{path.name}: {row['qid']} has a positive among its negatives")
            if not (positives | negatives) <= metadata.keys():
                raise LeakError(f"{path.name}: {row['qid']} names an unknown candidate")
            if training:
                _check_query(row, queries[row["qid"]], banned, hidden, train_styles)
                counts["training texts"] += row["query_txt"] is not None
    shown = set(train_styles)
    for path in sorted((root / "cand_pool").glob("*/*_train_cand_pool.jsonl")):
        for row in _rows(path):
            _check_candidate(metadata[row["did"]], banned, shown)
            counts["training texts"] += row["txt"] is not None
    return counts


def _check_query(
    row: dict[str, Any],
    about: dict[str, Any],
    banned: set[str],
    hidden: set[tuple[str, str]],
    styles: set[str],
) -> None:
    qid = row["qid"]
    for side in ("target", "source"):
        if about[side] and about[side]["split"] != "known":
            raise LeakError(f"training query {qid} shows or asks for {about[side]['name']}")
    if row["query_txt"] in banned:
        raise LeakError(f"training query {qid} says {row['query_txt']!r}, which is held out")
    if about["style"] and about["style"] not in styles:
        raise LeakError(f"training query {qid} is drawn in {about['style']}")
    if (about["target"]["code"], about["language"]) in hidden:
        raise LeakError(f"training query {qid} uses a held-out translation")


def _check_candidate(about: dict[str, Any], banned: set[str], styles: set[str]) -> None:
    if about["style"] and about["style"] not in styles:
        raise LeakError(f"training candidate {about['did']} is drawn in {about['style']}")
    if about["style"] and about["split"] != "known":
        raise LeakError(f"training candidate {about['did']} shows {about['name']}")
    if about["txt"] in banned:
        raise LeakError(f"training candidate {about['did']} says {about['txt']!r}")
