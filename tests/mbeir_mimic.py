#!/usr/bin/env python3
"""Builds a tiny directory with the layout, names and quirks of the released M-BEIR; scores runs.

    mbeir_mimic.py PICTURES OUT [--tame all]    builds; needs Pillow and 40 pictures or more
    mbeir_mimic.py PICTURES OUT --score RUNS    official recall of the run files in RUNS

All 16 test cells, their val twins, the train, union_train and union_val folders, local and global
pools, qrels and instructions. Pictures are those of PICTURES, as JPEG with a short side of 256;
texts are made up from their file names. What the release has and a reader may stumble over
(tame a quirk by its name, or all):

    img_path    WebQA's text candidates have no key `img_path` at all
    negatives   WebQA's queries list negatives of both of its pools, text and image
    foreign     OVEN's and InfoSeek's queries list positives of each other's pools too
    src         `src_content` is absent (VisualNews), null (Fashion200K) or a string

--score reads RUNS/CELL_test/*.trec (qid Q0 did rank score tag), takes positives from the qrels
alone, and says per cell the share of queries with a positive among the first k: the benchmark's
Recall@k. Its own metric is R@10 for Fashion200K and FashionIQ and R@5 elsewhere; the average is
over those. With --exact the score order is taken, else the rank column. Written from the
benchmark's description; shares no code with the project or with the benchmark.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

IDS = {
    **{"visualnews": 0, "fashion200k": 1, "webqa": 2, "edis": 3, "nights": 4},
    **{"oven": 5, "infoseek": 6, "fashioniq": 7, "cirr": 8, "mscoco": 9},
}
SHAPES = {  # task id -> modality of query, of candidates
    **{0: ("text", "image"), 1: ("text", "text"), 2: ("text", "image,text")},
    **{3: ("image", "text"), 4: ("image", "image"), 6: ("image,text", "text")},
    **{7: ("image,text", "image"), 8: ("image,text", "image,text")},
}
CELLS = (
    *("visualnews_task0", "mscoco_task0", "fashion200k_task0", "webqa_task1", "edis_task2"),
    *("webqa_task2", "visualnews_task3", "mscoco_task3", "fashion200k_task3", "nights_task4"),
    *("oven_task6", "infoseek_task6", "fashioniq_task7", "cirr_task7", "oven_task8"),
    "infoseek_task8",
)
CUTOFFS = (1, 5, 10, 20, 50)
QUIRKS = ("img_path", "negatives", "foreign", "src")


def own_metric(cell: str) -> int:
    """The cutoff that tables of the benchmark show."""
    return 10 if cell.startswith(("fashion200k", "fashioniq")) else 5


class Mimic:
    def __init__(self, pictures: Path, out: Path, tame: set[str]) -> None:
        from PIL import Image

        self.Image, self.out, self.tame = Image, out, tame
        self.files = sorted(
            p for p in pictures.iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg"}
        )
        if len(self.files) < 40:
            sys.exit(f"{pictures} holds {len(self.files)} pictures; 40 are needed")
        self.rng = random.Random(2023)
        self.pools: dict[str, list[dict]] = {}  # pool name -> candidates
        self.numbers: dict[str, int] = {}  # dataset -> last did
        self.queries: dict[tuple[str, str], list[dict]] = {}  # (cell, split) -> queries

    def name(self, i: int) -> str:
        return self.files[i].stem.replace("-", " ")

    def picture(self, i: int, path: str, turn: int = 0) -> str:
        """Saves picture i under mbeir_images/path; turned a little, if wanted."""
        target = self.out / "mbeir_images" / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            image = self.Image.open(self.files[i]).convert("RGBA")
            ground = self.Image.new("RGBA", image.size, "white")
            ground.alpha_composite(image)
            image = ground.convert("RGB").rotate(turn, fillcolor="white")
            scale = 256 / min(image.size)
            image = image.resize([round(side * scale) for side in image.size])
            image.save(target, "JPEG", quality=90)
        return f"mbeir_images/{path}"

    def add(self, dataset: str, pool: str, text: str | None, path: str | None, src: object) -> str:
        """A candidate of a pool; its did."""
        modality = ",".join(m for m, x in (("image", path), ("text", text)) if x)
        number = self.numbers[dataset] = self.numbers.get(dataset, 0) + 1
        row: dict = {"txt": text, "img_path": path, "modality": modality}
        if dataset == "webqa" and path is None and "img_path" not in self.tame:
            del row["img_path"]
        row["did"] = f"{IDS[dataset]}:{number}"
        if "src" in self.tame:
            row["src_content"] = None
        elif dataset != "visualnews":
            row["src_content"] = None if dataset == "fashion200k" else json.dumps(src)
        self.pools.setdefault(pool, []).append(row)
        return row["did"]

    def ask(
        self,
        cell: str,
        text: str | None,
        path: str | None,
        right: list[str],
        wrong: Sequence[str] = (),
    ) -> None:
        """A query of a cell; `split` makes every fifth a val query and gives the qids."""
        task = int(cell[-1])
        row = {
            "qid": "",
            "query_txt": text,
            "query_img_path": path,
            "query_modality": SHAPES[task][0],
            "query_src_content": None,
            "pos_cand_list": right,
            "neg_cand_list": list(wrong),
            "task_id": task,
        }
        self.queries.setdefault((cell, ""), []).append(row)

    # -- the datasets ---------------------------------------------------------------------------

    def visualnews(self) -> None:
        for i in range(40):
            path = self.picture(i, f"visualnews_images/guardian/images/0001/{i:03}.jpg")
            text = f"{self.name(i).capitalize()} seen in London on Monday."
            words = self.add("visualnews", "visualnews_task3", text, None, None)
            image = self.add("visualnews", "visualnews_task0", None, path, None)
            if i % 3 == 0:
                self.ask("visualnews_task0", text, None, [image])
                self.ask("visualnews_task3", None, path, [words])

    def mscoco(self) -> None:
        forms = ("A {}.", "There is a {} here.", "The {} alone.", "One {} on white.", "See a {}.")
        for i in range(len(self.files)):
            split = "val" if i % 5 == 4 else "test"
            path = self.picture(i, f"mscoco_images/val2014/COCO_val2014_{i:012}.jpg")
            image = self.add("mscoco", f"mscoco_task0_{split}", None, path, {"id": i})
            texts = [form.format(self.name(i)) for form in forms]
            dids = [self.add("mscoco", f"mscoco_task3_{split}", t, None, {"id": i}) for t in texts]
            if i % 4 == 0 or (split == "val" and i % 3 == 0):
                for text in texts[:2]:
                    self.ask("mscoco_task0", text, None, [image])
                self.ask("mscoco_task3", None, path, dids)  # five positives

    def fashion200k(self) -> None:
        for i in range(40):
            text = f"{self.name(i).capitalize()}."
            stem = f"fashion200k_images/dresses/casual_and_day_dresses/{51727804 + i}/{i}"
            views = [self.picture(i, f"{stem}_{v}.jpg", turn=12 * v) for v in range(1 + i % 3)]
            words = self.add("fashion200k", "fashion200k_task3", text, None, None)
            dids = [self.add("fashion200k", "fashion200k_task0", None, v, None) for v in views]
            if i % 3 == 2:
                self.ask("fashion200k_task0", text, None, dids)  # one to three positives
                self.ask("fashion200k_task3", None, views[0], [words])

    def webqa(self) -> None:
        facts, pairs = {}, {}
        for i in range(40):
            facts[i] = [
                self.add("webqa", "webqa_task1", text, None, {"snippet_id": f"d5c{i}_{j}"})
                for j, text in enumerate(
                    (f"The {self.name(i)} is drawn in colour.", f"A {self.name(i)} has a shape.")
                )
            ]
            path = self.picture(i, f"webqa_images/{30000000 + i}.jpg")
            caption = f"Photograph of a {self.name(i)}."
            pairs[i] = self.add("webqa", "webqa_task2", caption, path, {"image_id": 30000000 + i})
        for i in range(0, 40, 3):
            others = self.rng.sample([j for j in facts if j != i], 3)
            texts, images = [facts[j][0] for j in others], [pairs[j] for j in others]
            both = images + texts  # the release lists images first
            tame = "negatives" in self.tame
            question = f"What is said of the {self.name(i)}?"
            self.ask("webqa_task1", question, None, facts[i], texts if tame else both)
            question = f"What colour has the {self.name(i)}?"
            self.ask("webqa_task2", question, None, [pairs[i]], images if tame else both)

    def edis(self) -> None:
        for i in range(40):
            dids = []
            for v in range(2):
                path = self.picture(i, f"edis_images/{62500 + i:08}_04192_0{v}.jpg", turn=10 * v)
                text = f"{self.name(i).capitalize()} makes the headlines{' again' * v}."
                dids.append(self.add("edis", "edis_task2", text, path, {"candidate_id": str(i)}))
            if i % 4 == 0:
                wrong = [self.pools["edis_task2"][0]["did"]] if i else []
                self.ask("edis_task2", f"News of a {self.name(i)}.", None, dids, wrong)

    def nights(self) -> None:
        for i in range(40):
            stem = f"nights_images/distort/{i // 10:03}/{i:03}"
            dids = [
                self.add(
                    *("nights", "nights_task4", None),
                    self.picture(i, f"{stem}_{v}.jpg", turn=8 + 30 * v),
                    {"image_id": f"{i // 10:03}/{i:03}_{v}"},
                )
                for v in range(2)
            ]
            if i % 3 == 0:  # the query's own picture is in no pool
                path = self.picture(i, f"nights_images/ref/{i // 10:03}/{i:03}.jpg")
                self.ask("nights_task4", None, path, dids[:1], dids[1:])

    def wiki(self) -> None:
        """OVEN and InfoSeek: the same entities, the latter in several paragraphs."""
        own: dict[str, dict[int, list[str]]] = {"oven": {}, "infoseek": {}}
        for i in range(40):
            task = 6 if i % 2 else 8  # without a picture, or with one
            path = None
            if task == 8:
                folder = f"oven_images/wikipedia_images_full/Q{100 + i}"
                path = self.picture(i, f"{folder}/Q{100 + i}0.jpg")
            title, src = self.name(i).capitalize(), {"wikidata_id": f"Q{100 + i}0"}
            text = f"{title}. The {self.name(i)} is an entity of this little world."
            own["oven"][i] = [self.add("oven", f"oven_task{task}", text, path, src)]
            own["infoseek"][i] = [
                self.add("infoseek", f"infoseek_task{task}", f"{title}. {part}", path, src)
                for part in (
                    f"The {self.name(i)} is an entity of this little world.",
                    f"It is {i + 1} centimetres long.",
                )
            ]
        for i in range(40):
            task, photo = 6 if i % 2 else 8, f"oven_images/{i % 10:02}/oven_050505{i:02}.jpg"
            for dataset, other in (("oven", "infoseek"), ("infoseek", "oven")):
                right = own[dataset][i] if dataset == "oven" else own[dataset][i][:1]
                if "foreign" not in self.tame and i % 5:
                    right = right + own[other][i]
                text = "What is this?" if dataset == "oven" else f"What world has this {task}?"
                if i % 3 == 0:
                    path = self.picture(i, photo, turn=10)
                    self.ask(f"{dataset}_task{task}", text, path, right)

    def fashioniq(self) -> None:
        paths = [
            self.picture(i, f"fashioniq_images/B00I0X{i:04}.jpg") for i in range(len(self.files))
        ]
        dids = [
            self.add("fashioniq", "fashioniq_task7", None, p, {"img_id": Path(p).stem})
            for p in paths
        ]
        for i in range(0, 39, 3):  # no negatives; the reference is in the pool
            text = f"Is a {self.name(i + 1)} and has other colours."
            self.ask("fashioniq_task7", text, paths[i], [dids[i + 1]])

    def cirr(self) -> None:
        paths = [
            self.picture(i, f"cirr_images/dev/dev-{i}-0-img0.jpg") for i in range(len(self.files))
        ]
        dids = [self.add("cirr", "cirr_task7", None, p, {"id": Path(p).stem}) for p in paths]
        for i in range(0, 39, 3):  # the reference is in the pool, and not taken out of it
            text = f"Show a {self.name(i + 1)} instead."
            self.ask("cirr_task7", text, paths[i], [dids[i + 1]], [dids[(i + 2) % len(dids)]])

    # -- files ----------------------------------------------------------------------------------

    def build(self) -> None:
        for fill in (self.visualnews, self.mscoco, self.fashion200k, self.webqa, self.edis):
            fill()
        for fill in (self.nights, self.wiki, self.fashioniq, self.cirr, self.split):
            fill()
        for pool, rows in self.pools.items():
            write(self.out / f"cand_pool/local/mbeir_{pool}_cand_pool.jsonl", rows)
        every = [r for p, rows in self.pools.items() if not p.endswith("_val") for r in rows]
        union = self.out / "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
        write(union, sorted(every, key=did))
        known = {row["did"]: row for rows in self.pools.values() for row in rows}
        for split in ("train", "val"):
            named = {
                d
                for (_, s), rows in self.queries.items()
                for row in rows
                if s == "val"
                for d in (*row["pos_cand_list"], *row["neg_cand_list"])
            }
            path = self.out / f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"
            write(path, sorted((known[d] for d in named), key=did))
        for (cell, split), rows in self.queries.items():
            write(self.out / f"query/{split}/mbeir_{cell}_{split}.jsonl", rows)
            qrels = [f"{r['qid']} 0 {d} 1 {r['task_id']}" for r in rows for d in r["pos_cand_list"]]
            path = self.out / f"qrels/{split}/mbeir_{cell}_{split}_qrels.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(qrels) + "\n", encoding="utf-8")
        vals = [row for (_, s), rows in self.queries.items() if s == "val" for row in rows]
        for dataset, number in IDS.items():
            rows = [row for row in vals if row["qid"].startswith(f"{number}:")]
            write(self.out / f"query/train/mbeir_{dataset}_train.jsonl", rows)
        write(self.out / "query/union_train/mbeir_union_up_train.jsonl", vals + vals[:5])
        write(self.out / "query/union_val/mbeir_union_val.jsonl", vals)
        self.instructions()

    def split(self) -> None:
        """Test and val queries; qids from 1 in each dataset and split."""
        numbers: dict[tuple[str, str], int] = {}
        for (cell, _), rows in list(self.queries.items()):
            del self.queries[cell, ""]
            dataset = cell.split("_")[0]
            val = {r["did"] for p in (f"{cell}_val",) for r in self.pools.get(p, ())}
            for i, row in enumerate(rows):
                apart = row["pos_cand_list"][0] in val if dataset == "mscoco" else i % 5 == 4
                split = "val" if apart else "test"
                number = numbers[dataset, split] = numbers.get((dataset, split), 0) + 1
                row["qid"] = f"{IDS[dataset]}:{number}"
                self.queries.setdefault((cell, split), []).append(row)

    def instructions(self) -> None:
        rows = ["query_modality\tcand_modality\tdataset_name\tdataset_id\t"]
        rows[0] += "\t".join(f"prompt_{i}" for i in range(1, 5))
        for cell in CELLS:
            dataset, (query, candidate) = cell.split("_")[0], SHAPES[int(cell[-1])]
            verbs = ("Find", "Retrieve", "Show me", "I want")
            prompts = [f"{v} the {candidate.replace(',', ' with ')} that fits." for v in verbs]
            rows.append("\t".join([query, candidate, dataset, str(IDS[dataset]), *prompts]))
        path = self.out / "instructions/query_instructions.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def did(row: dict) -> tuple[int, ...]:
    return tuple(map(int, row["did"].split(":")))


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


# -- official recall ------------------------------------------------------------------------------


def score(root: Path, runs: Path, exact: bool = False) -> Iterator[dict]:
    """Recall of each cell and run, then the benchmark's average of each run."""
    averages: dict[str, list[float]] = {}
    for cell in CELLS:
        asked = [json.loads(x)["qid"] for x in lines(root / f"query/test/mbeir_{cell}_test.jsonl")]
        right: dict[str, set[str]] = {}
        for line in lines(root / f"qrels/test/mbeir_{cell}_test_qrels.txt"):
            qid, _, name, relevant, _ = line.split()
            if int(relevant) > 0:
                right.setdefault(qid, set()).add(name)
        for path in sorted((runs / f"{cell}_test").glob("*.trec")):
            ranked: dict[str, list[tuple[float, str]]] = {}
            for line in lines(path):
                qid, _, name, rank, value, *_ = line.split()
                key = -float(value) if exact else float(rank)
                ranked.setdefault(qid, []).append((key, name))
            found = {}
            for k in CUTOFFS:
                hits = [
                    any(name in right[qid] for _, name in sorted(ranked.get(qid, []))[:k])
                    for qid in asked
                ]
                found[f"R@{k}"] = round(sum(hits) / len(hits), 4)
            own = found[f"R@{own_metric(cell)}"]
            averages.setdefault(path.stem, []).append(own)
            yield {"cell": cell, "run": path.stem, "queries": len(asked)} | found
    for run, values in averages.items():
        mean = round(sum(values) / len(values), 4)
        yield {"run": run, "cells": len(values), "M-BEIR average": mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tame", nargs="*", default=[], choices=(*QUIRKS, "all"))
    parser.add_argument("--score", type=Path, metavar="RUNS")
    parser.add_argument("--exact", action="store_true", help="order by score, not by rank")
    args = parser.parse_args()
    if args.score:
        for row in score(args.out, args.score, args.exact):
            print(json.dumps(row))
        return
    tame = set(QUIRKS) if "all" in args.tame else set(args.tame)
    mimic = Mimic(args.pictures, args.out, tame)
    mimic.build()
    counts = {c: len(rows) for (c, s), rows in mimic.queries.items() if s == "test"}
    pools = {name: len(rows) for name, rows in mimic.pools.items()}
    print(f"{args.out}: test queries {counts}, pools {pools}")


if __name__ == "__main__":
    main()
