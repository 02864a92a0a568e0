"""The user's own checkpoints, on disk and on a hub."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fiftyone.operators.executor import ExecutionContext
from hub_server import HubServer
from pil_processor import META
from random_hiera import (
    configuration,
    make_classifier,
    make_config,
    make_hiera,
    randomize,
    save_checkpoint,
)
from transformers import HieraModel
from waiting import LIMIT

import fiftyone_hiera
from fiftyone_hiera.hiera.checkpoint_kinds import expected_shapes
from fiftyone_hiera.hiera.configuration import read_configuration
from fiftyone_hiera.hiera.encoder import Encoder
from fiftyone_hiera.hiera.user_checkpoint import (
    _REQUIRED_KEYS,
    find_checkpoint,
    open_checkpoint,
)
from fiftyone_hiera.hiera.weights_file import WeightsFile
from fiftyone_hiera.images.preprocessing import Preprocessing, for_image_size
from fiftyone_hiera.models.embedding import HieraEmbeddingModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint", make_hiera(make_config()))


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), "utf-8")


def test_folder_and_file(folder: Path) -> None:
    for checkpoint in (folder, folder / "model.safetensors"):
        local = open_checkpoint(str(checkpoint))
        assert local.path == folder / "model.safetensors"
        assert local.config.depths == (1, 1, 2, 1)
        assert local.preprocessing == for_image_size((64, 64))


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_checkpoint("~/checkpoint").path == folder / "model.safetensors"


def test_preprocessor_config_is_read(folder: Path) -> None:
    config = {
        **META,
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "image_mean": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config), "utf-8")
    assert open_checkpoint(str(folder)).preprocessing == Preprocessing(
        (64, 64), (64, 64), mean=(0.5, 0.5, 0.5)
    )


def test_processor_config_takes_precedence(folder: Path) -> None:
    size = {"height": 64, "width": 64}
    nested = {"image_processor_type": "ViTImageProcessor", "size": size}
    path = folder / "processor_config.json"
    path.write_text(
        json.dumps({"processor_class": "P", "image_processor": nested}), "utf-8"
    )
    for text in ("[]", json.dumps(META)):  # not read
        (folder / "preprocessor_config.json").write_text(text, "utf-8")
        preprocessing = open_checkpoint(str(folder)).preprocessing
        assert preprocessing.is_squashed
        assert preprocessing.mean == (0.5, 0.5, 0.5)

    path.write_text(json.dumps({"processor_class": "P"}), "utf-8")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: crop_size = .*224"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("preprocessor_config.json", "{", r" is not a JSON file: Expecting"),
        ("preprocessor_config.json", "[]", r" is not a configuration"),
        ("preprocessor_config.json", '{"crop_pct": 1}', r": crop_pct = 1 is not supported"),
        ("processor_config.json", "3", r" is not a configuration"),
        ("processor_config.json", json.dumps(META), r" has no image_processor: save"),
        (
            "processor_config.json",
            '{"image_processor": []}',
            r": image_processor = \[\] is",
        ),
        (
            "processor_config.json",
            '{"image_processor": {"size": "large"}}',
            r": image_processor: size = 'large' is not supported",
        ),
    ],
)
def test_other_processors_are_refused(
    folder: Path, name: str, text: str, message: str
) -> None:
    (folder / name).write_text(text, "utf-8")
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ValueError, match=re.escape(str(folder / name)) + message):
        open_checkpoint(str(folder))


@torch.inference_mode()
def test_fine_tuned_classifier(tmp_path: Path) -> None:
    model = make_classifier(make_config(image_size=(96, 64)))
    local = open_checkpoint(str(save_checkpoint(tmp_path, model)))
    file = WeightsFile(local.path, expected_shapes(local.config))
    encoder = Encoder(local.config, file, local.preprocessing)
    pixels = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    expected = model.hiera(encoder.normalize(pixels)).last_hidden_state
    assert expected.shape == (2, 6, 128)
    assert torch.allclose(encoder(pixels, 4)[0], expected, atol=1e-5)


_AS_CLASSIFIER: dict[str, Any] = {"architectures": ["HieraForImageClassification"]}
_AS_REGRESSION = _AS_CLASSIFIER | {"problem_type": "regression"}
_AS_AUTOENCODER: dict[str, Any] = {
    "architectures": ["HieraForPreTraining"],
    "decoder_hidden_size": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, r"model_type is 'vit', not 'hiera'"),
        ({"num_heads": None}, r"missing \['num_heads'\]"),
        ({"architectures": ["HieraBackbone"]}, r"architectures \['HieraBackbone'\]"),
        ({"architectures": {"0": "HieraModel"}}, r"architectures \{'0': 'HieraModel'\}"),
        ({"architectures": ["birder.Hiera"]}, r"'birder.Hiera'.*\['HieraModel', [^]]*g'\]"),
        ({"num_channels": 1}, r"num_channels is 1, not 3"),
        ({"embed_dim": "96"}, r"invalid embed_dim: '96'; expected an integer from 1"),
        ({"embed_dim": 96.5}, r"invalid embed_dim: 96\.5"),
        ({"depths": 4}, r"invalid depths: 4"),
        ({"depths": []}, r"invalid depths: \(\)"),
        ({"depths": [1, 1, 0, 1]}, r"invalid depths: \(1, 1, 0, 1\)"),
        ({"patch_size": [7, 7, 7]}, r"invalid patch_size: \(7, 7, 7\)"),
        ({"query_stride": 0}, r"invalid query_stride: \(0, 0\)"),
        ({"num_query_pool": "3"}, r"invalid num_query_pool: '3'"),
        ({"mlp_ratio": 0}, r"invalid mlp_ratio: 0; expected a number above 0"),
        ({"masked_unit_attention": [1, 1, 0, 0]}, r"invalid masked_unit_attention: \(1, "),
        (
            {"masked_unit_attention": [True]},
            r"masked_unit_attention = \(True,\) has not one",
        ),
        ({"num_heads": [1, 2]}, r"num_heads = \(1, 2\) has not one entry for each stage"),
        ({"num_heads": [1, 2, 4, 6]}, r"num_heads = .* the 128 dimensions of stage 4"),
        ({"num_query_pool": 4}, r"num_query_pool = 4 is not less than"),
        ({"num_query_pool": 1}, r"masked_unit_attention = .* stage 3 with num_query_pool"),
        ({"masked_unit_size": [4, 4]}, r"masked_unit_size = \(4, 4\) is not a multiple"),
        ({"image_size": [64, 80]}, r"image_size = \(64, 80\) .* multiple of \(32, 32\)"),
        ({"patch_padding": [0, 0]}, r"patch_padding = \(0, 0\) does not give one token"),
        ({"hidden_act": "relu"}, r"hidden_act = 'relu' is not supported, only 'gelu'"),
        (_AS_CLASSIFIER | {"id2label": {"0": "a", "2": "b"}}, r"invalid id2label: \{'0'"),
        (_AS_CLASSIFIER | {"id2label": {"a": "a"}}, r"id2label: .* index, from 0 on"),
        (_AS_CLASSIFIER | {"id2label": ["a", "b"]}, r"invalid id2label: \['a', 'b'\]"),
        (_AS_CLASSIFIER | {"id2label": {}}, r"invalid id2label: \{\}"),
        (
            _AS_REGRESSION | {"id2label": {"0": "a", "1": "a"}},
            "a different name of letters",
        ),
        (_AS_REGRESSION | {"id2label": {"0": "a", "1": "b.c"}}, "a different name of"),
        ({"embed_dim_multiplier": 1.0}, "embed_dim_multiplier = 1.0 is not supported"),
        ({"num_channels": "3"}, "num_channels is '3', not 3"),
        (_AS_CLASSIFIER | {"num_labels": "3"}, r"invalid num_labels: '3'"),
        (_AS_CLASSIFIER | {"problem_type": "rank"}, r"invalid problem_type: 'rank'"),
        (
            _AS_CLASSIFIER
            | {"problem_type": "single_label_classification", "num_labels": 1},
            r"problem_type = 'single_label_classification' needs more than one label",
        ),
        (_AS_AUTOENCODER | {"decoder_depth": None}, r"invalid decoder_depth: None"),
        (_AS_AUTOENCODER | {"decoder_num_heads": 3}, r"decoder_num_heads = 3 .*_size = 16"),
        (_AS_AUTOENCODER | {"mask_ratio": 1}, r"invalid mask_ratio: 1"),
    ],
    ids=str,
)
def test_other_configs_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    _edit(folder, **changes)
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("changes", "names", "problem_type"),
    [
        ({}, ["LABEL_0", "LABEL_1"], "single_label_classification"),
        (
            {"num_labels": 3},
            ["LABEL_0", "LABEL_1", "LABEL_2"],
            "single_label_classification",
        ),
        ({"id2label": {"1": "b", "0": "a"}}, ["a", "b"], "single_label_classification"),
        ({"id2label": {"0": "age"}}, ["age"], "regression"),
        (
            {"id2label": {"0": "a"}, "problem_type": "multi_label_classification"},
            ["a"],
            "multi_label_classification",
        ),
    ],
)
def test_labels_of_a_classifier(
    folder: Path, changes: dict[str, Any], names: list[str], problem_type: str
) -> None:
    _edit(folder, **_AS_CLASSIFIER, **changes)
    config = open_checkpoint(str(folder)).config
    assert config.class_names == names
    assert config.problem_type == problem_type

    # Nothing else has labels
    _edit(folder, architectures=["HieraModel"], id2label=["unused"], problem_type="unused")
    assert open_checkpoint(str(folder)).config.id2label == {}


def test_defaults_are_those_of_transformers() -> None:
    config = make_config(architectures=["HieraModel"])
    required = {name: getattr(config, name) for name in _REQUIRED_KEYS}
    ours = read_configuration(required)
    assert ours == configuration(config)
    assert configuration(ours.to_transformers()) == ours
    assert (
        read_configuration({**required, "mlp_ratio": 4}).to_transformers().mlp_ratio == 4.0
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not a JSON file: Expecting"), ("[]", "is not a configuration")],
    ids=str,
)
def test_broken_config_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"no file .*{name}"):
        find_checkpoint(str(folder))


def _load(folder: Path, **options: Any) -> HieraEmbeddingModel:
    options = {"dtype": "float32", "engine": "torch", **options}
    return fiftyone_hiera.load_model("hiera-nano-digits", checkpoint=folder, **options)


@torch.inference_mode()
def test_three_stages(tmp_path: Path) -> None:
    layout = {"depths": (1, 1, 2), "num_heads": (1, 2, 4), "num_query_pool": 2}
    hiera = make_hiera(make_config(**layout))
    save_checkpoint(tmp_path, hiera)
    image = np.random.default_rng(51).integers(0, 256, (70, 90, 3), np.uint8)
    model, pooler = _load(tmp_path), _load(tmp_path, pooling="pooler")
    expected = hiera(model._encoder.normalize(model.transforms(image).unsqueeze(0)))
    tokens = expected.last_hidden_state[0].mean(dim=0).numpy()
    assert np.allclose(model.embed(image), tokens, atol=1e-5)
    assert np.allclose(pooler.embed(image), expected.pooler_output[0].numpy(), atol=1e-5)
    assert model.embedder.provenance["stage"] == 3
    assert [*model.feature_maps([image])] == ["stage1", "stage2", "stage3"]

    # As another process loads it again, by its provenance
    again = _load(tmp_path, pooling="pooler", stage=3)
    assert np.array_equal(again.embed(image), pooler.embed(image))

    for stage, message in ((4, "has stages 1 to 3"), (2, "Pooling 'pooler' .* stage 3")):
        with pytest.raises(ValueError, match=rf"Invalid stage: {stage}\. .*{message}"):
            _load(tmp_path, pooling="pooler", stage=stage)


def test_form_has_no_default_stage() -> None:
    form = fiftyone_hiera.resolve_input("hiera-nano-digits", ExecutionContext({}))
    assert form.type.properties["stage"].default is None


def test_form_marks_the_option_that_an_error_is_about() -> None:
    basis = Path(__file__).parent / "data" / "made_by_0_1_0" / "basis.safetensors"
    remote = {"heatmap_basis": str(basis)}
    ctx = ExecutionContext({"params": {"remote_params": remote}})
    form = fiftyone_hiera.resolve_input("hiera-nano-digits", ctx)
    wrong = {n: p.error_message for n, p in form.type.properties.items() if p.invalid}
    reason = "it is for output 'heatmap', and this is 'embeddings'"
    assert wrong == {"heatmap_basis": f"Invalid heatmap_basis: {reason}"}


@torch.inference_mode()
def test_without_the_final_norm(tmp_path: Path) -> None:
    hiera = HieraModel(make_config(), add_pooling_layer=False).eval()
    randomize(hiera)
    save_checkpoint(tmp_path, hiera)
    image = np.random.default_rng(51).integers(0, 256, (70, 90, 3), np.uint8)
    for pooling in ("mean", "cls"):
        model = _load(tmp_path, pooling=pooling)
        inputs = model._encoder.normalize(model.transforms(image).unsqueeze(0))
        tokens = hiera(inputs).last_hidden_state[0]
        expected = tokens[0] if pooling == "cls" else tokens.mean(dim=0)
        assert np.allclose(model.embed(image), expected.numpy(), atol=1e-5)
        model.feature_maps([image])  # reads the file again

    with pytest.raises(
        ValueError, match=r"'pooler'\. .*\.safetensors has no final LayerNorm"
    ):
        _load(tmp_path, pooling="pooler")


@pytest.mark.parametrize("kind", ["sharded", "pickle"])
def test_other_formats_are_to_be_converted(tmp_path: Path, kind: str) -> None:
    hiera = make_hiera(make_config())
    if kind == "sharded":
        hiera.save_pretrained(tmp_path, max_shard_size="300KB")
    else:
        hiera.config.save_pretrained(tmp_path)
        torch.save(hiera.state_dict(), tmp_path / "pytorch_model.bin")

    with pytest.raises(
        ValueError, match=r"no file .*model\.safetensors\. Sharded .* convert"
    ):
        find_checkpoint(str(tmp_path))

    converted = HieraModel.from_pretrained(tmp_path)  # as the message says
    converted.save_pretrained(tmp_path, max_shard_size="100GB")
    image = np.zeros((64, 64, 3), np.uint8)
    expected = _load(save_checkpoint(tmp_path / "expected", hiera)).embed(image)
    assert np.array_equal(_load(tmp_path).embed(image), expected)


_SCRIPT = """
import sys
from fiftyone_hiera.hiera.user_checkpoint import open_checkpoint
local = open_checkpoint(sys.argv[1])
print(local.config.depths, local.preprocessing.crop_size, local.path)
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_preprocessor", [False, True])
def test_hub_id(folder: Path, tmp_path: Path, with_preprocessor: bool) -> None:
    names = ["config.json", "model.safetensors"]
    if with_preprocessor:
        config = {
            **META,
            "size": {"shortest_edge": 64},
            "crop_size": {"height": 64, "width": 64},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(config), "utf-8")
        names.append("preprocessor_config.json")

    files = {name: (folder / name).read_bytes() for name in names}
    with HubServer(commit="d" * 40, files=files) as hub:
        for attempt in ("downloads", "touches no network"):
            hub.requests.clear()
            result = _open_on_hub(hub, tmp_path)
            assert result.returncode == 0, result.stderr
            assert "(1, 1, 2, 1) (64, 64)" in result.stdout
            assert bool(hub.requests) == (attempt == "downloads")

        # As of a cache that other programs filled, which record no files that do not exist
        (marker,) = (tmp_path / "home").rglob(".no_exist/*/processor_config.json")
        marker.unlink()
        result = _open_on_hub(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_hub_id_of_another_format(folder: Path, tmp_path: Path) -> None:
    files = {"config.json": (folder / "config.json").read_bytes()}
    with HubServer(commit="d" * 40, files=files) as hub:
        result = _open_on_hub(hub, tmp_path)
        assert result.returncode
        assert f"owner/name@{hub.commit} has no file model.safetensors. " in result.stderr


def _open_on_hub(
    hub: HubServer, folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
        **variables,
    }
    command = [sys.executable, "-c", _SCRIPT, "owner/name@" + hub.commit]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT
    )


def test_archives_are_refused_and_never_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "inside" / "checkpoint.tar"
    archive.parent.mkdir()
    content = tarfile.TarInfo("../outside.safetensors")
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(content)
        tar.addfile(link)

    for path in (archive, archive.rename(archive.with_suffix(".zip"))):
        with pytest.raises(ValueError, match="Valid are an existing folder"):
            find_checkpoint(str(path))

    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "checkpoint.zip"]


def test_head_of_other_classes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | _AS_CLASSIFIER), "utf-8")
    with pytest.raises(
        ValueError, match=r"follow from config\.json; .* id2label or num_lab"
    ):
        fiftyone_hiera.load_model("hiera-nano-digits", checkpoint=str(folder))
