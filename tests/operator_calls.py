"""Call operators as FiftyOne's App does, without a browser."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators.executor import (
    ExecutionContext,
    Executor,
    ValidationContext,
    execute_or_delegate_operator,
)

COMPUTE = "@fiftyone-hiera/hiera/compute_hiera_embeddings"
SORT = "@fiftyone-hiera/hiera/sort_by_hiera_similarity"


def plugin_module(name: str) -> Any:
    """Return a module as FiftyOne imported it with the plugin, apart from this package."""
    package = type(foo.get_operator(COMPUTE)).__module__.rpartition(".plugin.")[0]
    return importlib.import_module(f"{package}.{name}")


def make_request(samples: Any, params: dict[str, Any], **request: Any) -> dict[str, Any]:
    """Return a request as the App sends it, for a dataset or a view of it."""
    return {
        "dataset_name": samples._root_dataset.name if samples is not None else None,
        "view": samples.view()._serialize() if samples is not None else None,
        "params": params,
        "operator_uri": COMPUTE,
        **request,
    }


def make_context(samples: Any, params: dict[str, Any], **request: Any) -> ExecutionContext:
    """Return the execution context of a request; see :func:`make_request`."""
    request = make_request(samples, params, **request)
    uri = request["operator_uri"]
    return ExecutionContext(
        request,
        executor=Executor(),
        operator_uri=uri,
        required_secrets=foo.get_operator(uri)._plugin_secrets,
    )


def resolve(uri: str, samples: Any, **params: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Resolve a form.

    Returns:
        its properties by name, and its errors by name
    """
    return resolve_context(uri, make_context(samples, params, operator_uri=uri))


def resolve_context(
    uri: str, ctx: ExecutionContext
) -> tuple[dict[str, Any], dict[str, str]]:
    """Resolve a form in a context; see :func:`resolve`."""
    operator = foo.get_operator(uri)
    form = operator.resolve_type(ctx, "inputs")
    form.to_json()
    errors = ValidationContext(ctx, form, operator).errors
    return form.type.properties, {error.path[1:]: error.reason for error in errors}


def choices(prop: Any) -> dict[str, Any]:
    """Return the choices of a property, by value."""
    return {choice.value: choice for choice in prop.view.choices}


def execute_in_app(samples: Any, uri: str = COMPUTE, **params: Any) -> Any:
    """Execute an operator as the App does.

    Returns:
        the result; its ``result`` is a generator of messages if the operator streams
    """
    request = make_request(samples, params, operator_uri=uri)
    return asyncio.run(execute_or_delegate_operator(uri, request))


def triggered(messages: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the (URI, parameters) of the operators that messages trigger."""
    return [(message.body.operator_uri, message.body.params) for message in messages]
