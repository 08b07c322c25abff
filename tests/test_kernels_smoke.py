"""The command that runs each op once."""

from __future__ import annotations

import pytest
import torch

from retrv_kernels import ops, registry, smoke


def test_every_op_runs_and_is_right(capsys):
    assert smoke.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1].split("-")[0] for line in lines] == list(registry.OPS)
    assert all(line.startswith("ok ") and "bfloat16" in line for line in lines)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x, delta, weight: (x, x), "WRONG add_rms_norm-width_65: "),
        (lambda x, delta, weight: (x, torch.empty_like(x)), "float32 inf of"),
        (lambda x, delta, weight: x.no_such_thing, "AttributeError"),
    ],
    ids=["wrong", "unwritten", "raises"],
)
def test_a_wrong_op_fails_the_command(broken, message, capsys, monkeypatch):
    right = ops.add_rms_norm
    monkeypatch.setattr(
        ops,
        "add_rms_norm",
        lambda x, delta, weight: (
            right(x, delta, weight) if x.dtype == torch.float64 else broken(x, delta, weight)
        ),
    )
    assert smoke.main(["--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(registry.OPS)
    (wrong,) = [line for line in lines if not line.startswith("ok ")]
    assert message in wrong


def test_a_missing_gpu_fails_the_command(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert smoke.main(["--device", "cuda"]) == 1
    assert "WRONG" in capsys.readouterr().out
