"""Provenance of fields, recorded by this release and by older ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.embedding.provenance import differing
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.schema import read_provenance

_DATASET = Path(__file__).parent / "data" / "made_by_0_1_0" / "dataset"

# The options that release 0.1.0 computed the fields of this dataset with
_OPTIONS: dict[str, dict[str, Any]] = {
    "hiera": {},
    "squashed": {"stage": 3, "image_size": (96, 64), "squash": True},
    "wide": {"image_size": (96, 64), "pooling": "cls", "normalize": True},
}


def _load(**options: Any) -> HieraEmbeddingModel:
    return fiftyone_hiera.load_model(
        "hiera-nano-digits", dtype="float32", engine="torch", **options
    )


@pytest.fixture
def old(digits: list[Digit]) -> Iterator[Any]:
    """Four samples that release 0.1.0 embedded, and a new one."""
    dataset = fo.Dataset.from_dir(
        dataset_dir=str(_DATASET), dataset_type=fo.types.FiftyOneDataset
    )
    dataset.add_sample(fo.Sample(filepath=str(digits[51].path)))
    yield dataset
    dataset.delete()


def _info(dataset: Any, field: str = "hiera") -> dict[str, Any]:
    dataset.reload()
    return dict(dataset.get_field(field).info)


def _set_info(dataset: Any, info: dict[str, Any], field: str = "hiera") -> None:
    dataset.reload()
    dataset.get_field(field).info = info
    dataset.get_field(field).save()


@pytest.mark.parametrize("field", list(_OPTIONS))
def test_field_of_0_1_0_is_continued(old: Any, field: str) -> None:
    info = _info(old, field)
    assert isinstance(info["preprocessing"], str)
    assert "provenance_version" not in info
    report = _load(**_OPTIONS[field]).embed_samples(old, field)
    assert (report.embedded, report.skipped, report.failed) == (1, 4, [])
    assert _info(old, field) == info, "release 0.1.0 could not continue it"


@pytest.mark.parametrize("field", list(_OPTIONS))
def test_embeddings_equal_those_of_0_1_0(old: Any, field: str) -> None:
    _load(**_OPTIONS[field]).embed_samples(old[:4], "today")
    before, today = (np.stack(old[:4].values(name)) for name in (field, "today"))
    assert np.abs(today - before).max() < 1e-5


@pytest.mark.parametrize(
    ("field", "changes", "differs"),
    [
        ("hiera", {"pooling": "cls"}, "pooling"),
        ("hiera", {"image_size": 96}, "preprocessing"),
        ("hiera", {"squash": True}, "preprocessing"),
        ("squashed", {"stage": 4}, "stage"),
        ("squashed", {"squash": False}, "preprocessing"),
        ("wide", {"normalize": False}, "normalize"),
        ("wide", {"image_size": (64, 96)}, "preprocessing"),
    ],
)
def test_field_of_0_1_0_with_other_settings_is_refused(
    old: Any, field: str, changes: dict[str, Any], differs: str
) -> None:
    model = _load(**{**_OPTIONS[field], **changes})
    with pytest.raises(ValueError, match=f"4 embeddings .* differ in {differs}\\.\n"):
        model.embed_samples(old, field)

    assert old.count(field) == 4


def test_messages_name_what_differs_in_the_preprocessing(old: Any) -> None:
    with pytest.raises(ValueError, match="differ in preprocessing") as error:
        _load(image_size=96).embed_samples(old, "hiera")

    assert str(error.value).splitlines()[1:] == [
        "  The field: checkpoint hiera-nano-digits, "
        "preprocessing {'resize': [73, 73], 'crop': [64, 64]}.",
        "  This run: checkpoint hiera-nano-digits, "
        "preprocessing {'resize': [109, 109], 'crop': [96, 96]}.",
        "  To add to it, load the model with image_size=None.",
    ]


def test_overwritten_field_of_0_1_0_is_recorded_as_of_this_release(
    old: Any, digits: list[Digit]
) -> None:
    model = _load()
    old.add_sample_field("new", fo.VectorField)
    model.embed_samples(old, "new")
    assert model.embed_samples(old, "wide", overwrite=True).embedded == 5
    assert _info(old, "wide") == _info(old, "new")
    assert _info(old, "wide")["provenance_version"] == 2


def test_field_overwritten_by_0_1_0_is_read_as_of_0_1_0(old: Any) -> None:
    text = _info(old)
    wide = _load(**_OPTIONS["wide"])
    wide.embed_samples(old, "hiera", overwrite=True)

    # Release 0.1.0 adds its own keys to those that it finds
    _set_info(old, {**_info(old), **text})
    assert _info(old)["provenance_version"] == 2
    with pytest.raises(ValueError, match="differ in pooling, normalize, preprocessing"):
        wide.embed_samples(old, "hiera")

    assert _load().embed_samples(old, "hiera", verify=0).skipped == 5


def test_fields_recorded_before_some_options_existed_are_continued(old: Any) -> None:
    new = ("engine", "fast_decoding", "stage", "image_size", "squash")
    info = {name: value for name, value in _info(old).items() if name not in new}
    _set_info(old, info)
    assert _load().embed_samples(old, "hiera").embedded == 1


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"provenance_version": 3}, "provenance_version"),
        ({"preprocessing": "resize the way nobody knows"}, "preprocessing"),
        ({"preprocessing": None}, "preprocessing"),
    ],
)
def test_provenance_that_cannot_be_read_is_refused(
    old: Any, changes: dict[str, Any], differs: str
) -> None:
    model = _load()
    model.embed_samples(old, "new")
    _set_info(old, {**_info(old, "new"), **changes}, "new")
    with pytest.raises(ValueError, match=f"5 embeddings .* differ in {differs}\\.\n"):
        model.embed_samples(old, "new")


def test_other_keys_of_the_info_are_no_provenance(dataset: Any) -> None:
    dataset.add_sample_field("hiera", fo.VectorField, info={"checkpoint": "mine"})
    assert read_provenance(dataset, "hiera") == {}
    assert "sha256" in differing({}, _load().embedder.provenance)


def test_info_has_no_null(old: Any) -> None:
    """FiftyOne's App cannot show a null in a field's info."""
    _load().embed_samples(old, "new")
    assert None not in _info(old, "new").values()
