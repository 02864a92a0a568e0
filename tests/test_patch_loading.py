"""FiftyOne's data loader of patches reads with our decoder for our models alone."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.models as fom
import fiftyone.utils.torch as fout
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from fiftyone_hiera.models.datasets import PatchesDataset
from fiftyone_hiera.models.embedding import HieraEmbeddingModel


class OtherModel(fom.TorchModelMixin, fom.EmbeddingsMixin, fom.Model):
    """A model of somebody else, which remembers what its transform was called with."""

    def __init__(self, meet: threading.Barrier) -> None:
        self.seen: set[type] = set()
        self._meet = meet

    media_type, has_embeddings, ragged_batches = "image", True, False
    preprocess, has_collate_fn = True, False

    @property
    def transforms(self) -> Any:
        return self._transform

    def _transform(self, patch: Any) -> torch.Tensor:
        self.seen.add(type(patch))
        return torch.zeros(3, 8, 8)

    def __enter__(self) -> OtherModel:
        self._meet.wait(30)
        return self

    def __exit__(self, *args: object) -> None:
        self._meet.wait(30)

    def embed_all(self, args: Any) -> Any:
        return np.zeros((len(args), 4))

    predict = embed = embed_all


@pytest.fixture
def truncated(dataset: fo.Dataset, tmp_path: Path) -> fo.Dataset:
    """A sample whose file OpenCV decodes, and fills up with gray."""
    path = tmp_path / "truncated.jpg"
    Image.fromarray(data.coffee()).save(path)
    path.write_bytes(path.read_bytes()[:-9000])
    whole = fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 1, 1])])
    dataset.add_sample(fo.Sample(filepath=str(path), whole=whole))
    return dataset


def _paths_and_boxes(path: Path) -> dict[str, Any]:
    boxes = [fo.Detection(bounding_box=box) for box in ([0, 0, 0.5, 0.5], [0, 0, 1, 1])]
    return {"image_paths": [str(path)], "patches": [fo.Detections(detections=boxes)]}


def test_two_models_in_two_threads(
    truncated: fo.Dataset, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each enters its model before the other one reads, and leaves it after."""
    meet = threading.Barrier(2)
    other = OtherModel(meet)

    def enter_together(self: HieraEmbeddingModel) -> HieraEmbeddingModel:
        entered = enter(self)
        meet.wait(30)
        return entered

    def leave_together(self: HieraEmbeddingModel, *args: object) -> None:
        meet.wait(30)
        leave(self, *args)

    enter, leave = HieraEmbeddingModel.__enter__, HieraEmbeddingModel.__exit__
    monkeypatch.setattr(HieraEmbeddingModel, "__enter__", enter_together)
    monkeypatch.setattr(HieraEmbeddingModel, "__exit__", leave_together)
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(
            lambda each: truncated.compute_patch_embeddings(each, "whole", num_workers=0),
            (model, other),
        )

    assert [*ours.values()] == [None]
    assert [array.shape for array in theirs.values()] == [(1, 4)]
    assert other.seen == {Image.Image}


def test_other_datasets_of_patches_stay_fiftyones(
    model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 30)).save(path)
    own = fout.TorchImagePatchesDataset
    with model:
        assert fout.TorchImagePatchesDataset is own
        theirs = own(**_paths_and_boxes(path), transform=np.asarray, use_numpy=True)
        ours = own(**_paths_and_boxes(path), transform=model.transforms)

    assert type(theirs) is own
    assert type(pickle.loads(pickle.dumps(theirs))) is own
    assert isinstance(ours, PatchesDataset)
    assert ours[0].shape == (2, 3, 64, 64)


@pytest.mark.slow
def test_spawned_workers_read_strictly(
    truncated: fo.Dataset, model: HieraEmbeddingModel
) -> None:
    dataset = fout.TorchImagePatchesDataset(
        samples=truncated,
        patches_field="whole",
        transform=model.transforms,
        skip_failures=True,
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )
    (read,) = loader
    assert isinstance(read, ValueError)
    assert "Premature end" in str(read)


@pytest.mark.parametrize("form", [str, Path, Path.read_bytes])
def test_paths_and_bytes(model: HieraEmbeddingModel, tmp_path: Path, form: Any) -> None:
    path = tmp_path / "image.png"
    array = data.coffee()[:90, :80]
    Image.fromarray(array).save(path)
    dataset = fout.TorchImagePatchesDataset(
        **_paths_and_boxes(path), transform=model.transforms
    )
    boxes = np.array([[0, 0, 0.5, 1], [0, 0, 1, 1]])
    left, whole = dataset._extract_patches(form(path), boxes)
    assert torch.equal(left, model.transforms(array[:, :40]))
    assert torch.equal(whole, model.transforms(array))


@pytest.mark.parametrize("source", [np.zeros((9, 9, 3), np.uint8), None, 3], ids=type)
def test_other_sources_are_refused(
    model: HieraEmbeddingModel, tmp_path: Path, source: Any
) -> None:
    dataset = fout.TorchImagePatchesDataset(
        **_paths_and_boxes(tmp_path / "image.png"), transform=model.transforms
    )
    with pytest.raises(TypeError, match=r"path or the bytes of an image file, found \w+"):
        dataset._extract_patches(source, np.array([[0, 0, 1, 1]]))
