"""Similarity indexes by FiftyOne's classes: connected to, registered and loaded."""

from __future__ import annotations

import re
import uuid
from typing import Any

import fiftyone.brain as fob

from .backends import SKLEARN, Backend, get_backend
from .credentials import is_elsewhere, save_config
from .options import Contents, IndexOptions

RECORD = "hiera"
"""The attribute of a run's config that says what its vectors are."""


def connect(
    dataset: Any,
    backend: Backend,
    options: IndexOptions,
    contents: Contents,
    *,
    register: bool = True,
) -> Any:
    """Connect to an index by FiftyOne's class, and register its run if wanted."""
    key = options.brain_key
    settings = _with_defaults(backend, options)
    record = make_record(backend.name, contents)
    try:
        index = fob.compute_similarity(
            dataset,
            patches_field=contents.patches_field,
            embeddings=False,
            embeddings_field=contents.embeddings_field,
            brain_key=key if register else None,
            backend=backend.name,
            **{**settings, RECORD: record},
        )
        if register:
            save_config(dataset, key, index.config)

        return index
    except Exception as error:
        # FiftyOne registers a run before it connects. One that another process registered
        # meanwhile stays
        config = find_config(dataset, key)
        if config is not None and getattr(config, RECORD, None) == record:
            dataset.delete_brain_run(key)

        raise cannot_open(backend.name, key, error) from error


def load(dataset: Any, config: Any, options: IndexOptions) -> Any:
    """Load an index; None if its run has no results."""
    given = given_credentials(config, options)
    try:
        return dataset.load_brain_results(
            options.brain_key, cache=False, load_view=False, **given
        )
    except Exception as error:
        forget = (
            f". If it is gone for good, dataset.delete_brain_run({options.brain_key!r}) "
            "forgets the index"
        )
        raise cannot_open(config.method, options.brain_key, error, forget) from error


def keep_settings(
    backend: Backend, config: Any, options: IndexOptions, is_owner: bool
) -> IndexOptions:
    """Return the options of an index with its settings, where no others are given."""
    if config.method != backend.name:
        return options

    config.load_credentials(**given_credentials(config, options))
    names = {*backend.settings}
    if not is_owner:
        names -= {backend.table_setting, "index_name"}

    kept = {name: getattr(config, name, None) for name in names}
    kept = {name: value for name, value in kept.items() if value is not None}
    return IndexOptions(options.brain_key, backend.name, {**kept, **options.settings})


def given_credentials(config: Any, options: IndexOptions) -> dict[str, Any]:
    """Return the given credentials of the database of an index."""
    if is_other_database(config, options):
        return {}

    names = get_backend(config.method).credentials
    return {name: v for name, v in options.settings.items() if name in names}


def is_other_database(config: Any, options: IndexOptions) -> bool:
    """Return whether the database that is given is another one than that of an index."""
    if options.backend not in (None, config.method):
        return True

    return is_elsewhere(config, options.settings.get("uri"))


def find_config(dataset: Any, brain_key: str) -> Any:
    """Return the config of a brain run, or None if there is no run of that key."""
    if brain_key not in dataset.list_brain_runs():
        dataset.reload()  # another process may have made it
        if brain_key not in dataset.list_brain_runs():
            return None

    return dataset.get_brain_info(brain_key).config


def make_record(method: str, contents: Contents) -> dict[str, Any]:
    """Make what the config of a run records about its vectors."""
    record = {"dataset_id": contents.dataset_id, "run": str(uuid.uuid4())}
    if method == SKLEARN:
        return record  # the field has the provenance

    return {**record, "provenance": contents.provenance}


def one_line(error: Exception) -> str:
    """Return the message of a database's error, which may have several lines."""
    return " ".join(str(error).split()) or type(error).__name__


def cannot_open(
    method: str, brain_key: str, error: Exception, advice: str = ""
) -> ValueError:
    """Make the error for an index whose database cannot be reached or read."""
    backend = get_backend(method)
    names = [*map(backend.env_name, backend.credentials)]
    where = f" (place and credentials are read from {names[0]}" if names else ""
    where += " and the like)" if len(names) > 1 else ")" if names else ""
    reason = re.sub(r"//\S*@", "//***@", one_line(error))  # a password
    return ValueError(
        f"Cannot open the index {brain_key!r} with backend {method!r}: {reason}{where}"
        f"{advice}"
    )


def _with_defaults(backend: Backend, options: IndexOptions) -> dict[str, Any]:
    """Add the settings whose defaults in FiftyOne are not good enough."""
    settings = dict(options.settings)
    defaults = {"metric": "cosine"}  # Milvus' is "dotproduct", which prefers long vectors
    if backend.name == "pgvector":
        # FiftyOne's default is the same for all indexes of a dataset, of which each new
        # one drops the one before
        defaults["index_name"] = f"hiera-{uuid.uuid4().hex}"

    for name, value in defaults.items():
        if name in backend.settings and name not in backend.configured:
            settings.setdefault(name, value)

    return settings
