"""The snippets of the README and the pages, run as they are written.

Names of checkpoints, paths and URLs are those of the tests.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fiftyone as fo
import numpy as np
import PIL.Image
import pytest
from index_servers import configured
from random_hiera import make_classifier, make_config, save_checkpoint
from test_docs import ROOT, blocks
from transformers import HieraForPreTraining
from write_docs import homepage
from zoo_user import NANO, TINY, ZooUser

import fiftyone_hiera
from digits import Digit

COUNT = 12

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("zoo")]


@pytest.fixture(scope="module")
def images(digits: list[Digit], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digits."""
    folder = tmp_path_factory.mktemp("images")
    for digit in digits[:COUNT]:
        (folder / digit.path.name).symlink_to(digit.path)

    return folder


@pytest.fixture
def samples(images: Path) -> Iterator[Any]:
    """A dataset of digits with a detection each."""
    dataset = fo.Dataset("my-dataset", overwrite=True)
    for path in sorted(images.iterdir()):
        box = fo.Detection(label="digit", bounding_box=[0, 0, 1, 1])
        boxes = fo.Detections(detections=[box])
        dataset.add_sample(fo.Sample(filepath=str(path), ground_truth=boxes))

    yield dataset
    dataset.delete()


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``foz.load_zoo_model`` with random weights for Meta's checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = make_config()
    autoencoder = make_config(decoder_hidden_size=32, decoder_depth=1, decoder_num_heads=2)
    own = {
        "in1k": save_checkpoint(folder / "in1k", make_classifier(config)),
        "mae": save_checkpoint(folder / "mae", HieraForPreTraining(autoencoder)),
    }

    def load_zoo_model(name: str, **options: Any) -> Any:
        for kind, path in own.items():
            if f"-{kind}-" in name or options.get("checkpoint") == "/path/to/folder":
                options["checkpoint"] = str(path)
                break

        return fiftyone_hiera.load_model(NANO, dtype="float32", engine="torch", **options)

    return load_zoo_model


def run(page: str, names: dict[str, Any], *numbers: int) -> dict[str, Any]:
    """Run the Python snippets of a page, all or those of some numbers from 1."""
    path = ROOT / page
    for number, block in enumerate(blocks(path, "python"), 1):
        if not numbers or number in numbers:
            block = block.replace('"pgvector"', '"lancedb"').replace(TINY, NANO)
            exec(compile(block, f"{page}, snippet {number}", "exec"), names)

    return names


def from_images_dir(images: Path, name: str) -> str:
    """Return code that makes a dataset."""
    return f'fo.Dataset.from_images_dir("{images}", name="{name}", overwrite=True)'


def test_readme(zoo_user: ZooUser, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo_user.forget()
    readme = ROOT / "README.md"
    install = blocks(readme, "shell")[0].strip().splitlines()
    assert len(install) == 3
    for command in install:
        zoo_user.cli(*command.replace(homepage(), zoo_user.url).split()[1:])

    start, run_again, *_ = blocks(readme, "python")
    lines = [line for line in start.splitlines() if line]
    assert len(lines) == 8
    assert "fo.launch_app(dataset)" in lines[-1]
    dataset = from_images_dir(images, "quickstart")
    code = start.replace('foz.load_zoo_dataset("quickstart")', dataset)
    assert code != start
    result = """
session.close()
query = dataset.first()
view = dataset.sort_by_similarity(query.id, k=10, brain_key="hiera_similarity")
result = [
    dataset.first().hiera.shape,
    view.first().id == query.id and len(view) == 10,
    dataset.load_brain_results("hiera_map").points.shape,
    [report.embedded, report.skipped, len(report.failed)],
]
"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("FIFTYONE_DEFAULT_APP_PORT", str(probe.getsockname()[1]))

    monkeypatch.setenv("BROWSER", "true")
    expected = [[768], True, [COUNT, 2], [0, COUNT, 0]]
    assert zoo_user.new_python(code + run_again + result) == expected


def test_app(zoo_user: ZooUser, images: Path) -> None:
    zoo_user.forget()
    install = blocks(ROOT / "docs" / "app.md", "shell")[0].splitlines()
    readme = blocks(ROOT / "README.md", "shell")[0].splitlines()
    assert install == readme[:2]  # which test_readme runs; pip takes its time
    zoo_user.cli(*install[0].replace(homepage(), zoo_user.url).split()[1:])

    (operator,) = blocks(ROOT / "docs" / "app.md", "python")
    dataset = from_images_dir(images, "app")
    code = f"dataset = {dataset}\n{operator}\nresult = dataset.first().hiera_new.shape"
    assert zoo_user.python(code.replace(TINY, NANO)) == [192]


def test_methods_of_fiftyone(zoo_user: ZooUser, images: Path) -> None:
    page = ROOT / "docs" / "embedding.md"
    code = blocks(page, "python")[2]
    setup = f"""
foz.register_zoo_model_source(url)
dataset = {from_images_dir(images, "my-dataset")}
dataset.persistent = True
for sample in dataset.iter_samples(autosave=True):
    box = fo.Detection(label="digit", bounding_box=[0, 0, 1, 1])
    sample["ground_truth"] = fo.Detections(detections=[box])

videos = fo.Dataset()
videos.media_type = "video"
model = foz.load_zoo_model(TINY)
"""
    result = """
result = [
    dataset.first().native.shape,
    dataset.first().ground_truth.detections[0].native.shape,
    dataset.load_brain_results("native_sim").total_index_size,
]
dataset.delete_sample_field("native")
"""
    assert zoo_user.python(setup + code + result) == [[768], [768], COUNT]

    outputs = {}
    for command in blocks(page, "shell")[1].strip().splitlines():
        arguments = command.split()[1:]
        outputs[arguments[2]] = zoo_user.cli(*arguments)

    assert "facebook/hiera-huge-224-hf-cls" in outputs["list"]
    assert "CC BY-NC 4.0" in outputs["info"]
    assert "masked autoencoder" in outputs["info"]
    code = "result = fo.load_dataset('my-dataset').first().native.shape"
    assert zoo_user.python(code) == [768]


def test_clone_in_the_zoo(zoo_user: ZooUser) -> None:
    command = blocks(ROOT / "docs" / "weights.md", "shell")[1].strip()
    zoo_dir = '"$(fiftyone config model_zoo_dir)/fiftyone_hiera"'
    assert command == f"git clone /path/to/checkout {zoo_dir}"
    # A clone has what is committed; this has what is tested
    clone = zoo_user.home / "own-zoo" / "fiftyone_hiera"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    code = f"""
fo.config.model_zoo_dir = {str(clone.parent)!r}
model = foz.load_zoo_model(NANO)
result = [foz.list_zoo_model_sources(), model.embedding_dim]
"""
    assert zoo_user.new_python(code) == [[], 192]
    assert (clone / f"{NANO}.safetensors").exists()


def test_embedding(samples: Any, images: Path, load: Any) -> None:
    paths = [str(path) for path in sorted(images.iterdir())]
    names = {
        "dataset": samples,
        "model": load(NANO),
        "path": paths[0],
        "paths": paths,
    }
    names = run("docs/embedding.md", names, 1, 2, 4)
    assert names["report"].embedded == COUNT
    assert np.allclose(names["vector"], samples.first().hiera, atol=1e-4)
    assert names["vectors"].shape == (COUNT, 192)


def test_outputs(samples: Any, images: Path, load: Any) -> None:
    paths = [str(path) for path in sorted(images.iterdir())]
    names = {
        "dataset": samples,
        "foz": SimpleNamespace(load_zoo_model=load),
        "path": paths[0],
        "images": [PIL.Image.open(path) for path in paths],
    }
    names = run("docs/outputs.md", names, 2, 3, 4, 5, 6)
    assert samples.count("predicted.label") == COUNT
    assert samples.first().head.shape == names["maps"]["stage4"].shape[1:2]
    assert list(names["maps"]) == ["stage1", "stage2", "stage3", "stage4"]
    assert samples.count("heat") == samples.count("reconstruction.error") == COUNT
    assert len(names["unusual"]) == COUNT
    assert names["picture"].size == (64, 64)

    first = samples.first()
    first["predicted"] = None
    first.save()
    names["model"] = load("facebook/hiera-tiny-224-in1k-hf")
    run("docs/outputs.md", names, 1)
    assert samples.count("predicted") == COUNT


def test_own_weights(load: Any) -> None:
    loaded = []

    def load_zoo_model(name: str, **options: Any) -> None:
        loaded.append(load(name, **options))

    run("docs/models.md", {"foz": SimpleNamespace(load_zoo_model=load_zoo_model)})
    assert [model.settings.pooling for model in loaded] == ["pooler"]


def test_maps(zoo_user: ZooUser, images: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "maps.md", "python")
    setup = f"""
foz.register_zoo_model_source(url)
dataset = {from_images_dir(images, "maps")}
foz.load_zoo_model(NANO).embed_samples(dataset, "hiera")
"""
    result = "result = dataset.load_brain_results('hiera_map').points.shape"
    assert zoo_user.python(setup + code + result) == [COUNT, 2]


def test_indexes(samples: Any, model: Any, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    names = {"dataset": samples, "model": model, "query_id": samples.first().id}
    with contextlib.ExitStack() as stack:
        stack.enter_context(configured("lancedb", uri=str(tmp_path / "lancedb")))
        names = run("docs/indexes.md", names, 1)
        assert names["view"].first().id == samples.first().id
        samples.delete_brain_run("hiera_sim")
        run("docs/indexes.md", names, 2)
        assert samples.load_brain_results("hiera_sim").total_index_size == COUNT
