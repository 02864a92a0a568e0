"""The table of checkpoints, the manifest and the options."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import re
import sys
import tomllib
import types
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from fiftyone.zoo.models import RemoteZooModelsManifest
from write_manifest import build_manifest

from fiftyone_hiera import config
from fiftyone_hiera.checkpoints import CHECKPOINTS, Checkpoint, get_checkpoint
from fiftyone_hiera.config import (
    AUTO,
    OPTIONS,
    Options,
    Settings,
    parse_settings,
)
from fiftyone_hiera.embedding.provenance import RECORDED_OPTIONS
from fiftyone_hiera.embedding.version import VERSION
from fiftyone_hiera.errors import OptionError
from fiftyone_hiera.hiera import engines
from fiftyone_hiera.hiera.engines import OPENVINO
from fiftyone_hiera.hiera.hub import BundledFile

ROOT = Path(__file__).parents[1]
VARIANTS = ("tiny", "small", "base", "base-plus", "large", "huge")
TINY = CHECKPOINTS["facebook/hiera-tiny-224-hf"]
_BASIS = ROOT / "tests" / "data" / "made_by_0_1_0" / "basis.safetensors"
BIRDER = "birder-project/hiera_abswin_base_mim"
TINY_CLS = CHECKPOINTS["facebook/hiera-tiny-224-hf-cls"]


@pytest.fixture(scope="module")
def manifest() -> RemoteZooModelsManifest:
    return RemoteZooModelsManifest.from_json(str(ROOT / "manifest.json"))


def test_manifest_is_the_table() -> None:
    text = (ROOT / "manifest.json").read_text("utf-8")
    assert json.loads(text) == build_manifest(), "run scripts/write_manifest.py"


def test_entries() -> None:
    kinds = ("hf", "hf-cls", "in1k-hf", "mae-hf")
    expected = {f"facebook/hiera-{v}-224-{kind}" for v in VARIANTS for kind in kinds}
    assert set(CHECKPOINTS) == expected | {BIRDER, "hiera-nano-digits", "hiera-nano-photos"}
    assert all(name.endswith(("-hf", "-cls")) for name in list(CHECKPOINTS)[:12])
    assert "in1k" not in "".join(list(CHECKPOINTS)[:12])


def test_benchmarks_have_the_layouts_of_the_table() -> None:
    from network import LAYOUTS

    expected = {v: CHECKPOINTS[f"facebook/hiera-{v}-224-hf"] for v in VARIANTS}
    layouts = {v: (e.depths, e.embed_dim, e.config.num_heads) for v, e in expected.items()}
    assert layouts == LAYOUTS


def test_names_and_files_are_unique() -> None:
    assert all(name == c.name for name, c in CHECKPOINTS.items())
    assert len({c.filename for c in CHECKPOINTS.values()}) == len(CHECKPOINTS)
    # FiftyOne imports the source from the folder of this file
    assert not any("/" in c.filename for c in CHECKPOINTS.values())


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=list(CHECKPOINTS))
def test_weights_are_pinned(checkpoint: Checkpoint) -> None:
    if isinstance(checkpoint.file, BundledFile):
        content = checkpoint.file.path.read_bytes()
        assert len(content) < 3_000_000
        assert hashlib.sha256(content).hexdigest() == checkpoint.file.sha256
        return

    revision, sha256 = checkpoint.file.revision, checkpoint.file.sha256
    assert revision or sha256
    assert revision is None or re.fullmatch("[0-9a-f]{40}", revision)
    assert sha256 is None or re.fullmatch("[0-9a-f]{64}", sha256)
    name = "hiera_abswin_base_mim" if checkpoint.name == BIRDER else "model"
    assert checkpoint.file.filename == f"{name}.safetensors"


def test_cls_entries_share_the_weights() -> None:
    for variant in VARIANTS:
        plain = CHECKPOINTS[f"facebook/hiera-{variant}-224-hf"]
        cls = CHECKPOINTS[f"facebook/hiera-{variant}-224-hf-cls"]
        assert plain.file == cls.file
        assert (plain.pooling, cls.pooling) == (None, "cls")


def test_manifest_is_complete(manifest: RemoteZooModelsManifest) -> None:
    assert manifest.name == "fiftyone_hiera"
    assert [model.name for model in manifest] == list(CHECKPOINTS)
    for model in manifest:
        checkpoint = CHECKPOINTS[model.name]
        assert model.base_filename == checkpoint.filename
        assert "embeddings" in model.tags
        assert model.date_added is not None
        assert model.default_deployment_config_dict is None
        assert model.requirements.supports_cpu
        assert model.requirements.supports_gpu
        assert f"{checkpoint.embedding_dim} dimensions" in model.description
        assert model.license == (
            "CC BY-NC 4.0" if model.name.startswith("facebook/") else "Apache 2.0"
        )


def test_stated_sizes_are_those_of_the_hub() -> None:
    megabytes = {
        kind: [
            round(CHECKPOINTS[f"facebook/hiera-{v}-224-{kind}"].parameters * 4e-6)
            for v in VARIANTS
        ]
        for kind in ("hf", "in1k-hf", "mae-hf")
    }
    assert megabytes == {
        "hf": [109, 137, 203, 276, 850, 2683],
        "in1k-hf": [112, 140, 206, 280, 855, 2691],
        "mae-hf": [220, 248, 315, 390, 972, 2840],
    }


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == VERSION


def test_requirements_name_every_import(manifest: RemoteZooModelsManifest) -> None:
    folders = [ROOT, *(init.parent for init in ROOT.glob("*/__init__.py"))]
    sources = [source for folder in folders for source in folder.glob("*.py")]
    imported = {
        (name or "").partition(".")[0]
        for source in sources
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        for name in _imported(node)
    }
    third_party = {
        name for name in imported if name and name not in sys.stdlib_module_names
    }
    packages = {"PIL": "pillow"}
    with_fiftyone = {"fiftyone", "eta", "pymongo", "bson", "pandas", "sklearn"}
    extras = {"lancedb", "openvino", "psycopg2", "pyarrow", "ray"}
    own = {"fiftyone_hiera"}
    names = {packages.get(name, name) for name in third_party}
    expected = names - with_fiftyone - extras - own
    # FiftyOne's data loaders import it
    expected.add("torchvision")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for model in manifest:
        required = model.requirements.packages
        assert {re.split("[<>=]", name)[0] for name in required} == expected
        assert set(required) < set(project["dependencies"])

    assert project["optional-dependencies"]["openvino"] == [OPENVINO]

    # What `fiftyone plugins requirements` installs
    (umap,) = (
        name
        for name in project["optional-dependencies"]["demo"]
        if name.startswith("umap-learn")
    )
    expected = [*required, umap]  # the form's first choice of a map
    assert (ROOT / "requirements.txt").read_text("utf-8").split() == expected


def _imported(node: ast.AST) -> list[str | None]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]

    return [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match=r"'hiera-tiny'.*facebook/hiera-tiny-224-hf"):
        get_checkpoint("hiera-tiny")


def test_defaults() -> None:
    settings = parse_settings(TINY, {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = {"dtype": settings.dtype, "engine": settings.engine, "device": device}
    assert settings == Settings("mean", False, output="embeddings", **chosen)
    assert AUTO not in chosen.values()
    assert parse_settings(TINY_CLS, {}).pooling == "cls"


def test_every_option_is_taken() -> None:
    options: dict[str, Any] = {
        "pooling": "pooler",
        "normalize": True,
        "dtype": "bfloat16",
        "engine": "compile",
        "device": "cpu",
        "fast_decoding": True,
        "stage": 4,
        "image_size": (448, 224),
        "squash": True,
        "output": "heatmap",
        "heatmap_basis": str(_BASIS),
        "num_masks": 3,
        "checkpoint": "owner/name@" + "a" * 40,
    }
    assert set(options) == {field.name for field in fields(Settings)}
    assert parse_settings(TINY, options) == Settings(**options)


@pytest.mark.parametrize("size", [448, [448, 448], (448, 448)], ids=str)
def test_forms_of_an_image_size(size: Any) -> None:
    assert parse_settings(TINY, {"image_size": size}).image_size == (448, 448)


def test_keyword_arguments_are_the_options() -> None:
    keywords = get_type_hints(Options)
    assert list(keywords) == [field.name for field in fields(Settings)]
    for name, hint in get_type_hints(Settings).items():
        assert _plain_types(hint) <= _plain_types(keywords[name]), name
        choices = OPTIONS[name].choices
        if choices and choices != [False, True]:
            assert set(choices) == {*_literals(keywords[name])}, name


def _members(hint: Any) -> tuple[Any, ...]:
    is_union = get_origin(hint) in (Union, types.UnionType)
    return get_args(hint) if is_union else (hint,)


def _literals(hint: Any) -> list[Any]:
    literal = [one for one in _members(hint) if get_origin(one) is Literal]
    return [value for one in literal for value in get_args(one)]


def _plain_types(hint: Any) -> set[Any]:
    """Return the types of a union, those of literals for the literals."""
    plain = [one for one in _members(hint) if get_origin(one) is not Literal]
    return {*plain, *map(type, _literals(hint))}


def test_options_describe_themselves() -> None:
    for name, option in OPTIONS.items():
        assert option.label and option.description, name
        assert f"{name} ({getattr(Settings, name)!r}): {option}" in (Settings.__doc__ or "")
        assert len(str(option)) < 300, name


def test_provenance_has_every_option_that_changes_embeddings() -> None:
    others = ["device", "output", "heatmap_basis", "num_masks", "checkpoint"]
    assert sorted([*RECORDED_OPTIONS, *others]) == sorted(OPTIONS)


def test_options_are_not_changed() -> None:
    options = {"pooling": "cls", "device": None}
    parse_settings(TINY, options)
    assert options == {"pooling": "cls", "device": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"poling": "mean"},
            r"Unknown option 'poling'. Valid are \['pooling', 'normalize'",
        ),
        ({"pooling": "max"}, r"'max'. Valid are \['mean', 'cls', 'pooler'\]"),
        ({"pooling": None}, r"None. Valid are \['mean'"),
        ({"normalize": "yes"}, r"normalize: 'yes'. Valid are \[False, True\]"),
        ({"normalize": 1}, r"normalize: 1. Valid are \[False, True\]"),
        ({"dtype": "int8"}, r"'int8'. Valid are \['auto', 'float32'"),
        ({"engine": "onnx"}, r"engine: 'onnx'. Valid are \['auto', 'torch', 'compile'"),
        ({"fast_decoding": "yes"}, r"fast_decoding: 'yes'. Valid are \[False, True\]"),
        ({"stage": 5}, r"stage: 5. Valid are \[1, 2, 3, 4\]"),
        ({"stage": "4"}, r"stage: '4'. Valid are \[1, 2, 3, 4\]"),
        ({"stage": 3, "pooling": "pooler"}, r"stage: 3. Pooling 'pooler' .* stage 4"),
        ({"image_size": 225}, r"image_size: 225. Valid are the multiples of 32 up to 1024"),
        ({"image_size": 1056}, r"image_size: 1056. Valid"),
        ({"image_size": 0}, r"image_size: 0. Valid"),
        ({"image_size": True}, r"image_size: True. Valid"),
        ({"image_size": "224"}, r"image_size: '224'. Valid"),
        ({"image_size": (224, 224, 3)}, r"image_size: \(224, 224, 3\). Valid"),
        ({"image_size": (224, 100)}, r"image_size: \(224, 100\). Valid"),
        (
            {"output": "labels"},
            r"type HieraModel: 'labels'. Valid .*'heatmap'",
        ),
        (
            {"output": "classification"},
            r"type HieraModel: 'classification'",
        ),
        ({"heatmap_basis": "absent"}, r"heatmap_basis: 'absent' is not a file"),
        ({"heatmap_basis": __file__}, r"heatmap_basis: .*test_config.py is no"),
        ({"heatmap_basis": _BASIS}, r"is for output 'heatmap', and this is 'embeddings'"),
        ({"num_masks": 0}, r"num_masks: 0. Valid are 2 to 64"),
        ({"num_masks": 3}, r"num_masks: it is for output 'reconstruction_error'"),
        ({"num_masks": True}, r"num_masks: True. Valid are 2 to 64"),
        ({"squash": 1}, r"squash: 1. Valid are \[False, True\]"),
        ({"device": "tpu"}, r"'tpu'. Available are \["),
        ({"device": "cuda:99"}, r"'cuda:99'. Available are \["),
        (
            {"checkpoint": "no/folder/here"},
            r"Invalid checkpoint 'no/folder/here'. Valid are",
        ),
        ({"checkpoint": "owner/name"}, r"full 40-digit commit hash"),
        ({"checkpoint": "owner/name@main"}, r"full 40-digit commit hash"),
        ({"checkpoint": "weights.bin"}, r"Invalid checkpoint 'weights.bin'"),
        ({"checkpoint": ""}, r"Invalid checkpoint ''. Valid are"),
        ({"checkpoint": 5}, r"Invalid checkpoint '5'"),
    ],
    ids=str,
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        parse_settings(TINY, options)

    assert error.value.option == next(iter(options))
    again = pickle.loads(pickle.dumps(error.value))  # as between processes
    assert (again.option, str(again)) == (error.value.option, str(error.value))


def test_every_error_about_an_option_names_it() -> None:
    files = [path for path in ROOT.glob("[!.]*/*.py") if path.parent.name != "tests"]
    for source in [*ROOT.glob("*.py"), *files]:
        found = re.search(r'ValueError\(\s*f?"(Invalid|Unknown option)', source.read_text())
        assert found is None, source


def test_sizes_as_numpy_has_them() -> None:
    sizes = parse_settings(TINY, {"image_size": np.array([448, 224])[0]}).image_size
    assert sizes == (448, 448)
    assert sizes is not None
    assert type(sizes[0]) is int


def test_pooling_of_a_cls_entry_is_fixed() -> None:
    assert parse_settings(TINY_CLS, {"pooling": "cls"}).pooling == "cls"
    with pytest.raises(ValueError, match=r"pooling of .*-cls: 'mean'. Valid are \['cls'\]"):
        parse_settings(TINY_CLS, {"pooling": "mean"})


def _pretend(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, has_openvino: bool
) -> None:
    """Pretend to be on a machine with a GPU, and perhaps with the others."""
    for module in (config, engines):
        monkeypatch.setattr(module, "has_bfloat16", lambda device="cpu": has_bfloat16)

    monkeypatch.setattr(engines, "has_openvino", lambda: has_openvino)
    monkeypatch.setattr(config, "_available_devices", lambda: ["cpu", "cuda"])


@pytest.mark.parametrize(
    ("given", "has_bfloat16", "has_openvino", "chosen"),
    [
        ({}, True, True, ("bfloat16", "openvino")),
        ({}, True, False, ("bfloat16", "torch")),
        ({}, False, True, ("float32", "openvino")),
        ({}, False, False, ("float32", "torch")),
        ({"dtype": "float16"}, True, True, ("float16", "torch")),
        ({"dtype": "bfloat16"}, False, True, ("bfloat16", "torch")),
        ({"dtype": "float32"}, True, True, ("float32", "openvino")),
        ({"engine": "torch"}, True, True, ("bfloat16", "torch")),
        ({"engine": "openvino"}, False, True, ("float32", "openvino")),
        ({"device": "cuda"}, True, True, ("bfloat16", "torch")),
        ({"device": "cuda"}, False, True, ("float32", "torch")),
    ],
    ids=str,
)
def test_auto(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    has_bfloat16: bool,
    has_openvino: bool,
    chosen: tuple[str, str],
) -> None:
    _pretend(monkeypatch, has_bfloat16, has_openvino)
    settings = parse_settings(TINY, given)
    assert (settings.dtype, settings.engine) == chosen


@pytest.mark.parametrize(
    ("given", "has_bfloat16", "has_openvino", "message"),
    [
        ({}, True, False, "not installed: pip install 'openvino>=2025"),
        ({"device": "cuda"}, True, True, "is for device 'cpu', not 'cuda'"),
        (
            {"dtype": "float16"},
            True,
            True,
            r"'float16' on this CPU, only in \['float32', 'bfloat16'\]",
        ),
        ({"dtype": "bfloat16"}, False, True, r"this CPU, only in \['float32'\]"),
    ],
    ids=str,
)
def test_openvino_where_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    has_bfloat16: bool,
    has_openvino: bool,
    message: str,
) -> None:
    _pretend(monkeypatch, has_bfloat16, has_openvino)
    with pytest.raises(ValueError, match=f"Invalid engine: 'openvino' .*{message}"):
        parse_settings(TINY, {"engine": "openvino", **given})


def test_openvino_without_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, True, True)
    assert parse_settings(TINY, {"device": "cpu"}).engine == "openvino"
    monkeypatch.setattr(engines, "_NO_TRACING", sys.version_info[:2])
    assert parse_settings(TINY, {"device": "cpu"}).engine == "torch"
    with pytest.raises(ValueError, match=r"engine: 'openvino' needs torch\.jit\.trace"):
        parse_settings(TINY, {"device": "cpu", "engine": "openvino"})
