"""Options that several commands share.

Choices are spelled out here because the modules that define them import PyTorch; a test compares.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

Weights: TypeAlias = Literal["model", "float16", "int8"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16", "float64"]
AnyMode: TypeAlias = Literal["reason", "fast", "auto"]
Instructions: TypeAlias = Literal["first", "random", "none"]
Order: TypeAlias = Literal["shuffled", "retrieved"]
EarlierWindows: TypeAlias = Literal["fast", "same"]
RunFormat: TypeAlias = Literal["trec", "uniir"]
Split: TypeAlias = Literal[
    "all", "style", "composition", "unseen", "hands", "concepts", "terms", "detail", "test", "val"
]
PoolName: TypeAlias = Literal["local", "global", "both"]

ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="MODEL", help='"tiny" (shipped), a directory, or a hub id.'
    ),
]
ServerUrl = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="Address of an SGLang server with the same checkpoint."
    ),
]
RoundedWeights = Annotated[
    Weights, typer.Option("--weights", help="Round the language model's weights; faster on a CPU.")
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Device of the model: cpu, cuda or cuda:N. Default: the first GPU, else the CPU.",
    ),
]
WeightsDtype = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="Dtype of the weights. Default: float32 on a CPU, the checkpoint's own on a GPU.",
    ),
]
TrainDevice = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda. Default: a GPU if there is one.")
]
TrainDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float32 or bfloat16. Default: bfloat16 on GPUs and CPUs with AMX."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
