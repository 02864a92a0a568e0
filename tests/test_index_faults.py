"""Indexes whose database fails, and what changes while they are fed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from digit_samples import digit_samples
from index_rows import KEY, check, count, database
from index_servers import Postgres, configured
from other_process import OtherProcess

from digits import Digit
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.report import EmbeddingError

pytestmark = pytest.mark.samples(40)

# Stored and fed by fours, in the order of the samples
_SLOWLY: Any = {"brain_key": KEY, "backend": "pgvector", "batch_size": 4, "num_workers": 0}


@pytest.fixture(autouse=True)
def pgvector(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend whose database is configured as from the environment."""
    with database("pgvector", request):
        yield "pgvector"


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


@pytest.fixture
def stops_server(postgres: Postgres) -> Iterator[_StopsServer]:
    """Progress that stops the server after 12 images; it runs again after the test."""
    yield _StopsServer(postgres, 12)
    postgres.start()


def test_server_stops(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    stops_server: _StopsServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(EmbeddingError, match=r"stored in 'hiera', but the index") as error,
    ):
        model.embed_samples(samples, "hiera", progress=stops_server, **_SLOWLY)

    assert stops_server.is_stopped
    assert error.value.report.embedded == 40
    assert caplog.text.count("The index cannot be fed any more") == 1
    postgres.start()
    assert samples.count("hiera") == 40
    held = count(samples)
    assert 0 < held < 40

    report = model.embed_samples(samples, "hiera", brain_key=KEY)
    assert (report.embedded, report.index.added) == (0, 40 - held)
    check(samples)


@pytest.mark.slow
def test_server_stops_under_an_index_only(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    stops_server: _StopsServer,
) -> None:
    with pytest.raises(EmbeddingError) as error:
        model.embed_samples(samples, progress=stops_server, **_SLOWLY)

    assert error.value.report.embedded < 40
    postgres.start()
    held = count(samples)
    assert error.value.report.embedded <= held < 40
    report = model.embed_samples(samples, brain_key=KEY)
    assert (report.embedded, report.skipped) == (40 - held, held)
    check(samples, None)


def test_sample_deleted_during_the_run(samples: Any, model: HieraEmbeddingModel) -> None:
    ids = samples.values("id")
    is_deleted = []

    def delete(bar: Any) -> None:
        if bar.iteration >= 8 and not is_deleted:
            is_deleted.append(True)
            samples.delete_samples([ids[0], ids[-1]])

    model.embed_samples(samples, "hiera", progress=delete, **_SLOWLY)
    assert is_deleted
    assert len(samples) == 38
    check(samples)


@pytest.mark.slow
def test_disk_full(
    samples: Any,
    model: HieraEmbeddingModel,
    small_disk: Callable[[int], Path],
    digits: list[Digit],
) -> None:
    pytest.importorskip("lancedb")
    folder = small_disk(1)
    ballast = folder / "ballast"
    with configured("lancedb", uri=str(folder / "db")):
        model.embed_samples(samples, "hiera", brain_key=KEY, backend="lancedb")
        samples.add_samples(digit_samples(digits[40:60]))
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 10))

        with pytest.raises(EmbeddingError, match="stored in 'hiera', but the index"):
            model.embed_samples(samples, "hiera", brain_key=KEY)

        assert samples.count("hiera") == 60
        ballast.unlink()
        report = model.embed_samples(samples, "hiera", brain_key=KEY)
        assert (report.embedded, report.index.added) == (0, 20)
        check(samples)


_OTHER_RUN = """
go_on = Path({go_on!r})

def wait(bar):
    say(stored=bar.iteration)
    while bar.iteration >= 4 and not go_on.exists():
        time.sleep(0.05)

report = model.embed_samples(
    fo.load_dataset({name!r}), "hiera", brain_key={key!r}, progress=wait,
    batch_size=2, num_workers=0,
)
say(rows=report.index.rows)
"""


@pytest.mark.slow
def test_two_processes_on_one_index(
    samples: Any,
    model: HieraEmbeddingModel,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    variable = "FIFTYONE_BRAIN_SIMILARITY_PGVECTOR_CONNECTION_STRING"
    monkeypatch.setenv(variable, postgres.uri)
    model.embed_samples(samples[:4], "hiera", brain_key=KEY, backend="pgvector")
    go_on = tmp_path / "go on"
    code = _OTHER_RUN.format(go_on=str(go_on), name=samples.name, key=KEY)
    process = OtherProcess(code, tmp_path)
    process.wait_until_stored(4)

    # It waits in the midst of its run until this one is in the midst of its own
    def wake(bar: Any) -> None:
        if bar.iteration >= 4:
            go_on.touch()

    try:
        report = model.embed_samples(
            samples, "hiera", brain_key=KEY, progress=wake, batch_size=2, num_workers=0
        )
    finally:
        go_on.touch()  # or it would wait forever

    assert report.embedded >= 4
    assert report.index.rows == 40
    assert process.result() == {"rows": 40}
    samples.reload()
    check(samples)
