"""The real checkpoints, from the real hub: ``pytest -m hub``."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from fiftyone_hiera.config import CHECKPOINTS

pytestmark = pytest.mark.hub

_META = [name for name in CHECKPOINTS if name.endswith("-224-hf")]
_IMAGE_URL = (
    "https://raw.githubusercontent.com/huggingface/transformers/main/tests/fixtures/"
    "tests_samples/COCO/000000039769.png"
)

_EMBED = """
import sys, numpy as np, fiftyone_hiera
from PIL import Image

model = fiftyone_hiera.load_model(sys.argv[1])
vector = model.embed(Image.effect_noise((300, 250), 90))
assert vector.shape == (model.embedding_dim,) and np.isfinite(vector).all()

# What MAE pretraining leaves of a LayerNorm that it does not use
norm = model._encoder.norm
assert (norm.weight == 1).all(), norm.weight
assert np.allclose(norm.bias.numpy(), 0.02), norm.bias
"""

# Expected values: tests/models/hiera/test_modeling_hiera.py of transformers,
# test_inference_interpolate_pos_encoding
_TOKENS = """
import sys, torch, fiftyone_hiera
from PIL import Image
from safetensors.torch import load_file
from transformers import HieraConfig, HieraModel
from fiftyone_hiera.hiera.preprocessing import Preprocessing, normalize

model = fiftyone_hiera.load_model("facebook/hiera-tiny-224-hf", dtype="float32")
encoder = model._encoder
hiera = HieraModel(HieraConfig(depths=(1, 2, 7, 2))).eval()
hiera.load_state_dict(load_file(model._origin.weights))
pixels = Preprocessing(448, (448, 448))(Image.open(sys.argv[1])).unsqueeze(0)
inputs = normalize(pixels, encoder.mean, encoder.std)
with torch.inference_mode():
    tokens = hiera(inputs, interpolate_pos_encoding=True).last_hidden_state

expected = torch.tensor(
    [[1.7853, 0.0690, 0.3177], [2.6853, -0.2334, 0.0889], [1.5445, -0.1515, -0.0300]]
)
assert tokens.shape == (1, 196, 768)
assert torch.allclose(tokens[0, :3, :3], expected, atol=1e-4), tokens[0, :3, :3]
"""


def _run(script: str, argument: str) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_HOME": os.environ["USER_HUB"],
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, argument],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", _META)
def test_checkpoint(name: str) -> None:
    _run(_EMBED, name)


def test_tokens_of_tiny(tmp_path: Path) -> None:
    image = tmp_path / "000000039769.png"
    urllib.request.urlretrieve(_IMAGE_URL, image)
    _run(_TOKENS, str(image))
