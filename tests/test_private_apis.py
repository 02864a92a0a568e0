"""What the package uses of others without a public name: each in one place, and there."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import eta.core.video as etav
import fiftyone as fo
import fiftyone.brain.internal.core.utils as fbu
import fiftyone.core.models as fom
import fiftyone.utils.torch as fout
import numpy as np
import pytest
import torch
from cpu_kinds import COMPUTES_BFLOAT16, ORIGINALS, say_truth
from fiftyone.brain import similarity, visualization
from fiftyone.brain.internal.core import representativeness, uniqueness
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from torch.utils.data import IterableDataset

from digits import Digit
from fiftyone_hiera.hiera import hub
from fiftyone_hiera.hiera.engines import has_bfloat16
from fiftyone_hiera.models import callers
from fiftyone_hiera.plugin import maps
from fiftyone_hiera.runs import fiftyone_internals as internals
from fiftyone_hiera.runs.schema import add_field

_ROOT = Path(__file__).parents[1]

# The module that uses each private attribute or argument of other packages, or patches them
_USED_IN = {
    "_dataset": "runs/fiftyone_internals.py",
    "_is_dynamic_groups": "runs/fiftyone_internals.py",
    "_get_label_field_path": "runs/fiftyone_internals.py",
    "_serialize": "runs/fiftyone_internals.py",
    "_doc": "runs/fiftyone_internals.py",
    "_sample_doc_cls": "runs/fiftyone_internals.py",
    "_frame_doc_cls": "runs/fiftyone_internals.py",
    "_get_field_doc": "runs/fiftyone_internals.py",
    "_parse_path": "runs/fiftyone_internals.py",
    "_declare_field": "runs/fiftyone_internals.py",
    "_stages": "runs/fiftyone_internals.py",
    "_pipeline": "runs/fiftyone_internals.py",
    "_sample_collection": "runs/fiftyone_internals.py",
    "_frame_collection": "runs/fiftyone_internals.py",
    "_raw": "runs/fiftyone_internals.py",
    "_allow_mixed": "runs/fiftyone_internals.py",
    "_allow_missing": "runs/views.py",
    "__class__": "models/datasets.py",
    "__init__": "models/datasets.py",
    "_generator_backpressure_num_objects": "cluster/driver.py",
    "_stream_info": "embedding/prefetch.py",
    "_is_avx512_bf16_supported": "hiera/engines.py",
    "_dynamo": "hiera/engines.py",
    "__mro__": "hiera/hub.py",
    "f_back": "models/callers.py",
    "f_code": "models/callers.py",
    "f_globals": "models/callers.py",
    "f_locals": "models/callers.py",
    "fp": "images/decoding.py",
    "decoderconfig": "images/decoding.py",
}

_PATCHED = {"__class__", "__init__"}


def _sources() -> Iterator[Path]:
    for name in tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["tool"][
        "setuptools"
    ]["packages"]:
        folder = name.removeprefix("fiftyone_hiera").removeprefix(".")
        yield from (_ROOT / folder).glob("*.py")

    yield from (_ROOT / "benchmarks").glob("*.py")


def _attributes(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the attributes that a module uses, with what they are attributes of."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node.value), node.attr


def _own_names() -> set[str]:
    """Return the names that the package itself defines."""
    names: set[str] = set()
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)

    return names


def _given_or_patched(path: Path) -> Iterator[str]:
    """Yield the private arguments that a module gives, and what it replaces in classes."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.keyword) and (node.arg or "").startswith("_"):
            yield str(node.arg)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from {node.attr} & _PATCHED


def test_private_names_are_used_in_one_module_each() -> None:
    own = _own_names()
    used: dict[str, set[str]] = {}
    for path in _sources():
        for name in _given_or_patched(path):
            used.setdefault(name, set()).add(str(path.relative_to(_ROOT)))

        for owner, name in _attributes(path):
            is_private = name.startswith("_") and not name.startswith("__")
            is_other = owner not in ("self", "cls", "super()") and name not in own
            is_public = name[0] != "_" or name.startswith("__")
            is_listed = is_public and name in _USED_IN.keys() - _PATCHED
            if (is_private and is_other) or is_listed:
                used.setdefault(name, set()).add(str(path.relative_to(_ROOT)))

    assert used == {name: {module} for name, module in _USED_IN.items()}


def test_dataset_of(dataset: Any) -> None:
    for samples in (dataset, dataset.view(), dataset.limit(1)):
        assert internals.dataset_of(samples) is dataset


@pytest.fixture
def labeled(dataset: Any, digits: list[Digit]) -> Any:
    """A sample with a detection."""
    box = fo.Detection(label="part", bounding_box=[0, 0, 1, 1])
    parts = fo.Detections(detections=[box])
    dataset.add_sample(fo.Sample(filepath=str(digits[0].path), parts=parts))
    return dataset


def test_label_path(labeled: Any) -> None:
    assert hasattr(labeled, "_get_label_field_path")
    found = internals.label_path(labeled, "parts")
    assert found == (fo.Detections, "parts.detections")


def test_stored_values(labeled: Any) -> None:
    paths = ["id", "parts.detections.id", "parts.detections.bounding_box"]
    (box,) = labeled.first().parts.detections
    expected = [labeled.first().id], [[box.id]], [[[0, 0, 1, 1]]]
    assert internals.stored_values(labeled, paths) == expected


def test_dynamic_groups(labeled: Any) -> None:
    assert hasattr(labeled.view(), "_is_dynamic_groups")
    for samples in (labeled, labeled.view()):
        assert internals.flatten_dynamic_groups(samples) is samples

    grouped = labeled.group_by("filepath")
    assert grouped.media_type == "group"
    flat = internals.flatten_dynamic_groups(grouped)
    assert flat.values("id") == labeled.values("id")


def test_all_slices(labeled: Any, dataset: Any, digits: list[Digit]) -> None:
    assert internals.all_slices(labeled) is labeled
    groups = fo.Dataset()
    groups.add_group_field("group", default="left")
    for name, path in (("left", str(digits[0].path)), ("right", "cloud.pcd")):
        groups.add_sample(fo.Sample(filepath=path, group=fo.Group().element(name)))

    assert internals.all_slices(groups).count() == 2
    groups.delete()


def test_view_stages(dataset: Any) -> None:
    assert hasattr(dataset.view(), "_serialize")
    (stage,) = internals.view_stages(dataset.limit(3))
    assert stage["_cls"] == "fiftyone.core.stages.Limit"
    assert ["limit", 3] in stage["kwargs"]


def test_pipeline_of_a_view(labeled: Any) -> None:
    for samples in (labeled, labeled.view()):
        assert hasattr(samples, "_pipeline")
        assert internals.pipeline_of(samples) == []
        assert internals.stages_of(samples) == []

    assert hasattr(labeled.view(), "_stages")
    (stage,) = internals.stages_of(labeled.limit(3))
    assert type(stage).__name__ == "Limit"
    assert internals.pipeline_of(labeled.limit(3)) == [{"$limit": 3}]


def test_collection_of_samples(labeled: Any) -> None:
    for name in ("_sample_collection", "_frame_collection"):
        assert hasattr(labeled, name)

    (document,) = internals.sample_collection(labeled).find()
    assert document["filepath"] == labeled.first().filepath


def test_document_of_a_dataset(dataset: Any) -> None:
    assert hasattr(dataset, "_doc")
    assert str(internals.dataset_id(dataset)) == str(dataset._doc.id)
    dataset.add_sample_field("hiera", fo.VectorField)
    internals.show_info(dataset, "hiera", {"mine": 1})
    assert dataset.get_field("hiera").info == {"mine": 1}


@pytest.mark.parametrize("path", ["hiera", "frames.hiera", "parts.detections.hiera"])
def test_fields_are_added_as_fiftyone_adds_them(path: str) -> None:
    documents = []
    for add in (add_field, _add_with_fiftyone):
        samples = fo.Dataset()
        name = "video.mp4" if path.startswith("frames.") else "image.png"
        samples.add_sample(fo.Sample(filepath=name, parts=fo.Detections()))
        add(samples, path, fo.VectorField, "Mine")
        field = samples.get_field(path)
        assert (type(field), field.description) == (fo.VectorField, "Mine")
        fields = samples._doc.to_dict()
        documents.append(_undated(fields["sample_fields"] + (fields["frame_fields"] or [])))
        samples.delete()

    assert documents[0] == documents[1]


def _add_with_fiftyone(samples: Any, path: str, ftype: Any, description: str) -> None:
    is_of_frames = path.startswith("frames.")
    add = samples.add_frame_field if is_of_frames else samples.add_sample_field
    add(path.removeprefix("frames."), ftype, description=description)


def _undated(fields: Any) -> Any:
    return [
        {
            **field,
            "created_at": field["created_at"] is None,
            "fields": _undated(field["fields"]),
        }
        for field in fields
    ]


def test_callers_of_a_model() -> None:
    assert fom.apply_model.__code__.co_name == "apply_model", "apply_model is wrapped"
    for embed in (fom.compute_embeddings, fom.compute_patch_embeddings):
        assert "samples" in embed.__code__.co_varnames, "FiftyOne renamed samples"
        source = inspect.getsource(embed)
        reads, adds = map(source.index, ("model.has_embeddings", ".add_frame_field("))
        assert reads < adds, "FiftyOne adds a field before it reads has_embeddings"

    assert fbu.__name__ == callers._BRAIN
    assert fbu.get_embeddings.__code__.co_name == "get_embeddings"
    for method in (
        similarity.compute_similarity,
        visualization.compute_visualization,
        uniqueness.compute_uniqueness,
        representativeness.compute_representativeness,
    ):
        code = method.__code__
        names = {"samples", "brain_key", "brain_method"}
        assert names <= {*code.co_varnames}, f"{code.co_name} renamed one of {names}"


def test_dataset_of_patches() -> None:
    own = fout.TorchImagePatchesDataset
    parameters = [*inspect.signature(own._extract_patches).parameters]
    assert parameters == ["self", "image_path", "patches"], "_extract_patches has changed"
    assert not issubclass(own, IterableDataset), "TorchImagePatchesDataset is iterable"
    call = "self._extract_patches(image_path, patches)"
    assert call in inspect.getsource(own.__getitem__), "nothing calls _extract_patches"
    taken = inspect.signature(fom._make_patch_data_loader)
    assert "transform=model.transforms" in inspect.getsource(fom._make_patch_data_loader)
    assert "model" in taken.parameters
    dataset = own(image_paths=[], patches=[], transform=repr, alpha=0.5, force_square=True)
    assert (dataset.transform, dataset.alpha, dataset.force_square) == (repr, 0.5, True)


def test_stored_umap() -> None:
    fitted = SimpleNamespace(embedding_=np.arange(6.0).reshape(3, 2))
    kept = maps._keep_fitted(  # of a map to which a fourth point was added
        visualization._pickle_reducer(fitted), np.array([True, False, True, False])
    )
    points = visualization._unpickle_reducer(kept).embedding_
    assert points.tolist() == [[0, 1], [4, 5]]


def test_pillow(digits: list[Digit], tmp_path: Path) -> None:
    Image.open(digits[0].path).convert("RGB").save(tmp_path / "image.jpg")
    with Image.open(tmp_path / "image.jpg") as image:
        assert hasattr(image, "fp"), "Pillow's images have no fp"
        assert hasattr(image, "decoderconfig"), "Pillow's JPEGs have no decoderconfig"
        assert not image.decoderconfig
        image.draft("RGB", (8, 8))
        assert image.decoderconfig, "Pillow's decoderconfig does not show a draft"
        image.load()
        assert image.fp is None, "Pillow's fp does not show that the image is decoded"


def test_eta() -> None:
    class Reader(etav.FFmpegVideoReader):  # needs no ffmpeg
        def __init__(self) -> None:
            self._stream_info = etav.VideoStreamInfo({"width": 4}, {})

    assert Reader()._stream_info.stream_info == {"width": 4}
    names = etav.FFmpegVideoReader.__init__.__code__.co_names
    assert "_stream_info" in names, "eta's FFmpegVideoReader has no _stream_info"


def test_huggingface_hub() -> None:
    error = HfHubHTTPError.__mro__[1]
    assert error in hub._ERRORS
    package = error.__module__.partition(".")[0]
    assert package != "huggingface_hub", "HfHubHTTPError is not its HTTP client's error"
    client = importlib.import_module(package)
    # In httpx and its successors, and in requests
    broken = getattr(client, "ConnectError", None) or client.ConnectionError
    assert issubclass(broken, hub._ERRORS), f"{package}'s errors have no common base"


def test_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ORIGINALS, "torch.cpu lost _is_avx512_bf16_supported"
    say_truth(monkeypatch)
    assert has_bfloat16() == COMPUTES_BFLOAT16
    if "_is_avx512_bf16_supported" in ORIGINALS:
        assert has_bfloat16() == torch.cpu._is_avx512_bf16_supported()


def test_torch_without_its_private_function(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert has_bfloat16()
    capabilities.clear()
    assert not has_bfloat16()


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [
        ((7, 5), None, False),
        ((8, 0), None, True),
        ((9, 0), None, True),
        ((9, 4), "6", False),
    ],
    ids=str,
)
def test_bfloat16_of_gpus(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    hip: str | None,
    expected: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert has_bfloat16("cuda:1") is expected
    assert not has_bfloat16("mps")
