"""The photographs of the examples, and what the checkpoint trained on them sees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from photographs import PHOTOGRAPHS, View, open_photograph, write_photographs


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[View]:
    return write_photographs(tmp_path_factory.mktemp("views"), count=300)


def test_views_are_of_all_photographs_and_both_splits(views: list[View]) -> None:
    assert Counter(view.photograph for view in views) == dict.fromkeys(PHOTOGRAPHS, 20)
    assert len({view.path for view in views}) == 300
    assert {Image.open(view.path).size for view in views} == {(128, 128)}
    assert 50 < sum(view.split == "test" for view in views) < 100


def test_no_pixel_is_in_both_splits(views: list[View]) -> None:
    sizes = {name: open_photograph(name).size for name in PHOTOGRAPHS}
    for view in views:
        left, top, right, bottom = view.box
        width, height = sizes[view.photograph]
        border = round(width * 2 / 3)
        start, end = (border, width) if view.split == "test" else (0, border)
        assert start <= left < right <= end
        assert 0 <= top < bottom <= height
        assert right - left == bottom - top


def test_a_view_shows_its_box(views: list[View]) -> None:
    for view in views[:15]:
        expected = open_photograph(view.photograph).crop(view.box).resize((128, 128))
        difference = np.asarray(expected, float) - np.asarray(Image.open(view.path), float)
        assert np.abs(difference).mean() < 12  # JPEG


def test_views_are_the_same_each_time(views: list[View], tmp_path: Path) -> None:
    again = write_photographs(tmp_path, count=30)
    for one, other in zip(again, views[:30], strict=True):
        assert (one.box, one.split) == (other.box, other.split)
        assert one.path.read_bytes() == other.path.read_bytes()

    views[0].path.write_bytes(b"kept")
    assert write_photographs(views[0].path.parent, count=1) == views[:1]
    assert views[0].path.read_bytes() == b"kept"


def test_the_checkpoint_recognizes_unseen_parts(views: list[View]) -> None:
    import fiftyone_hiera

    images = [Image.open(view.path).convert("RGB") for view in views[15:]]
    names = np.array([view.photograph for view in views[15:]])
    is_test = np.array([view.split == "test" for view in views[15:]])
    queries = [_alter(image) for image, test in zip(images, is_test, strict=True) if test]

    def accuracy(model: Any) -> float:
        """How often the nearest neighbor in the left comes from the same photograph."""
        vectors, altered = model.embed_all(images), model.embed_all(queries)
        nearest = (_unit(altered) @ _unit(vectors[~is_test]).T).argmax(axis=1)
        return float(np.mean(names[~is_test][nearest] == names[is_test]))

    photos, digits = (
        accuracy(fiftyone_hiera.load_model(name, dtype="float32", engine="torch"))
        for name in ("hiera-nano-photos", "hiera-nano-digits")
    )
    assert photos > digits + 0.1
    assert photos > 0.6


def _alter(image: Image.Image) -> Image.Image:
    darker = ImageEnhance.Brightness(image.crop((8, 8, 120, 120))).enhance(0.75)
    return ImageEnhance.Color(darker).enhance(0.5)


def _unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
