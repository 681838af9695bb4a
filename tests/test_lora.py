"""Which modules get an adapter, and what share of the model that is."""

from __future__ import annotations

import re

import pytest
import sft

LFM2 = {
    "model.embed_tokens": (1000, 64),
    "model.layers.0.conv.in_proj": (192, 64),
    "model.layers.0.conv.out_proj": (64, 64),
    "model.layers.0.feed_forward.w1": (128, 64),
    "model.layers.1.self_attn.q_proj": (64, 64),
    "model.layers.1.self_attn.out_proj": (64, 64),
    "lm_head": (1000, 64),
}
QWEN_MOE_VISION = {
    "model.layers.0.self_attn.q_proj": (64, 64),
    "model.layers.0.mlp.gate_proj": (128, 64),
    "model.layers.0.mlp.gate": (8, 64),
    "model.visual.blocks.0.attn.q_proj": (64, 64),
}


def test_each_linear_layer_of_the_decoder_is_a_target():
    assert sft.lora_targets(LFM2) == ["in_proj", "out_proj", "q_proj", "w1"]
    assert sft.lora_targets(QWEN_MOE_VISION) == ["gate_proj", "q_proj"]


def test_the_pattern_reaches_just_the_targets():
    pattern = sft.target_pattern(sft.lora_targets(QWEN_MOE_VISION))
    reached = [name for name in QWEN_MOE_VISION if re.fullmatch(pattern, name)]
    assert reached == ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj"]


STRANGE = {
    "model.layers.0.self_attn.q_proj": (64, 64),
    "x_embed.up_proj": (64, 64),
    "model.mm_projector.up_proj": (64, 64),
    "multi_modal_projector.up_proj": (64, 64),
    "model.layers.0.mlp.up_proj": (64, 64),
}


def test_what_is_adapted_is_what_is_counted():
    for linears in (LFM2, QWEN_MOE_VISION, STRANGE):
        pattern = sft.target_pattern(sft.lora_targets(linears))
        assert [name for name in linears if re.fullmatch(pattern, name)] == list(sft.adaptable(linears))
    assert list(sft.adaptable(STRANGE)) == ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]


def test_coverage_is_the_share_of_the_possible_lora_parameters():
    assert sft.coverage(LFM2, sft.adaptable(LFM2)) == 1.0
    possible = (192 + 64) + (64 + 64) + (128 + 64) + (64 + 64) + (64 + 64)
    assert sft.coverage(LFM2, ["model.layers.1.self_attn.q_proj"]) == pytest.approx(128 / possible)
    assert sft.coverage(LFM2, []) == 0.0


def test_a_target_that_the_model_lacks_stops_with_the_list_that_it_has():
    with pytest.raises(sft.Stop) as stop:
        sft.lora_targets(LFM2, "q_proj,gate_proj")
    assert "gate_proj" in stop.value.message
    assert "in_proj,out_proj,q_proj,w1" in stop.value.fix
