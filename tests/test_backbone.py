"""Layouts that transformers knows and Meta's checkpoints do not use."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from random_hiera import configuration, make_config, make_hiera
from transformers import HieraBackbone
from transformers.models.hiera.modeling_hiera import unroll

from fiftyone_hiera.hiera import backbone as backbone_module
from fiftyone_hiera.hiera.backbone import Backbone

_LAYOUTS: list[dict[str, Any]] = [
    {"image_size": (64, 96)},
    {"image_size": (96, 64), "num_query_pool": 2},
    {"masked_unit_attention": (True, True, True, False)},
    {"masked_unit_attention": (True, False, False, False), "num_query_pool": 1},
    {"masked_unit_size": (16, 16)},
    {"num_heads": (2, 4, 8, 16), "embed_dim": 32, "mlp_ratio": 2.0},
    {"patch_size": (4, 4), "patch_padding": (0, 0), "layer_norm_eps": 0.1},
    {
        "depths": (2, 1, 1),
        "num_heads": (1, 2, 4),
        "masked_unit_size": (4, 4),
        "num_query_pool": 2,
    },
]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("is_fused", "is_unfolded"), [(True, False), (False, False), (True, True)]
)
@pytest.mark.parametrize("layout", _LAYOUTS, ids=str)
def test_tokens_equal_transformers(
    layout: dict[str, Any], is_fused: bool, is_unfolded: bool
) -> None:
    config = make_config(**layout)
    hiera = make_hiera(config)
    stages = range(1, len(config.depths) + 1)
    backbone = Backbone(configuration(config), stages).eval()
    backbone.load_state_dict(hiera.state_dict(), strict=False)  # less the final norm
    backbone.fuse_attention(is_fused)
    backbone.embeddings.is_unfolded = is_unfolded

    pixels = torch.randn(2, 3, *config.image_size)
    output = hiera(pixels, output_hidden_states=True)
    found = backbone(pixels)
    assert len(found) == len(stages)
    for stage, tokens in zip(stages, found, strict=True):
        expected = output.reshaped_hidden_states[stage].flatten(1, 2)
        assert torch.allclose(tokens, expected, atol=1e-5)


@torch.inference_mode()
def test_tokens_equal_transformers_backbone_with_its_own_in_order() -> None:
    stages = (1, 2, 3, 4)
    config = make_config(out_features=[f"stage{stage}" for stage in stages])
    hiera = make_hiera(config)
    ours = Backbone(configuration(config), stages).eval()
    ours.load_state_dict(hiera.state_dict(), strict=False)
    backbone = HieraBackbone(config).eval()
    missing, _ = backbone.load_state_dict(hiera.state_dict(), strict=False)
    assert all(name.startswith("hidden_states_norms.") for name in missing)

    # No checkpoint has weights of these
    for name in backbone.hidden_states_norms:
        backbone.hidden_states_norms[name] = torch.nn.Identity()

    pixels = torch.randn(2, 3, *config.image_size)
    found = ours(pixels)

    def is_equal() -> list[bool]:
        maps = [values.flatten(2).mT for values in backbone(pixels).feature_maps]
        return [
            torch.allclose(one, other, atol=1e-5)
            for one, other in zip(found, maps, strict=True)
        ]

    # If this fails, transformers is fixed, and the README is out of date
    assert not any(is_equal())

    def put_in_order(_: Any, __: Any, output: tuple[torch.Tensor, ...]) -> Any:
        size, stride = config.image_size, config.patch_stride
        schedule = [config.query_stride] * (len(config.depths) - 1)
        return (unroll(output[0], size, stride, schedule), *output[1:])

    backbone.embeddings.register_forward_hook(put_in_order)
    assert all(is_equal())


@torch.inference_mode()
@pytest.mark.parametrize("stages", [(1,), (2, 3), (4,)], ids=str)
def test_only_wanted_stages_are_computed(
    monkeypatch: pytest.MonkeyPatch, stages: tuple[int, ...]
) -> None:
    backbone = Backbone(configuration(make_config()), stages).eval()
    for stage in backbone.encoder.stages[max(stages) :]:
        monkeypatch.setattr(stage, "forward", None)

    assert len(backbone(torch.randn(2, 3, 64, 64))) == len(stages)


def test_worked_example_of_the_order() -> None:
    results = doctest.testmod(backbone_module)
    assert results.attempted > 2
    assert not results.failed
