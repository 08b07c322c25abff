"""Memory and time of pools in `retrv-r1 eval`, by part, and what M-BEIR's global pool would take.

python -m bench.pools --embedded 6000 --out bench/results/pools-cpu.json
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from bench import machine
from retrv_r1.data.mbeir import CandidatePool
from retrv_r1.eval.pictures import Pictures
from retrv_r1.eval.vectors import VectorFile
from retrv_r1.model.first_stage import FOLDER, FirstStage, local_checkpoint
from retrv_r1.types import Item

CANDIDATES = 5_600_000
BYTES = 2.43e9
"""M-BEIR's union test pool: candidates, and size of the file as it is listed."""

_DRAWN = 500  # distinct pictures; other names are links to them
_LINE = round(BYTES / CANDIDATES)
_QUERIES, _DEPTH = 512, 50


class Meter:
    """CPU seconds and memory by part; memory is what no file backs, at its highest."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures what is inside."""
        before = high = _anonymous()
        done = threading.Event()

        def watch() -> None:
            nonlocal high
            while not done.wait(0.02):
                high = max(high, _anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        started, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            seconds = {"cpu_s": time.process_time() - cpu, "s": time.perf_counter() - started}
            done.set()
            watcher.join()
            memory = {"peak_mb": (high - before) / 1e6, "kept_mb": (_anonymous() - before) / 1e6}
            self.parts[name] = {key: round(x, 3) for key, x in (seconds | memory).items()}
            print(f"{name}: {self.parts[name]}", flush=True)


def _anonymous() -> int:
    """Bytes of memory that no file backs."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def write_pool(root: Path, texts: int, pictures: int) -> Path:
    """A pool of texts, then pictures, with lines as long as M-BEIR's on average."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for i in range(min(pictures, _DRAWN)):
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        drawn = Image.fromarray(small).resize((341, 256), Image.Resampling.BICUBIC)
        drawn.save(root / f"images/{i}.jpg", quality=90)
    for i in range(_DRAWN, pictures):
        os.link(root / f"images/{i % _DRAWN}.jpg", root / f"images/{i}.jpg")
    words = ("picture", "house", "river", "old", "city", "bridge", "red", "shown", "near")
    path = root / "pool.jsonl"
    with path.open("w") as file:
        for i in range(texts + pictures):
            row: dict[str, Any] = {"did": f"9:{i}", "src_content": None}
            if i < texts:
                text = " ".join(rng.choice(words, 80))[: _LINE - 80]
                row |= {"txt": text, "modality": "text"}
            else:
                image = f"images/{i - texts}.jpg"
                row |= {"txt": None, "img_path": image, "modality": "image"}
            file.write(json.dumps(row) + "\n")
    return path


def measure(root: Path, texts: int, pictures: int, embedded: int, model: str) -> dict[str, Any]:
    """Runs every part on a synthetic pool; embeds so many of its texts, and of its pictures."""
    meter, size = Meter(), texts + pictures
    path = write_pool(root, texts, pictures)
    stage = FirstStage.from_pretrained(local_checkpoint(model) / FOLDER)
    with meter.part("read"):
        pool = CandidatePool(path)
    for name in ("check", "check again"):
        with meter.part(name), closing(Pictures(root, root)) as known:
            assert not known.check(candidate.image for candidate in pool).bad

    def items(start: int, stop: int) -> Sequence[Item]:
        root_of = [c.image and root / c.image for c in pool[start:stop]]
        return [Item(c.text, i) for c, i in zip(pool[start:stop], root_of, strict=True)]

    def embed(some: Sequence[Item]) -> tuple[torch.Tensor, int]:
        return stage.embed(some), 0

    embed(items(0, 64)), embed(items(size - 64, size))
    files = root / "vectors"
    some_texts, some_pictures = min(texts, embedded), min(pictures, embedded)
    with meter.part("embed texts"):
        VectorFile(files, "texts", "0" * 12, "0" * 12, some_texts).fill(embed, items, "texts")
    with meter.part("embed pictures"):
        VectorFile(files, "pictures", "0" * 12, "0" * 12, some_pictures).fill(
            embed, lambda start, stop: items(texts + start, texts + stop), "pictures"
        )
    search(meter, root, stage, size)
    return {
        "texts": texts,
        "pictures": pictures,
        "embedded": [some_texts, some_pictures],
        "width": stage.model.config.embedding_dim,
        "queries": _QUERIES,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "parts": meter.parts,
    }


def search(meter: Meter, root: Path, stage: FirstStage, size: int) -> None:
    """Searches random vectors: the time does not depend on what they are."""
    width, rng = stage.model.config.embedding_dim, np.random.default_rng(0)
    vectors = np.lib.format.open_memmap(root / "all.npy", "w+", np.float32, (size, width))
    vectors[:] = rng.standard_normal((size, width), np.float32)
    queries = torch.from_numpy(rng.standard_normal((_QUERIES, width), np.float32))
    seeds = list(range(_QUERIES))
    with meter.part("search"):
        stage.search(queries, torch.from_numpy(vectors), _DEPTH, seeds)


def main(
    texts: Annotated[int, typer.Option(help="Texts in the pool.")] = 180_000,
    pictures: Annotated[int, typer.Option(help="Pictures in the pool.")] = 20_000,
    embedded: Annotated[
        int, typer.Option(help="Texts to embed at most, and pictures; all by default.")
    ] = 2**40,
    model: Annotated[str, typer.Option(help="Checkpoint with a first stage.")] = "tiny",
    only_search: Annotated[bool, typer.Option(help="Search random vectors only.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file of the results.")] = None,
) -> None:
    """Measure reading, checking, embedding and searching a synthetic pool."""
    torch.set_num_threads(1)
    about = machine.card("cpu")
    with tempfile.TemporaryDirectory() as folder:
        if only_search:
            stage = FirstStage.from_pretrained(local_checkpoint(model) / FOLDER)
            return search(Meter(), Path(folder), stage, texts + pictures)
        result = {"machine": about, **measure(Path(folder), texts, pictures, embedded, model)}
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
