"""A random-weight model of the real architecture, small enough to build in every test session."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from engine_doubles import LEANING
from PIL import Image
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_engine import EngineMissing
from retrv_engine.sglang.process import ServerProcess, find_python
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import TokenIds, train_tokenizer
from retrv_r1.train.corpus import Corpus
from retrv_r1.train.entry_vectors import Vectors
from retrv_r1.train.pictures import PictureBank
from retrv_r1.train.sampling import ListSampler

PATCH, MERGE = 8, 2
# Weights well above the usual 0.02, so that a wrong row, mask or position changes logits visibly.
SPREAD = 0.15


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fills `torch.empty` with NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass
class Gpu:
    """The machine's first GPU."""

    def move(self, module: torch.nn.Module) -> torch.nn.Module:
        """A module on it, in place."""
        return module.to("cuda")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request) -> Iterator[Any]:
    """Where modules are put by ``move``: an emulated GPU, and the machine's own."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        # Otherwise cuDNN multiplies float32 in TF32, which is further off than what is compared.
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        yield Gpu()
        torch.backends.cudnn.allow_tf32 = before
        return
    pytest.importorskip("triton", reason="an emulated GPU needs Triton, whose launches it takes")
    from emulated_cuda import emulate

    with emulate() as device:
        yield device


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["a red apple", "a blue bird flies high in the sky", "Find the candidate. Query:"]
    return train_tokenizer(words * 10, 500)


@pytest.fixture(scope="session")
def backbone_config(tokenizer) -> Qwen2_5_VLConfig:
    """Grouped-query attention, M-RoPE, windowed and full tower layers: nothing is degenerate."""
    ids = TokenIds.of(tokenizer)
    return Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=SPREAD,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids.end,
            pad_token_id=ids.pad,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 3, 3]),
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            patch_size=PATCH,
            temporal_patch_size=1,
            spatial_merge_size=MERGE,
            window_size=2 * MERGE * PATCH,
            out_hidden_size=64,
            fullatt_block_indexes=[1],
            initializer_range=SPREAD,
        ),
        image_token_id=ids.image_pad,
        video_token_id=tokenizer.get_vocab()["<|video_pad|>"],
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session")
def make_model(backbone_config) -> Callable[..., RetrvR1ForConditionalGeneration]:
    """Builds a random-weight model; arguments are fields of ``RetrvR1Config``."""

    def make(seed: int = 0, **config: Any) -> RetrvR1ForConditionalGeneration:
        torch.manual_seed(seed)
        backbone = copy.deepcopy(backbone_config)
        return RetrvR1ForConditionalGeneration(
            RetrvR1Config(backbone_config=backbone, **config)
        ).eval()

    return make


@pytest.fixture(scope="session")
def model(make_model) -> RetrvR1ForConditionalGeneration:
    """The shared model: read it, never change it."""
    return make_model()


@pytest.fixture(scope="session")
def checkpoint(backbone_config, tokenizer, image_processor, tmp_path_factory) -> tuple[Any, ...]:
    """Model, processor, and the folder they were saved in: random weights that like to inspect.

    The first three numbers of embeddings say what should come: they reach the head much as they
    are. Rows of tests carry ``LEANING`` there.
    """
    torch.manual_seed(0)
    backbone = copy.deepcopy(backbone_config)
    backbone.tie_word_embeddings = backbone.text_config.tie_word_embeddings = False
    model = RetrvR1ForConditionalGeneration(RetrvR1Config(backbone_config=backbone)).eval()
    processor = RetrvR1Processor(model.config, tokenizer, image_processor)
    ids = processor.tokens
    with torch.no_grad():
        said, meant = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        said[:, :3], meant[:, :3] = torch.tensor(LEANING), 0.0
        meant[ids.inspect_start, 0], meant[ids.think_end, 0] = 5.0, 3.0
        said[[ids.inspect_start, ids.answer_start], 1], meant[list(ids.labels[:2]), 1] = 8.0, 3.0
        said[ids.think_end, 2], meant[ids.answer_start, 2] = 8.0, 3.0
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


@pytest.fixture(scope="session")
def sglang_server(checkpoint) -> Iterator[ServerProcess]:
    """A server for that checkpoint; skips without SGLang, fails in CI."""
    arguments = dict(max_total_tokens=8192, max_running_requests=16, context_length=2048)
    server = ServerProcess(checkpoint[2], "float32", arguments, sglang_python())
    end = time.monotonic() + 300
    while not server.ended and time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health").is_success:
                break
        time.sleep(0.2)
    else:
        pytest.fail(f"the server did not start, {server.obituary()}")
    yield server
    server.end()


def sglang_python() -> Path:
    try:
        return find_python()
    except EngineMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def image_processor() -> Qwen2VLImageProcessorPil:
    """Pictures of any shape, 4 to 16 rows each."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=1,
        min_pixels=32 * 32,
        max_pixels=64 * 64,
    )


@pytest.fixture(scope="session")
def processor(model, tokenizer, image_processor) -> RetrvR1Processor:
    return RetrvR1Processor(model.config, tokenizer, image_processor)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes a picture of noise; the same for the same arguments."""

    def make(seed: int, width: int = 48, height: int = 48) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        return Image.fromarray(noise)

    return make


STYLES, CONCEPTS, SIDE = ("flat", "bold"), 10, 16
NOUNS = ("red apple", "blue bird", "high sky", "green tree", "old house")


@pytest.fixture(scope="session")
def pictographs(tmp_path_factory) -> Path:
    """A data set of twenty pictures in the layout of the built one: two styles of ten concepts."""
    root = tmp_path_factory.mktemp("pictographs")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(STYLES) * CONCEPTS, SIDE, SIDE, 4), np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 3] > 60)
    np.save(root / "pictures.npy", pixels)
    pictures, known, pool = [], [], {"picture": [], "name": []}
    for row in range(len(pixels)):
        style, concept = divmod(row, CONCEPTS)
        path = f"mbeir_images/{STYLES[style]}/{concept}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row], "RGBA").save(root / path)
        pictures.append({"row": row, "img_path": path, "code": f"C{concept}"})
        pool["picture"].append((f"100:{row + 1}", None, path, concept))
    for concept in range(CONCEPTS):
        pool["name"].append((f"100:{101 + concept}", name_of(concept), None, concept))
    for did, _, _, concept in (*pool["picture"], *pool["name"]):
        about = {"name": name_of(concept), "base": f"B{concept // 2}", "subgroup": f"S{concept}"}
        known.append({"did": did, "code": f"C{concept}", **about})
    write_lines(root / "pictures.jsonl", pictures)
    write_lines(root / "metadata.jsonl", known)
    (root / "manifest.json").write_text('{"hash": "of the test data"}')
    table = ["query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2"]
    kinds = {"text": "name", "image": "picture"}
    for number, (cell, query, candidate) in enumerate(
        [("t2i", "text", "image"), ("i2t", "image", "text"), ("i2i", "image", "image")]
    ):
        table.append(f"{query}\t{candidate}\tmade_{cell}\t{200 + number}\tWhich fits?\tFind it.")
        candidates, asked = pool[kinds[candidate]], pool[kinds[query]]
        for split in ("train", "val"):
            write_lines(
                root / f"cand_pool/local/mbeir_made_{cell}_{split}_cand_pool.jsonl",
                [
                    {"did": did, "txt": text, "img_path": path, "modality": candidate}
                    for did, text, path, _ in candidates
                ],
            )
            rows = []
            for text_id, (did, text, path, concept) in enumerate(asked):
                right = [c for c in candidates if c[3] == concept and c[0] != did]
                wrong = [c for c in candidates if c[3] != concept and c[3] // 5 == concept // 5]
                rows.append(
                    {
                        "qid": f"{200 + number}:{text_id + 1}",
                        "query_txt": text,
                        "query_img_path": path,
                        "query_modality": query,
                        "pos_cand_list": [c[0] for c in right],
                        "neg_cand_list": [c[0] for c in wrong],
                        "task_id": {"t2i": 0, "i2t": 3, "i2i": 4}[cell],
                    }
                )
            write_lines(root / f"query/{split}/mbeir_made_{cell}_{split}.jsonl", rows)
    (root / "instructions").mkdir()
    (root / "instructions/query_instructions.tsv").write_text("\n".join(table) + "\n")
    return root


@pytest.fixture(scope="session")
def corpus(pictographs: Path) -> Corpus:
    return Corpus(pictographs, "train", PictureBank.load(pictographs))


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, 8))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def vectors(corpus: Corpus) -> dict[str, Vectors]:
    rng = np.random.default_rng(0)
    return {
        name: Vectors(unit(rng, len(cell.queries)), unit(rng, len(cell.pool)))
        for name, cell in corpus.cells.items()
    }


@pytest.fixture(scope="session")
def sampler(corpus: Corpus, vectors: dict[str, Vectors]) -> ListSampler:
    return ListSampler(corpus, vectors)


@pytest.fixture(scope="session")
def chi_square() -> Callable[[np.ndarray], float]:
    """Pearson's statistic of counts against equal chances."""

    def statistic(counts: np.ndarray) -> float:
        expected = counts.sum() / len(counts)
        return float(((counts - expected) ** 2 / expected).sum())

    return statistic


def name_of(concept: int) -> str:
    return f"{'small' if concept % 2 else 'large'} {NOUNS[concept // 2]}"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
