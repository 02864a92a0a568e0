"""2-D maps: new samples are added to them, and what else is refused."""

from __future__ import annotations

from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.operators as foo
import numpy as np
import pytest
from digit_samples import digit_samples
from fiftyone.operators.executor import ExecutionError
from fiftyone.server.routes.embeddings import EmbeddingsExtendedStage, OnPlotLoad
from operator_calls import COMPUTE, resolve

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.plugin.maps import grow_map
from fiftyone_hiera.runs.target import Target

NANO = "hiera-nano-digits"

# Compiling UMAP takes half a minute
METHODS = ["pca", pytest.param("umap", marks=pytest.mark.slow)]

pytestmark = [
    pytest.mark.usefixtures("plugin"),
    pytest.mark.samples(40, parts=[[0.1, 0.1, 0.8, 0.8]]),
]


def _add(dataset: Any, digits: list[Digit], **fields: Any) -> None:
    """Add digits with one detection each."""
    dataset.add_samples(digit_samples(digits, parts=[[0.1, 0.1, 0.8, 0.8]], **fields))


def _compute(samples: Any, key: str | None = "map", method: str = "pca", **kw: Any) -> Any:
    """Run the operator; return the key of its map."""
    params = {"visualization": True, "visualization_method": method, **kw}
    if key is not None:
        params["visualization_brain_key"] = key

    return foo.get_operator(COMPUTE)(samples, NANO, **params).result[
        "visualization_brain_key"
    ]


def _load(samples: Any, key: str = "map") -> Any:
    return samples._root_dataset.load_brain_results(key, cache=False)


def _points(samples: Any, key: str = "map") -> dict[str, list[float]]:
    """Return the points of a map as they are in the database, by sample or label ID."""
    results = _load(samples, key)
    is_patches = results.config.patches_field is not None
    ids = results.label_ids if is_patches else results.sample_ids
    return dict(zip(ids.tolist(), results.points.tolist(), strict=True))


def _shown(samples: Any, key: str = "map") -> set[str]:
    """Return the IDs that the App shows on the map of a dataset."""
    request = {
        "datasetName": samples.name,
        "brainKey": key,
        "view": [],
        "labelField": None,
        "slices": None,
    }
    plot = OnPlotLoad._post_sync(None, request)
    return {point["id"] for point in plot["traces"]["points"]}


# Adding samples


@pytest.mark.parametrize("method", METHODS)
def test_new_samples_are_added(samples: Any, digits: list[Digit], method: str) -> None:
    _compute(samples, method=method)
    first = _points(samples)
    assert len(first) == 40
    assert _shown(samples) == set(first)

    _add(samples, digits[40:60])
    _compute(samples, method=method)
    grown = _points(samples)
    assert set(grown) == set(samples.values("id")) == _shown(samples)
    assert {key: grown[key] for key in first} == first
    assert np.isfinite(list(grown.values())).all()
    assert np.allclose(samples.values("map"), list(map(grown.get, samples.values("id"))))

    _compute(samples, method=method)  # there is nothing to add
    assert _points(samples) == grown


@pytest.mark.slow
def test_points_are_those_of_their_embeddings(samples: Any, digits: list[Digit]) -> None:
    _compute(samples)
    _add(samples, digits[:40])  # the same images again
    _compute(samples)
    points = np.array(list(map(_points(samples).get, samples.values("id"))))
    assert np.abs(points[:40] - points[40:]).max() < 1e-4
    assert np.ptp(points) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_deleted_samples(samples: Any, digits: list[Digit], method: str) -> None:
    _compute(samples, method=method)
    _add(samples, digits[40:50])
    _compute(samples, method=method)
    first = _points(samples)
    ids = samples.values("id")
    samples.delete_samples([*ids[3:8], ids[45]])
    assert _shown(samples) == set(ids), "FiftyOne itself removes points"

    _add(samples, digits[50:55])
    _compute(samples, method=method)
    grown = _points(samples)
    left = set(ids) - {*ids[3:8], ids[45]}
    assert set(grown) == set(samples.values("id")) == _shown(samples)
    assert {key: grown[key] for key in left} == {key: first[key] for key in left}

    _add(samples, digits[55:60])
    _compute(samples, method=method)
    assert len(_points(samples)) == len(samples)
    samples.delete_samples(samples.last().id)
    _compute(samples, method=method)
    assert set(_points(samples)) == set(samples.values("id"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_patches(samples: Any, digits: list[Digit], method: str) -> None:
    _compute(samples, method=method, patches_field="parts")
    first = _points(samples)
    samples.delete_samples(samples.first().id)
    _add(samples, digits[40:45])
    _compute(samples, method=method, patches_field="parts")
    grown = _points(samples)
    assert set(grown) == set(samples.values("parts.detections.id", unwind=True))
    assert {key: grown[key] for key in first if key in grown} == {
        key: point for key, point in first.items() if key in grown
    }
    assert not samples.has_field("map")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_slices_of_groups(dataset: Any, digits: list[Digit], method: str) -> None:
    dataset.add_group_field("group", default="left")

    def add(some: list[Digit]) -> Any:
        for digit in some:
            group = fo.Group()
            for name in ("left", "right"):
                sample = fo.Sample(filepath=str(digit.path), group=group.element(name))
                dataset.add_sample(sample)

        return dataset.select_group_slices("right")

    right = add(digits[:30])
    _compute(right, method=method)
    first = _points(dataset)
    assert len(first) == 30
    dataset.delete_samples(right.first().id)
    right = add(digits[30:35])
    _compute(right, method=method)
    grown = _points(dataset)
    assert set(grown) == set(right.values("id"))
    assert {key: grown[key] for key in first if key in grown}.items() <= first.items()


@pytest.mark.slow
def test_samples_that_failed_are_left_out(samples: Any) -> None:
    _compute(samples)
    samples.add_sample(fo.Sample(filepath="/absent.png"))
    sample = samples.last()
    with pytest.raises(ExecutionError, match="All inputs failed"):
        _compute(samples.select(sample.id))

    _compute(samples)
    assert set(_points(samples)) == set(samples.values("id")) - {sample.id}


@pytest.mark.slow
def test_growth_that_fails_keeps_the_map(samples: Any, digits: list[Digit]) -> None:
    _compute(samples, method="umap")
    first = _points(samples)
    samples.set_values("hiera", [None, *samples.values("hiera")[1:]])
    sample = samples.first()
    sample.filepath = "/absent.png"
    sample.save()
    _add(samples, digits[40:45])
    with pytest.raises(ExecutionError, match="1 training samples are missing"):
        _compute(samples, method="umap")

    assert _points(samples) == first


# The key


@pytest.mark.slow
def test_default_key(samples: Any, digits: list[Digit]) -> None:
    assert _compute(samples.limit(20), None) == "hiera_map"
    assert _compute(samples, None) == "hiera_map_2", "it was fitted to other samples"
    _add(samples, digits[40:45])
    assert _compute(samples, None) == "hiera_map_2"
    assert len(_points(samples, "hiera_map_2")) == 45
    assert len(_points(samples, "hiera_map")) == 20
    text = resolve(COMPUTE, samples, model_name=NANO, visualization=True)[0][
        "visualization_brain_key"
    ].view.description
    assert text.endswith("empty for 'hiera_map_3'"), "the default method is UMAP"
    assert _compute(samples, None, overwrite=True) == "hiera_map_3"
    assert _compute(samples, None, patches_field="parts") == "hiera_map_4"


_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"visualization_brain_key": "index"}, "run of type 'similarity', not a map"),
    (
        {"embeddings_field": "other"},
        "map of field 'hiera' by PCA, not of field 'other' by PCA",
    ),
    (
        {"patches_field": "parts"},
        "of field 'hiera' by PCA, not of field 'hiera' of 'parts' by PCA",
    ),
    ({"visualization_method": "umap"}, "by PCA, not of field 'hiera' by UMAP"),
    ({"visualization_method": "tsne"}, "by PCA, not of field 'hiera' by t-SNE"),
    (
        {"visualization_brain_key": "manual"},
        "map of field None by manual, not of field 'hiera' by PCA",
    ),
    (
        {"visualization_brain_key": "tsne", "visualization_method": "tsne"},
        "t-SNE cannot add samples to a map",
    ),
    ({"overwrite": True}, "embeddings that 'Overwrite' replaces"),
]


@pytest.mark.usefixtures("auto_dtype")
def test_taken_keys(samples: Any) -> None:
    # As the form resolves "auto"
    fiftyone_hiera.load_model(NANO).embed_samples(samples, "hiera")
    fob.compute_similarity(samples, embeddings="hiera", brain_key="index")
    for method in ("pca", "tsne"):
        key = "map" if method == "pca" else method
        extra = {} if method == "pca" else {"pca_dims": 10, "perplexity": 5}
        fob.compute_visualization(
            samples, embeddings="hiera", method=method, brain_key=key, **extra
        )

    fob.compute_visualization(samples, points=np.zeros((40, 2)), brain_key="manual")
    form = {
        "model_name": NANO,
        "embeddings_field": "hiera",
        "visualization": True,
        "visualization_brain_key": "map",
        "visualization_method": "pca",
    }
    assert resolve(COMPUTE, samples, **form)[1] == {}
    for params, message in _REFUSED:
        _, errors = resolve(COMPUTE, samples, **form | params)
        assert list(errors) == ["visualization_brain_key"]
        assert message in errors["visualization_brain_key"]
        assert "another or delete that brain run" in errors["visualization_brain_key"]


def test_invalid_key(samples: Any) -> None:
    with pytest.raises(ExecutionError, match="Invalid brain key '2 b'"):
        _compute(samples, "2 b")


# The lasso


def _lasso(samples: Any, ids: list[str], points_field: str | None) -> dict[str, Any]:
    """Return the view stage of a lasso around everything left of the median."""
    middle = float(np.median([x for x, _ in _points(samples).values()]))
    request = {
        "datasetName": samples.name,
        "view": [],
        "patchesField": None,
        "slices": None,
        "selection": ids,
        "lassoPoints": {"x": [-99, middle, middle, -99], "y": [-99, -99, 99, 99]},
        "pointsField": points_field,
    }
    stage: dict[str, Any] = EmbeddingsExtendedStage._post_sync(None, request)
    return stage


@pytest.mark.slow
def test_lasso_by_points(samples: Any) -> None:
    _compute(samples)
    assert _load(samples).config.points_field == "map"
    stage = _lasso(samples, [], "map")
    assert stage["_cls"].endswith("Mongo")
    selected = samples.mongo(stage["kwargs"]["pipeline"])
    points = _points(samples)
    middle = np.median([x for x, _ in points.values()])
    assert set(selected.values("id")) == {
        key for key, (x, _) in points.items() if x < middle
    }
    samples.delete_brain_run("map")
    assert not samples.has_field("map")


@pytest.mark.slow
def test_points_outside_of_an_index(samples: Any, digits: list[Digit]) -> None:
    _compute(samples, embeddings_field="hiera")
    _load(samples).index_points()
    assert "map" in samples.list_indexes()
    _add(samples, digits[40:42])
    vectors = [100 * vector for vector in samples.limit(2).values("hiera")]
    samples.set_values("hiera", [*samples.limit(40).values("hiera"), *vectors])
    grow_map(Target(samples, "hiera"), "map")
    assert "map" in samples.list_indexes()
    assert set(_points(samples)) == set(samples.values("id"))
    assert np.abs(samples.last().map).max() > np.abs(samples.first().map).max()


@pytest.mark.slow
def test_field_with_the_name_of_the_key_is_kept(samples: Any) -> None:
    samples.set_values("mine", [[1.0, 2.0]] * len(samples))
    _compute(samples, "mine")
    assert samples.values("mine") == [[1.0, 2.0]] * len(samples)
    assert len(_points(samples, "mine")) == 40
