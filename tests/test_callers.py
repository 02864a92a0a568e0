"""Calls of the operator by pipelines, other operators and event loops."""

from __future__ import annotations

import asyncio
import copy
import shutil
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.core.odm as foo_odm
import fiftyone.operators as foo
import numpy as np
import pytest
from digit_samples import check_embeddings
from fiftyone.operators.executor import (
    ExecutionError,
    do_execute_operator,
    execute_or_delegate_operator,
)
from operator_calls import COMPUTE, make_context, make_request, plugin_module
from waiting import wait_until

import fiftyone_hiera
from digits import Digit

NANO = "hiera-nano-digits"
PIPELINE = "@others/plugin/pipeline"
CALLER = "@others/plugin/caller"

pytestmark = [pytest.mark.usefixtures("plugin"), pytest.mark.samples(60)]

_OTHERS = f"""
import fiftyone.operators as foo
from fiftyone.operators import types


class Pipeline(foo.PipelineOperator):
    config = foo.OperatorConfig(name="pipeline")

    def resolve_pipeline(self, ctx):
        stages = ctx.params["stages"]
        return types.Pipeline([types.PipelineStage({COMPUTE!r}, params=p) for p in stages])


class Caller(foo.Operator):
    config = foo.OperatorConfig(name="caller")

    async def execute(self, ctx):
        return await foo.get_operator({COMPUTE!r}).execute(ctx)


def register(plugin):
    plugin.register(Pipeline)
    plugin.register(Caller)
"""


@pytest.fixture(scope="module")
def others() -> Iterator[None]:
    """A plugin of somebody else, whose operators call ours."""
    folder = Path(fo.config.plugins_dir) / "others"
    folder.mkdir(parents=True)
    listed = 'name: "@others/plugin"\noperators: [pipeline, caller]\n'
    (folder / "fiftyone.yml").write_text(listed, "utf-8")
    (folder / "__init__.py").write_text(textwrap.dedent(_OTHERS), "utf-8")
    yield
    shutil.rmtree(folder)


def _check(samples: Any, pooling: str, field: str) -> None:
    check_embeddings(samples, fiftyone_hiera.load_model(NANO, pooling=pooling), field)


# Pipelines and other operators, which do not resolve our form


def _run_pipeline(samples: Any, *stages: dict[str, Any], in_app: bool = False) -> None:
    params = {"stages": list(stages)}
    request = make_request(samples, params, operator_uri=PIPELINE)
    if in_app:
        run = execute_or_delegate_operator(PIPELINE, request)
        asyncio.run(run).raise_exceptions()
    else:
        foo.execute_operator(PIPELINE, dataset=samples, params=params)


@pytest.mark.parametrize("in_app", [pytest.param(False, marks=pytest.mark.slow), True])
def test_pipeline(samples: Any, others: None, in_app: bool) -> None:
    _run_pipeline(
        samples,
        {"model_name": NANO, "embedding_type": "cls", "field_name": "vectors"},
        {"model_name": NANO, "emb_field": "means", "view_target": "DATASET"},
        in_app=in_app,
    )
    _check(samples, "cls", "vectors")
    _check(samples, "mean", "means")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"overwite": True}, r"Unknown parameters \['overwite'\]"),
        ({"pooling": "cls", "embedding_type": "mean"}, "are the same parameter"),
        ({"pooling": "max"}, r"pooling of .*'max'. Valid are"),
        ({"batch_size": 0}, "Invalid batch_size 0: expected an integer of at least 1"),
        ({"overwrite": "no"}, "overwrite"),
        ({"similarity_index": "no"}, "similarity_index: Invalid value type"),
        ({"similarity_brain_key": "2 b"}, "Invalid brain key '2 b'"),
        ({"visualization_method": "mds"}, "Invalid method 'mds'"),
        ({"embeddings_field": "_x"}, "cannot start with '_'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("in_app", [False, True])
def test_pipeline_checks_parameters(
    samples: Any, others: None, params: dict[str, Any], message: str, in_app: bool
) -> None:
    before = samples.get_field_schema()
    with pytest.raises(ExecutionError, match=message):
        _run_pipeline(samples, {"model_name": NANO, **params}, in_app=in_app)

    samples.reload()
    assert samples.get_field_schema().keys() == before.keys()


def test_pipeline_keeps_a_brain_run_of_the_same_key(samples: Any, others: None) -> None:
    vectors = np.random.default_rng(51).random((60, 5))
    fob.compute_similarity(samples, embeddings=vectors, brain_key="key")
    with pytest.raises(ExecutionError, match="The index 'key' has embeddings_field None"):
        _run_pipeline(samples, {"model_name": NANO, "similarity_brain_key": "key"})

    assert samples.load_brain_results("key").total_index_size == 60


@pytest.mark.parametrize("in_app", [False, True])
def test_called_by_another_operator(samples: Any, others: None, in_app: bool) -> None:
    params = {"model_name": NANO, "embedding_types": "cls"}
    request = make_request(samples, params, operator_uri=CALLER)
    if not in_app:
        del request["operator_uri"]

    result = asyncio.run(execute_or_delegate_operator(CALLER, request))
    result.raise_exceptions()
    assert result.result["embedded"] == 60
    _check(samples, "cls", "hiera")


def test_request_is_not_changed(samples: Any) -> None:
    params = {"model_name": NANO, "embedding_type": "cls", "similarity_brain_key": "key"}
    ctx = make_context(samples, params, operator_uri=COMPUTE)
    del ctx.request_params["operator_uri"]  # as from Python
    given = copy.deepcopy(ctx.request_params)
    operator = foo.get_operator(COMPUTE)
    result = asyncio.run(do_execute_operator(operator, ctx))
    assert result["similarity_brain_key"] == "key"
    assert ctx.request_params == given
    assert ctx.params == given["params"]


# Event loops


def _requests(samples: Any, *fields: str, **params: Any) -> list[dict[str, Any]]:
    requests = []
    for field in fields:
        given = {"model_name": NANO, "embeddings_field": field, **params}
        request = make_request(samples, given)
        del request["operator_uri"]  # as another operator of the App's server awaits it
        requests.append(request)

    return requests


def test_two_at_once_do_not_block_the_loop(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = plugin_module("plugin.compute_run")
    load = module.load
    both_run = threading.Barrier(2)
    ticks: list[float] = []

    def load_when_both_run(*args: Any) -> Any:
        both_run.wait(timeout=600)
        before = len(ticks)
        wait_until(lambda: len(ticks) > before + 20)  # which a blocked loop never does
        return load(*args)

    monkeypatch.setattr(module, "load", load_when_both_run)

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main() -> list[Any]:
        ticking = asyncio.create_task(tick())
        requests = _requests(samples, "a", "b")
        runs = [execute_or_delegate_operator(COMPUTE, request) for request in requests]
        results = await asyncio.gather(*runs)
        ticking.cancel()
        return results

    for result in asyncio.run(main()):
        result.raise_exceptions()
        assert result.result["embedded"] == 60

    samples.reload()  # the runs may have had other objects of the dataset
    _check(samples, "mean", "a")
    _check(samples, "mean", "b")


def test_threads_load_one_dataset(samples: Any) -> None:
    load_dataset = plugin_module("runs.fiftyone_internals").load_dataset
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            contexts = [make_context(samples, {}) for _ in range(4)]
            assert all(one is samples for one in pool.map(load_dataset, contexts))


def test_cancelled_task_stops_the_run(dataset: Any, digits: list[Digit]) -> None:
    dataset.add_samples([fo.Sample(filepath=str(digit.path)) for digit in digits])
    (request,) = _requests(dataset, "a", batch_size=1, num_workers=0)
    before = threading.active_count()

    async def main() -> None:
        task = asyncio.create_task(execute_or_delegate_operator(COMPUTE, request))
        while not _count(dataset):
            assert not task.done(), task.result().error
            await asyncio.sleep(0.01)

        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())

    stored = _count(dataset)
    assert 0 < stored < len(digits)
    assert threading.active_count() <= before + 1
    assert _count(dataset) == stored
    dataset.reload()
    _check(dataset.exists("a"), "mean", "a")


def _count(dataset: Any) -> int:
    # Not dataset.reload(), since the run uses the dataset in another thread
    collection = foo_odm.get_db_conn()[dataset._sample_collection_name]
    return int(collection.count_documents({"a": {"$ne": None}}))


def test_limit_of_fiftyone_does_not_cut_a_run(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As FiftyOne limits what runs immediately, to 10 minutes by default
    limit = 0.2
    monkeypatch.setattr(fo.config, "operator_timeout", limit)
    module = plugin_module("plugin.compute_run")
    load = module.load

    def load_late(*args: Any) -> Any:
        time.sleep(2 * limit)
        return load(*args)

    monkeypatch.setattr(module, "load", load_late)
    (request,) = _requests(samples, "a")
    unlimited = execute_or_delegate_operator.__wrapped__

    async def limited() -> Any:
        return await asyncio.wait_for(unlimited(COMPUTE, request), timeout=limit)

    assert asyncio.run(limited()).result["embedded"] == 60
