"""What each table of vectors must do, in a real database, without a model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from index_rows import IS_NEW_BRAIN, count, database, loaded
from index_servers import configured

from fiftyone_hiera.embedding.provenance import RECORDED_OPTIONS
from fiftyone_hiera.indexes import brain_index
from fiftyone_hiera.indexes.backends import get_backend
from fiftyone_hiera.indexes.brain_index import BrainIndex
from fiftyone_hiera.indexes.brain_run import table_provenance
from fiftyone_hiera.indexes.options import Contents, IndexOptions
from fiftyone_hiera.indexes.table import VectorTable
from fiftyone_hiera.runs.fiftyone_internals import dataset_id

_DIM = 8
_PAGE_SIZE = 3
_PROVENANCE = dict.fromkeys(
    ("sha256", "provenance_version", *RECORDED_OPTIONS, "preprocessing"), "x"
)
_BOXES = [[0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]

pytestmark = pytest.mark.samples(4, parts=_BOXES)


class _Index:
    """An index of images or parts, and what it has to hold.

    Args:
        samples: the dataset
        backend: the name of the backend
        patches_field: the field of the labels; None for whole images
    """

    def __init__(self, samples: Any, backend: str, patches_field: str | None) -> None:
        self.key = f"of_{patches_field or 'images'}"
        self.held: dict[str, np.ndarray] = {}
        self._samples = samples
        self._patches_field = patches_field
        self._backend = backend
        self.table_setting = get_backend(backend).table_setting or ""
        self.settings = {self.table_setting: f"rows_{self.key}", "metric": "euclidean"}
        self._sample_ids = {id: id for id in samples.values("id")}
        if patches_field is not None:
            pairs = zip(*samples.values(["id", "parts.detections.id"]), strict=True)
            self._sample_ids = {id: sample_id for sample_id, ids in pairs for id in ids}

        self.ids = [*self._sample_ids]
        self._random = np.random.default_rng(0)

    @property
    def config(self) -> Any:
        """The config of its brain run."""
        return self._samples.get_brain_info(self.key).config

    def open(
        self, key: str | None = None, dim: int = _DIM, rebuild: bool = False
    ) -> VectorTable:
        """Make it, or open it in a new session."""
        self._samples.clear_cache()
        contents = Contents(
            str(dataset_id(self._samples)), None, self._patches_field, dim, _PROVENANCE
        )
        options = IndexOptions(key or self.key, self._backend, self.settings)
        index = BrainIndex(self._samples, options, contents, may_rebuild=rebuild)
        table = index.open()
        assert table is not None
        return table

    def upsert(self, table: VectorTable, ids: Sequence[str]) -> None:
        """Write rows of new vectors."""
        table.upsert(ids, [self._sample_ids[id] for id in ids], self._make_vectors(ids))

    def add_by_fiftyone(self, ids: Sequence[str]) -> None:
        """Add rows of new vectors in a new session, by FiftyOne's class."""
        sample_ids = np.array([self._sample_ids[id] for id in ids])
        label_ids = None if self._patches_field is None else np.array(ids)
        vectors = self._make_vectors(ids)
        with loaded(self._samples, self.key) as index:
            index.add_to_index(vectors, sample_ids, label_ids=label_ids, reload=False)

    def _make_vectors(self, ids: Sequence[str]) -> np.ndarray:
        vectors = self._random.normal(size=(len(ids), _DIM)).astype(np.float32)
        self.held.update(zip(ids, vectors, strict=True))
        return vectors

    def delete(self, table: VectorTable, ids: Sequence[str]) -> None:
        """Delete rows."""
        table.delete(ids)
        for id in ids:
            self.held.pop(id, None)

    def check(self, table: VectorTable) -> None:
        """Check what the table and, in a new session, FiftyOne's class say of its rows."""
        assert table.count() == len(self.held)
        assert table.existing([*self.ids, "unknown"]) == self.held.keys()
        if type(table) is VectorTable:
            assert (table.dim(), table.keys()) == (None, None)
        else:
            assert table.dim() == _DIM
            pages = [*(table.keys() or ())]
            assert {*map(len, pages)} <= {*range(1, _PAGE_SIZE + 1)}
            pairs = [pair for page in pages for pair in page]
            assert sorted(pairs) == sorted((id, self._sample_ids[id]) for id in self.held)

        assert count(self._samples, self.key) == len(self.held)
        with loaded(self._samples, self.key) as index:
            found = VectorTable(index).read(self.ids)

        assert found.keys() == self.held.keys()
        for id, vector in self.held.items():
            np.testing.assert_allclose(found[id], vector, atol=1e-6)

    def search(self, id: str) -> list[str]:
        """Search for a row by its ID and by its vector, in a new session."""
        self._samples.clear_cache()
        view = self._samples
        if self._patches_field is not None:
            view = self._samples.to_patches(self._patches_field)

        return [
            view.sort_by_similarity(query, k=1, brain_key=self.key).first().id
            for query in (id, self.held[id])
        ]


def _check_empty(index: _Index, table: VectorTable) -> None:
    found = (table.dim(), table.count(), table.existing(index.ids))
    assert found == (None, 0, set())


def _check_writes(index: _Index, table: VectorTable, first: Sequence[str]) -> None:
    """Write some rows, then all: no ID twice, and the last vector of each."""
    index.upsert(table, first)
    table.finish()
    index.check(table)
    index.upsert(table, index.ids)
    index.upsert(table, index.ids[1:2])
    table.finish()
    index.check(table)


def _check_refusals(index: _Index, table: VectorTable, samples: Any) -> None:
    """Another index must not get the same table."""
    name = f"{index.table_setting} '{index.settings[index.table_setting]}' .*"
    with pytest.raises(ValueError, match=rf"{name} has {len(index.held)} rows, but no"):
        index.open("second")

    if type(table) is not VectorTable:
        with pytest.raises(ValueError, match=rf"{name} vectors of 8 dim.* computes 4"):
            index.open("second", dim=4)

    assert "second" not in samples.list_brain_runs()


def _without_record(config: Any) -> Mapping[str, Any]:
    return {**config.serialize(), "hiera": None}


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("pgvector", "PgVectorTable"),
        pytest.param("milvus", "MilvusTable", marks=pytest.mark.slow),
        pytest.param("lancedb", "LanceDBTable", marks=pytest.mark.slow),
        pytest.param("milvus", "VectorTable", marks=pytest.mark.slow),
        pytest.param("lancedb", "VectorTable", marks=pytest.mark.slow),
    ],
)
def test_table(
    samples: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    kind: str,
) -> None:
    # VectorTable is for the backends that have no subclass, which each of these has
    with database(backend, request):
        if kind == "VectorTable":
            monkeypatch.setattr(brain_index, "open_table", VectorTable)
        else:
            module = importlib.import_module(f"fiftyone_hiera.indexes.{backend}")
            monkeypatch.setattr(module, "_PAGE_SIZE", _PAGE_SIZE)
            monkeypatch.setattr(module, "_WRITES", 2, raising=False)

        for patches_field in (None, "parts"):
            index = _Index(samples, backend, patches_field)
            table = index.open()
            assert type(table).__name__ == kind
            _check_empty(index, table)
            table.finish()
            if kind != "VectorTable":
                table.delete(index.ids[:1])
                assert [*(table.keys() or ())] == []

            _check_writes(index, table, index.ids[:2])
            index.delete(table, [index.ids[0], "unknown"])
            index.delete(table, [])
            index.check(table)
            table.close()

            table = index.open()
            index.check(table)
            assert index.search(index.ids[2]) == [index.ids[2]] * 2
            config, settings = index.config, index.settings
            assert {name: getattr(config, name) for name in settings} == settings
            assert table_provenance(config) == _PROVENANCE
            _check_refusals(index, table, samples)

            # Built anew, it has the same settings and no rows
            table.close()
            table = index.open(rebuild=True)
            assert _without_record(index.config) == _without_record(config)
            index.held.clear()
            _check_empty(index, table)

            # A table that FiftyOne's class made
            index.add_by_fiftyone(index.ids[:2])
            table = index.open()
            index.check(table)
            _check_writes(index, table, index.ids[1:3])
            table.drop()
            table.drop()  # as of a run that was killed before it had a table
            table.close()


@pytest.mark.slow
@pytest.mark.skipif(not IS_NEW_BRAIN, reason="the class of this brain builds no indexes")
def test_lancedb_indexes(samples: Any, request: pytest.FixtureRequest) -> None:
    options = {"timeout": "9s"}
    with database("lancedb", request), configured("lancedb", storage_options=options):
        index = _Index(samples, "lancedb", "parts")
        index.settings["min_index_rows"] = 300
        random = np.random.default_rng(0)
        for count, expected in (
            (299, {"id"}),
            (300, {"id", "vector"}),
            (400, {"vector", "id"}),
        ):
            table: Any = index.open()
            assert table._database.storage_options == options
            ids = [f"{number:024x}" for number in range(count)]
            vectors = random.normal(size=(count, _DIM)).astype(np.float32)
            table.upsert(ids, ids, vectors)
            table.finish()
            assert table.count() == count
            with loaded(samples, index.key) as held:
                held.reload()
                stats = {
                    i.columns[0]: held.table.index_stats(i.name)
                    for i in held.table.list_indices()
                }
                assert {*stats} == expected
                assert {s.num_unindexed_rows for s in stats.values()} == {0}
                found = VectorTable(held).read(ids)

            for id, vector in zip(ids, vectors, strict=True):
                np.testing.assert_array_equal(found[id], vector)
