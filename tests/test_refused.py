"""Documents that MongoDB refuses to change, in runs that go on without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from bson import ObjectId, encode
from digit_samples import check_embeddings
from index_rows import KEY, database

import fiftyone_hiera
from fiftyone_hiera.embedding.jobs import Part
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.fiftyone_internals import frame_collection, sample_collection
from fiftyone_hiera.runs.refused import MOST_BYTES
from fiftyone_hiera.runs.report import EmbeddingError, IndexChange
from fiftyone_hiera.runs.target import Target

_COUNT = 6
_BOXES = [[0.1 * index, 0, 0.1, 1] for index in range(10)]

pytestmark = pytest.mark.samples(_COUNT, parts=_BOXES)


def _fill(collection: Any, id: str, room: int) -> None:
    """Leave a document so many bytes."""
    query = {"_id": ObjectId(id)}
    size = len(encode(collection.find_one(query)))
    overhead = len(encode({"pad": ""})) - len(encode({}))
    pad = "x" * (MOST_BYTES - size - room - overhead)
    collection.update_one(query, {"$set": {"pad": pad}})


def _forbid(samples: Any, id: str, path: str) -> None:
    """Forbid a sample to have a value."""
    allowed = {"$or": [{"_id": {"$ne": ObjectId(id)}}, {path: {"$exists": False}}]}
    collection = sample_collection(samples)
    collection.database.command("collMod", collection.name, validator=allowed)


@pytest.mark.parametrize("why", ["large", "invalid"])
@pytest.mark.parametrize("field", [None, "parts"])
def test_refused_sample_fails_alone(
    samples: Any, model: HieraEmbeddingModel, field: str | None, why: str
) -> None:
    path = "parts.detections.hiera" if field else "hiera"
    sample_id = samples.skip(2).first().id
    if why == "large":
        # Room for three embeddings of 768 bytes, or for none
        _fill(sample_collection(samples), sample_id, 3000 if field else 500)
        reason = rf"sample {sample_id} has 16,77\d,\d+ bytes, and .* 768 .*brain_key"
    else:
        _forbid(samples, sample_id, path)
        reason = f"validator of the database refuses sample {sample_id}: .*validation"

    stored = 3 if field and why == "large" else 0
    each = len(_BOXES) if field else 1
    options: dict[str, Any] = {"patches_field": field, "batch_size": 7}
    for done in (0, 1):
        report = model.embed_samples(samples, "hiera", failure_tag="bad", **options)
        rest = each * (_COUNT - 1) + stored
        assert (report.embedded, report.skipped) == ((0, rest) if done else (rest, 0))
        assert len(report.failed) == each - stored
        assert {notice.sample_id for notice in report.failed} == {sample_id}
        assert all(sample_id in notice.reason for notice in report.failed)
        assert samples.match_tags("bad").values("id") == [sample_id]
        assert samples.count(path) == rest

    with pytest.raises(EmbeddingError, match=f"(?s){reason}.*skip_failures=True") as error:
        model.embed_samples(samples, "hiera", skip_failures=False, **options)

    assert error.value.report.embedded == 0
    if field is None:
        check_embeddings(samples.exclude(sample_id), model)


@pytest.mark.slow
def test_refused_sample_is_not_in_the_index(
    samples: Any, model: HieraEmbeddingModel, request: pytest.FixtureRequest
) -> None:
    _fill(sample_collection(samples), samples.first().id, 500)
    with database("lancedb", request):
        report = model.embed_samples(samples, "hiera", brain_key=KEY, backend="lancedb")
        assert report.index == IndexChange(rows=_COUNT - 1, added=_COUNT - 1, removed=0)
        samples.delete_brain_run(KEY)


def test_refused_sample_is_attached_no_embedding(samples: Any, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    ids, uris = samples.values(["id", "filepath"])
    pq.write_table(pa.table({"id": ids, "uri": uris}), tmp_path / "manifest.parquet")
    fiftyone_hiera.embed_files(
        tmp_path / "manifest.parquet", tmp_path / "out", model="hiera-nano-digits"
    )
    _fill(sample_collection(samples), ids[1], 500)
    for attached in (_COUNT - 1, 0):
        report = fiftyone_hiera.attach_embeddings(samples, "hiera", tmp_path / "out")
        (failure,) = report.failed
        assert (report.attached, failure.id, failure.path) == (attached, ids[1], uris[1])
        assert f"document of sample {ids[1]} has 16,77" in failure.reason

    assert samples.exists("hiera", False).values("id") == [ids[1]]


def test_sample_without_room_for_a_tag(samples: Any, model: HieraEmbeddingModel) -> None:
    sample_id = samples.first().id
    _fill(sample_collection(samples), sample_id, 3)
    report = model.embed_samples(samples, "hiera", failure_tag="bad")
    assert (report.embedded, len(report.failed)) == (_COUNT - 1, 1)
    assert samples.count_sample_tags() == {}


def test_refused_frame_fails_alone(dataset: Any) -> None:
    sample = fo.Sample(filepath="/video.mp4")
    sample.frames.update({number: fo.Frame() for number in (1, 2, 3)})
    dataset.add_sample(sample)
    ids = [frame.id for frame in sample.frames.values()]
    _fill(frame_collection(dataset), ids[1], 500)
    target = Target(dataset, "hiera")
    target.add_field()
    parts = [Part(id, id, number) for number, id in enumerate(ids, 1)]
    embeddings = np.random.default_rng(0).normal(size=(3, 192)).astype(np.float32)
    refused = target.store(parts, embeddings)
    assert [*refused] == [ids[1]]
    assert f"The document of frame {ids[1]} has 16,77" in refused[ids[1]]
    assert "brain_key" not in refused[ids[1]]  # frames have no index
    assert [value is None for value in dataset.values("frames.hiera")[0]] == [0, 1, 0]
