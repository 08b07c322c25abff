"""Mistakes in a stage's file, its data or an earlier result: each is named with its fix."""

from __future__ import annotations

import pytest
import small_stages as stages
from small_stages import EMBED, LOOP

from retrv_r1.train.config import ConfigError, LoopConfig, read_config
from retrv_r1.train.loop import fit
from retrv_r1.train.stage import build_stage

pytest_plugins = ("training_fixtures",)
pytestmark = stages.pytestmark
build, config, folder, trained = stages.build, stages.config, stages.folder, stages.trained
undrawn = stages.undrawn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": LOOP | {"learning_rat": 1}}, r"loop: unknown options \['learning_rat'\]; known"),
        ({"stage": {"hards": 1}}, r"stage: unknown options \['hards'\]; known"),
        ({"lop": {}}, r"unknown options \['lop'\]; known"),
        ({"loop": {}}, r"loop: the options \['steps'\] are missing"),
        ({"loop": [1]}, "loop must be a mapping"),
        ({"loop": {"steps": 1, "learning_rate": "1e-3"}}, "must be of type float.* write 1.0e-3"),
    ],
)
def test_a_wrong_option_is_named(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_config("sft", config("sft", **changes))


def test_sections_that_every_stage_needs_are_named(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="at least data, out and loop"):
        read_config("sft", tmp_path / "list.yaml")


def test_shapes_of_a_new_model_are_checked(config):
    shape = {name: value for name, value in EMBED.items() if name != "vocab_size"}
    with pytest.raises(ConfigError, match=r"model: the options \['vocab_size'\] are missing"):
        build_stage(read_config("embed", config("embed", model=shape)))


def test_a_stage_without_the_one_before_says_so(config, folder):
    with pytest.raises(ConfigError, match=r"init\.model is missing"):
        build_stage(read_config("align", config("align", init={})))
    nowhere = config("align", init={"model": str(folder / "nowhere")})
    with pytest.raises(ConfigError, match=r"no finished model stage at .*nowhere"):
        build_stage(read_config("align", nowhere))


def test_a_rate_for_nothing_is_refused(build, tmp_path):
    settings = LoopConfig(**LOOP, rates={"visaul": 0.5})
    with pytest.raises(ValueError, match="no parameter's name contains 'visaul'"):
        fit(build("pretrain"), settings, tmp_path / "run", resume=False)
