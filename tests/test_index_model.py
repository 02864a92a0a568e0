"""The zoo model in the config of a similarity index, which FiftyOne's own search loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.zoo as foz
import numpy as np
import pytest

import fiftyone_hiera
from fiftyone_hiera.checkpoints import CHECKPOINTS

NANO = "hiera-nano-digits"

pytestmark = pytest.mark.samples(4, parts=[[0.1, 0.1, 0.8, 0.8]])


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foz, "list_zoo_models", lambda: list(CHECKPOINTS))


def _load(**options: Any) -> Any:
    return fiftyone_hiera.load_model(NANO, **options)


def _name(samples: Any, brain_key: str = "key") -> str | None:
    config = samples.get_brain_info(brain_key).config
    name: str | None = config.model
    assert config.model_kwargs is None
    assert fo.load_dataset(samples.name).get_brain_info(brain_key).config.model == name
    return name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NANO),
        ({"dtype": "float32", "engine": "torch"}, NANO),  # which round otherwise
        ({"pooling": "cls"}, None),
        ({"stage": 3}, None),
        ({"image_size": 96}, None),
        ({"squash": True}, None),
        ({"normalize": True}, None),
    ],
    ids=str,
)
def test_settings_of_a_zoo_model(
    samples: Any, options: dict[str, Any], expected: str | None
) -> None:
    _load(**options).embed_samples(samples, "h", patches_field="parts", brain_key="key")
    assert _name(samples) == expected


def test_source_that_is_not_registered(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foz, "list_zoo_models", list)
    _load().embed_samples(samples, "h", brain_key="key")
    assert _name(samples) is None


def test_name_follows_the_vectors(samples: Any) -> None:
    _load().embed_samples(samples, "h", brain_key="key")
    fob.compute_similarity(samples, embeddings="h", brain_key="own")
    other = fob.compute_similarity(samples, embeddings=np.eye(4), brain_key="other")
    other.config.model = "clip-vit-base32-torch"
    other.save_config()
    _load(squash=True).embed_samples(samples, "h", overwrite=True)  # without a brain key
    assert [_name(samples, key) for key in ("key", "own")] == [None, None]
    _load().embed_samples(samples, "h", overwrite=True)
    assert [_name(samples, key) for key in ("key", "own")] == [NANO, NANO]
    assert samples.get_brain_info("other").config.model == "clip-vit-base32-torch"


def test_name_is_cleared_before_the_first_vector_is_replaced(samples: Any) -> None:
    _load().embed_samples(samples, "h", brain_key="key")

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _load(squash=True).embed_samples(
            samples, "h", overwrite=True, batch_size=1, progress=stop
        )

    assert _name(samples) is None


def test_name_of_adopted_embeddings(samples: Any) -> None:
    samples.compute_embeddings(_load(), embeddings_field="h")
    fob.compute_similarity(samples, embeddings="h", brain_key="key")
    assert samples.get_brain_info("key").config.model is None
    _load().adopt_embeddings(samples, "h")
    assert _name(samples) == NANO


def test_name_of_an_older_release_is_corrected(samples: Any) -> None:
    _load(pooling="cls").embed_samples(samples, "h", brain_key="key")
    index = samples.load_brain_results("key")
    index.config.model = NANO
    index.save_config()
    _load(pooling="cls").embed_samples(samples, "h")  # nothing to do
    assert _name(samples) is None


def test_table_keeps_its_name_until_it_is_fed(samples: Any, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    where: dict[str, Any] = {"backend": "lancedb", "backend_kwargs": {"uri": str(tmp_path)}}
    _load().embed_samples(samples, "h", brain_key="key", **where)
    _load().embed_samples(samples, brain_key="alone", **where)
    assert [_name(samples, key) for key in ("key", "alone")] == [NANO, NANO]
    other = _load(pooling="cls")
    other.embed_samples(samples, "h", overwrite=True)
    assert _name(samples) == NANO  # its rows are the old vectors
    other.embed_samples(samples, "h", brain_key="key", overwrite=True, **where)
    assert [_name(samples, key) for key in ("key", "alone")] == [None, NANO]


def test_table_of_fiftyone_keeps_the_provenance_of_its_rows(
    samples: Any, tmp_path: Path
) -> None:
    pytest.importorskip("lancedb")
    _load().embed_samples(samples, "h")
    uri = str(tmp_path)
    fob.compute_similarity(
        samples, embeddings="h", brain_key="key", backend="lancedb", uri=uri
    )
    assert samples.get_brain_info("key").config.model is None
    other = _load(pooling="cls")
    other.embed_samples(samples, "h", overwrite=True)
    assert _name(samples) == NANO  # its rows are the old vectors
    with pytest.raises(ValueError, match="differ in pooling"):
        other.embed_samples(samples, "h", brain_key="key", backend_kwargs={"uri": uri})


def test_index_that_another_process_made(samples: Any) -> None:
    _load().embed_samples(samples, "h")
    fob.compute_similarity(samples, embeddings="h", brain_key="key")
    runs = samples._doc.brain_methods.pop("key")  # as this process does not know it
    assert "key" not in samples.list_brain_runs()
    _load().embed_samples(samples, "h")
    assert runs is not None
    assert _name(samples) == NANO


def test_index_of_a_deleted_field_is_passed_over(samples: Any) -> None:
    _load().embed_samples(samples, "h", patches_field="parts", brain_key="key")
    samples.delete_sample_field("parts")
    _load().embed_samples(samples, "h", brain_key="other")
    assert _name(samples, "other") == NANO
