"""Layouts that transformers knows and Meta's checkpoints do not use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_hiera import make_config, make_hiera

from fiftyone_hiera.hiera.trunk import Trunk

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
        "masked_unit_attention": (True, True, False),
        "num_query_pool": 2,
    },
]


@torch.inference_mode()
@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("layout", _LAYOUTS, ids=str)
def test_tokens_equal_transformers(layout: dict[str, Any], is_fused: bool) -> None:
    config = make_config(**layout)
    hiera = make_hiera(config)
    trunk = Trunk(config).eval()
    trunk.load_state_dict(hiera.state_dict())
    trunk.fuse_attention(is_fused)

    pixels = torch.randn(2, 3, *config.image_size)
    expected = hiera(pixels).last_hidden_state
    assert torch.allclose(trunk(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"num_query_pool": 1}, "mask units in stage 3 .*num_query_pool = 1"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
    ],
)
def test_what_no_hiera_does_is_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trunk(make_config(**layout))
