"""Claims to fields: of runs that begin at once, and of fields that are read-only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest
from digit_samples import check_embeddings
from other_process import OtherProcess

from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.field_claim import FieldClaim
from fiftyone_hiera.runs.schema import find_stored_field, replace_info
from fiftyone_hiera.runs.target import Target

NANO = "hiera-nano-digits"

pytestmark = pytest.mark.samples(5)


def _label(samples: Any) -> None:
    for sample in samples.iter_samples(autosave=True):
        box = fo.Detection(bounding_box=[0, 0, 1, 1])
        sample["parts"] = fo.Detections(detections=[box])


@pytest.mark.parametrize("patches_field", [None, "parts"])
def test_claim_is_seen_in_memory_and_in_the_database(
    samples: Any, model: HieraEmbeddingModel, patches_field: str | None
) -> None:
    _label(samples)
    target = Target(samples, "hiera", patches_field)
    target.add_field()
    samples.get_field(target.path).info = {"mine": "kept"}
    samples.get_field(target.path).save()
    FieldClaim(target, model.embedder.provenance).take()
    for _ in range(2):
        info = samples.get_field(target.path).info
        assert (info["checkpoint"], info["mine"]) == (NANO, "kept")
        samples.reload()


def test_claim_survives_other_changes_of_the_dataset(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    FieldClaim(Target(samples, "hiera"), model.embedder.provenance).take()
    samples.add_sample_field("more", fo.StringField)
    samples.get_field("more").description = "of no account"
    samples.get_field("more").save()
    samples.reload()
    assert samples.get_field("hiera").info["checkpoint"] == NANO


@pytest.mark.parametrize("info", [None, {"mine": {"n": 1, "when": None}, "$odd": [1]}])
@pytest.mark.parametrize("patches_field", [None, "parts"])
def test_info_is_replaced_once(
    samples: Any, patches_field: str | None, info: dict[str, Any] | None
) -> None:
    _label(samples)
    target = Target(samples, "hiera", patches_field)
    target.add_field()
    samples.get_field(target.path).info = info
    samples.get_field(target.path).save()
    field = find_stored_field(samples, target.path)
    assert field is not None
    assert field.info == info
    assert replace_info(samples, target.path, field, {"run": 1})
    assert not replace_info(samples, target.path, field, {"run": 2})
    samples.reload()
    assert samples.get_field(target.path).info == {"run": 1}


def test_info_of_another_place_is_not_replaced(samples: Any) -> None:
    samples.add_sample_field("first", fo.VectorField)
    samples.add_sample_field("second", fo.VectorField)
    field = find_stored_field(samples, "second")
    assert field is not None
    samples.delete_sample_field("first")
    assert not replace_info(samples, "second", field, {"run": 1})


@pytest.mark.parametrize("patches_field", [None, "parts"])
def test_second_claim_is_refused(
    samples: Any,
    model: HieraEmbeddingModel,
    other: HieraEmbeddingModel,
    patches_field: str | None,
) -> None:
    _label(samples)
    target = Target(samples, "hiera", patches_field)
    first, second = (FieldClaim(target, m.embedder.provenance) for m in (model, other))
    for claim in (first, second):
        claim.check(overwrite=False)

    first.take()
    with pytest.raises(ValueError, match=r"(?s)Another run.*differ in pooling"):
        second.take()

    first.confirm()


def test_field_of_another_process_is_found(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(samples, "hiera")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("fiftyone_hiera.runs.schema.show_field", lambda *_: None)
        target.add_field()

    assert samples.get_field("hiera") is None
    sample = samples.first()
    sample.tags.append("unsaved")
    assert target.find_field()
    assert isinstance(samples.get_field("hiera"), fo.VectorField)
    assert samples.first().tags == ["unsaved"]


@pytest.mark.slow
@pytest.mark.parametrize("patches_field", [None, "parts"])
def test_fields_that_processes_add_at_once_are_all_kept(
    samples: Any, tmp_path: Path, patches_field: str | None
) -> None:
    """FiftyOne saves fields as whole lists, and loses those that others just added."""
    _label(samples)
    start = tmp_path / "start"
    code = """
        from fiftyone_hiera.runs.target import Target

        dataset = fo.load_dataset({name!r})
        say(ready=True)
        wait_for({start!r})

        for number in range(40):
            Target(dataset, f"{process}_{{number}}", {patches_field!r}).add_field()
            assert Target(dataset, f"{process}_{{number}}", {patches_field!r}).find_field()
    """
    names = ("first", "second")
    processes = [
        OtherProcess(
            code.format(
                name=samples.name,
                start=str(start),
                process=name,
                patches_field=patches_field,
            ),
            tmp_path,
        )
        for name in names
    ]
    for process in processes:
        assert next(process.said()) == {"ready": True}

    start.touch()
    for process in processes:
        process.wait()

    samples.reload()
    prefix = "parts.detections." if patches_field else ""
    paths = {f"{prefix}{name}_{number}" for name in names for number in range(40)}
    assert paths <= samples.get_field_schema(fo.VectorField, flat=True).keys()


def test_lost_claim_is_taken_again(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel
) -> None:
    """A save of the dataset by another process may write a list of fields from before."""
    target = Target(samples, "hiera")
    claim = FieldClaim(target, model.embedder.provenance)
    claim.take()
    samples.get_field("hiera").info = None
    samples.get_field("hiera").save()
    claim.confirm()
    samples.reload()
    assert samples.get_field("hiera").info["pooling"] == "mean"

    # Not from a run that claimed it meanwhile
    samples.get_field("hiera").info = None
    samples.get_field("hiera").save()
    FieldClaim(target, other.embedder.provenance).take()
    with pytest.raises(ValueError, match="differ in pooling"):
        claim.confirm()


def test_embeddings_that_appear_before_the_claim_are_kept(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    target = Target(samples, "hiera")
    claim = FieldClaim(target, model.embedder.provenance)
    claim.check(overwrite=False)
    samples.compute_embeddings(model, embeddings_field="hiera", num_workers=0)
    with pytest.raises(ValueError, match="5 embeddings with no recorded provenance"):
        claim.take()

    assert samples.get_field("hiera").info is None


def test_write_under_way_when_the_field_is_taken_over_is_undone(
    samples: Any,
    model: HieraEmbeddingModel,
    other: HieraEmbeddingModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Target.store

    def take_over_first(target: Target, *args: Any) -> Any:
        monkeypatch.setattr(Target, "store", store)
        assert other.embed_samples(samples[:], "hiera", overwrite=True).embedded == 5
        return store(target, *args)

    monkeypatch.setattr(Target, "store", take_over_first)
    with pytest.raises(RuntimeError, match=r"(?s)Another run.*differ in pooling"):
        model.embed_samples(samples, "hiera", batch_size=2)

    samples.reload()
    held = samples.exists("hiera")
    assert len(held) == 3, "the embeddings of the late write are gone"
    check_embeddings(held, other)
    assert other.embed_samples(samples, "hiera").embedded == 2
    check_embeddings(samples, other)


_RACE = """
    model = fiftyone_hiera.load_model("hiera-nano-digits", pooling={pooling!r}, **exact)
    dataset = fo.load_dataset({name!r})
    wins = []
    for number in range({rounds}):
        Path({start!r} + "-{pooling}-" + str(number)).touch()
        while len(list(Path({start!r}).parent.glob("start-*-" + str(number)))) < 2:
            time.sleep(0.0001)

        try:
            wins.append(model.embed_samples(dataset, "race_" + str(number)).embedded == 5)
        except (ValueError, RuntimeError) as error:
            assert "Another run" in str(error) or "must not be mixed" in str(error), error
            wins.append(False)

    say(wins=wins)
"""


@pytest.mark.slow
@pytest.mark.parametrize("exists", [True, False])
def test_one_of_two_processes_wins(
    samples: Any,
    model: HieraEmbeddingModel,
    other: HieraEmbeddingModel,
    tmp_path: Path,
    exists: bool,
) -> None:
    rounds = 10
    if exists:
        for number in range(rounds):
            samples.add_sample_field(f"race_{number}", fo.VectorField)

    options = {"name": samples.name, "start": str(tmp_path / "start"), "rounds": rounds}
    models = {"mean": model, "cls": other}
    processes = [
        OtherProcess(_RACE.format(pooling=pooling, **options), tmp_path)
        for pooling in models
    ]
    wins = zip(*(process.result()["wins"] for process in processes), strict=True)
    samples.reload()
    for number, won in enumerate(wins):
        assert sum(won) == 1
        winner = [*models][won.index(True)]
        check_embeddings(samples, models[winner], f"race_{number}")
        if exists:
            assert samples.get_field(f"race_{number}").info["pooling"] == winner


_SLOW = """
    import pymongo.collection

    dataset = fo.load_dataset({name!r})
    update_one = pymongo.collection.Collection.update_one

    def update_late(collection, *args, **kwargs):
        if collection.name == "datasets":
            say(is_late=True)
            wait_for({go!r})

        return update_one(collection, *args, **kwargs)

    pymongo.collection.Collection.update_one = update_late
    try:
        say(embedded=model.embed_samples(dataset, "hiera").embedded)
    except ValueError as error:
        say(refused=str(error))
"""


@pytest.mark.slow
def test_slow_claim_loses(samples: Any, other: HieraEmbeddingModel, tmp_path: Path) -> None:
    samples.add_sample_field("hiera", fo.VectorField)
    go = tmp_path / "go"
    process = OtherProcess(_SLOW.format(name=samples.name, go=str(go)), tmp_path)
    assert next(process.said()) == {"is_late": True}
    assert other.embed_samples(samples, "hiera").embedded == 5
    go.touch()
    said = [*process.said()]
    status, log = process.wait()
    assert status == 0, log
    assert any("Another run" in words.get("refused", "") for words in said), said
    samples.reload()
    assert samples.get_field("hiera").info["pooling"] == "cls"
    check_embeddings(samples, other)


@pytest.mark.parametrize("patches_field", [None, "parts"])
@pytest.mark.parametrize("with_other_settings", [False, True])
def test_read_only_field_is_refused(
    samples: Any,
    model: HieraEmbeddingModel,
    other: HieraEmbeddingModel,
    patches_field: str | None,
    with_other_settings: bool,
) -> None:
    _label(samples)
    model.embed_samples(samples, "hiera", patches_field=patches_field)
    path = Target(samples, "hiera", patches_field).path
    field = samples.get_field(path.partition(".")[0])
    field.read_only = True
    field.save()
    samples.reload()
    info = dict(samples.get_field(path).info)
    run = other if with_other_settings else model
    with pytest.raises(ValueError, match=f"'{path}' is read-only"):
        run.embed_samples(samples, "hiera", patches_field=patches_field, overwrite=True)

    samples.reload()
    assert samples.get_field(path).info == info
    assert samples.count(path) == 5
