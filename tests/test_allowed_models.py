"""Models that an administrator restricts by FiftyOne's secrets."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import fiftyone.brain as fob
import fiftyone.operators as foo
import pytest
from fiftyone.operators.executor import ExecutionContext, ExecutionError
from operator_calls import COMPUTE, SORT, choices, execute_in_app, resolve

import fiftyone_hiera
from fiftyone_hiera.checkpoints import CHECKPOINTS
from fiftyone_hiera.indexes.backends import get_backend
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

NAMES = "FIFTYONE_ZOO_ALLOWED_MODEL_NAMES"
LICENSES = "FIFTYONE_ZOO_ALLOWED_MODEL_LICENSES"
NANO = "hiera-nano-digits"
BIRDER = "birder-project/hiera_abswin_base_mim"
TINY = "facebook/hiera-tiny-224-hf"

pytestmark = [pytest.mark.usefixtures("plugin"), pytest.mark.samples(5)]


@pytest.fixture
def indexed(samples: Any, model: HieraEmbeddingModel) -> Any:
    model.embed_samples(samples, "hiera")
    fob.compute_similarity(samples, embeddings="hiera", brain_key="key")
    return samples


def _offered(samples: Any) -> list[str]:
    return list(choices(resolve(COMPUTE, samples)[0]["model_name"]))


def test_plugin_declares_the_secrets(plugin: Any) -> None:
    assert plugin.secrets[:2] == [NAMES, LICENSES]
    for name in ("lancedb", "milvus", "pgvector"):
        pytest.importorskip({"milvus": "pymilvus", "pgvector": "psycopg2"}.get(name, name))
        backend = get_backend(name)
        variables = [*map(backend.env_name, backend.credentials)]
        prefix = backend.env_name("")
        declared = [secret for secret in plugin.secrets if secret.startswith(prefix)]
        assert variables[0] in declared
        assert {*declared} <= {*variables}


@pytest.mark.parametrize(
    ("secret", "value", "offered"),
    [
        (LICENSES, "MIT, Apache 2.0", [BIRDER, NANO, "hiera-nano-photos"]),
        (LICENSES, "Apache 2.0", [BIRDER, NANO, "hiera-nano-photos"]),
        (NAMES, f"other, {NANO}", [NANO]),
        # The weights are offered once, under the first of their names that is allowed
        (NAMES, f"{TINY},{TINY}-cls", [TINY]),
        (NAMES, f"{TINY}-cls", [f"{TINY}-cls"]),
    ],
)
def test_form_offers_what_is_allowed(
    samples: Any,
    monkeypatch: pytest.MonkeyPatch,
    secret: str,
    value: str,
    offered: list[str],
) -> None:
    everything = _offered(samples)
    monkeypatch.setenv(secret, value)
    properties, errors = resolve(COMPUTE, samples)
    assert errors == {}
    assert list(choices(properties["model_name"])) == offered
    assert properties["model_name"].default == offered[0]
    assert secret in properties["allowed"].view.label
    monkeypatch.setenv(secret, "")
    assert _offered(samples) == everything
    assert "allowed" not in resolve(COMPUTE, samples)[0]


def test_nothing_is_allowed(samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LICENSES, "MIT")
    properties, errors = resolve(COMPUTE, samples)
    assert list(properties) == ["error"]
    assert "No Hiera model is allowed" in errors["error"]
    with pytest.raises(ExecutionError, match="No Hiera model is allowed"):
        foo.get_operator(COMPUTE)(samples)


def test_named_model_is_refused_with_the_reason(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LICENSES, "MIT,CC BY-NC 4.0")
    message = (
        rf"Model '{NANO}' is not allowed here: its license is 'Apache 2.0', and "
        rf"{LICENSES} allows \['MIT', 'CC BY-NC 4.0'\]"
    )
    with pytest.raises(ExecutionError, match=message):
        foo.get_operator(COMPUTE)(samples, NANO)

    with pytest.raises(ExecutionError, match=message):
        execute_in_app(samples, model_name=NANO)

    monkeypatch.setenv(NAMES, TINY)
    with pytest.raises(ExecutionError, match=rf"not allowed here: {NAMES} allows"):
        foo.get_operator(COMPUTE)(samples, NANO)

    assert samples.get_field("hiera") is None


def test_first_allowed_model_is_the_default(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAMES, NANO)
    assert foo.get_operator(COMPUTE)(samples).result["embedded"] == 5
    provenance = fiftyone_hiera.runs.schema.read_provenance(samples, "hiera")
    assert provenance["checkpoint"] == NANO


def _upload(samples: Any) -> dict[str, Any]:
    content = Path(samples.first().filepath).read_bytes()
    return {"name": "image.png", "content": base64.b64encode(content).decode()}


def test_search(indexed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    search = {"query_image": _upload(indexed), "brain_key": "key"}
    monkeypatch.setenv(LICENSES, "Apache 2.0")
    assert list(choices(resolve(SORT, indexed)[0]["brain_key"])) == ["key"]
    monkeypatch.setenv(LICENSES, "MIT")
    _, errors = resolve(SORT, indexed)
    assert f"Model '{NANO}' is not allowed here" in errors["error"]
    with pytest.raises(ExecutionError, match=f"Model '{NANO}' is not allowed here"):
        foo.execute_operator(SORT, dataset=indexed, params=search)


def test_search_with_one_pooling_allowed(
    indexed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The provenance of "-cls" has the name that the two entries share
    field = indexed.get_field("hiera")
    field.info = {**field.info, "checkpoint": TINY, "pooling": "cls"}
    field.save()
    monkeypatch.setenv(NAMES, f"{TINY}-cls")
    assert list(choices(resolve(SORT, indexed)[0]["brain_key"])) == ["key"]
    field.info = {**field.info, "pooling": "mean"}
    field.save()
    assert f"Model '{TINY}' is not allowed" in resolve(SORT, indexed)[1]["error"]


def test_search_with_weights_of_your_own(
    indexed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = indexed.get_field("hiera")
    field.info = {**field.info, "checkpoint": "/own/weights"}
    field.save()
    monkeypatch.setenv(LICENSES, "Apache 2.0")
    error = resolve(SORT, indexed)[1]["error"]
    assert "Model '/own/weights' is not allowed here: its license is unknown" in error
    monkeypatch.setenv(LICENSES, "")
    monkeypatch.setenv(NAMES, "/own/weights")
    assert list(choices(resolve(SORT, indexed)[0]["brain_key"])) == ["key"]


@pytest.mark.parametrize(
    ("secret", "value", "name", "options", "refused"),
    [
        (LICENSES, "Apache 2.0", NANO, {}, None),
        (LICENSES, "Apache 2.0", TINY, {}, TINY),
        (NAMES, TINY, NANO, {}, NANO),
        (LICENSES, "Apache 2.0", NANO, {"checkpoint": f"{TINY}@{'a' * 40}"}, TINY),
    ],
)
def test_zoo_forms(
    monkeypatch: pytest.MonkeyPatch,
    secret: str,
    value: str,
    name: str,
    options: dict[str, Any],
    refused: str | None,
) -> None:
    # In the context of FiftyOne's operator, which declares the same secrets
    monkeypatch.setenv(secret, value)
    ctx = ExecutionContext(
        {"params": {"remote_params": options}},
        operator_uri="@voxel51/zoo/apply_zoo_model",
        required_secrets=[NAMES, LICENSES],
    )
    form = fiftyone_hiera.resolve_input(name, ctx)
    reasons = [p.error_message for p in form.type.properties.values() if p.invalid]
    if refused is None:
        assert reasons == []
        fiftyone_hiera.parse_parameters(name, ctx, options)
        return

    assert len(reasons) == 1
    assert f"Model '{refused}" in reasons[0]
    with pytest.raises(ValueError, match=rf"Model '{refused}.*{secret}"):
        fiftyone_hiera.parse_parameters(name, ctx, options)


def test_context_of_an_operator_that_declares_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LICENSES, "MIT")
    with pytest.raises(ValueError, match="not allowed"):
        fiftyone_hiera.parse_parameters(NANO, ExecutionContext({}), {})


def test_every_entry_has_one_license() -> None:
    # FiftyOne takes a comma for the end of a license
    assert not [c.name for c in CHECKPOINTS.values() if "," in c.license]
