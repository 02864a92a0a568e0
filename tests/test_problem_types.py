"""Fine-tuned checkpoints for several labels per image, and for values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
import torch
from PIL import Image
from random_hiera import make_config, randomize, save_checkpoint
from transformers import HieraForImageClassification

import fiftyone_hiera

pytestmark = pytest.mark.samples(12)


def _make(folder: Path, names: list[str], **changes: Any) -> HieraForImageClassification:
    """Save a checkpoint with random weights whose outputs differ between images."""
    config = make_config(num_labels=len(names))
    config.id2label = dict(enumerate(names))
    reference = HieraForImageClassification(config).eval()
    randomize(reference)
    reference.classifier.weight.data *= 40
    save_checkpoint(folder, reference)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    return reference


def _load(folder: Path, **options: Any) -> Any:
    options = {"dtype": "float32", "engine": "torch", "pooling": "pooler", **options}
    return fiftyone_hiera.load_model("hiera-nano-digits", checkpoint=folder, **options)


@torch.inference_mode()
def _expect(reference: HieraForImageClassification, model: Any, paths: Any) -> torch.Tensor:
    pixels = torch.stack([model.transforms(Image.open(path)) for path in paths])
    return reference(model._encoder.normalize(pixels)).logits


def _labels(found: fo.Classifications) -> dict[str, float]:
    return {one.label: one.confidence for one in found.classifications}


def test_several_labels(tmp_path: Path, samples: fo.Dataset) -> None:
    names = ["ant", "bee", "cat"]
    reference = _make(tmp_path, names, problem_type="multi_label_classification")
    model = _load(tmp_path)
    logits = _expect(reference, model, samples.values("filepath"))
    scores = logits.sigmoid().tolist()
    assert {sum(score >= 0.5 for score in row) for row in scores} > {1}
    for options, thresh in (({}, 0.5), ({"confidence_thresh": 0}, 0)):
        samples.apply_model(model, "found", store_logits=True, batch_size=5, **options)
        for found, row in zip(samples.values("found"), scores, strict=True):
            pairs = zip(names, row, strict=True)
            expected = {name: score for name, score in pairs if score >= thresh}
            assert _labels(found) == pytest.approx(expected, abs=1e-5)

    stored = np.stack([found.logits for found in samples.values("found")])
    assert np.abs(stored - logits.numpy()).max() < 1e-4
    assert model.config.confidence_thresh == 0.5

    model.config.filter_classes = ["bee"]
    assert {*_labels(model.predict(np.zeros((9, 9, 3), np.uint8)))} <= {"bee"}
    assert model.predict(np.zeros((9, 9, 3), np.uint8)).logits is None


def test_no_overflow(tmp_path: Path) -> None:
    _make(tmp_path, ["ant", "bee"], problem_type="multi_label_classification")
    found = _load(tmp_path)._to_label(np.array([1000, -1000], np.float32))
    assert _labels(found) == {"ant": 1}


def test_a_value(tmp_path: Path, samples: fo.Dataset) -> None:
    reference = _make(tmp_path, ["age"])  # transformers takes one label for a regression
    model = _load(tmp_path)
    logits = _expect(reference, model, samples.values("filepath"))[:, 0]
    samples.apply_model(model, "age", batch_size=5)
    assert samples.values("age.value") == pytest.approx(logits.tolist(), abs=1e-4)
    assert samples.values("age.confidence") == [None] * len(samples)
    results = samples.evaluate_regressions("age", "age", metric="absolute_error")
    assert results.metrics()["mean_absolute_error"] == 0

    for name, option in (
        ("confidence_thresh", "confidence_thresh"),
        ("filter_classes", "cl"),
    ):
        with pytest.raises(
            ValueError, match=rf"Invalid {option}.*: 0\.5\. This .* regression"
        ):
            setattr(model.config, name, 0.5)

        setattr(model.config, name, None)

    with pytest.raises(ValueError, match="logits"):
        samples.apply_model(model, "age", store_logits=True)


def test_several_values(tmp_path: Path, samples: fo.Dataset) -> None:
    reference = _make(tmp_path, ["age", "size"], problem_type="regression")
    model = _load(tmp_path)
    logits = _expect(reference, model, samples.values("filepath"))
    samples.apply_model(model, "predicted", batch_size=5)
    for index, name in enumerate(("age", "size")):
        values = samples.values(f"predicted_{name}.value")
        assert values == pytest.approx(logits[:, index].tolist(), abs=1e-4)


def test_embeddings_and_heatmaps(tmp_path: Path, samples: fo.Dataset) -> None:
    reference = _make(tmp_path, ["ant"], problem_type="multi_label_classification")
    model = _load(tmp_path)
    images = [Image.open(path) for path in samples.values("filepath")]
    model.predict_all(images)
    with torch.inference_mode():
        pixels = torch.stack([model.transforms(image) for image in images])
        expected = reference.hiera(model._encoder.normalize(pixels)).pooler_output
    assert np.allclose(model.get_embeddings(), expected.numpy(), atol=1e-4)

    heat = _load(tmp_path, output="heatmap")
    heat.fit_heatmap(samples)
    samples.apply_model(heat, "heat")
    assert samples.count("heat.map") == len(samples)
