"""The operators' forms and their validation, in real execution contexts."""

from __future__ import annotations

import copy
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.operators as foo
import numpy as np
import pytest
from operator_calls import COMPUTE, SORT, choices, make_context, resolve, resolve_context
from waiting import LIMIT

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.checkpoints import CHECKPOINTS
from fiftyone_hiera.embedding.version import VERSION
from fiftyone_hiera.hiera.hub import HubFile
from fiftyone_hiera.hiera.pooling import POOLINGS
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

NANO = "hiera-nano-digits"
TINY = "facebook/hiera-tiny-224-hf"

pytestmark = [
    pytest.mark.usefixtures("plugin"),
    pytest.mark.samples(12, parts=[[0.1, 0.1, 0.8, 0.8]]),
]


@pytest.fixture(scope="module")
def model() -> HieraEmbeddingModel:
    """The model as the form loads it: with the default dtype and engine."""
    return fiftyone_hiera.load_model(NANO)


def _error(samples: Any, uri: str = COMPUTE, **request: Any) -> str:
    properties, errors = resolve_context(uri, make_context(samples, {}, **request))
    assert list(properties) == ["error"]
    assert errors["error"] == properties["error"].view.label
    return errors["error"]


def test_no_dataset() -> None:
    assert "Open a dataset" in _error(None)


def test_no_samples(dataset: Any) -> None:
    assert "no samples" in _error(dataset)


@pytest.mark.parametrize(
    ("name", "media_type"), [("a.pcd", "point-cloud"), ("a.txt", "unknown")]
)
def test_other_media(dataset: Any, name: str, media_type: str) -> None:
    dataset.add_sample(fo.Sample(filepath=f"/there/{name}"))
    assert media_type in _error(dataset)


def test_view_of_patches(samples: Any) -> None:
    assert "Cannot embed a view of patches" in _error(samples.to_patches("parts"))


@pytest.fixture
def groups(dataset: Any, digits: list[Digit]) -> Any:
    dataset.add_group_field("group", default="left")
    for digit in digits[:3]:
        group = fo.Group()
        for name, path in (("left", digit.path), ("right", digit.path), ("lidar", "a.pcd")):
            dataset.add_sample(fo.Sample(filepath=str(path), group=group.element(name)))

    return dataset


def test_active_slice_is_embedded(groups: Any) -> None:
    assert "point-cloud" in _error(groups, group_slice="lidar")
    for name in ("left", "right"):
        ctx = make_context(groups, {}, group_slice=name)
        properties, errors = resolve_context(COMPUTE, ctx)
        assert not errors
        assert "model_name" in properties


def test_execute_is_enabled_at_once(samples: Any) -> None:
    properties, errors = resolve(COMPUTE, samples)
    assert errors == {}
    defaults = {
        name: prop.default for name, prop in properties.items() if prop.default is not None
    }
    assert defaults == {
        "view_target": "DATASET",
        "model_name": TINY,
        "pooling": "mean",
        "patches_field": "_whole",
        "overwrite": False,
        "similarity_index": False,
        "visualization": False,
    }
    # The App sends the defaults back
    assert resolve(COMPUTE, samples, **defaults)[1] == {}


def test_each_checkpoint_is_offered_once(samples: Any) -> None:
    properties, _ = resolve(COMPUTE, samples)
    offered = choices(properties["model_name"])
    assert list(offered) == [c.name for c in CHECKPOINTS.values() if c.pooling is None]
    for name, choice in offered.items():
        checkpoint = CHECKPOINTS[name]
        assert f"{name}: {checkpoint.embedding_dim} dimensions" in choice.label
        assert f"{checkpoint.parameters / 1e6:.1f} M parameters" in choice.label
        assert re.search(r"[\d,]+ MB(, on disk| to download)$", choice.label)

    assert "109 MB to download" in offered[TINY].label
    assert "3 MB, on disk" in offered[NANO].label


def test_cached_weights_are_on_disk(
    samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = CHECKPOINTS[TINY].file
    assert isinstance(tiny, HubFile)
    snapshot = tmp_path / "models--facebook--hiera-tiny-224-hf" / "snapshots"
    cached = snapshot / str(tiny.revision) / tiny.filename
    cached.parent.mkdir(parents=True)
    cached.touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    offered = choices(resolve(COMPUTE, samples)[0]["model_name"])
    assert "109 MB, on disk" in offered[TINY].label


@pytest.mark.parametrize("name", [TINY, NANO])
def test_licence(samples: Any, name: str) -> None:
    properties, _ = resolve(COMPUTE, samples, model_name=name)
    label = properties["license"].view.label
    assert CHECKPOINTS[name].license in label
    assert ("not for commercial use" in label) == (name == TINY)


def test_each_pooling_is_explained(samples: Any) -> None:
    offered = choices(resolve(COMPUTE, samples)[0]["pooling"])
    assert list(offered) == list(POOLINGS)
    assert all(len(choice.description) > 20 for choice in offered.values())
    assert "no class token" in offered["cls"].description


def test_model_name_with_one_pooling(samples: Any) -> None:
    properties, errors = resolve(COMPUTE, samples, model_name=TINY + "-cls")
    assert errors == {}
    assert list(choices(properties["pooling"])) == ["cls"]
    assert properties["pooling"].default == "cls"


@pytest.mark.parametrize(
    ("params", "name", "message"),
    [
        ({"model_name": "hiera-tiny"}, "model_name", "Unknown model 'hiera-tiny'. Valid"),
        ({"pooling": "max"}, "pooling", "'max'. Valid are ['mean', 'cls', 'pooler']"),
        ({"embeddings_field": "_x"}, "embeddings_field", "cannot start with '_'"),
        ({"embeddings_field": "a$b"}, "embeddings_field", "cannot contain '$'"),
        ({"embeddings_field": "a.b"}, "embeddings_field", "without '.'"),
        ({"embeddings_field": "filepath"}, "embeddings_field", "StringField"),
        ({"patches_field": "none"}, "patches_field", "'none'"),
        ({"batch_size": 0}, "batch_size", "Invalid batch_size 0: expected an integer"),
        ({"num_workers": -1}, "num_workers", "expected an integer of at least 0"),
        ({"similarity_brain_key": "2 b"}, "similarity_brain_key", "begin with a letter"),
        ({"visualization_brain_key": ".b"}, "visualization_brain_key", "begin with a"),
        (
            {"visualization_method": "mds"},
            "visualization_method",
            "['umap', 'tsne', 'pca']",
        ),
    ],
    ids=str,
)
def test_invalid_inputs_are_marked_before_the_run(
    samples: Any, params: dict[str, Any], name: str, message: str
) -> None:
    _, errors = resolve(COMPUTE, samples, **params)
    assert list(errors) == [name]
    assert message in errors[name]
    assert samples.get_field("hiera") is None


def test_field_with_different_settings(samples: Any, model: HieraEmbeddingModel) -> None:
    model.embed_samples(samples, "hiera")
    taken = {"model_name": NANO, "embeddings_field": "hiera"}
    assert resolve(COMPUTE, samples, **taken)[1] == {}

    properties, errors = resolve(COMPUTE, samples, **taken, pooling="cls")
    assert "12 embeddings computed with different settings" in errors["embeddings_field"]
    assert "pooling mean" in errors["embeddings_field"]
    assert "pooling cls" in errors["embeddings_field"]
    assert "overwrite" in properties
    assert resolve(COMPUTE, samples, **taken, pooling="cls", overwrite=True)[1] == {}

    part = samples.limit(5)
    _, errors = resolve(COMPUTE, part, **taken, pooling="cls", overwrite=True)
    assert "only some would be overwritten" in errors["embeddings_field"]

    # Before the download, only the revision or only the sha256 is known
    for name in ("tiny", "small", "large"):
        _, errors = resolve(
            COMPUTE,
            samples,
            model_name=f"facebook/hiera-{name}-224-hf",
            embeddings_field="hiera",
        )
        assert f"hiera-{name}" in errors["embeddings_field"]


def test_field_with_the_same_checkpoint_before_it_is_loaded(samples: Any) -> None:
    tiny = CHECKPOINTS[TINY]
    samples.add_sample_field("hiera", fo.VectorField)
    samples.set_values("hiera", [np.zeros(768, np.float32)] * 12)
    provenance = fiftyone_hiera.embedding.provenance.expected_provenance(
        tiny, fiftyone_hiera.config.parse_settings(tiny, {})
    )
    field = samples.get_field("hiera")
    field.info = {**provenance, "sha256": "a" * 64}  # of the file, known once it is read
    field.save()
    assert resolve(COMPUTE, samples, embeddings_field="hiera")[1] == {}
    field.info = {**field.info, "revision": "b" * 40}
    field.save()
    assert "revision" in resolve(COMPUTE, samples)[1].get("embeddings_field", "revision")
    assert "revision" in resolve(COMPUTE, samples, embeddings_field="hiera")[1].get(
        "embeddings_field", ""
    )


def test_embeddings_with_no_recorded_provenance(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    samples.compute_embeddings(model, embeddings_field="native")
    _, errors = resolve(COMPUTE, samples, model_name=NANO, embeddings_field="native")
    assert "no recorded provenance" in errors["embeddings_field"]


def test_default_field_is_resumed_or_new(samples: Any, model: HieraEmbeddingModel) -> None:
    model.embed_samples(samples.limit(5), "hiera")
    samples.add_sample_field("hiera_2", fo.StringField)
    for pooling, proposed in (("mean", "hiera"), ("cls", "hiera_3")):
        params = {"model_name": NANO, "pooling": pooling}
        for field in (None, "another"):
            properties, _ = resolve(COMPUTE, samples, **params, embeddings_field=field)
            text = properties["embeddings_field"].view.description
            assert f"Empty for {proposed!r}." in text

    samples.clear_sample_field("hiera")  # its record stays
    properties, _ = resolve(COMPUTE, samples, model_name=NANO, pooling="cls")
    assert "Empty for 'hiera'." in properties["embeddings_field"].view.description


def test_vector_fields_are_suggested(samples: Any) -> None:
    samples.add_sample_field("vectors", fo.VectorField)
    samples.add_sample_field("words", fo.StringField)
    samples.add_sample_field("parts.detections.inner", fo.VectorField)
    offered = choices(resolve(COMPUTE, samples)[0]["embeddings_field"])
    assert list(offered) == ["vectors"]
    offered = choices(
        resolve(COMPUTE, samples, patches_field="parts")[0]["embeddings_field"]
    )
    assert list(offered) == ["inner"]


def test_patches(samples: Any, model: HieraEmbeddingModel) -> None:
    properties, _ = resolve(COMPUTE, samples)
    assert list(choices(properties["patches_field"])) == ["_whole", "parts"]
    assert resolve(COMPUTE, samples, patches_field="_whole")[1] == {}
    model.embed_samples(samples, "hiera", patches_field="parts")
    same = {"model_name": NANO, "patches_field": "parts", "embeddings_field": "hiera"}
    assert resolve(COMPUTE, samples, **same)[1] == {}
    _, errors = resolve(COMPUTE, samples, **same, pooling="cls")
    assert "'parts.detections.hiera' holds 12 embeddings" in errors["embeddings_field"]

    samples.delete_sample_field("parts")
    assert "patches_field" not in resolve(COMPUTE, samples)[0]


def test_target(samples: Any) -> None:
    assert list(choices_of_target(samples)) == ["DATASET"]
    view = samples.limit(5)
    assert list(choices_of_target(view)) == ["DATASET", "CURRENT_VIEW"]
    selected = [view.first().id]
    offered = choices_of_target(view, selected=selected)
    assert list(offered) == ["DATASET", "CURRENT_VIEW", "SELECTED_SAMPLES"]


def choices_of_target(samples: Any, **request: Any) -> list[str]:
    ctx = make_context(samples, {}, **request)
    values: list[str] = resolve_context(COMPUTE, ctx)[0]["view_target"].type.values
    return values


def test_brain_keys(samples: Any, model: HieraEmbeddingModel) -> None:
    boxes = {"similarity_index": True, "visualization": True}
    properties, errors = resolve(COMPUTE, samples, **boxes)
    assert errors == {}
    for name, key in (("similarity", "hiera_similarity"), ("visualization", "hiera_map")):
        text = properties[f"{name}_brain_key"].view.description
        assert text.endswith(f"empty for {key!r}")

    assert properties["visualization_method"].default == "umap"
    assert list(choices(properties["visualization_method"])) == ["umap", "tsne", "pca"]

    model.embed_samples(samples, "hiera")
    fob.compute_similarity(samples, embeddings="hiera", brain_key="hiera_similarity")
    taken = {"similarity_index": True, "model_name": NANO}
    properties, errors = resolve(COMPUTE, samples, **taken)
    assert errors == {}
    text = properties["similarity_brain_key"].view.description
    assert text.endswith("empty for 'hiera_similarity'")  # it is brought up to date

    taken |= {"embeddings_field": "other"}
    properties, _ = resolve(COMPUTE, samples, **taken)
    text = properties["similarity_brain_key"].view.description
    assert text.endswith("empty for 'hiera_similarity_2'")
    _, errors = resolve(COMPUTE, samples, **taken, similarity_brain_key="hiera_similarity")
    assert "has embeddings_field 'hiera'" in errors["similarity_brain_key"]

    keys = {"similarity_brain_key": "a", "visualization_brain_key": "a"}
    _, errors = resolve(COMPUTE, samples, **boxes, **keys)
    assert "different brain keys" in errors["visualization_brain_key"]


def test_unchecked_boxes_ask_for_nothing(samples: Any) -> None:
    stale = {"similarity_index": False, "similarity_brain_key": "2 b"}
    properties, errors = resolve(COMPUTE, samples, **stale)
    assert "similarity_brain_key" not in properties
    assert errors == {}


def test_without_umap(samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "umap" else find_spec(n, *a)
    )
    properties, errors = resolve(COMPUTE, samples, visualization=True)
    assert errors == {}
    assert properties["visualization_method"].default == "pca"
    _, errors = resolve(COMPUTE, samples, visualization_method="umap")
    assert "pip install umap-learn" in errors["visualization_method"]


@pytest.fixture
def videos(dataset: Any) -> Any:
    dataset.add_sample(fo.Sample(filepath="/there/a.mp4"))
    return dataset


def test_videos(videos: Any) -> None:
    properties, errors = resolve(COMPUTE, videos)
    assert errors == {}
    assert "patches_field" not in properties
    _, errors = resolve(COMPUTE, videos, similarity_index=True, visualization=True)
    assert set(errors) == {"similarity_index", "visualization"}
    assert "to_frames" in errors["visualization"]


def test_view_that_changes_the_paths_of_videos(videos: Any) -> None:
    view = videos.set_field("filepath", fo.ViewField("filepath").upper())
    request = {"view_target": "CURRENT_VIEW"}
    assert "changes the paths of videos" in _error(view, **request)


def test_frames_and_their_patches(videos: Any) -> None:
    sample = videos.first()
    detection = fo.Detection(bounding_box=[0, 0, 1, 1])
    sample.frames[1] = fo.Frame(parts=fo.Detections(detections=[detection]))
    sample.save()
    videos.add_frame_field("vectors", fo.VectorField)
    properties, _ = resolve(COMPUTE, videos)
    assert list(choices(properties["patches_field"])) == ["_whole", "parts"]
    assert list(choices(properties["embeddings_field"])) == ["vectors"]
    properties, errors = resolve(COMPUTE, videos, patches_field="parts")
    assert errors == {}
    assert choices(properties["embeddings_field"]) == {}


@pytest.mark.parametrize(
    "params",
    [
        {"embedding_type": "cls", "field_name": "vectors"},
        {"embedding_types": "cls", "emb_field": "vectors"},
        {"pooling": "cls", "embedding_type": "cls", "embeddings_field": "vectors"},
    ],
    ids=str,
)
def test_parameter_names_of_earlier_plugins(samples: Any, params: dict[str, Any]) -> None:
    ctx = make_context(samples, params)
    given = copy.deepcopy(ctx.request_params)
    properties, errors = resolve_context(COMPUTE, ctx)
    assert errors == {}
    assert "Empty for 'hiera'." in properties["embeddings_field"].view.description
    assert ctx.request_params == given, "the caller's request was changed"
    assert ctx.params is ctx.request_params["params"]


def test_one_parameter_with_two_values(samples: Any) -> None:
    ctx = make_context(samples, {"pooling": "mean", "embedding_type": "cls"})
    with pytest.raises(ValueError, match="pooling and embedding_type are the same"):
        resolve_context(COMPUTE, ctx)


def test_unknown_parameters_from_python(samples: Any) -> None:
    params = {"model_name": NANO, "overwite": True}
    message = r"Unknown parameters.*\['overwite'\]. Valid are \['model_name'"
    with pytest.raises(ValueError, match=message):
        foo.execute_operator(COMPUTE, dataset=samples, params=params)

    with pytest.raises(ValueError, match=message):
        foo.get_operator(COMPUTE)(samples, **params)


def test_missing_packages_are_named(samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = type(foo.get_operator(COMPUTE)).__module__.rpartition(".")[0]
    for uri, name in ((COMPUTE, "compute_form"), (SORT, "search")):
        monkeypatch.setitem(sys.modules, f"{package}.{name}", None)
        assert "fiftyone plugins requirements" in _error(samples, uri)


def test_placement_and_icons(plugin: Any) -> None:
    ctx = make_context(None, {})
    for uri in (COMPUTE, SORT):
        operator = foo.get_operator(uri)
        placement = operator.resolve_placement(ctx).to_json()
        assert placement["place"] == "samples-grid-secondary-actions"
        icon = placement["view"]["icon"]
        assert icon == operator.config.icon
        assert (Path(plugin.directory) / icon.lstrip("/")).is_file()


def test_plugin_file(plugin: Any) -> None:
    assert plugin.name == "@fiftyone-hiera/hiera"
    assert plugin.version == VERSION
    assert plugin.author == "The fiftyone-hiera authors"
    assert plugin.url.endswith("/fiftyone-hiera")
    assert plugin.license == CHECKPOINTS[NANO].license == "Apache 2.0"
    assert "embeddings" in plugin.tags
    registered = {
        operator.name
        for operator in foo.list_operators()
        if operator.plugin_name == plugin.name
    }
    assert registered == set(plugin.operators)
    assert len(registered) == 3


_LIST = """
import sys
import fiftyone.operators as foo

assert len([o for o in foo.list_operators() if "hiera" in o.name]) == 3
heavy = {"torch", "torchvision", "transformers", "umap", "fiftyone.brain"}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""


def test_listing_imports_nothing_heavy(plugin: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LIST],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_query_needs_an_index(samples: Any, model: HieraEmbeddingModel) -> None:
    assert "no similarity index" in _error(None, SORT)
    assert "no similarity index" in _error(samples, SORT)
    vectors = np.random.default_rng(51).random((12, 5))
    fob.compute_similarity(samples, embeddings=vectors, brain_key="other")
    assert "no similarity index" in _error(samples, SORT)

    model.embed_samples(samples, "hiera")
    fob.compute_similarity(samples, embeddings="hiera", brain_key="ours")
    properties, errors = resolve(SORT, samples)
    offered = choices(properties["brain_key"])
    assert {key: choice.label for key, choice in offered.items()} == {
        "ours": f"ours: {NANO}, mean"
    }
    assert properties["brain_key"].default == "ours"
    assert errors == {"query_image": "Required property"}


def test_search_form_checks_its_inputs(samples: Any, model: HieraEmbeddingModel) -> None:
    model.embed_samples(samples, "hiera")
    fob.compute_similarity(samples, embeddings="hiera", brain_key="key")
    image = {"query_image": {"content": "AA=="}}
    for params, name, message in (
        ({"k": 0}, "k", "Invalid k 0: expected an integer of at least 1"),
        ({"brain_key": "none"}, "brain_key", "Invalid brain_key 'none'. Valid are ['key']"),
        ({"dist_field": "_x"}, "dist_field", "cannot start with '_'"),
        ({"dist_field": "a.b"}, "dist_field", "without '.'"),
        ({"dist_field": "filepath"}, "dist_field", "StringField, not FloatField"),
        ({"dist_field": "hiera"}, "dist_field", "VectorField, not FloatField"),
    ):
        errors = resolve(SORT, samples, **image, **params)[1]
        assert list(errors) == [name]
        assert message in errors[name]

    samples.add_sample_field("distance", fo.FloatField)
    for name in ("", "new", "distance"):
        assert resolve(SORT, samples, **image, dist_field=name)[1] == {}
