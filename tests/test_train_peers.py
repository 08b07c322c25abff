"""Processes that train one model."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import small_stages as stages
import torch
from small_stages import curve
from torch import nn

from retrv_r1.train.config import LoopConfig
from retrv_r1.train.loop import fit
from retrv_r1.train.peers import Peers, PeersError

pytest_plugins = ["training_fixtures"]

pytestmark = stages.pytestmark
build, config, folder, trained = stages.build, stages.config, stages.folder, stages.trained


@pytest.fixture(autouse=True)
def one_thread():
    """A forked process cannot use its parent's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_gradients_are_means_over_processes():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    unused, idle = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))
    model.unused, model.idle = unused, idle
    with Peers(model, 3) as peers:
        for step in range(2):
            model.weight.grad = torch.full((2, 3), float(10 * step + peers.rank))
            unused.grad = torch.ones(4) if peers.rank == 2 else None
            peers.average_gradients()
            assert torch.equal(model.weight.grad, torch.full((2, 3), 10.0 * step + 1))
            assert torch.equal(unused.grad, torch.full((4,), 1 / 3))
            assert model.bias.grad is None and idle.grad is None


def test_one_process_keeps_its_gradients():
    model = nn.Linear(2, 1)
    with Peers(model, 1) as peers:
        peers.average_gradients()
    assert model.weight.grad is None


def fails() -> None:
    raise ValueError("this process fails")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", [fails, killed])
def test_a_death_is_told(end):
    message = "another of the 2 training processes"
    with pytest.raises(PeersError, match=message), Peers(nn.Linear(2, 1), 2) as peers:
        if peers.rank:
            end()
        peers.average_gradients()


def test_a_death_behind_the_last_step_is_told():
    with pytest.raises(PeersError), Peers(nn.Linear(2, 1), 2) as peers:
        peers.average_gradients()
        assert peers.rank == 0, "only the child fails"


def test_a_process_ends_with_its_parent():
    """A killed parent leaves no process that waits for it."""
    read, write = os.pipe()
    if (parent := os.fork()) == 0:
        with Peers(nn.Linear(2, 1), 2) as peers:
            if peers.rank:
                os.write(write, str(os.getpid()).encode())
                peers.average_gradients()  # the parent never comes
            signal.pause()
    child = int(os.read(read, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] == "Z":
            return  # ended, and not yet collected by the system
        time.sleep(0.1)
    pytest.fail("the child lives on")


def test_each_process_has_batches_of_its_own(build, tmp_path):
    rows = []
    for processes in (1, 2):
        stage, out = build("embed"), tmp_path / str(processes)
        fit(stage, LoopConfig(**stages.LOOP, processes=processes), out, resume=False)
        rows.append([row for row in curve(out / "embed.jsonl") if "pair_loss" in row])
        assert stage.stats.steps == stages.STEPS
    first, second = ([row["pair_loss"] for row in one] for one in rows)
    assert first[0] == second[0], "the first process has the batches that it would have alone"
    assert first[1:] != second[1:], "its weights are those of both"
