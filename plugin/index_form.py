"""Ask for a similarity index: its backend, settings and brain key."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from fiftyone.operators import types

from ..indexes.backends import SKLEARN, get_backend, list_backends, missing_package
from ..indexes.options import IndexOptions
from ..runs.run_index import NO_FRAMES
from .compute_plan import EmbeddingPlan
from .widgets import ask_box, ask_choice, check, mark_invalid

_METRICS = ("cosine", "euclidean", "dotproduct")


def ask_index(inputs: types.Object, plan: EmbeddingPlan) -> None:
    """Ask whether to feed a similarity index, and which."""
    description = "Sort by similarity to any image; find duplicates and outliers"
    box = ask_box(inputs, "similarity_index", "Similarity index", description)
    if not plan.params.similarity_index:
        return

    if plan.source.frames_prefix:
        mark_invalid(box, NO_FRAMES)

    labels = {}
    for name in list_backends():
        package = missing_package(name)
        missing = "" if package is None else f" (not installed: pip install {package})"
        labels[name] = f"{name}{missing}"

    backend = ask_choice(
        inputs,
        "similarity_backend",
        labels,
        default=plan.default_backend,
        label="Backend",
        description="Where the index is; sklearn reads the embeddings field",
    )
    check(backend, lambda: get_backend(plan.backend))
    if backend.invalid:
        return

    if plan.backend != SKLEARN:
        _ask_settings(inputs, plan)

    key = inputs.str(
        "similarity_brain_key",
        label="Brain key",
        description=(
            "A new name, or an index of the same embeddings to bring up to date; empty for "
            f"{plan.default_index_key!r}"
        ),
    )
    check(key, lambda: plan.check_index(plan.index))


def with_secrets(
    options: IndexOptions, find_secret: Callable[[str], str | None]
) -> IndexOptions:
    """Add the credentials that the secrets of the App have and the environment has not."""
    backend = get_backend(options.backend)
    secrets = {
        credential: find_secret(backend.env_name(credential))
        for credential in backend.credentials
        if backend.env_name(credential) not in os.environ
    }
    given = {credential: value for credential, value in secrets.items() if value}
    return replace(options, settings={**given, **options.settings})


def _ask_settings(inputs: types.Object, plan: EmbeddingPlan) -> None:
    backend = get_backend(plan.backend)
    if backend.credentials and backend.configured.keys().isdisjoint(backend.credentials):
        label = (
            f"Set {backend.env_name(backend.credentials[0])} in the environment or as a "
            "secret; FiftyOne does not store where the database is"
        )
        inputs.view("similarity_place", types.Notice(label=label))

    if backend.table_setting is not None:
        inputs.str(
            "similarity_table",
            label=backend.table_setting.replace("_", " ").capitalize(),
            description="A new name; empty for one by the name of the dataset",
        )

    if "metric" in backend.settings:
        ask_choice(
            inputs,
            "similarity_metric",
            _METRICS,
            label="Metric",
            description='Empty for "cosine", or that of the index',
        )

    ask_box(
        inputs,
        "index_only",
        "Index only",
        "Store no embeddings on the samples. Maps, duplicates and uniqueness need them "
        "there",
    )
