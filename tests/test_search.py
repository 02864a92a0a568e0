"""The model that the search keeps, and the distances that it stores."""

from __future__ import annotations

import base64
import gc
import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.core.view as fov
import numpy as np
import pytest
from bson import json_util
from operator_calls import SORT, execute_in_app, make_context, plugin_module, resolve
from PIL import Image
from safetensors.torch import load_file, save_file

import fiftyone_hiera

NANO = "hiera-nano-digits"

pytestmark = [
    pytest.mark.usefixtures("plugin"),
    pytest.mark.samples(30, parts=[[0.1, 0.1, 0.8, 0.8], [0, 0, 1, 1]]),
]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to the models that searches load, in turn."""
    module = plugin_module("zoo_model")
    load = module.load
    loaded: list[Any] = []

    def load_and_note(*args: Any) -> Any:
        model = load(*args)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(module, "load", load_and_note)
    search = plugin_module("plugin.search")
    monkeypatch.setattr(search, "_kept_model", type(search._kept_model)())
    return loaded


def _index(samples: Any, key: str, **options: Any) -> None:
    model = fiftyone_hiera.load_model(NANO, **options)
    patches_field = "parts" if key == "patches" else None
    model.embed_samples(samples, key, patches_field=patches_field)
    fob.compute_similarity(
        samples, patches_field=patches_field, embeddings=key, brain_key=key
    )


def _upload(path: str | Path) -> dict[str, Any]:
    content = base64.b64encode(Path(path).read_bytes()).decode()
    return {"name": Path(path).name, "content": content}


def _search(samples: Any, brain_key: str, query: int = -1, **params: Any) -> Any:
    upload = _upload(samples._root_dataset.values("filepath")[query])
    result = execute_in_app(
        samples, SORT, query_image=upload, brain_key=brain_key, **params
    )
    assert result.error is None, result.error
    requests = result.executor._requests
    (shown,) = [r.params for r in requests if r.operator_uri in ("set_view", "show_output")]
    if "view" not in shown:
        return shown

    stages = json_util.loads(json.dumps(shown["view"]))
    return fov.DatasetView._build(samples._root_dataset, stages)


@pytest.mark.slow
def test_last_model_is_kept(samples: Any, own: Path, loads: list[Any]) -> None:
    _index(samples, "mean")
    _index(samples, "own", checkpoint=str(own), pooling="cls")
    for query in (-1, 0, 1):
        found = _search(samples, "mean", query)
        assert found.first().id == samples.values("id")[query]

    assert len(loads) == 1
    for _ in range(2):
        assert _search(samples, "own").first().id == samples.last().id

    gc.collect()
    assert [reference() is None for reference in loads] == [True, False]
    _search(samples, "mean")
    assert len(loads) == 3


@pytest.mark.slow
def test_model_is_kept_for_threads(samples: Any, loads: list[Any]) -> None:
    _index(samples, "mean")
    _index(samples, "cls", pooling="cls")
    keys = ["mean", "cls", "cls", "mean"] * 3
    ids = samples.values("id")
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(
            lambda index: _search(samples, keys[index], index).first().id, range(len(keys))
        )

    assert list(found) == ids[: len(keys)]


def test_kept_model_is_loaded_again_if_its_files_change(
    samples: Any, own: Path, loads: list[Any]
) -> None:
    _index(samples, "own", checkpoint=str(own))
    _search(samples, "own")
    config = own / "config.json"
    config.write_text(config.read_text("utf-8") + "\n", "utf-8")
    _search(samples, "own")
    assert len(loads) == 2

    weights = own / "model.safetensors"
    tensors = {name: tensor * 1.001 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    assert "now differs in sha256" in json.dumps(_search(samples, "own"))

    weights.unlink()
    assert "no file" in json.dumps(_search(samples, "own"))


def test_search_without_an_index(samples: Any) -> None:
    # Called by another operator, without the form
    with pytest.raises(ValueError, match="no similarity index of Hiera embeddings"):
        _sort(samples)


# Whatever ran before


@pytest.mark.parametrize("key", ["mean", "patches"])
def test_earlier_searches_change_nothing(samples: Any, key: str) -> None:
    _index(samples, key)
    _search(samples, key)
    index = samples.load_brain_results(key)
    ids = index.sample_ids if key == "mean" else index.label_ids
    before = index.embeddings.copy()
    samples.sort_by_similarity(ids[0], k=3, brain_key=key)
    index.find_duplicates(fraction=0.1)
    index.find_unique(5)
    assert np.abs(index.embeddings - before).max() > 1e-3  # which FiftyOne centers

    rows = {id: row for row, id in enumerate(ids)}
    for query in range(3):
        found = [rows[id] for id in _search(samples, key, query, k=60).values("id")]
        assert len(found) == len(rows)
        whole = 2 * query + 1 if key == "patches" else query  # the box of the whole image
        assert (np.diff(_distances(before, whole)[found]) > -1e-6).all()


def _first(samples: Any, query: int) -> str:
    first: str = _search(samples, "mean", query, k=1).first().id
    return first


def test_search_reads_what_was_written_since(samples: Any, digits: list[Any]) -> None:
    model = fiftyone_hiera.load_model(NANO)
    _index(samples, "mean")
    ids = samples.values("id")
    assert _first(samples, 3) == ids[3]
    kept = plugin_module("plugin.search")._kept_index
    index = kept._index

    vectors = samples.values("mean")  # by any tool, in any process
    samples.set_values("mean", {ids[3]: vectors[4], ids[4]: vectors[3]}, key_field="id")
    assert [_first(samples, query) for query in (3, 4, 5)] == [ids[4], ids[3], ids[5]]
    samples.tag_samples("seen")
    samples.limit(3).tag_samples("again")
    assert _first(samples, 6) == ids[6]
    assert kept._index is index  # for which not all was read again

    new = samples.add_sample(fo.Sample(filepath=str(digits[200].path)))
    model.embed_samples(samples, "mean")
    assert _first(samples, -1) == new

    samples.delete_samples([new])
    assert len(_search(samples, "mean", k=50)) == 30

    fiftyone_hiera.load_model(NANO, stage=3).embed_samples(samples, "mean", overwrite=True)
    assert [_first(samples, query) for query in (3, 4)] == ids[3:5]


@pytest.mark.parametrize("key", ["mean", "patches"])
def test_whole_dataset_is_searched_unless_a_view_is_chosen(samples: Any, key: str) -> None:
    _index(samples, key)
    shown = _search(samples, key, 0, k=5)
    ids = shown.values("sample_id" if key == "patches" else "id")
    outside = next(i for i, id in enumerate(samples.values("id")) if id not in ids)
    sample_id = samples.values("id")[outside]

    def first(view: Any, **params: Any) -> str:
        found = _search(view, key, outside, k=1, **params).first()
        return str(found.sample_id if key == "patches" else found.id)

    views = [shown, samples.take(3)]
    for view in views:
        assert first(view) == sample_id
        assert first(view, view_target="CURRENT_VIEW") in view.values(
            "sample_id" if view._is_patches else "id"
        )

    number = 60 if key == "patches" else 30
    for view, target, searched in (
        (samples, None, number),
        (shown, None, number),
        (shown, "CURRENT_VIEW", 5),
        (samples.limit(2).to_patches("parts"), None, number),
    ):
        properties, errors = resolve(SORT, view, brain_key=key, view_target=target)
        assert not errors.keys() - {"query_image"}
        assert f"Searches {searched} " in properties["k"].view.description

        assert properties["view_target"].default == "DATASET"

    with pytest.raises(ValueError, match=r"Invalid view_target 'current_view'\. Valid are"):
        _sort(samples, brain_key=key, view_target="current_view")


def test_index_of_what_the_view_does_not_show(samples: Any) -> None:
    _index(samples, "mean")
    patches = samples.to_patches("parts")
    assert _search(patches, "mean", 7, k=1).first().id == samples.values("id")[7]
    params = {"brain_key": "mean", "view_target": "CURRENT_VIEW"}
    _, errors = resolve(SORT, patches, **params)
    assert "is of images, which the current view does not show" in errors["view_target"]
    with pytest.raises(ValueError, match="does not show"):
        _sort(patches, **params)


def test_vector_that_cannot_be_searched(samples: Any) -> None:
    _index(samples, "mean")
    ids, vectors = samples.values(["id", "mean"])
    for bad in (np.full(192, np.nan, np.float32), np.zeros(5, np.float32)):
        samples.set_values("mean", {ids[3]: bad}, key_field="id")
        with pytest.raises(ValueError, match=f"the vector of {ids[3]} in 'mean' has"):
            _sort(samples)

    samples.set_values("mean", {ids[3]: vectors[3]}, key_field="id")
    assert _first(samples, 3) == ids[3]


def test_index_of_another_slice(dataset: Any, digits: list[Any]) -> None:
    dataset.add_group_field("group", default="left")
    for digit in digits[:6]:
        group = fo.Group()
        dataset.add_samples(
            [
                fo.Sample(filepath=str(digit.path), group=group.element(name))
                for name in ("left", "right")
            ]
        )

    right = dataset.select_group_slices("right")
    fiftyone_hiera.load_model(NANO).embed_samples(right, "mean", brain_key="mean")
    upload = _upload(digits[2].path)
    with pytest.raises(
        ValueError, match=r"in the index 'mean'. It is of the slices \['right'"
    ):
        _sort(dataset, upload, group_slice="left")

    found = _sort(dataset, upload, group_slice="right")
    assert found.first().filepath == str(digits[2].path)


# Distances


def _distances(vectors: Any, query: int) -> Any:
    similarity = vectors @ vectors[query]
    similarity /= np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[query])
    return 1 - similarity


def test_distances(samples: Any) -> None:
    _index(samples, "mean")
    vectors = np.stack(samples.values("mean"))
    for query, k in ((0, 30), (7, 5)):
        found = _search(samples, "mean", query, k=k, dist_field="distance")
        stored = found.values("distance")
        assert len(stored) == k
        assert stored == sorted(stored)
        samples.reload()
        assert isinstance(samples.get_field("distance"), fo.FloatField)
        assert np.allclose(stored, sorted(_distances(vectors, query))[:k], atol=1e-5)

        # None is of an earlier query
        assert samples.count("distance") == k
        nearest = samples.exists("distance").sort_by("distance").first()
        assert nearest.id == samples.values("id")[query]


@pytest.mark.parametrize("is_patches_view", [False, True])
def test_distances_of_patches(samples: Any, is_patches_view: bool) -> None:
    _index(samples, "patches")
    vectors = np.stack(samples.values("parts.detections.patches", unwind=True))
    view = samples.to_patches("parts") if is_patches_view else samples
    for query, k in ((0, 60), (7, 5)):
        found = _search(view, "patches", query, k=k, dist_field="distance")
        stored = found.values("parts.distance")
        assert len(stored) == k
        assert stored == sorted(stored)
        samples.reload()
        path = "parts.detections.distance"
        assert isinstance(samples.get_field(path), fo.FloatField)
        assert samples.count(path) == k
        kept = [d for d in samples.values(path, unwind=True) if d is not None]
        assert sorted(kept) == stored

    image = Image.open(samples.values("filepath")[7])
    embedding = fiftyone_hiera.load_model(NANO).embed(image)
    similarity = vectors @ embedding / np.linalg.norm(vectors, axis=1)
    expected = 1 - similarity / np.linalg.norm(embedding)
    assert np.allclose(stored, sorted(expected)[:5], atol=1e-5)


def test_app_reloads_the_dataset_for_a_new_field(samples: Any) -> None:
    _index(samples, "mean")
    upload = _upload(samples.first().filepath)
    for params, expected in (
        ({}, ["set_view"]),
        ({"dist_field": "distance"}, ["reload_dataset", "set_view"]),
    ):
        result = execute_in_app(samples, SORT, query_image=upload, **params)
        assert [r.operator_uri for r in result.executor._requests] == expected


def test_invalid_distance_field_changes_nothing(samples: Any) -> None:
    _index(samples, "mean")
    for name in ("filepath", "mean", "_x", "a.b"):
        with pytest.raises(ValueError, match=r"dist_field|Field name"):
            _sort(samples, dist_field=name)

    with pytest.raises(ValueError, match="Invalid k 0"):
        _sort(samples, k=0)


def _sort(
    samples: Any, upload: Any = None, group_slice: str | None = None, **params: Any
) -> Any:
    """Search as another operator does, without the form."""
    upload = upload or _upload(samples.first().filepath)
    params = {"query_image": upload, "brain_key": "mean", **params}
    ctx = make_context(samples, params, operator_uri=SORT, group_slice=group_slice)
    search = plugin_module("plugin.search")
    return search.sort_view(search.read_search(ctx))


def test_view_that_hides_fields_keeps_its_distances(samples: Any) -> None:
    _index(samples, "mean")
    _sort(samples, k=5, dist_field="distance")
    for view in (samples.select_fields("tags"), samples.exclude_fields("mean")):
        assert len(_sort(view, k=5, dist_field="distance")) == 5  # of the dataset
        with pytest.raises(ValueError, match="the view that is searched hides fields"):
            _sort(view, dist_field="distance", view_target="CURRENT_VIEW")

    assert samples.count("distance") == 5


def test_values_of_others_are_not_removed(samples: Any) -> None:
    _index(samples, "mean")
    samples.set_values("uniqueness", [0.5] * len(samples))
    samples.add_sample_field("fixed", fo.FloatField)
    field = samples.get_field("fixed")
    field.read_only = True
    field.save()
    for name, match in (("uniqueness", "holds other values"), ("fixed", "is read-only")):
        with pytest.raises(ValueError, match=match):
            _sort(samples, dist_field=name)

    assert samples.count("uniqueness") == len(samples)
    for _ in range(2):  # its own are replaced
        _sort(samples, k=5, dist_field="distance")
        assert samples.count("distance") == 5


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"dist_field": 5}, "Invalid dist_field 5"),
        ({"query_image": "/path.png"}, "Invalid query_image '/path.png'"),
        ({"query_image": {"content": "data:image/png;base64,AAAA"}}, "is not base64"),
        ({"query_image": {"name": "x.png"}}, "was not uploaded"),
    ],
)
def test_invalid_arguments_of_the_search(
    samples: Any, params: dict[str, Any], match: str
) -> None:
    _index(samples, "mean")
    with pytest.raises(ValueError, match=match):
        _sort(samples, **params)
