"""The similarity index in the operator's form, and in its runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from digit_samples import digit_samples
from index_rows import database
from index_servers import Postgres, configured
from operator_calls import COMPUTE, SORT, choices, make_context, plugin_module, resolve
from PIL import Image

import fiftyone_hiera
from digits import Digit

NANO = "hiera-nano-digits"
_VARIABLE = "FIFTYONE_BRAIN_SIMILARITY_PGVECTOR_CONNECTION_STRING"

pytestmark = [pytest.mark.usefixtures("plugin"), pytest.mark.samples(20)]


@pytest.fixture
def pgvector(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend whose database is configured as from the environment."""
    with database("pgvector", request):
        yield "pgvector"


def _run(samples: Any, **params: Any) -> dict[str, Any]:
    result: dict[str, Any] = foo.get_operator(COMPUTE)(samples, NANO, **params).result
    return result


def test_backends(samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = {"similarity_index": True, "model_name": NANO}
    backends = plugin_module("indexes.backends")
    monkeypatch.setattr(backends, "_is_installed", lambda module: module != "qdrant_client")
    properties, errors = resolve(COMPUTE, samples, **boxes)
    assert errors == {}
    assert properties["similarity_backend"].default == "sklearn"
    labels = {key: c.label for key, c in choices(properties["similarity_backend"]).items()}
    assert labels["sklearn"] == "sklearn"
    assert labels["qdrant"] == "qdrant (not installed: pip install qdrant-client)"
    assert not {"similarity_table", "similarity_metric", "index_only"} & {*properties}

    properties, errors = resolve(COMPUTE, samples, **boxes, similarity_backend="qdrant")
    assert "pip install qdrant-client" in errors["similarity_backend"]
    _, errors = resolve(COMPUTE, samples, **boxes, similarity_backend="faiss")
    assert "faiss" in errors["similarity_backend"]

    properties, errors = resolve(COMPUTE, samples, **boxes, similarity_backend="pgvector")
    assert errors == {}
    assert _VARIABLE in properties["similarity_place"].view.label
    assert properties["similarity_table"].view.label == "Table name"
    with configured("pgvector", connection_string="postgresql://there"):
        properties, _ = resolve(COMPUTE, samples, **boxes, similarity_backend="pgvector")
        assert "similarity_place" not in properties


def test_fed_and_grown(
    samples: Any, pgvector: str, postgres: Postgres, digits: list[Digit]
) -> None:
    result = _run(
        samples,
        similarity_backend=pgvector,
        similarity_table="my_table",
        similarity_metric="euclidean",
    )
    assert result["similarity_brain_key"] == "hiera_similarity"
    assert result["index"] == {"rows": 20, "added": 20, "removed": 0}
    config = samples.get_brain_info("hiera_similarity").config
    assert (config.table_name, config.metric) == ("my_table", "euclidean")
    assert postgres.fetch("SELECT count(*) FROM my_table") == [(20,)]

    # The form offers to bring it up to date
    properties, errors = resolve(COMPUTE, samples, model_name=NANO, similarity_index=True)
    assert errors == {}
    assert properties["similarity_backend"].default == "pgvector"

    samples.delete_samples(samples[:2].values("id"))
    samples.add_samples(digit_samples(digits[30:31]))
    result = _run(samples, similarity_index=True)
    assert result["index"] == {"rows": 19, "added": 1, "removed": 2}
    assert postgres.fetch("SELECT count(*) FROM my_table") == [(19,)]
    found = samples.sort_by_similarity(samples.last().id, k=1, brain_key="hiera_similarity")
    assert found.first().id == samples.last().id

    _, errors = resolve(
        COMPUTE,
        samples,
        model_name=NANO,
        similarity_index=True,
        similarity_backend=pgvector,
        similarity_brain_key="hiera_similarity",
        similarity_metric="cosine",
    )
    assert "has metric 'euclidean'" in errors["similarity_brain_key"]


@pytest.mark.slow
def test_index_only(samples: Any, pgvector: str) -> None:
    params = {"similarity_backend": pgvector, "index_only": True}
    properties, errors = resolve(
        COMPUTE, samples, model_name=NANO, similarity_index=True, **params
    )
    assert errors == {}
    assert "embeddings_field" not in properties
    result = _run(samples, **params)
    assert (result["embedded"], result["embeddings_field"]) == (20, None)
    assert not samples.get_field_schema(ftype=fo.VectorField)

    # Its own provenance tells which model searches it
    brain_key = "hiera_similarity"
    properties, errors = resolve(SORT, samples, brain_key=brain_key)
    assert brain_key in choices(properties["brain_key"])
    assert "hiera-nano-digits, mean" in choices(properties["brain_key"])[brain_key].label
    index = samples.load_brain_results(brain_key)
    vectors, _, _ = index.get_embeddings(sample_ids=[samples.first().id])
    model = fiftyone_hiera.load_model(NANO)  # of the form's dtype and engine
    expected = model.embed(Image.open(samples.first().filepath))
    assert np.abs(vectors[0] - expected).max() < 0.02 * np.abs(expected).max()

    _, errors = resolve(
        COMPUTE,
        samples,
        model_name=NANO,
        similarity_index=True,
        visualization=True,
        **params,
    )
    assert "needs the embeddings on the samples" in errors["visualization"]


@pytest.mark.slow
def test_secrets(samples: Any, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    form = plugin_module("plugin.index_form")
    options_class = plugin_module("indexes.options").IndexOptions
    ctx = make_context(samples, {})
    monkeypatch.setattr(
        type(ctx), "secrets", property(lambda self: {_VARIABLE: postgres.uri})
    )
    monkeypatch.setattr(type(ctx), "secret", lambda self, name: self.secrets.get(name))
    find_secret = plugin_module("plugin.compute_request").read_request(ctx).find_secret
    options = form.with_secrets(options_class("key", "pgvector"), find_secret)
    assert options.settings == {"connection_string": postgres.uri}
    given = options_class("key", "pgvector", {"connection_string": "mine"})
    assert form.with_secrets(given, find_secret).settings == {"connection_string": "mine"}
    monkeypatch.setenv(_VARIABLE, "in the environment")
    assert form.with_secrets(options_class("key", "pgvector"), find_secret).settings == {}


def test_wrong_credentials(samples: Any) -> None:
    with (
        configured("pgvector", connection_string="postgresql://nobody@127.0.0.1:1/none"),
        pytest.raises(foo.executor.ExecutionError, match="Cannot open the index"),
    ):
        _run(samples, similarity_backend="pgvector")

    assert "hiera" not in samples.get_field_schema()
    assert not samples.list_brain_runs()
