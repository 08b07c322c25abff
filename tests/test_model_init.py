"""Fresh weights, on every transformers that may be installed: nothing is left as memory was."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration

ICM = {"relate_dim": 16, "memory_size": 300, "agreement": True, "separate_relation_pool": True}
SPREAD = 0.15  # of the configs here


@pytest.mark.usefixtures("poisoned")
def test_a_model_made_from_a_config_is_initialized_throughout(make_model):
    model = make_model(icm=ICM)
    assert [name for name, value in model.state_dict().items() if value.isnan().any()] == []
    icm = model.icm
    for linear in (
        icm.pool.attention.q_proj,
        icm.relation_pool.attention.o_proj,
        icm.relate.k_proj,
    ):
        assert linear.weight.std().item() == pytest.approx(SPREAD, rel=0.1)
    for drawn in (icm.memory.prototypes, icm.memory.codes):
        assert drawn.std().item() == pytest.approx(1, rel=0.05)
    for embedding in (icm.pool.embedding, icm.relation_pool.embedding):
        assert embedding.std().item() == pytest.approx(1, rel=0.4)  # of 64 numbers
    assert icm.row_norm.weight.eq(1).all()
    for norm in (icm.content_norm, icm.relation_token_norm):
        assert norm.weight.allclose(torch.tensor(SPREAD))
    assert icm.agree.weight.allclose(torch.tensor(3 * SPREAD / 64))
    words = model.get_input_embeddings().weight
    assert words.std().item() == pytest.approx(SPREAD, rel=0.05)


def test_fresh_weights_are_drawn_once_and_follow_the_seed(make_model):
    first, again, other = make_model(3), make_model(3), make_model(4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.icm.pool.embedding, other.icm.pool.embedding)


@pytest.mark.usefixtures("poisoned")
def test_what_a_checkpoint_lacks_is_made_and_the_rest_stays(make_model, tmp_path):
    model = make_model(icm=ICM)
    with torch.no_grad():  # as after training: nothing is as it begins
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = {"icm.pool.embedding", "icm.memory.out.weight", "icm.content_norm.weight"}
    kept = {name: value for name, value in weights.items() if name not in lost}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    back = RetrvR1ForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, back[name]) == (name not in lost), name
        assert back[name].isfinite().all()
    assert back["icm.content_norm.weight"].allclose(torch.tensor(SPREAD))
