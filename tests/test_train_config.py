"""Mistakes in a stage's file, its data or an earlier result: each is named with its fix."""

from __future__ import annotations

import pytest
import small_stages
from small_stages import EMBED, LOOP

from retrv_r1.train.build import build_stage
from retrv_r1.train.config import ConfigError, LoopConfig, read_config
from retrv_r1.train.loop import fit
from retrv_r1.types import RetrvError

pytest_plugins = ("training_fixtures",)
pytestmark = small_stages.pytestmark
build, config, folder, trained = (
    small_stages.build,
    small_stages.config,
    small_stages.folder,
    small_stages.trained,
)
undrawn = small_stages.undrawn


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


def test_shapes_of_a_new_model_are_checked(config):
    shape = {name: value for name, value in EMBED.items() if name != "vocab_size"}
    with pytest.raises(ConfigError, match=r"model: the options \['vocab_size'\] are missing"):
        build_stage(read_config("embed", config("embed", model=shape)))


def test_other_mistakes_in_a_config_are_named(config, folder):
    with pytest.raises(ConfigError, match="unknown stage 'grp'; choose one of embed"):
        read_config("grp", config("sft"))
    with pytest.raises(ConfigError, match="no configuration file"):
        read_config("sft", folder / "none.yaml")
    for text, message in (("- 1", "at least data, out and loop"), ("a: [", "as YAML.*correct")):
        (folder / "wrong.yaml").write_text(text)
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            read_config("sft", folder / "wrong.yaml")
    assert issubclass(ConfigError, RetrvError)


def test_a_stage_without_the_one_before_says_so(config, folder):
    with pytest.raises(ConfigError, match=r"init\.model is missing"):
        build_stage(read_config("align", config("align", init={})))
    nowhere = config("align", init={"model": str(folder / "nowhere")})
    with pytest.raises(ConfigError, match=r"no finished model stage at .*nowhere"):
        build_stage(read_config("align", nowhere))


def test_a_folder_without_data_says_how_to_build_it(config, tmp_path):
    path = config("embed", data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="retrv-r1 data pictographs"):
        build_stage(read_config("embed", path))


def test_a_rate_for_nothing_is_refused(build, tmp_path):
    settings = LoopConfig(**LOOP, rates={"visaul": 0.5})
    with pytest.raises(ValueError, match="no parameter's name contains 'visaul'"):
        fit(build("pretrain"), settings, tmp_path / "run", resume=False)
