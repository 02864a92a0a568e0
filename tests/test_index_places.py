"""Where the database of an index is, and how sessions learn it."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import fiftyone.brain.internal.core.lancedb as brain_lancedb
import pytest
from eta.core.utils import get_class
from index_rows import IS_NEW_BRAIN, KEY, check, database, neighbors
from index_servers import Postgres, configured

from fiftyone_hiera.indexes.backends import get_backend
from fiftyone_hiera.indexes.credentials import advise, save_config
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.index_model import update_index_models

pytestmark = pytest.mark.samples(12)

# The settings of LanceDB that brain 0.25 does not store
_NEW = ("uri", "index_type", "min_index_rows", "index_params", "nprobes", "ef")


@pytest.fixture
def default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FiftyOne's default folder of LanceDB, which is in a folder of the test."""
    pytest.importorskip("lancedb")
    folder = tmp_path / "default"
    if hasattr(brain_lancedb, "DEFAULT_URI"):
        monkeypatch.setattr(brain_lancedb, "DEFAULT_URI", str(folder))
    else:
        init = brain_lancedb.LanceDBSimilarityConfig.__init__
        assert "/tmp/lancedb" in init.__defaults__
        defaults = (str(folder) if v == "/tmp/lancedb" else v for v in init.__defaults__)
        monkeypatch.setattr(init, "__defaults__", tuple(defaults))

    return folder


def _check_search(samples: Any) -> None:
    """Search as the next session does."""
    samples.clear_cache()
    samples.reload()
    for id in samples[:3].values("id"):
        assert neighbors(samples, id)[0] == id


@pytest.mark.slow
@pytest.mark.usefixtures("default_place")  # where a path that is lost would end
@pytest.mark.parametrize("backend", ["lancedb", "milvus"])
def test_path_is_given_once(
    samples: Any,
    model: HieraEmbeddingModel,
    other: HieraEmbeddingModel,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    backend: str,
) -> None:
    with database(backend, request):  # skips where a package is missing
        pass

    for name in ("first", "second"):
        (tmp_path / name).mkdir()

    monkeypatch.chdir(tmp_path / "first")
    given = {"uri": "place.db"}
    with caplog.at_level(logging.WARNING):
        model.embed_samples(
            samples[:8], "hiera", brain_key=KEY, backend=backend, backend_kwargs=given
        )

    assert "does not store" not in caplog.text
    monkeypatch.chdir(tmp_path / "second")
    _check_search(samples)

    # It is not lost when the config is saved again
    config = samples.get_brain_info(KEY).config
    config.model = "another"
    save_config(samples, KEY, config)
    update_index_models(samples)
    assert samples.get_brain_info(KEY).config.model is None
    _check_search(samples)

    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.index.added, report.index.rows) == (4, 12)
    _check_search(samples)
    other.embed_samples(samples, "hiera", brain_key=KEY, overwrite=True)
    _check_search(samples)
    check(samples)
    assert samples.get_brain_info(KEY).config.uri == str(tmp_path / "first" / "place.db")

    # A copy has a table of its own at the same place
    clone = samples.clone()
    other.embed_samples(clone, "hiera", brain_key=KEY, overwrite=True)
    _check_search(clone)
    _check_search(samples)
    clone.delete()
    assert [*(tmp_path / "second").iterdir()] == []


@pytest.mark.slow
def test_another_path(
    samples: Any, model: HieraEmbeddingModel, default_place: Path, tmp_path: Path
) -> None:
    import lancedb

    def embed(name: str, **given: Any) -> Any:
        settings = {"uri": str(tmp_path / name), "table_name": "mine"}
        return model.embed_samples(
            samples,
            "hiera",
            brain_key=KEY,
            backend="lancedb",
            backend_kwargs=settings,
            **given,
        )

    embed("a")
    with pytest.raises(ValueError, match=r"has uri '.*/a', not '.*/b': overwrite=True"):
        embed("b")

    # A table of the same name is another index's
    place = lancedb.connect(tmp_path / "b")
    place.create_table("mine", [{"id": "1", "sample_id": "1", "vector": [1.0] * 192}])
    with pytest.raises(ValueError, match=r"'mine' .* exists and has 1 rows"):
        embed("b", overwrite=True)

    assert place.open_table("mine").count_rows() == 1
    _check_search(samples)
    embed("c", overwrite=True)
    _check_search(samples)
    assert samples.get_brain_info(KEY).config.uri == str(tmp_path / "c")
    assert [*(tmp_path / "a").glob("*.lance")] == []

    # The folder was moved
    os.rename(tmp_path / "c", tmp_path / "d")
    assert embed("d").index.added == 0
    _check_search(samples)
    assert samples.get_brain_info(KEY).config.uri == str(tmp_path / "d")

    # FiftyOne's class makes an empty folder where it finds none
    os.rename(tmp_path / "d", tmp_path / "e")
    (tmp_path / "d").mkdir()
    settings = {"uri": f"file://{tmp_path / 'e'}"}
    report = model.embed_samples(samples, "hiera", brain_key=KEY, backend_kwargs=settings)
    assert report.index.added == 0
    _check_search(samples)
    assert samples.get_brain_info(KEY).config.uri == str(tmp_path / "e")
    assert not default_place.exists()


@pytest.mark.slow
def test_default_place(
    samples: Any,
    model: HieraEmbeddingModel,
    other: HieraEmbeddingModel,
    default_place: Path,
    tmp_path: Path,
) -> None:
    model.embed_samples(samples[:8], "hiera", brain_key=KEY, backend="lancedb")
    _check_search(samples)
    assert [*default_place.iterdir()] != []
    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.index.added, report.index.rows) == (4, 12)
    other.embed_samples(samples, "hiera", brain_key=KEY, overwrite=True)
    _check_search(samples)
    check(samples)
    assert len([*default_place.iterdir()]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("is_configured", [False, True])
def test_index_of_an_older_brain(
    samples: Any,
    model: HieraEmbeddingModel,
    other: HieraEmbeddingModel,
    default_place: Path,
    tmp_path: Path,
    is_configured: bool,
) -> None:
    place = tmp_path / "configured" if is_configured else default_place
    uses = (
        configured("lancedb", uri=str(place)) if is_configured else contextlib.nullcontext()
    )
    with uses:
        model.embed_samples(samples[:8], "hiera", brain_key=KEY, backend="lancedb")
        run = samples._doc.brain_methods[KEY]
        for name in _NEW:
            run.config.pop(name, None)

        run.save()
        samples.reload()
        assert "uri" not in samples._doc.brain_methods[KEY].config
        _check_search(samples)
        report = model.embed_samples(samples, "hiera", brain_key=KEY)
        assert (report.index.added, report.index.rows) == (4, 12)
        other.embed_samples(samples, "hiera", brain_key=KEY, overwrite=True)
        _check_search(samples)
        assert len([*place.iterdir()]) == 1


def test_connection_string_is_not_stored(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"connection_string": f"{postgres.uri}&application_name=secret"}
    with caplog.at_level(logging.WARNING):
        model.embed_samples(
            samples, "hiera", brain_key=KEY, backend="pgvector", backend_kwargs=given
        )

    assert "FIFTYONE_BRAIN_SIMILARITY_PGVECTOR_CONNECTION_STRING" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in str(samples.get_brain_info(KEY).config.serialize())

    # What the warning says, for this session and for others
    index = samples.load_brain_results(KEY, **given)
    assert neighbors(samples, samples.last().id)[0] == samples.last().id
    index.close_connections()
    with configured("pgvector", **given):
        _check_search(samples)
        caplog.clear()
        model.embed_samples(samples, "hiera", brain_key=KEY, backend_kwargs=given)
        assert "does not store" not in caplog.text


@pytest.mark.parametrize(
    ("backend", "stored", "given", "expected"),
    [
        (
            "milvus",
            {},
            {"uri": "http://a", "token": "x"},
            "store uri, token with the index 'k'",
        ),
        ("milvus", {}, {"uri": "http://a", "token": "x"}, "_MILVUS_URI, FIFTYONE"),
        ("milvus", {"uri": "http://a"}, {"uri": "http://a"}, None),
        ("milvus", {"uri": os.getcwd()}, {"uri": "."}, None),
        ("milvus", {}, {"secure": True}, "set secure in the brain config"),
        ("milvus", {}, {"user": "me"}, "load_brain_results('k', user=...)"),
        ("sklearn", {}, {}, None),
        pytest.param(
            "lancedb",
            {},
            {"storage_options": {"key": "http://a"}},
            "set storage_options in the brain config",
            marks=pytest.mark.skipif(not IS_NEW_BRAIN, reason="no such setting"),
        ),
    ],
)
def test_advice(
    backend: str,
    stored: dict[str, Any],
    given: dict[str, Any],
    expected: str | None,
) -> None:
    pytest.importorskip("pymilvus")
    name = get_backend(backend).configured["config_cls"]
    config = get_class(name)(**stored)
    advice = advise("k", config, given)
    assert (advice is None) == (expected is None)
    assert (expected or "") in (advice or "")
    assert "http://a" not in (advice or "")
    with configured(backend, **given):
        assert advise("k", get_class(name)(), given) is None
