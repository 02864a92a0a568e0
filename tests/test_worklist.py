"""The worklist: what is listed of a dataset or view, page by page."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from bson import ObjectId
from fiftyone import ViewField as F
from waiting import wait_until

from digits import Digit
from fiftyone_hiera.runs import paging, worklist
from fiftyone_hiera.runs.fiftyone_internals import sample_collection
from fiftyone_hiera.runs.target import Target
from fiftyone_hiera.runs.views import can_be_paged
from fiftyone_hiera.runs.worklist import Worklist

_VECTOR = np.ones(3, np.float32)

View = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worklist._PAGE_SIZE, "image", 7)


@pytest.fixture
def samples(dataset: Any) -> Any:
    """60 samples with two patches each; half of the samples and patches have a vector."""
    for index in range(60):
        boxes = ([0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5])
        labels = [
            fo.Detection(label=name, bounding_box=box)
            for name, box in zip("ab", boxes, strict=True)
        ]
        sample = fo.Sample(
            filepath=f"/{(index * 7) % 60:02d}.png",
            index=index,
            other=f"/other{index}.png",
            digit=index % 5,
            tags=["odd"] if index % 2 else [],
            parts=fo.Detections(detections=labels),
        )
        dataset.add_sample(sample)

    dataset.add_sample_field("hiera", fo.VectorField)
    dataset.add_sample_field("parts.detections.hiera", fo.VectorField)
    half = dataset.match(F("index") % 3 == 0)
    half.set_values("hiera", [_VECTOR] * len(half))
    for sample in half.iter_samples(autosave=True):
        sample.parts.detections[0]["hiera"] = _VECTOR

    return dataset


PAGED: dict[str, View] = {
    "dataset": lambda samples: samples,
    "view": lambda samples: samples.view(),
    "match": lambda samples: samples.match(F("index") > 20),
    "tags": lambda samples: samples.match_tags("odd"),
    "exists": lambda samples: samples.exists("hiera", False),
    "labels": lambda samples: samples.filter_labels("parts", F("label") == "a"),
    "fields": lambda samples: samples.exclude_fields("index"),
    "several": lambda samples: (
        samples.match_tags("odd").match(F("index") < 50).exists("index")
    ),
}
SNAPSHOT: dict[str, View] = {
    "limit": lambda samples: samples.limit(25),
    "slice": lambda samples: samples[10:40],
    "take": lambda samples: samples.take(30, seed=1),
    "shuffle": lambda samples: samples.shuffle(seed=1),
    "sorted": lambda samples: samples.sort_by("filepath").limit(22),
    "select": lambda samples: samples.select(samples.values("id")[5:55]),
    "exclude": lambda samples: samples.exclude(samples.values("id")[5:9]),
    "concat": lambda samples: samples.match_tags("odd").concat(samples.limit(5)),
    "limit, labels": lambda samples: samples.limit(25).filter_labels(
        "parts", F("label") == "b"
    ),
}


def _list(target: Target, **options: Any) -> tuple[list[Any], Worklist]:
    work = Worklist(target, **{"overwrite": False, "shard": None, **options})
    expected, is_exact = work.total, not work.is_estimate
    jobs = list(work.list_jobs())
    parts = [part.id for job in jobs for part in job.parts]
    assert work.total == len(parts)
    assert not work.is_estimate
    assert len(set(parts)) == len(parts)
    assert expected == len(parts) or not is_exact
    return jobs, work


@pytest.mark.parametrize("name", [*PAGED, *SNAPSHOT])
@pytest.mark.parametrize("is_patches", [False, True])
def test_what_is_listed_is_what_is_pending_in_the_view(
    samples: Any, name: str, is_patches: bool
) -> None:
    view = {**PAGED, **SNAPSHOT}[name](samples)
    assert can_be_paged(view) == (name in PAGED)
    target = Target(view, "hiera", "parts" if is_patches else None)
    if is_patches:
        pairs = zip(
            *view.values(["parts.detections.id", "parts.detections.hiera"]), strict=True
        )
        held = {
            id: value
            for ids, values in pairs
            for id, value in zip(ids, values, strict=True)
        }
    else:
        held = dict(zip(*view.values(["id", "hiera"]), strict=True))

    pending = {id for id, value in held.items() if value is None}
    assert Worklist(target, overwrite=False, shard=None).is_estimate == (name == "concat")
    jobs, work = _list(target)
    assert {part.id for job in jobs for part in job.parts} == pending
    assert work.skipped == len(held) - len(pending)
    paths = dict(zip(*samples.values(["id", "filepath"]), strict=True))
    assert all(job.path == paths[job.sample_id] for job in jobs)
    if name in PAGED:
        assert [job.sample_id for job in jobs] == sorted(job.sample_id for job in jobs)

    everything, work = _list(target, overwrite=True)
    assert {part.id for job in everything for part in job.parts} == {*held}
    assert work.skipped == 0


def _files(samples: Any) -> Any:
    return samples.set_field("filepath", F("other"))


def _boxes(samples: Any) -> Any:
    box = [F("$index") / 100, 0, 0.25, 0.25]
    return samples.set_field("parts.detections.bounding_box", box)


CHANGED: dict[str, View] = {
    "files": _files,
    "files, match, boxes": lambda s: _boxes(_files(s).match(F("index") > 20)),
    "limit, files": lambda s: _files(s.limit(25)),
    "files, sorted, limit": lambda s: _files(s).sort_by("filepath").limit(25),
    "boxes, shuffle": lambda s: _boxes(s).shuffle(seed=1),
    "take, boxes, labels": lambda s: _boxes(s.take(30, seed=1)).filter_labels(
        "parts", F("label") == "a"
    ),
    "limit, all in labels": lambda s: s.limit(9).set_field(
        "parts.detections", F("detections").map(F().set_field("bounding_box", [0, 0, 1, 1]))
    ),
    "mapped files": lambda s: s.map_values("filepath", {"/07.png": "/mapped.png"}),
    "mapped files, limit": lambda s: s.map_values(
        "filepath", {"/07.png": "/mapped.png"}
    ).limit(2),
    "mongo": lambda s: s.mongo([{"$set": {"filepath": "$other"}}, {"$limit": 9}]),
    "mongo of others": lambda s: s.mongo(
        [
            {
                "$setWindowFields": {
                    "sortBy": {"index": 1},
                    "output": {"filepath": {"$shift": {"output": "$filepath", "by": -1}}},
                }
            },
            {"$match": {"filepath": {"$ne": None}}},
        ]
    ),
    "files, groups": lambda s: _files(s.limit(25)).group_by("digit").flatten(),
    "concat": lambda s: _files(s.limit(9)).concat(_boxes(s.skip(50))),
    "concat, files": lambda s: _files(s.limit(9).concat(s.skip(50))),
    "concat with another file": lambda s: s.limit_labels("parts", 1).concat(
        _files(s.limit(9)).filter_labels("parts", F("label") == "b")
    ),
    "labels of other stages": lambda s: (
        s.limit(9).map_labels("parts", {"a": "b"}).filter_labels("parts", F("label") == "b")
    ),
    "embeddings": lambda s: s.set_field("hiera", None).set_field(
        "parts.detections.hiera", None
    ),
    "hidden fields": lambda s: _files(s.select_fields(["parts", "other"])).limit(9),
}


@pytest.mark.parametrize("field", [None, "parts"])
def test_what_is_listed_is_what_the_view_shows(samples: Any, field: str | None) -> None:
    stored = samples.filter_labels("parts", F("hiera").exists())
    held = {*samples.exists("hiera").values("id")}
    held |= {*stored.values("parts.detections.id", unwind=True)}
    for name, make_view in CHANGED.items():
        view = make_view(samples)
        jobs, _ = _list(Target(view, "hiera", field))
        listed = {
            part.id: (job.path, part.box and [*part.box])
            for job in jobs
            for part in job.parts
        }
        labels = (f"parts.detections.{name}" for name in ("id", "bounding_box"))
        shown: dict[str, Any] = {}
        for id, path, *parts in zip(*view.values(["id", "filepath", *labels]), strict=True):
            boxes = zip(*parts, strict=True) if field else [(id, None)]
            shown |= {part_id: (path, box) for part_id, box in boxes}

        pending = {id: what for id, what in shown.items() if id not in held}
        assert listed == pending, name


@pytest.mark.parametrize("view", [PAGED["dataset"], PAGED["tags"], SNAPSHOT["slice"]])
@pytest.mark.parametrize("patches_field", [None, "parts"])
def test_shards_are_disjoint_and_complete(
    samples: Any, view: View, patches_field: str | None
) -> None:
    target = Target(view(samples), "hiera", patches_field)
    whole, work = _list(target)
    shards = [_list(target, shard=(index, 3)) for index in range(3)]
    ids = [job.sample_id for jobs, _ in shards for job in jobs]
    assert sorted(ids) == sorted(job.sample_id for job in whole)
    assert sum(shard.skipped for _, shard in shards) == work.skipped
    assert all(jobs for jobs, _ in shards)


def test_shards_of_consecutive_ids_are_of_similar_size(dataset: Any) -> None:
    dataset.add_samples([fo.Sample(filepath=f"/{n}.png") for n in range(900)])
    target = Target(dataset, "hiera")
    sizes = [Worklist(target, overwrite=False, shard=(k, 9)).total for k in range(9)]
    assert sum(sizes) == 900
    assert 60 < min(sizes) <= max(sizes) < 140


def test_view_of_slices(dataset: Any) -> None:
    dataset.add_group_field("group", default="left")
    for index in range(20):
        group = fo.Group()
        for name in ("left", "right"):
            dataset.add_sample(
                fo.Sample(filepath=f"/{name}{index}.png", group=group.element(name))
            )

    dataset.add_sample_field("hiera", fo.VectorField)
    for view, count in (
        (dataset.select_group_slices("right"), 20),
        (dataset.select_group_slices(["left", "right"]), 40),
    ):
        assert can_be_paged(view)
        jobs, _ = _list(Target(view, "hiera"))
        assert {job.sample_id for job in jobs} == {*view.values("id")}
        assert len(jobs) == count

    # The samples of a slice that are reached from another one
    view = dataset.match(F("filepath").contains_str("left1")).select_group_slices("right")
    assert not can_be_paged(view)
    jobs, _ = _list(Target(view, "hiera"))
    assert sorted(job.path for job in jobs) == sorted(view.values("filepath"))


def test_while_the_run_writes_nothing_is_listed_twice_or_left_out(samples: Any) -> None:
    target = Target(samples, "hiera")
    before = samples.exists("hiera", False).values("id")
    work = Worklist(target, overwrite=False, shard=None)
    listed = []
    for job in work.list_jobs():
        if not listed:
            samples.add_sample(fo.Sample(filepath="/added.png"))

        target.store(job.parts, [_VECTOR])
        listed.append(job.sample_id)

    assert listed == sorted(before)
    assert work.skipped == 20
    assert samples.count("hiera") == 60


def test_samples_that_leave_the_view_when_they_are_embedded(samples: Any) -> None:
    target = Target(samples.exists("hiera", False), "hiera")
    work = Worklist(target, overwrite=False, shard=None)
    for job in work.list_jobs():
        target.store(job.parts, [_VECTOR])
        time.sleep(0.01)  # the next page is looked up meanwhile

    assert (work.total, work.skipped) == (40, 0)
    assert samples.count("hiera") == 60


def test_field_cleared_by_hand_is_listed_again(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _index(samples, monkeypatch)
    held = samples.exists("hiera")
    held.limit(5).clear_sample_field("hiera")
    jobs, work = _list(Target(samples, "hiera"))
    assert (len(jobs), work.skipped) == (45, 15)
    samples.clear_sample_field("hiera")
    jobs, work = _list(Target(samples, "hiera"))
    assert (len(jobs), work.skipped) == (60, 0)


def _index(samples: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(paging, "_MANY", 50)
    paging.add_pending_index(Target(samples, "hiera"))
    wait_until(lambda: "hiera_pending" in samples.list_indexes())
    return sample_collection(samples)


def test_index_holds_what_is_pending(samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = _index(samples, monkeypatch)
    pipeline = [
        {"$match": {"_id": {"$gt": ObjectId("0" * 24)}}},
        {"$sort": {"_id": 1}},
        {"$match": {"hiera": None}},
        {"$limit": 100},
    ]
    explained = collection.database.command(
        "explain",
        {
            "aggregate": collection.name,
            "pipeline": pipeline,
            "cursor": {},
            "hint": "hiera_pending",
        },
        verbosity="executionStats",
    )
    assert explained["executionStats"]["totalDocsExamined"] == 40
    clone = samples.clone()
    assert "hiera_pending" in clone.list_indexes()
    clone.delete()
    samples.drop_index("hiera_pending")
    assert "hiera_pending" not in samples.list_indexes()


def test_small_datasets_get_no_index(samples: Any) -> None:
    paging.add_pending_index(Target(samples, "hiera"))
    time.sleep(0.3)
    assert "hiera_pending" not in samples.list_indexes()


def test_total_of_many_samples_is_estimated(
    dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.add_sample(fo.Sample(filepath="/0.png", hiera=_VECTOR))
    collection = sample_collection(dataset)
    first = collection.find_one()
    documents = [
        {**first, "_id": ObjectId(), "hiera": first["hiera"] if index % 4 else None}
        for index in range(40_000)
    ]
    collection.insert_many(documents, ordered=False)
    monkeypatch.setattr(worklist, "_COUNTING_MS", 1)
    monkeypatch.setitem(worklist._PAGE_SIZE, "image", 5000)
    work = Worklist(Target(dataset, "hiera"), overwrite=False, shard=None)
    assert work.is_estimate
    assert 8_000 < work.total < 12_000
    assert len(list(itertools.islice(work.list_jobs(), 10_001))) == 10_000
    assert not work.is_estimate
    assert (work.total, work.skipped) == (10_000, 30_001)


def test_nothing_to_list(dataset: Any) -> None:
    dataset.add_sample_field("hiera", fo.VectorField)
    assert _list(Target(dataset, "hiera"))[0] == []


def test_unfinished_list_is_closed(
    samples: Any, digits: list[Digit], tmp_path: Path
) -> None:
    jobs = Worklist(Target(samples, "hiera"), overwrite=False, shard=None).list_jobs()
    next(jobs)
    jobs.close()
    with pytest.raises(StopIteration):
        next(jobs)
