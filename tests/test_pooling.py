"""Poolings as pure functions."""

from __future__ import annotations

import torch

from fiftyone_hiera.hiera.pooling import POOLINGS, cls, mean, pooler

TOKENS = torch.arange(24.0).view(2, 3, 4)


def test_mean_is_over_the_tokens() -> None:
    assert mean(TOKENS, torch.neg).tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]


def test_cls_is_token_0() -> None:
    assert cls(TOKENS, torch.neg).tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]


def test_pooler_is_the_norm_of_the_mean() -> None:
    assert torch.equal(pooler(TOKENS, torch.neg), -mean(TOKENS, torch.neg))


def test_names() -> None:
    assert {"mean": mean, "cls": cls, "pooler": pooler} == POOLINGS
    assert next(iter(POOLINGS)) == "mean", "the first one is the default"
