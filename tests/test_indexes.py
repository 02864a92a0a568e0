"""Similarity indexes that are fed while embedding, in real databases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import numpy as np
import pytest
from digit_samples import digit_samples
from eta.core.utils import get_class
from index_rows import KEY, check, count, database, exact_neighbors, neighbors, rows
from index_servers import Postgres
from PIL import Image

from digits import Digit
from fiftyone_hiera.indexes import brain_index
from fiftyone_hiera.indexes.backends import get_backend
from fiftyone_hiera.indexes.brain_run import table_provenance
from fiftyone_hiera.indexes.table import VectorTable
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pytestmark = pytest.mark.samples(40)

all_backends = pytest.mark.parametrize(
    "backend",
    [
        "pgvector",
        pytest.param("milvus", marks=pytest.mark.slow),
        pytest.param("lancedb", marks=pytest.mark.slow),
    ],
    indirect=True,
)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend whose database is configured as from the environment."""
    name: str = getattr(request, "param", "pgvector")
    with database(name, request):
        yield name


@all_backends
def test_fed_while_embedding(
    samples: Any, model: HieraEmbeddingModel, backend: str
) -> None:
    report = model.embed_samples(
        samples, "hiera", brain_key=KEY, backend=backend, batch_size=16
    )
    assert (report.embedded, report.index.rows, report.index.added) == (40, 40, 40)
    assert "in index         40 (40 added, 0 removed)" in str(report)
    check(samples)

    # All of FiftyOne's ways to search find what an exact search finds
    ids = samples.values("id")
    assert neighbors(samples, ids[3]) == exact_neighbors(samples, 3)
    assert neighbors(samples, samples[ids[5]].hiera) == exact_neighbors(samples, 5)
    view = samples.limit(10)
    assert neighbors(view, ids[3]) == exact_neighbors(view, 3)

    config = samples.get_brain_info(KEY).config
    assert (config.metric, config.embeddings_field) == ("cosine", "hiera")
    assert table_provenance(config) == {
        name: value for name, value in model.embedder.provenance.items()
    }


@all_backends
def test_grown(
    samples: Any, model: HieraEmbeddingModel, backend: str, digits: list[Digit]
) -> None:
    model.embed_samples(samples[:30], "hiera", brain_key=KEY, backend=backend)
    gone = samples[:3].values("id")
    samples.delete_samples(gone)
    samples.add_samples(digit_samples(digits[40:45]))
    with pytest.raises((ValueError, IndexError)):  # of FiftyOne's: the index lacks it
        neighbors(samples, samples.last().id)

    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.skipped) == (15, 27)
    assert (report.index.rows, report.index.added, report.index.removed) == (42, 15, 3)
    check(samples)
    assert neighbors(samples, samples.last().id)[0] == samples.last().id

    # Nothing is left to do
    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.index.added, report.index.removed) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lancedb"], indirect=True)
def test_by_fiftyones_class_alone(
    samples: Any,
    model: HieraEmbeddingModel,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(brain_index, "open_table", VectorTable)
    report = model.embed_samples(
        samples[:30], "hiera", brain_key=KEY, backend=backend, batch_size=8
    )
    assert (report.embedded, report.index.rows) == (30, 30)
    model.embed_samples(samples[30:35], "hiera")
    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.index.added, report.index.rows) == (5, 10, 40)
    check(samples)
    model.embed_samples(samples[:3], "hiera", brain_key=KEY, overwrite=True)
    check(samples)

    samples.delete_samples(samples[:2].values("id"))
    with caplog.at_level(logging.WARNING):
        report = model.embed_samples(samples, "hiera", brain_key=KEY)

    assert (report.index.rows, report.index.removed) == (40, 0)
    assert "cannot list what is in an index" in caplog.text


@pytest.mark.samples(40, parts=[[0, 0, 0.5, 0.5], [0.3, 0.3, 0.6, 0.6]])
def test_patches(samples: Any, model: HieraEmbeddingModel, backend: str) -> None:
    report = model.embed_samples(
        samples[:30], "hiera", patches_field="parts", brain_key=KEY, backend=backend
    )
    assert (report.embedded, report.index.rows) == (60, 60)
    first = samples.first()
    first.parts.detections = first.parts.detections[:1]
    first.save()
    report = model.embed_samples(samples, "hiera", patches_field="parts", brain_key=KEY)
    assert (report.embedded, report.index.rows, report.index.removed) == (20, 79, 1)

    found = rows(samples)
    ids, vectors = samples.values(
        ["parts.detections.id", "parts.detections.hiera"], unwind=True
    )
    for id, vector in zip(ids, vectors, strict=True):
        np.testing.assert_allclose(found[id], vector, atol=1e-6)

    patches = samples.to_patches("parts")
    view = patches.sort_by_similarity(ids[4], k=3, brain_key=KEY)
    assert view.first().id == ids[4]


def test_index_only_is_grown_and_never_mixed(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel, backend: str
) -> None:
    report = model.embed_samples(samples[:30], brain_key=KEY, backend=backend, batch_size=8)
    assert (report.embedded, report.skipped, report.index.rows) == (30, 0, 30)
    assert not samples.get_field_schema(ftype=fo.VectorField)

    samples.delete_samples(samples[:2].values("id"))
    report = model.embed_samples(samples, brain_key=KEY)
    assert (report.embedded, report.skipped) == (10, 28)
    assert (report.index.rows, report.index.removed) == (38, 2)
    check(samples, None)
    _check_embeddings(samples, model)

    with pytest.raises(
        ValueError, match=r"differ in pooling.*overwrite=True for the whole"
    ):
        other.embed_samples(samples, brain_key=KEY)

    # Of a view, the rest would be lost
    with pytest.raises(ValueError, match="differ in pooling"):
        other.embed_samples(samples[:5], brain_key=KEY, overwrite=True)

    assert count(samples) == 38
    report = other.embed_samples(samples, brain_key=KEY, overwrite=True)
    assert (report.embedded, report.index.rows) == (38, 38)
    _check_embeddings(samples, other)


def _check_embeddings(samples: Any, model: HieraEmbeddingModel) -> None:
    """Check an index that alone has the embeddings."""
    expected = model.embed_all([Image.open(path) for path in samples.values("filepath")])
    found = rows(samples)
    for id, vector in zip(samples.values("id"), expected, strict=True):
        np.testing.assert_allclose(found[id], vector, atol=1e-4)


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
    check(samples)
    rebuilt = samples.get_brain_info(KEY).config
    assert table_provenance(rebuilt)["pooling"] == "cls"
    assert {**rebuilt.serialize(), "hiera": None} == {**table, "hiera": None}


def test_sklearn_reads_the_field_again(
    samples: Any, model: HieraEmbeddingModel, digits: list[Digit]
) -> None:
    report = model.embed_samples(samples[:10], "hiera", brain_key=KEY)
    assert (report.index.rows, report.index.added) == (10, 10)
    index = samples.load_brain_results(KEY)
    assert (index.total_index_size, index.config.method) == (10, "sklearn")

    # An index in memory, by runs with its brain key and without
    assert len(samples.sort_by_similarity(samples.first().id, brain_key=KEY)) == 10
    model.embed_samples(samples, "hiera")
    assert len(samples.sort_by_similarity(samples.last().id, brain_key=KEY)) == 40
    samples.add_samples(digit_samples(digits[40:42]))
    model.embed_samples(samples, "hiera", brain_key=KEY)
    assert samples.load_brain_results(KEY).total_index_size == 42
    assert neighbors(samples, samples.last().id) == exact_neighbors(samples, 41)
    with pytest.raises(
        ValueError, match=r"Backend 'sklearn' reads .* give an embeddings_f"
    ):
        model.embed_samples(samples, brain_key="other")


@pytest.mark.slow
def test_shards_feed_one_index(
    samples: Any, model: HieraEmbeddingModel, backend: str
) -> None:
    for k in range(2):
        report = model.embed_samples(
            samples, "hiera", brain_key=KEY, backend=backend, shard=(k, 2)
        )

    assert report.index.rows == 40
    check(samples)


@pytest.mark.slow
def test_two_indexes_of_a_field(
    samples: Any, model: HieraEmbeddingModel, backend: str, postgres: Postgres
) -> None:
    keys = [f"{'a_long_brain_key_' * 3}{number}" for number in (1, 2)]
    model.embed_samples(samples, "hiera")
    for key in keys:
        report = model.embed_samples(samples, "hiera", brain_key=key, backend=backend)
        assert (report.embedded, report.index.added, report.index.rows) == (0, 40, 40)

    for key in keys:
        check(samples, key=key)
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
    assert (count(samples), count(clone)) == (40, 35)
    expected = model.embed(Image.open(samples.first().filepath))
    np.testing.assert_allclose(rows(samples)[samples.first().id], expected, atol=1e-4)
    assert model.embed_samples(samples, brain_key=KEY).index.added == 0
    clone.delete()


@pytest.mark.slow
def test_index_made_by_fiftyone_is_compared_and_grown(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel, backend: str
) -> None:
    model.embed_samples(samples[:30], "hiera")
    for key in (KEY, "stale"):
        fob.compute_similarity(
            samples[:30], embeddings="hiera", brain_key=key, backend=backend
        )

    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.index.rows) == (10, 40)
    check(samples)

    # From then on it is known what its vectors are; those of the second are looked at
    samples.set_values("hiera", samples.values("hiera")[::-1])
    with pytest.raises(ValueError, match=r"another vector of .* than the field"):
        model.embed_samples(samples, "hiera", brain_key="stale", verify=0)

    other.embed_samples(samples, "hiera", overwrite=True)
    for key in (KEY, "stale"):
        with pytest.raises(ValueError, match="differ in pooling"):
            other.embed_samples(samples, "hiera", brain_key=key)


def test_a_field_warns_of_its_indexes(
    samples: Any,
    model: HieraEmbeddingModel,
    backend: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model.embed_samples(samples, "hiera", brain_key=KEY, backend=backend)
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
    check(samples)


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
    check(samples)
