"""Indexes that a run refuses before it embeds anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone.brain as fob
import numpy as np
import pytest
from index_rows import IS_NEW_BRAIN, KEY, check, database, neighbors
from index_servers import Postgres, configured

import fiftyone_hiera
from fiftyone_hiera.indexes import backends, brain_index
from fiftyone_hiera.indexes.backends import open_table
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.report import EmbeddingError

pytestmark = pytest.mark.samples(4)


@pytest.fixture
def pgvector(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend whose database is configured as from the environment."""
    with database("pgvector", request):
        yield "pgvector"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Nothing to store in: give an embeddings_field or a brain_key"),
        ({"backend": "milvus"}, "are for an index: give a brain_key"),
        ({"brain_key": "a-b"}, "Invalid brain key 'a-b'"),
        ({"brain_key": 3}, "Invalid brain key 3"),
        (
            {"brain_key": KEY, "backend": "faiss"},
            r"Invalid backend 'faiss'. Valid are \['sk",
        ),
        (
            {"brain_key": KEY, "backend": "lancedb", "backend_kwargs": {"table": "x"}},
            "table_",
        ),
        (
            {"brain_key": KEY, "backend": "lancedb", "backend_kwargs": {"metric": "l3"}},
            "Unsupported metric 'l3'",
        ),
        (
            {
                "embeddings_field": "hiera",
                "brain_key": KEY,
                "backend": "sklearn",
                "backend_kwargs": {"metric": "l3"},
            },
            r"Invalid metric 'l3'. Valid are \[.*'cosine'",
        ),
        ({"brain_key": KEY, "backend_kwargs": "metric"}, "Invalid backend_kwargs 'metric'"),
        ({"brain_key": "a_map"}, "is taken by a run of type 'visualization'"),
        ({"brain_key": "of_x"}, "has embeddings_field 'x', and this run None"),
    ],
)
def test_invalid_arguments(
    samples: Any, model: HieraEmbeddingModel, given: dict[str, Any], message: str
) -> None:
    points = np.zeros((4, 2))
    fob.compute_visualization(samples, points=points, brain_key="a_map")
    vectors = np.eye(4, dtype=np.float32)
    fob.compute_similarity(
        samples, embeddings=vectors, embeddings_field="x", brain_key="of_x"
    )
    with pytest.raises(ValueError, match=message):
        model.embed_samples(samples, **given)

    assert samples.list_brain_runs() == ["a_map", "of_x"]


def test_missing_package(
    samples: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_is_installed", lambda module: module != "qdrant_client")
    with pytest.raises(ImportError, match="pip install qdrant-client"):
        model.embed_samples(samples, "hiera", brain_key=KEY, backend="qdrant")

    assert "hiera" not in samples.get_field_schema()


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://nobody:wrong@127.0.0.1:1/none",
        "postgresql://postgres@/absent_database?host={folder}",
        "postgres//nobody:wrong@nowhere",
    ],
)
def test_wrong_credentials(
    samples: Any, model: HieraEmbeddingModel, postgres: Postgres, uri: str
) -> None:
    folder = postgres.uri.rpartition("=")[2]
    with (
        configured("pgvector", connection_string=uri.format(folder=folder)),
        pytest.raises(ValueError, match=r"Cannot open the.*PGVECTOR_CONNECTION") as error,
    ):
        model.embed_samples(samples, "hiera", brain_key=KEY, backend="pgvector")

    assert "wrong" not in str(error.value)  # the password
    assert not samples.list_brain_runs()
    assert "hiera" not in samples.get_field_schema()


def test_settings(samples: Any, model: HieraEmbeddingModel, pgvector: str) -> None:
    given = {"table_name": "my_vectors", "metric": "euclidean"}
    model.embed_samples(
        samples, "hiera", brain_key=KEY, backend=pgvector, backend_kwargs=given
    )
    config = samples.get_brain_info(KEY).config
    assert (config.table_name, config.metric) == ("my_vectors", "euclidean")
    model.embed_samples(samples, "hiera", brain_key=KEY, backend_kwargs=given)
    with pytest.raises(ValueError, match="has metric 'euclidean', not 'cosine'"):
        model.embed_samples(
            samples, "hiera", brain_key=KEY, backend_kwargs={"metric": "cosine"}
        )

    same_table: Any = {"backend": pgvector, "backend_kwargs": {"table_name": "my_vectors"}}
    with pytest.raises(ValueError, match=r"name 'my_vectors' .* exists and has 4 rows"):
        model.embed_samples(samples, "hiera", brain_key="second", **same_table)

    assert samples.list_brain_runs() == [KEY]
    exact: Any = {"dtype": "float32", "engine": "torch"}
    small = fiftyone_hiera.load_model("hiera-nano-digits", stage=2, **exact)
    with pytest.raises(ValueError, match=r"has vectors of 192 dimensions, and this .* 48"):
        small.embed_samples(samples, "small", brain_key="third", **same_table)

    assert samples.list_brain_runs() == [KEY]
    assert "small" not in samples.get_field_schema()
    open_table(samples.load_brain_results(KEY)).drop()


@pytest.mark.parametrize(
    "columns",
    ["id text, sample_id text, vector vector(192)", "id text primary key, score int"],
)
def test_table_with_other_columns(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    pgvector: str,
    columns: str,
) -> None:
    postgres.fetch("CREATE EXTENSION IF NOT EXISTS vector")
    postgres.fetch("DROP TABLE IF EXISTS foreign_rows")
    postgres.fetch(f"CREATE TABLE foreign_rows ({columns})")
    with pytest.raises(ValueError, match="'foreign_rows' exists with other columns"):
        model.embed_samples(
            samples,
            "hiera",
            brain_key=KEY,
            backend=pgvector,
            backend_kwargs={"table_name": "foreign_rows"},
        )

    assert postgres.fetch("SELECT count(*) FROM foreign_rows") == [(0,)]
    assert not samples.list_brain_runs()
    assert "hiera" not in samples.get_field_schema()


@pytest.mark.slow
def test_collection_with_other_fields(
    samples: Any, model: HieraEmbeddingModel, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with database("milvus", request):
        import pymilvus

        client = pymilvus.MilvusClient(str(tmp_path / "milvus.db"))
        client.create_collection("foreign", dimension=8)
        with pytest.raises(ValueError, match="'foreign' exists with other columns"):
            model.embed_samples(
                samples,
                "hiera",
                brain_key=KEY,
                backend="milvus",
                backend_kwargs={"collection_name": "foreign"},
            )


@pytest.mark.slow
def test_more_tables_than_fiftyone_finds(
    samples: Any, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    lancedb = pytest.importorskip("lancedb")
    place = lancedb.connect(tmp_path)
    for number in range(12):
        place.create_table(f"a{number:02}", [{"x": number}])

    others = "exists with other columns, \\['x'\\]"
    refused = {"a00": others, "a11": "finds 10 tables", "zebra": "finds 10 tables"}
    if IS_NEW_BRAIN:  # which finds all
        refused = {"a00": others, "a11": others}

    given: Any = {"brain_key": KEY, "backend": "lancedb"}
    with configured("lancedb", uri=str(tmp_path)):
        for name, message in refused.items():
            with pytest.raises(ValueError, match=message):
                model.embed_samples(
                    samples, "hiera", backend_kwargs={"table_name": name}, **given
                )

        assert not samples.list_brain_runs()
        assert place.open_table("a11").count_rows() == 1
        if IS_NEW_BRAIN:
            model.embed_samples(samples, "hiera", **given)
            check(samples)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend_kwargs": {"table_name": "foreign"}}, "'foreign' exists with other col"),
        ({"backend_kwargs": {"table_name": "taken"}}, "'taken' .* exists and has 4 rows"),
        (
            {"backend_kwargs": {"connection_string": "postgresql://nobody@127.0.0.1:1/x"}},
            "Cannot open the index 'hiera_sim' with backend 'pgvector'",
        ),
        pytest.param(
            {"backend": "lancedb", "backend_kwargs": {"uri": __file__}},
            "Cannot open the index 'hiera_sim' with backend 'lancedb'",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_index_that_cannot_be_rebuilt_is_kept(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    pgvector: str,
    given: dict[str, Any],
    message: str,
) -> None:
    model.embed_samples(samples, "hiera", brain_key=KEY, backend=pgvector)
    taken = {"table_name": "taken"}
    model.embed_samples(
        samples, "hiera", brain_key="taken", backend=pgvector, backend_kwargs=taken
    )
    postgres.fetch('CREATE TABLE IF NOT EXISTS "foreign" (id text)')
    with pytest.raises(ValueError, match=message):
        model.embed_samples(samples, "hiera", brain_key=KEY, overwrite=True, **given)

    assert samples.list_brain_runs() == [KEY, "taken"]
    check(samples)
    check(samples, key="taken")
    open_table(samples.load_brain_results("taken")).drop()


@pytest.mark.parametrize(
    ("backend", "uri"),
    [
        ("sklearn", None),
        pytest.param("milvus", "{folder}/new.db", marks=pytest.mark.slow),
    ],
)
def test_overwrite_changes_the_backend(
    samples: Any,
    model: HieraEmbeddingModel,
    tmp_path: Path,
    postgres: Postgres,
    pgvector: str,
    backend: str,
    uri: str | None,
) -> None:
    model.embed_samples(samples, "hiera", brain_key=KEY, backend=pgvector)
    table = samples.get_brain_info(KEY).config.table_name
    for metric in ("cosine", "euclidean"):
        settings = {"metric": metric}
        if uri is not None:
            settings["uri"] = uri.format(folder=tmp_path)

        given: Any = {"backend": backend, "backend_kwargs": settings}
        model.embed_samples(samples, "hiera", brain_key=KEY, overwrite=True, **given)
        config = samples.get_brain_info(KEY).config
        assert (config.method, config.metric) == (backend, metric)
        assert neighbors(samples, samples.last().id)[0] == samples.last().id

    query = "SELECT count(*) FROM pg_tables WHERE tablename = %s"
    assert postgres.fetch(query, table) == [(0,)]


def _find_late(monkeypatch: pytest.MonkeyPatch, misses: int) -> None:
    """Have an index found only after some look-ups, as if another process made it then."""
    find, calls = brain_index.find_config, []

    def find_late(*given: Any) -> Any:
        calls.append(given)
        return find(*given) if len(calls) > misses else None

    monkeypatch.setattr(brain_index, "find_config", find_late)


def test_run_of_another_process_is_kept(
    samples: Any,
    model: HieraEmbeddingModel,
    pgvector: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.embed_samples(samples, "hiera", brain_key=KEY, backend=pgvector)
    _find_late(monkeypatch, 2)
    with pytest.raises(ValueError, match="Cannot open the index"):
        model.embed_samples(samples, "hiera", brain_key=KEY, backend=pgvector)

    monkeypatch.undo()
    assert samples.list_brain_runs() == [KEY]
    check(samples)


def test_run_of_another_process_is_checked(
    samples: Any,
    model: HieraEmbeddingModel,
    other: HieraEmbeddingModel,
    pgvector: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.embed_samples(samples, brain_key=KEY, backend=pgvector)
    _find_late(monkeypatch, 1)
    with pytest.raises(ValueError, match="differ in pooling"):
        other.embed_samples(samples, brain_key=KEY, backend=pgvector)


def test_run_of_another_process_is_not_replaced(
    samples: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.embed_samples(samples, "hiera", brain_key=KEY)
    _find_late(monkeypatch, 2)
    given: Any = {"brain_key": KEY, "backend_kwargs": {"metric": "euclidean"}}
    with pytest.raises(EmbeddingError, match="has metric 'cosine', not 'euclidean'"):
        model.embed_samples(samples, "hiera", **given)

    assert samples.get_brain_info(KEY).config.metric == "cosine"


def test_rebuilt_with_its_own_backend(
    samples: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.embed_samples(samples, "hiera", brain_key=KEY, backend="sklearn")
    monkeypatch.setattr(fob.brain_config, "default_similarity_backend", "pgvector")
    given: Any = {"brain_key": KEY, "backend_kwargs": {"metric": "euclidean"}}
    model.embed_samples(samples, "hiera", overwrite=True, **given)
    config = samples.get_brain_info(KEY).config
    assert (config.method, config.metric) == ("sklearn", "euclidean")
