"""Boxes and points of labels that are malformed, each of which costs its own patch only."""

from __future__ import annotations

import math
import re
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from bson import ObjectId
from PIL import Image

from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.fiftyone_internals import sample_collection

pytestmark = pytest.mark.samples(1)

_BOX = r"expected \[x, y, width, height\]"

_BOXES = [
    ([0, 0, 1, 1], None),
    (None, "the label has no bounding box"),
    ([], "the label has no bounding box"),
    ([0, 0, 1], rf"the bounding box \[0, 0, 1\] has 3 numbers: {_BOX}"),
    ([0] * 8, f"has 8 numbers: {_BOX}"),
    (["a", 0, 1, 1], f"has 'a', which is no finite number: {_BOX}"),
    ("full", "has 'full', which"),
    ([0, 0, None, 1], "has None, which"),
    ([0, 0, math.nan, 1], "has nan, which"),
    ([0, 0, math.inf, 1], "has inf, which"),
    ([[0, 0], [1, 1]], r"has \[0, 0\], which"),
    ({"x": 0}, "has {'x': 0}, which"),
]
_POINTS = [
    ([[[0, 0], [1, 0]], [[0.5, 1]]], None),
    (None, "the label has no points"),
    ([[]], "the label has no points"),
    ([[[0, 0], [1]]], r"the point \[1\] has 1 number: expected \[x, y\]"),
    ([[[0, 0, 0], [0, 1, 2]]], r"point \[0, 0, 0\] has 3 numbers"),
    ([[[0, 0], ["a", 1]]], r"point \['a', 1\] has 'a', which"),
    ([[[0, 0], [None, 1]]], "has None, which"),
    ([[[0, 0], [math.nan, 1]]], "has nan, which"),
    ([[[0, 0], None]], r"point \[\] has 0 numbers"),
    ([[0, 0], [1, 1]], r"point \[0\] has 1 number"),
    (7, r"point \[7\] has 1 number"),
]


@pytest.mark.parametrize(
    ("labels", "attribute", "shapes"),
    [
        (fo.Detections, "bounding_box", _BOXES),
        (fo.Polylines, "points", _POINTS),
    ],
)
def test_only_the_malformed_fail(
    samples: Any,
    model: HieraEmbeddingModel,
    labels: Any,
    attribute: str,
    shapes: list[tuple[Any, str | None]],
) -> None:
    _store(samples, labels, attribute, [shape for shape, _ in shapes])
    report = model.embed_samples(samples, "hiera", patches_field="parts")
    (path,) = samples.values("filepath")
    embedding = samples.values(f"parts.{labels.__name__.lower()}.hiera")[0][0]
    assert np.allclose(embedding, model.embed(Image.open(path)), atol=1e-4)
    reasons = [reason for _, reason in shapes if reason is not None]
    for failure, reason in zip(report.failed, reasons, strict=True):
        assert re.search(reason, failure.reason), failure.reason
        assert repr(path) in failure.reason


def _store(samples: Any, labels: Any, attribute: str, shapes: list[Any]) -> None:
    """Store labels, of which FiftyOne would refuse some."""
    name = labels.__name__.lower()
    label = getattr(fo, labels.__name__[:-1])
    sample = samples.first()
    sample["parts"] = labels(**{name: [label() for _ in shapes]})
    sample.save()
    values = {f"parts.{name}.{i}.{attribute}": shape for i, shape in enumerate(shapes)}
    collection = sample_collection(samples)
    collection.update_one({"_id": ObjectId(sample.id)}, {"$set": values})


def test_malformed_box_in_compute_patch_embeddings(
    samples: Any, model: HieraEmbeddingModel, caplog: pytest.LogCaptureFixture
) -> None:
    sample = samples.first()
    sample["part"] = fo.Detection(bounding_box=[0, 0, 1])
    sample.save()
    native = samples.compute_patch_embeddings(model, "part", num_workers=0)
    assert native == {sample.id: None}
    assert f"{sample.filepath!r}: the bounding box [0.0, 0.0, 1.0] has 3" in caplog.text
