"""Outputs committed as numbers, so that no release of a library moves them unseen.

``WRITE_GOLDEN=1 pytest tests/test_golden.py`` writes them again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_hiera import make_config, save_checkpoint
from sklearn.datasets import load_sample_images
from transformers import HieraForImageClassification, HieraForPreTraining

import fiftyone_hiera

_PATH = Path(__file__).parent / "data" / "golden.json"
_EXACT = {"dtype": "float32", "engine": "torch"}
_SHOWN = 24  # numbers of each embedding


def _photographs() -> list[str]:
    """Return the paths of scikit-learn's photographs, which are JPEG files."""
    return load_sample_images().filenames


def _load(tmp_path: Path, network: torch.nn.Module | None = None, **options: Any) -> Any:
    if network is not None:
        options["checkpoint"] = save_checkpoint(tmp_path, network)

    return fiftyone_hiera.load_model("hiera-nano-digits", **_EXACT, **options)


def _fill(network: torch.nn.Module) -> torch.nn.Module:
    """Give parameters values by a formula, which no release of torch changes."""
    start = 0.0
    for name, parameter in network.named_parameters():
        steps = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
        values = torch.sin(steps * 1.7).view(parameter.shape).float()
        is_norm = "norm" in name and name.endswith("weight")
        parameter.data = 1 + 0.3 * values if is_norm else 0.3 * values
        start += parameter.numel()

    return network.eval()


def _embed(tmp_path: Path, **options: Any) -> Any:
    model = _load(tmp_path, **options)
    return model.embed_all(_photographs())[:, :_SHOWN]


def _classify(tmp_path: Path) -> Any:
    config = make_config(num_labels=7)
    model = _load(tmp_path, _fill(HieraForImageClassification(config)))
    model.store_logits = True
    return [label.logits for label in model.predict_all(_photographs())]


def _reconstruct(tmp_path: Path) -> Any:
    config = make_config(
        num_query_pool=2, decoder_depth=2, decoder_hidden_size=32, decoder_num_heads=4
    )
    model = _load(tmp_path, _fill(HieraForPreTraining(config)))
    pixels = torch.stack([model.transforms(image) for image in _photographs()])
    return model._autoencoder.errors(pixels).flatten(1).numpy()


def _tokens(tmp_path: Path) -> Any:
    model = _load(tmp_path)
    maps = model.feature_maps(_photographs())
    return [maps[f"stage{stage}"][0, :6, 0, 0] for stage in (1, 2, 3, 4)]


_OUTPUTS: dict[str, Callable[[Path], Any]] = {
    "mean": _embed,
    "cls": lambda path: _embed(path, pooling="cls"),
    "pooler": lambda path: _embed(path, pooling="pooler"),
    "stage 2": lambda path: _embed(path, stage=2),
    "image_size": lambda path: _embed(path, image_size=(96, 64)),
    "squash": lambda path: _embed(path, squash=True),
    "fast_decoding": lambda path: _embed(path, fast_decoding=True),
    "feature maps": _tokens,
    "logits": _classify,
    "reconstruction errors": _reconstruct,
}


@pytest.mark.parametrize("name", _OUTPUTS)
def test_outputs_are_those_of_earlier_releases(name: str, tmp_path: Path) -> None:
    found = np.array(_OUTPUTS[name](tmp_path), np.float64)
    golden = json.loads(_PATH.read_text("utf-8")) if _PATH.exists() else {}
    if "WRITE_GOLDEN" in os.environ:
        golden[name] = [[float(f"{x:.7g}") for x in row] for row in np.atleast_2d(found)]
        lines = (f"{json.dumps(key)}: {json.dumps(golden[key])}" for key in sorted(golden))
        _PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")

    expected = np.array(golden[name])
    assert expected.std() > 1e-3, "these numbers would not show a change"
    assert np.abs(np.atleast_2d(found) - expected).max() < 2e-5
