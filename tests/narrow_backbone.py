"""A Qwen2.5-VL of random weights with the 3B's shape in narrow form, and lists of picture files."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from test_model_backbone import ADDED, OFFICIAL, PREPROCESSING, byte_level
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from retrv_r1.data.lists import CandidateList, write_lists

SIDE = 56
"""Pixels: four rows a picture."""
NARROW = {
    "hidden_size": 128,
    "intermediate_size": 688,
    "max_position_embeddings": 4096,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "torch_dtype": "float32",
}
VISION = {"hidden_size": 64, "intermediate_size": 171, "num_heads": 4, "out_hidden_size": 128}


def save_backbone(folder: Path) -> Path:
    """Two layers; a sixteenth of the width; heads and their groups as in the 3B."""
    tokenizer = byte_level(300)
    tokenizer.add_tokens(ADDED, special_tokens=True)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    values: dict[str, Any] = copy.deepcopy(OFFICIAL) | NARROW | {"vocab_size": 512}
    values["vision_config"] |= VISION
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"vision_{end}_token_id": f"vision_{end}" for end in ("start", "end")}
    values |= {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    values |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


def released_form(root: Path, out: Path) -> Path:
    """A data set as M-BEIR is released: picture files alone, no arrays and no metadata."""
    for part in ("query", "cand_pool", "instructions", "mbeir_images"):
        shutil.copytree(root / part, out / part)
    return out


def save_lists(out: Path) -> list[Path]:
    """Lists of both splits over the small pictographs, and chains for some of them."""
    pictures = [f"100:{n}" for n in range(1, 11)]
    lists = [
        CandidateList("made_t2i", split, f"200:{n + 1}", (*others[:5], pictures[n]), pictures[n])
        for split in ("train", "val")
        for n in range(10)
        for others in [[one for one in pictures if one != pictures[n]]]
    ]
    write_lists(out / "lists.jsonl", lists)
    said = "ideal: red thing. close: [6] apple, [2] bird. inspect [6] red apple;"
    chains = [
        CandidateList(x.cell, x.split, x.qid, x.candidates, x.answer, said)
        for x in lists
        if x.split == "train"
    ]
    write_lists(out / "chains.jsonl", chains[:8])
    return [out / "lists.jsonl", out / "chains.jsonl"]
