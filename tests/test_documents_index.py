"""The page about duplicates: what its code finds among planted samples."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from skimage import data
from sklearn.datasets import load_sample_images

from digits import Digit

DOCUMENT = Path(__file__).parents[1] / "docs" / "duplicates.md"
ORIGINALS = 600
PLANTED = 20  # of each kind

pytestmark = pytest.mark.slow


def _copy(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def _encode(source: Path, target: Path) -> None:
    Image.open(source).save(target, format="JPEG", quality=75)


def _crop(source: Path, target: Path) -> None:
    image = Image.open(source)
    box = (1, 1, image.width - 1, image.height - 1)
    image.resize(image.size, Image.Resampling.BICUBIC, box).save(target)


def _darken(source: Path, target: Path) -> None:
    ImageEnhance.Brightness(Image.open(source)).enhance(0.9).save(target)


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "copy": _copy,
    "JPEG": _encode,
    "crop": _crop,
    "darker": _darken,
}


@pytest.fixture(scope="module")
def dataset(
    digits: list[Digit], model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Digits for training, altered copies of some of them for testing, and outliers."""
    folder = tmp_path_factory.mktemp("planted")
    samples = [_sample(digit.path, "digit", "train") for digit in digits[:ORIGINALS]]
    chosen = np.random.default_rng(0).permutation(ORIGINALS)[: PLANTED * len(KINDS)]
    for number, source in enumerate(chosen):
        name = [*KINDS][number % len(KINDS)]
        path = folder / f"{source:04}-{name}.png"
        KINDS[name](digits[source].path, path)
        samples.append(_sample(path, name, "test", str(digits[source].path)))

    for name, pixels in _strangers().items():
        path = folder / f"{name}.png"
        Image.fromarray(pixels).save(path)
        samples.append(_sample(path, name.partition("-")[0], "train"))

    dataset = fo.Dataset()
    dataset.add_samples(samples)
    model.embed_samples(dataset, "hiera")
    yield dataset
    dataset.delete()


def _strangers() -> dict[str, Any]:
    """Return five photographs, and five pictures of stripes that resemble each other."""
    photos = [*load_sample_images().images, data.astronaut(), data.coffee(), data.cat()]
    strangers = {f"photo-{number}": photo for number, photo in enumerate(photos)}
    for width in range(2, 7):
        strangers[f"stripes-{width}"] = np.full((64, 64), 255, np.uint8)
        strangers[f"stripes-{width}"][:, ::width] = 0

    return strangers


def _sample(path: Path, planted: str, split: str, source: str | None = None) -> Any:
    return fo.Sample(filepath=str(path), planted=planted, source=source, tags=[split])


@pytest.fixture(scope="module")
def names(dataset: Any) -> dict[str, Any]:
    """What the document's code leaves."""
    text = DOCUMENT.read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {"dataset": dataset}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)

    return names


def test_exact_duplicates(dataset: Any, names: dict[str, Any]) -> None:
    assert set(dataset.match_tags("copy").values("id")) == _ids(dataset, "copy")
    paths = dict(zip(*dataset.values(["id", "filepath"]), strict=True))
    sources = dict(zip(*dataset.values(["id", "source"]), strict=True))
    for first, others in names["copies"].items():
        assert [sources[other] for other in others] == [paths[first]]


def test_near_duplicates(dataset: Any, names: dict[str, Any]) -> None:
    duplicates = dataset.match_tags("duplicate")
    found = duplicates.count_values("planted")
    assert found.pop("copy") == found.pop("JPEG") == PLANTED
    assert found.pop("crop") >= 0.75 * PLANTED
    assert found.pop("darker") >= 0.75 * PLANTED
    assert found.pop("digit", 0) <= 0.005 * ORIGINALS
    assert found == {}

    paths = dict(zip(*dataset.values(["id", "filepath"]), strict=True))
    nearest, sources = duplicates.values(["duplicate_of", "source"])
    same = [paths[one] == source for one, source in zip(nearest, sources, strict=True)]
    assert np.mean(same) > 0.95
    kinds = names["duplicates"].count_values("kind")
    assert kinds["duplicate"] == len(duplicates)


def test_table_of_thresholds(dataset: Any) -> None:
    head, _, *rows = re.findall(r"^\| .* \|$", DOCUMENT.read_text("utf-8"), re.M)[:7]
    columns = [_find(dataset, float(cell)) for cell in head.split("|")[2:-1]]
    for row, planted in zip(rows, [*KINDS, "digit"], strict=True):
        written = [int(cell) for cell in row.split("|")[2:-1]]
        found = [column.get(planted, 0) for column in columns]
        assert found == pytest.approx(written, abs=2), planted


def _find(dataset: Any, threshold: float) -> dict[str, int]:
    index = fob.compute_near_duplicates(dataset, threshold, embeddings="hiera")
    view = dataset.select(index.duplicate_ids)
    counts: dict[str, int] = view.count_values("planted")
    return counts


def test_leaks(dataset: Any, names: dict[str, Any]) -> None:
    leaked, train = set(names["leaked"].values("id")), names["train"]
    assert _ids(dataset, "copy") | _ids(dataset, "JPEG") <= leaked
    exact = dataset.match_tags("test").match({"planted": {"$in": ["copy", "JPEG"]}})
    assert not set(exact.values("source")) & set(train.values("filepath"))
    assert len(train) >= ORIGINALS - PLANTED * len(KINDS)
    assert train.distinct("tags") == ["train"]


def test_outliers(dataset: Any, names: dict[str, Any]) -> None:
    photos = _ids(dataset, "photo")
    assert photos <= set(names["outliers"].values("id"))
    assert not photos & set(names["typical"].values("id"))


def test_varied(dataset: Any, names: dict[str, Any]) -> None:
    varied = names["varied"]
    assert len(varied) == 50
    vectors = np.stack(varied.values("hiera")) - np.mean(dataset.values("hiera"), axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = (vectors @ vectors.T)[~np.eye(50, dtype=bool)]
    assert 1 - similarity.max() > names["index"].thresh > 0.1


def test_documented_limits(dataset: Any, names: dict[str, Any]) -> None:
    # If one of these fails, FiftyOne has improved, and the document may say so
    index = fob.compute_near_duplicates(dataset, 0.005, embeddings="hiera")
    copies = _ids(dataset, "copy")
    pairs = [pair for pairs in index.neighbors_map.values() for pair in pairs]
    assert min(distance for one, distance in pairs if one in copies) > 0.1

    uniqueness = dataset.match({"planted": "copy"}).values("uniqueness")
    assert np.median(uniqueness) > 0.5 * np.median(dataset.values("uniqueness"))
    assert not _ids(dataset, "stripes") <= set(names["outliers"].values("id"))
    assert dataset.bounds("representativeness")[1] == pytest.approx(1)


def test_picture(dataset: Any, names: dict[str, Any]) -> None:
    path = Path(__file__).parents[1] / "docs" / "pictures" / "duplicates.png"
    if "PICTURES" in os.environ:
        _draw(dataset, names, path)

    assert path.stat().st_size < 150_000


def _draw(dataset: Any, names: dict[str, Any], path: Path) -> None:
    """Draw a duplicate of each kind beside its original, and the outliers."""
    from matplotlib.figure import Figure

    paths = dict(zip(*dataset.values(["id", "filepath"]), strict=True))
    duplicates = dataset.match_tags("duplicate")
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(3, 8)
    for index, one in enumerate(
        sample for kind in KINDS for sample in duplicates.match({"planted": kind}).limit(2)
    ):
        axes[0, index].set_title("kept", fontsize=9)
        axes[0, index].imshow(
            Image.open(paths[one.duplicate_of]).convert("L"), "gray", vmin=0, vmax=255
        )
        axes[1, index].set_title(one.planted, fontsize=9)
        axes[1, index].imshow(
            Image.open(one.filepath).convert("L"), "gray", vmin=0, vmax=255
        )

    for index, one in enumerate(names["outliers"].limit(8)):
        axes[2, index].set_title(f"{one.uniqueness:.2f}", fontsize=9)
        axes[2, index].imshow(
            Image.open(one.filepath).convert("L"), "gray", vmin=0, vmax=255
        )

    for one in axes.flat:
        one.set_axis_off()

    figure.savefig(path, dpi=100)


def _ids(dataset: Any, planted: str) -> set[str]:
    return set(dataset.match({"planted": planted}).values("id"))
