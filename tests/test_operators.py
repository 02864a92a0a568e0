"""Runs of the operators: in the App, delegated and from Python."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.core.view as fov
import fiftyone.operators as foo
import fiftyone.zoo as foz
import numpy as np
import pytest
from bson import json_util
from cpu_kinds import say_truth
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionError, ExecutionResult
from operator_calls import (
    COMPUTE,
    SORT,
    execute_in_app,
    make_context,
    plugin_module,
    resolve,
    resolve_context,
    triggered,
)
from other_process import OtherProcess
from PIL import Image
from waiting import wait_until

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

NANO = "hiera-nano-digits"

pytestmark = [
    pytest.mark.usefixtures("plugin"),
    pytest.mark.samples(60, parts=[[0.1, 0.1, 0.8, 0.8]]),
]


@pytest.fixture
def absent(samples: Any, tmp_path: Path) -> Any:
    """The first sample, whose file is missing."""
    sample = samples.first()
    sample.filepath = str(tmp_path / "absent.png")
    sample.save()
    return sample


def _module(name: str) -> Any:
    return plugin_module(f"plugin.{name}")


def _check(samples: Any, pooling: str, field: str) -> None:
    model = fiftyone_hiera.load_model(NANO, pooling=pooling)
    paths, stored = samples.values(["filepath", field])
    expected = model.embed_all([Image.open(path) for path in paths])
    assert np.abs(np.stack(stored) - expected).max() < 1e-4


# From Python


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        (
            (),
            {"model_name": NANO, "embedding_type": "cls", "field_name": "vectors"},
        ),
        pytest.param(
            (),
            {"model_name": NANO, "embedding_types": "cls", "emb_field": "vectors"},
            marks=pytest.mark.slow,
        ),
        pytest.param((NANO, "vectors", "cls"), {}, marks=pytest.mark.slow),
        ((NANO,), {"embeddings_field": "vectors", "pooling": "cls", "batch_size": 7}),
    ],
    ids=str,
)
def test_called_as_earlier_plugins(samples: Any, arguments: Any, keywords: Any) -> None:
    result = foo.get_operator(COMPUTE)(samples, *arguments, **keywords)
    assert isinstance(result, ExecutionResult)
    assert result.result["embedded"] == 60
    assert result.result["embeddings_field"] == "vectors"
    _check(samples, "cls", "vectors")


def test_called_with_a_view(samples: Any, absent: Any) -> None:
    result = foo.get_operator(COMPUTE)(samples.limit(5), NANO, failure_tag="bad").result
    assert (result["embedded"], result["skipped"], result["failed"]) == (4, 0, 1)
    (failure,) = result["failures"]
    assert failure["sample_id"] == absent.id
    assert failure["path"] == absent.filepath
    assert samples.match_tags("bad").values("id") == [absent.id]
    assert samples.count("hiera") == 4
    _check(samples.exists("hiera"), "mean", "hiera")


@pytest.mark.parametrize("is_view", [False, True])
def test_execute_operator(samples: Any, is_view: bool) -> None:
    where = {"view": samples.limit(5)} if is_view else {"dataset": samples}
    params = {"model_name": NANO, "emb_field": "vectors", "embedding_types": "mean"}
    given = dict(params)
    result = foo.execute_operator(COMPUTE, where, params=params)
    assert result.result["embedded"] == (5 if is_view else 60)
    assert params == given
    _check(samples.exists("vectors"), "mean", "vectors")


def test_invalid_parameters_raise(samples: Any) -> None:
    with pytest.raises(ExecutionError, match=r"pooling of .*'max'. Valid are \['mean'"):
        foo.get_operator(COMPUTE)(samples, NANO, pooling="max")


def test_everything_failed(samples: Any, absent: Any) -> None:
    with pytest.raises(ExecutionError, match=r"(?s)All inputs failed \(1 of 1\).*No such"):
        foo.get_operator(COMPUTE)(samples.limit(1), NANO)


_LONG_RUN = """
import fiftyone.operators as foo

start = time.monotonic()
samples = fo.load_dataset({name!r})
result = foo.get_operator({uri!r})(samples, "hiera-nano-digits", batch_size=4)
say(embedded=result.result["embedded"], seconds=time.monotonic() - start)
"""


@pytest.mark.slow
def test_long_run_is_not_cut(
    dataset: Any, digits: list[Digit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FiftyOne's limit, by default 10 minutes, is on what runs immediately
    monkeypatch.setenv("FIFTYONE_OPERATOR_TIMEOUT", "1")
    dataset.add_samples([fo.Sample(filepath=str(digit.path)) for digit in digits[:300]])
    said = OtherProcess(_LONG_RUN.format(name=dataset.name, uri=COMPUTE), tmp_path).result()
    assert said["embedded"] == 300
    assert said["seconds"] > 1


def test_in_a_notebook(samples: Any) -> None:
    async def cell() -> Any:
        return await foo.get_operator(COMPUTE)(samples, NANO, delegate=True)

    queued = asyncio.run(cell())
    assert queued.delegated
    assert samples.get_field("hiera") is None
    assert _run_queue(samples) == ["completed"]
    _check(samples, "mean", "hiera")


# Delegated


def _run_queue(dataset: Any) -> list[str]:
    service = DelegatedOperationService()
    ours = {"operator": COMPUTE, "dataset_name": dataset.name}
    queued = service.list_operations(**ours, run_state="queued")
    service.execute_queued_operations(**ours)
    return [service.get(operation.id).run_state for operation in queued]


@pytest.mark.parametrize(
    "request_it",
    [
        lambda samples: foo.get_operator(COMPUTE)(
            samples, NANO, emb_field="hiera", batch_size=8, delegate=True
        ),
        lambda samples: foo.execute_operator(
            COMPUTE,
            dataset=samples,
            params={"model_name": NANO, "batch_size": 8, "delegate": True},
        ),
        lambda samples: foo.execute_operator(
            COMPUTE,
            dataset=samples,
            params={"model_name": NANO, "batch_size": 8},
            request_delegation=True,
        ),
    ],
    ids=["called", "delegate", "request_delegation"],
)
def test_delegated(
    samples: Any, absent: Any, request_it: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = request_it(samples)
    assert result.delegated
    assert samples.get_field("hiera") is None

    written: list[tuple[float | None, str]] = []
    service = DelegatedOperationService
    set_progress = service.set_progress
    monkeypatch.setattr(
        service,
        "set_progress",
        lambda self, doc_id, progress: (
            written.append((progress.progress, progress.label)),
            set_progress(self, doc_id, progress),
        ),
    )
    monkeypatch.setattr(_module("compute_run"), "_SECONDS_BETWEEN_WRITES", 0)
    assert _run_queue(samples) == ["completed"]

    document = service().get(result.result["id"])
    assert document.result.result["embedded"] == 59
    assert document.result.result["failed"] == 1
    schema = json.dumps(document.metadata["outputs_schema"])
    assert "59 embedded, 0 skipped, 1 failed" in schema
    assert "Show the samples that failed: 1" in schema

    assert written[0] == (None, f"Loading {NANO}, 3 MB")
    moving = [progress for progress, _ in written[1:]]
    assert moving == sorted(moving)
    assert moving[0] == 0
    assert len(set(moving)) > 2
    assert any("of 60 images" in label and "per second" in label for _, label in written)
    assert document.status.label == written[-1][1]


def test_delegated_run_that_fails_says_why(samples: Any, absent: Any) -> None:
    result = foo.get_operator(COMPUTE)(samples.limit(1), NANO, delegate=True)
    assert _run_queue(samples) == ["failed"]
    document = DelegatedOperationService().get(result.result["id"])
    assert "All inputs failed (1 of 1)" in document.result.error
    assert absent.filepath in document.result.error


_SERVE = f"""
from fiftyone.operators.delegated import DelegatedOperationService

DelegatedOperationService().execute_queued_operations(
    operator={COMPUTE!r}, monitor=True, check_interval_seconds=1
)
"""


@pytest.mark.slow
def test_delegated_run_that_is_cancelled(
    dataset: Any, digits: list[Digit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_truth(monkeypatch)
    dataset.add_samples([fo.Sample(filepath=str(digit.path)) for digit in digits])
    compute = foo.get_operator(COMPUTE)
    queued = compute(dataset, NANO, batch_size=1, num_workers=0, delegate=True)
    service = DelegatedOperationService()
    process = OtherProcess(_SERVE, tmp_path)
    wait_until(lambda: _count(dataset))
    service.set_failed(queued.result["id"])
    process.wait()
    stored = _count(dataset)
    assert 0 < stored < len(digits)
    _check(dataset.exists("hiera"), "mean", "hiera")

    rest = compute(dataset, NANO).result
    assert (rest["embedded"], rest["skipped"]) == (len(digits) - stored, stored)


def _count(dataset: Any) -> int:
    dataset.reload()
    return int(dataset.count("hiera")) if dataset.has_field("hiera") else 0


# In the App


def _outputs(messages: Any) -> list[dict[str, Any]]:
    return [params for name, params in triggered(messages) if name == "show_output"]


def _labels(output: dict[str, Any]) -> list[str]:
    views = [prop["view"] for prop in output["outputs"]["type"]["properties"].values()]
    return [
        str(view[name])
        for view in views
        for name in ("label", "description")
        if view.get(name)
    ]


def test_stream(samples: Any, absent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_module("compute_run"), "_SECONDS_BETWEEN_UPDATES", 0)
    result = execute_in_app(samples, model_name=NANO, batch_size=8)
    assert result.is_generator
    messages = list(result.result)
    json.dumps([message.to_json() for message in messages], default=str)

    *updates, report = _outputs(messages)
    progress = [update["results"]["progress"] for update in updates]
    assert progress[0] is None
    assert progress[1:] == sorted(progress[1:])
    assert progress[1] == 0
    assert progress[-1] > 0.5
    assert _labels(updates[0])[0] == f"Loading {NANO}, 3 MB"
    assert any("of 60 images" in label for label in _labels(updates[-1]))
    assert "reload_dataset" in [name for name, _ in triggered(messages)]

    assert "59 embedded, 0 skipped, 1 failed" in _labels(report)
    assert report["results"]["embedded"] == 59
    button = report["outputs"]["type"]["properties"]["show_failed"]["view"]
    assert button["operator"] == "set_view"
    stages = json_util.loads(json.dumps(button["params"]["view"]))
    assert fov.DatasetView._build(samples, stages).values("id") == [absent.id]
    reasons = report["outputs"]["type"]["properties"]["reasons"]
    assert "No such file" in json.dumps(reasons)
    _check(samples.exists("hiera"), "mean", "hiera")


def test_stream_stopped_by_its_button(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_module("compute_run"), "_SECONDS_BETWEEN_UPDATES", 0)
    stream = execute_in_app(samples, model_name=NANO, batch_size=1, num_workers=0).result
    messages = []
    for message in stream:
        messages.append(message)
        if len(messages) == 20:
            properties = message.body.params["outputs"]["type"]["properties"]
            button = properties["stop"]["view"]
            foo.execute_operator(button["operator"], params=button["params"])

    (*_, report) = _outputs(messages)
    stored = samples.count("hiera")
    assert 10 < stored < 30
    assert f"Stopped: {stored} embedded, 0 skipped, 0 failed" in _labels(report)
    assert "'hiera'. To resume, run the same form with this field" in _labels(report)[1]
    _check(samples.exists("hiera"), "mean", "hiera")

    # The same form resumes the run; the button of a run that has ended does nothing
    foo.execute_operator(button["operator"], params=button["params"])
    (*_, report) = _outputs(execute_in_app(samples, model_name=NANO).result)
    assert f"{60 - stored} embedded, {stored} skipped, 0 failed" in _labels(report)


def test_stream_that_the_app_drops(samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_module("compute_run"), "_SECONDS_BETWEEN_UPDATES", 0)
    stream = execute_in_app(samples, model_name=NANO, batch_size=1, num_workers=0).result
    for _ in range(20):
        next(stream)

    stream.close()
    stored = samples.count("hiera")
    assert 10 < stored < 30
    _check(samples.exists("hiera"), "mean", "hiera")
    assert _module("compute_run")._running == {}


def test_stream_that_fails_says_why(samples: Any, absent: Any) -> None:
    (*_, error) = _outputs(execute_in_app(samples.limit(1), model_name=NANO).result)
    assert _labels(error)[0] == "The run failed"
    assert absent.filepath in _labels(error)[1]
    samples.reload()
    assert samples.get_field("hiera") is None, "a field without a vector was left"


def test_weights_that_are_not_available(samples: Any) -> None:
    name = "facebook/hiera-tiny-224-hf"
    outputs = _outputs(execute_in_app(samples, model_name=name).result)
    assert _labels(outputs[0])[0] == f"Downloading {name}, 109 MB"
    text = _labels(outputs[1])[1]
    assert "Cannot download model.safetensors of facebook/hiera-tiny" in text
    assert (
        "hf download facebook/hiera-tiny-224-hf model.safetensors --revision d801" in text
    )
    assert samples.get_field("hiera") is None


def test_invalid_form_does_not_run(samples: Any) -> None:
    with pytest.raises(ExecutionError, match="cannot start with '_'"):
        execute_in_app(samples, model_name=NANO, embeddings_field="_x")


@pytest.mark.parametrize(
    ("target", "count"),
    [("DATASET", 60), ("CURRENT_VIEW", 5), ("SELECTED_SAMPLES", 2), (None, 2)],
)
def test_targets(samples: Any, target: str | None, count: int) -> None:
    view = samples.limit(5)
    selected = view.values("id")[:2]
    params = {} if target is None else {"view_target": target}
    ctx = make_context(view, params, selected=selected)
    assert resolve_context(COMPUTE, ctx)[1] == {}
    assert len(_module("compute_request").read_request(ctx).samples) == count


def test_selected_from_python(samples: Any) -> None:
    selected = samples.values("id")[:3]
    where = {"dataset": samples, "selected": selected}
    foo.execute_operator(COMPUTE, where, params={"model_name": NANO})
    assert samples.exists("hiera").values("id") == selected


def test_dynamic_groups(samples: Any) -> None:
    count = len(samples)
    samples.set_values("scene", [f"scene {index % 3}" for index in range(count)])
    view = samples.group_by("scene")
    properties, errors = resolve(COMPUTE, view, model_name=NANO)
    assert "embeddings_field" in properties
    assert errors == {}

    first = samples.first().id
    foo.execute_operator(
        COMPUTE, {"view": view, "selected": [first]}, params={"model_name": NANO}
    )
    samples.reload()
    assert samples.exists("hiera").values("id") == [first]
    result = foo.execute_operator(COMPUTE, {"view": view}, params={"model_name": NANO})
    assert (result.result["skipped"], result.result["embedded"]) == (1, count - 1)


def test_slice_of_a_grouped_dataset(dataset: Any, digits: list[Digit]) -> None:
    dataset.add_group_field("group", default="left")
    for left, right in zip(digits[:3], digits[3:6], strict=True):
        group = fo.Group()
        for name, digit in (("left", left), ("right", right)):
            sample = fo.Sample(filepath=str(digit.path), group=group.element(name))
            dataset.add_sample(sample)

    ctx = make_context(dataset, {"model_name": NANO}, group_slice="right")
    assert resolve_context(COMPUTE, ctx)[1] == {}
    del ctx.request_params["operator_uri"]  # as another operator calls it
    assert asyncio.run(foo.get_operator(COMPUTE).execute(ctx))["embedded"] == 3
    everything = dataset.select_group_slices()
    embedded = everything.exists("hiera").values("group.name")
    assert embedded == ["right"] * 3


# The brain


def test_index_and_map(samples: Any, absent: Any) -> None:
    result = execute_in_app(
        samples,
        model_name=NANO,
        similarity_index=True,
        visualization=True,
        visualization_method="pca",
    )
    *updates, report = _outputs(result.result)
    labels = [_labels(update)[0] for update in updates]
    assert labels[-2:] == [
        "Bringing the similarity index up to date",
        "Computing the 2-D map",
    ]
    assert report["results"]["similarity_brain_key"] == "hiera_similarity"
    assert "Open the Embeddings panel for 'hiera_map'" in _labels(report)

    assert samples.load_brain_results("hiera_map").points.shape == (59, 2)
    assert absent.id not in samples.load_brain_results("hiera_map").sample_ids
    index = samples.load_brain_results("hiera_similarity")
    assert index.total_index_size == 59
    query = samples.last()
    nearest = samples.sort_by_similarity(query.id, k=3, brain_key="hiera_similarity")
    assert nearest.first().id == query.id


def test_index_and_map_of_patches(samples: Any) -> None:
    result = foo.get_operator(COMPUTE)(
        samples,
        NANO,
        patches_field="parts",
        similarity_brain_key="patches",
        visualization_brain_key="map",
        visualization_method="pca",
    ).result
    assert result["embeddings_field"] == "parts.detections.hiera"
    assert samples.load_brain_results("patches").total_index_size == 60
    assert samples.load_brain_results("map").points.shape == (60, 2)
    assert samples.get_brain_info("patches").config.patches_field == "parts"


def test_visualization_that_fails(samples: Any) -> None:
    stream = execute_in_app(
        samples.limit(5), model_name=NANO, visualization_method="tsne"
    ).result
    (*_, error) = _outputs(stream)
    assert "stored in 'hiera', but computing the 2-D map failed" in _labels(error)[1]
    assert "only method 'pca' works" in _labels(error)[1]
    assert samples.count("hiera") == 5
    assert samples.list_brain_runs() == []
    assert resolve(COMPUTE, samples, model_name=NANO, visualization=True)[1] == {}


# Search by an image


def _upload(path: Path) -> dict[str, Any]:
    content = base64.b64encode(path.read_bytes()).decode()
    return {"name": path.name, "type": "image/png", "content": content}


def _search(samples: Any, path: Path, **params: Any) -> tuple[str, Any]:
    result = execute_in_app(samples, SORT, query_image=_upload(path), **params)
    assert result.error is None, result.error
    (request,) = result.executor._requests
    return request.operator_uri, request.params


def _found(samples: Any, path: Path, **params: Any) -> Any:
    uri, params = _search(samples, path, **params)
    assert uri == "set_view"
    stages = json_util.loads(json.dumps(params["view"]))
    return fov.DatasetView._build(samples._root_dataset, stages)


def _index_model(samples: Any) -> Any:
    module = _module("query_model")
    return module.KeptModel().use("key", module.find_index_model(samples, "key"))


@pytest.mark.parametrize(
    "pooling",
    [
        "cls",
        pytest.param("mean", marks=pytest.mark.slow),
        pytest.param("pooler", marks=pytest.mark.slow),
    ],
)
def test_search(samples: Any, digits: list[Digit], pooling: str) -> None:
    key = {"similarity_brain_key": "key"}
    foo.get_operator(COMPUTE)(samples, NANO, "vectors", pooling, **key)
    query = digits[300]
    found = _found(samples, query.path, brain_key="key", k=5)
    assert len(found) == 5

    embed = fiftyone_hiera.load_model(NANO, pooling=pooling).embed
    expected = samples.sort_by_similarity(
        embed(Image.open(query.path)), k=5, brain_key="key"
    )
    assert found.values("id") == expected.values("id")

    again = _found(samples, Path(samples.last().filepath))
    assert again.first().id == samples.last().id
    assert len(again) == 25


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "pooler", "normalize": True},
        pytest.param({"pooling": "cls"}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_search_in_indexes_without_a_field(samples: Any, options: dict[str, Any]) -> None:
    # The index has a model and its options, but no field and so no provenance
    embed_all = fiftyone_hiera.load_model(NANO, **options).embed_all
    vectors = embed_all([Image.open(path) for path in samples.values("filepath")])
    index = fob.compute_similarity(samples, embeddings=vectors, brain_key="key")
    index.config.model, index.config.model_kwargs = NANO, options or None
    index.save_config()
    with _index_model(samples) as model:
        assert model.settings.pooling == options.get("pooling", "mean")
        assert model.settings.normalize == options.get("normalize", False)

    found = _found(samples, Path(samples.last().filepath))
    assert found.first().id == samples.last().id


def test_provenance_takes_precedence_over_the_index_config(
    samples: Any, model: HieraEmbeddingModel, nano: Path, tmp_path: Path
) -> None:
    # The config of the index has another pooling than the embeddings
    options = {"stage": 3, "image_size": 96, "squash": True}
    cls = fiftyone_hiera.load_model(NANO, pooling="cls", normalize=True, **options)
    cls.embed_samples(samples, "vectors")
    index = fob.compute_similarity(samples, embeddings="vectors", brain_key="key")
    index.config.model = NANO
    index.save_config()
    with _index_model(samples) as loaded:
        assert (loaded.settings.pooling, loaded.settings.normalize) == ("cls", True)

    label = resolve(SORT, samples)[0]["brain_key"].view.choices[0].label
    assert label == f"key: {NANO}, cls, stage 3, image_size [96, 96], squash True"


def test_weights_of_your_own(samples: Any, own: Path) -> None:
    model = fiftyone_hiera.load_model(NANO, checkpoint=str(own), pooling="cls")
    model.embed_samples(samples, "vectors")
    fob.compute_similarity(samples, embeddings="vectors", brain_key="key")
    assert _found(samples, Path(samples.last().filepath)).first().id == samples.last().id

    # The same name, other weights
    from safetensors.torch import load_file, save_file

    weights = own / "model.safetensors"
    tensors = {name: tensor * 1.001 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    uri, params = _search(samples, Path(samples.last().filepath))
    assert uri == "show_output"
    assert "now differs in sha256" in _labels(params)[1]


def test_search_among_patches(samples: Any) -> None:
    foo.get_operator(COMPUTE)(
        samples, NANO, patches_field="parts", similarity_brain_key="key"
    )
    for view in (samples, samples.to_patches("parts")):
        found = _found(view, Path(samples.last().filepath), k=3)
        assert found._is_patches
        assert len(found) == 3


def test_search_that_fails_says_why(samples: Any, tmp_path: Path) -> None:
    foo.get_operator(COMPUTE)(samples[:40], NANO, similarity_brain_key="key")
    page = tmp_path / "page.png"
    page.write_text("<html>", "utf-8")
    uri, params = _search(samples, page)
    assert uri == "show_output"
    assert "Cannot read image 'page.png': it is" in _labels(params)[1]

    result = execute_in_app(samples, SORT, query_image={"name": "page.png"})
    (request,) = result.executor._requests
    assert "not uploaded" in _labels(request.params)[1]

    last = Path(samples.last().filepath)
    uri, params = _search(samples[40:], last, view_target="CURRENT_VIEW")
    assert uri == "show_output"
    assert "Nothing that is searched is in the index 'key'" in _labels(params)[1]

    with pytest.raises(ExecutionError, match=r"Cannot read image 'page.png'"):
        foo.execute_operator(SORT, dataset=samples, params={"query_image": _upload(page)})


def test_source_is_not_registered_in_this_zoo() -> None:
    # The tests above search and compute with the plugin alone
    assert NANO not in foz.list_zoo_models()
