"""Loaded weights are those of the recorded sha256, whatever their file does."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import numpy.typing as npt
import pytest
import torch
from random_hiera import make_classifier, make_config, make_hiera, save_checkpoint
from transformers import HieraForPreTraining

import fiftyone_hiera
from fiftyone_hiera.hiera import weights_file

_IMAGE = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
_NAME = "model.safetensors"


def _save(folder: Path, seed: int) -> str:
    """Save weights to a folder; return their sha256."""
    save_checkpoint(folder, make_hiera(make_config(), seed))
    return hashlib.sha256((folder / _NAME).read_bytes()).hexdigest()


def _load(checkpoint: Path | str, **options: Any) -> Any:
    exact = {"dtype": "float32", "engine": "torch", "device": "cpu"}
    options = {**exact, **options, "checkpoint": str(checkpoint)}
    return fiftyone_hiera.load_model("hiera-nano-digits", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _save(tmp_path / "checkpoint", seed=1)
    return tmp_path / "checkpoint"


def _add(dataset: fo.Dataset, digits: list[Any], count: int = 8) -> None:
    dataset.add_samples([fo.Sample(filepath=str(one.path)) for one in digits[:count]])


def test_weights_that_changed_after_loading_are_not_mixed(
    dataset: fo.Dataset, digits: list[Any], folder: Path
) -> None:
    sha256 = _save(folder, seed=1)
    first = _load(folder)
    others = _save(folder, seed=2)
    second = _load(folder)
    _add(dataset, digits)
    first.embed_samples(dataset[:4], "hiera")
    assert dataset.get_field("hiera").info["sha256"] == sha256
    assert second.embedder.provenance["sha256"] == others
    with pytest.raises(ValueError, match="sha256"):
        second.embed_samples(dataset, "hiera")

    first.embed_samples(dataset, "hiera")
    for sample in dataset:
        expected = first.embed(sample.filepath)
        assert np.allclose(sample.hiera, expected, atol=1e-4)


def test_basis_of_weights_that_changed_after_loading_is_refused(
    dataset: fo.Dataset, digits: list[Any], folder: Path, tmp_path: Path
) -> None:
    model = _load(folder, output="heatmap")
    _save(folder, seed=2)
    _add(dataset, digits)
    basis = str(tmp_path / "basis.safetensors")
    model.fit_heatmap(dataset, basis)
    with pytest.raises(ValueError, match=r"Invalid heatmap_basis: .* sha256="):
        _load(folder, output="heatmap", heatmap_basis=basis)


def _flip(path: Path) -> None:
    """Change the last bytes of a file in place."""
    with open(path, "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        data = file.read()
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(byte ^ 0x41 for byte in data))


def _make_kind(kind: str) -> torch.nn.Module:
    if kind == "HieraForImageClassification":
        return make_classifier(make_config(architectures=[kind]))

    if kind == "HieraForPreTraining":
        decoder = {"decoder_depth": 1, "decoder_hidden_size": 32, "decoder_num_heads": 2}
        config = make_config(architectures=[kind], num_query_pool=2, **decoder)
        return HieraForPreTraining(config).eval()

    return make_hiera(make_config())


def _outputs(model: Any) -> list[npt.NDArray[Any]]:
    outputs = [model.embed(_IMAGE), *model.feature_maps([_IMAGE], [4]).values()]
    if hasattr(model, "classes"):
        model.store_logits = True
        outputs.append(model.predict(_IMAGE).logits)

    if hasattr(model, "reconstruct"):
        outputs.append(np.asarray(model.reconstruct(_IMAGE)))

    return outputs


@pytest.mark.parametrize(
    "kind", ["HieraModel", "HieraForImageClassification", "HieraForPreTraining"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_file_that_changes_in_place_does_not_change_the_model(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    folder = save_checkpoint(tmp_path, _make_kind(kind))
    model = _load(folder, dtype=dtype)
    expected = _outputs(model)
    _flip(folder / _NAME)
    for one, other in zip(_outputs(model), expected, strict=True):
        assert np.array_equal(one, other)


_TRUNCATED = """
import os, sys
import numpy as np, fiftyone_hiera
model = fiftyone_hiera.load_model(
    "hiera-nano-digits", checkpoint=sys.argv[1], engine="torch", dtype="float32"
)
os.truncate(os.path.join(sys.argv[1], "model.safetensors"), 100)
assert np.isfinite(model.embed(np.zeros((9, 9, 3), np.uint8))).all()
assert len(model.embedder.provenance["sha256"]) == 64
"""


@pytest.mark.slow
def test_file_that_is_truncated_does_not_end_the_process(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _TRUNCATED, str(folder)]
    subprocess.run(command, env=environment, check=True)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_other_stages_are_of_the_same_weights(folder: Path, engine: str) -> None:
    model = _load(folder, engine=engine)
    intact = (folder / _NAME).read_bytes()
    _save(folder, seed=2)
    with pytest.raises(ValueError, match=r"model\.safetensors changed after .* again"):
        model.feature_maps([_IMAGE], [2])

    (folder / _NAME).unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors was removed after .* again"):
        model.feature_maps([_IMAGE], [2])

    (folder / _NAME).write_bytes(intact)
    found = model.feature_maps([_IMAGE], [2, 4])
    expected = _load(folder, engine=engine).feature_maps([_IMAGE], [2, 4])
    for stage, maps in expected.items():
        assert np.array_equal(found[stage], maps)


def test_file_that_is_gone_before_the_first_record(
    dataset: fo.Dataset, digits: list[Any], folder: Path
) -> None:
    model = _load(folder)
    shutil.rmtree(folder)
    _add(dataset, digits, 2)
    assert model.embed_samples(dataset, "hiera").embedded == 2
    assert len(dataset.get_field("hiera").info["sha256"]) == 64


def test_relative_path_is_resolved_at_loading(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    models = [_load(folder.name), _load(Path("checkpoint") / _NAME)]
    monkeypatch.chdir(tmp_path.parent)
    assert len(models[0].embedder.provenance["sha256"]) == 64
    checkpoints = [model.embedder.provenance["checkpoint"] for model in models]
    assert checkpoints == [str(folder), str(folder / _NAME)]
    assert models[0].feature_maps([_IMAGE], [1, 2])
    assert _load(checkpoints[0]).embedder.provenance == models[0].embedder.provenance


def test_link_is_resolved_at_loading(folder: Path, tmp_path: Path) -> None:
    link, others = tmp_path / "latest", tmp_path / "others"
    link.symlink_to(folder)
    expected = _load(folder).feature_maps([_IMAGE], [1])["stage1"]
    model = _load(link)
    _save(others, seed=2)
    link.unlink()
    link.symlink_to(others)
    assert np.array_equal(model.feature_maps([_IMAGE], [1])["stage1"], expected)
    assert model.embedder.provenance["checkpoint"] == str(link)


@pytest.mark.parametrize(
    "kind", ["HieraModel", "HieraForImageClassification", "HieraForPreTraining"]
)
def test_file_is_read_once_at_loading(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(tmp_path, _make_kind(kind))
    read, paths = weights_file._read, []

    def count(path: Path, *args: Any) -> Any:
        paths.append(path)
        return read(path, *args)

    monkeypatch.setattr(weights_file, "_read", count)
    model = _load(folder)
    _outputs(model)
    assert len(model.embedder.provenance["sha256"]) == 64
    assert paths == [folder / _NAME]
