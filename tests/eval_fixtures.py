"""Stand-ins for both stages of an evaluation, and a small data set; a plugin of tests."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from retrv_r1.eval import run
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.types import Item, RankedItem, RankedResults, TokenCounts

# Six candidates c0 … c5; a query says the order in which the first stage finds them.
QUERIES = {
    "9:1": ("2 0 1 3 4 5", [1]),  # found at rank 3
    "9:2": ("5 4 3 2 1 0", [0]),  # at rank 6
    "9:3": ("0 1 2 3 4 5", [0, 5]),  # at ranks 1 and 6
}


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_cell(root, dataset="toy", split="test", task_id=1):
    """A cell of texts in M-BEIR's layout."""
    queries = [
        {
            "qid": qid,
            "query_txt": text,
            "query_img_path": None,
            "query_modality": "text",
            "query_src_content": None,
            "pos_cand_list": [f"9:{c}" for c in positives],
            "neg_cand_list": [],
            "task_id": task_id,
        }
        for qid, (text, positives) in QUERIES.items()
    ]
    pool = [
        {"did": f"9:{c}", "txt": f"c{c}", "img_path": None, "modality": "text", "src_content": None}
        for c in range(6)
    ]
    write_lines(root / f"query/{split}/mbeir_{dataset}_{split}.jsonl", queries)
    write_lines(root / f"cand_pool/local/mbeir_{dataset}_{split}_cand_pool.jsonl", pool)
    table = root / "instructions/query_instructions.tsv"
    table.parent.mkdir(exist_ok=True)
    head = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\n"
    table.write_text(f"{head}text\ttext\ttoy\t9\tthe first phrasing\tthe second\n")


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "set"
    write_cell(root)
    return root


@pytest.fixture
def model_files(tmp_path):
    """Files of a checkpoint that is never loaded."""
    root = tmp_path / "model"
    for folder in (root, root / "embedder"):
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "x", "score_temperature": 2.0}')
    return root


class Stage:
    """Finds a query's candidates in the order that its text gives."""

    cut, cut_places = 0, ()

    def embed(self, items, what=""):
        rows = torch.zeros(len(items), 6)
        for row, item in zip(rows, items, strict=True):
            if item.text.startswith("c"):
                row[int(item.text[1:])] = 1
            else:
                for rank, c in enumerate(map(int, item.text.split())):
                    row[c] = 1 - rank / 10
        return rows

    def search(self, queries, pool, k, tie_seeds):
        found = (queries @ pool.T).topk(min(k, len(pool)))
        return found.values, found.indices


class Ranker:
    """Sorts candidates by text, in reverse when it reasons; records its requests."""

    window = 50

    def __init__(self):
        self.asked = []
        self.dies_at = None
        self.scores = None
        self.reverses = True
        self.none: float | None = None
        self.reasoning = ""
        known = {"fast": ModeCalibration(2.0), "reason": ModeCalibration(3.0)}
        self.model = SimpleNamespace(config=SimpleNamespace(calibration_of=known.get))

    def rank_batch(self, requests, *, mode, reading, sampling):
        return [self.rank(request, mode, reading) for request in requests]

    def resemblance(self, request):
        return torch.zeros(len(request.candidates), 2)

    def rank(self, request, mode, reading):
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        texts = [item.text for item in request.candidates]
        self.asked.append((request.query.id, mode, reading, texts, request.instruction))
        order = sorted(range(len(texts)), key=texts.__getitem__)
        if mode == "reason" and self.reverses:
            order.reverse()
        scores = self.scores or [1 / (rank + 2) for rank in range(len(order))]
        pairs = zip(order, scores, strict=False)
        rows = 8 if reading == "full" else 3
        return RankedResults(
            query=Item.of(request.query),
            answer=order[0],
            ranking=tuple(RankedItem(c, score, request.candidates[c]) for c, score in pairs),
            inspected=(order[1],) if mode == "reason" else (),
            mode=mode,
            well_formed=request.query.id != "9:2",
            none_of_these=self.none,
            reasoning=self.reasoning if mode == "reason" else "",
            timings={"features": 0.0},
            tokens=TokenCounts(
                prompt=20 + rows * len(order),
                candidates=rows * len(order),
                inspected=5 if mode == "reason" else 0,
                generated=7 if mode == "reason" else 3,
            ),
        )


@pytest.fixture
def ranker(monkeypatch):
    """Stand-ins for both stages; a test may set when it dies, or its scores."""
    stand_in = Ranker()
    names = "retrv_r1.eval.models."
    monkeypatch.setattr(names + "FirstStage.from_pretrained", lambda *_, **__: Stage())
    monkeypatch.setattr(names + "Reranker.from_pretrained", lambda *_, **__: stand_in)
    return stand_in


def evaluate(dataset, model_files, **options):
    return run(dataset, **{"model": model_files, "k": (2, 6), "batch_size": 1, **options})


def row_of(report, system, k):
    rows = report["parts"][0]["cells"][0]["results"]
    return next(row for row in rows if (row["system"], row["k"]) == (system, k))
