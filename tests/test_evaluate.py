"""The metrics of examples/evaluate.py."""

from __future__ import annotations

import fiftyone as fo
import numpy as np
import pytest
from evaluate import check_labels, measure, parse_model


def test_embeddings_that_separate_the_classes() -> None:
    classes = np.array(["ant", "bee", "cat"] * 12)
    embeddings = np.array([[c == "ant", c == "bee", c == "cat"] for c in classes], float)
    embeddings += 0.01 * np.random.default_rng(51).normal(size=embeddings.shape)
    results = measure(embeddings, classes)
    assert results == {
        "knn": 1.0,
        "precision": 1.0,
        "shown_1": 1.0,
        "shown_5": 1.0,
    }


def test_random_embeddings() -> None:
    generator = np.random.default_rng(51)
    classes = generator.choice(["ant", "bee"], 2000)
    results = measure(generator.normal(size=(2000, 8)), classes)
    assert results.keys() == {"knn", "precision", "shown_1", "shown_5", "shown_20"}
    assert all(abs(result - 0.5) < 0.05 for result in results.values())


def test_neighbors_are_counted() -> None:
    """Each image has the 3 others of its kind among its 10 nearest, and no more."""
    angles = np.concatenate([0.8 * k + 0.01 * np.arange(4) for k in range(4)])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    classes = np.repeat(["a", "b", "c", "d"], 4)
    results = measure(embeddings, classes)
    assert results == {"knn": 1.0, "precision": 1.0, "shown_1": 1.0}
    classes = np.repeat(["a", "b"], 8)
    assert measure(embeddings, classes)["precision"] < 1


def test_rare_classes_are_left_out() -> None:
    generator = np.random.default_rng(51)
    classes = np.array(["ant"] * 30 + ["bee"] * 30 + ["rare"] * 2)
    embeddings = np.array([[c == "ant", c == "bee", c == "rare"] for c in classes], float)
    embeddings += 0.01 * generator.normal(size=embeddings.shape)
    results = measure(embeddings, classes)
    assert {results[f"shown_{n}"] for n in (1, 5, 20)} == {1.0}
    results = measure(embeddings[20:], classes[20:])
    assert "shown_20" not in results  # of one label only there are more


def test_check_labels(dataset: fo.Dataset) -> None:
    dataset.add_samples(
        [
            fo.Sample(
                filepath=f"/{number}.jpg",
                same=fo.Classification(label="ant"),
                kind=fo.Classification(label=str(number)),
                boxes=fo.Detections(),
            )
            for number in range(3)
        ]
    )
    check_labels(dataset, "kind")
    for field in ("boxes", "filepath", "absent"):
        with pytest.raises(ValueError, match=rf"'{field}'. It has them in \['same', 'kin"):
            check_labels(dataset, field)

    with pytest.raises(ValueError, match=r"nothing to tell apart: .*\['ant'\]"):
        check_labels(dataset, "same")


def test_parse_model() -> None:
    text = "facebook/hiera-tiny-224-hf stage=3 pooling=cls normalize=true squash=True"
    text += " image_size=(64,96)"
    options = {"stage": 3, "pooling": "cls", "normalize": True, "squash": True}
    options["image_size"] = (64, 96)
    assert parse_model(text) == ("facebook/hiera-tiny-224-hf", options)
    assert parse_model("nano") == ("nano", {})
    with pytest.raises(SystemExit, match="'stage' is not option=value"):
        parse_model("nano stage")
