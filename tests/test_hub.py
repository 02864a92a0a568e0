"""The real checkpoints, from the real hub: ``pytest -m hub``."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from fiftyone_hiera.checkpoints import CHECKPOINTS

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
embedding = model.embed(Image.effect_noise((300, 250), 90))
assert embedding.shape == (model.embedding_dim,) and np.isfinite(embedding).all()

# MAE pretraining does not train this LayerNorm
norm = model._encoder.norm
assert (norm.weight == 1).all(), norm.weight
assert np.allclose(norm.bias.numpy(), 0.02), norm.bias
"""

# Expected values: tests/models/hiera/test_modeling_hiera.py of transformers,
# test_inference_interpolate_pos_encoding
_TOKENS = """
import sys, torch, fiftyone_hiera
from PIL import Image
from fiftyone_hiera.images.preprocessing import Preprocessing

options = {"dtype": "float32", "image_size": 448}
model = fiftyone_hiera.load_model("facebook/hiera-tiny-224-hf", **options)
pixels = Preprocessing((448, 448), (448, 448))(Image.open(sys.argv[1])).unsqueeze(0)
(tokens,) = model._encoder(pixels, 4)

expected = torch.tensor(
    [[1.7853, 0.0690, 0.3177], [2.6853, -0.2334, 0.0889], [1.5445, -0.1515, -0.0300]]
)
assert tokens.shape == (1, 196, 768)
assert torch.allclose(tokens[0, :3, :3], expected, atol=1e-4), tokens[0, :3, :3]
"""


# test_inference_image_classification_head of the same file
_LOGITS = """
import sys, torch, fiftyone_hiera
from PIL import Image

model = fiftyone_hiera.load_model("facebook/hiera-tiny-224-in1k-hf", dtype="float32")
model.store_logits = True
label = model.predict(Image.open(sys.argv[1]))
expected = torch.tensor([0.8028, 0.2409, -0.2254, -0.3712, -0.2848])
assert torch.allclose(torch.tensor(label.logits[:5]), expected, atol=1e-4), label
print(label.label, label.confidence)
"""

# test_inference_for_pretraining; its mask comes from torch's generator with seed 2
_GUESS = """
import sys, torch, fiftyone_hiera
from PIL import Image

model = fiftyone_hiera.load_model("facebook/hiera-tiny-224-mae-hf", dtype="float32")
head = model._autoencoder
pixels = model.transforms(Image.open(sys.argv[1])).unsqueeze(0)
torch.manual_seed(2)
noise = torch.rand(1, 49)
with torch.inference_mode():
    logits = head._network(head._normalize(pixels), noise=noise).logits

expected = torch.tensor(
    [
        [1.6407, 1.6506, 1.6541, 1.6617, 1.6703],
        [1.9730, 1.9842, 1.9848, 1.9896, 1.9947],
        [1.5949, 1.8262, 1.2602, 1.4801, 1.4448],
        [1.2341, 1.7907, 0.8618, 1.5202, 1.4523],
        [2.0140, 1.9846, 1.9434, 1.9019, 1.8648],
    ]
)
assert logits.shape == (1, 196, 768)
assert torch.allclose(logits[0, :5, :5], expected, atol=1e-4), logits[0, :5, :5]
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


@pytest.mark.parametrize("script", [_TOKENS, _LOGITS, _GUESS])
def test_expectations_of_transformers(tmp_path: Path, script: str) -> None:
    image = tmp_path / "000000039769.png"
    urllib.request.urlretrieve(_IMAGE_URL, image)
    _run(script, str(image))
