"""Location and credentials of the database of an index, which FiftyOne does not store."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from fiftyone.core.brain import BrainMethod

from .backends import get_backend


def save_config(dataset: Any, brain_key: str, config: Any) -> None:
    """Save the config of an index, with the path of its database if that is a local one.

    FiftyOne's classes read the path from there, but before brain 0.26 do not store it.
    """
    path = _find_path(_read_uri(config))
    if path is not None:
        config.uri = path
        vars(config)["uri"] = path  # properties alone are not serialized

    BrainMethod.update_run_config(dataset, brain_key, config)


def is_elsewhere(config: Any, uri: str | None) -> bool:
    """Return whether an index is in another local database than the one given.

    Args:
        config: the stored config of the index
        uri: the URI of the database; None if none is given
    """
    path = _find_path(_read_uri(config))
    if uri is None or path is None or path == _find_path(uri):
        return False

    # FiftyOne's class for LanceDB makes an empty folder where one was moved away
    table = getattr(config, "table_name", None)
    return config.method != "lancedb" or os.path.exists(f"{path}/{table}.lance")


def advise(brain_key: str, config: Any, given: Mapping[str, Any]) -> str | None:
    """Say how other sessions get the credentials of an index that a run was given.

    Returns:
        the advice, without their values; None if sessions have them
    """
    config.load_credentials()
    lacking = {
        name: value
        for name, value in given.items()
        if getattr(config, name, None) not in (value, _find_path(value) or value)
    }
    if not lacking:
        return None

    backend = get_backend(config.method)
    settings = [
        # Strings alone can be in the environment
        backend.env_name(name) if isinstance(value, str) else f"{name} in the brain config"
        for name, value in lacking.items()
    ]
    arguments = ", ".join(f"{name}=..." for name in lacking)
    return (
        f"FiftyOne does not store {', '.join(lacking)} with the index {brain_key!r}: set "
        f"{', '.join(settings)} for sessions that search it, before they import FiftyOne; "
        f"in this one, call dataset.load_brain_results({brain_key!r}, {arguments}) first"
    )


def _read_uri(config: Any) -> Any:
    """Return the URI of a config; None if it is FiftyOne's default."""
    uri = getattr(config, "uri", None)
    # Before brain 0.26, a config that stores no URI has the default
    default = inspect.signature(type(config)).parameters.get("uri")
    return None if default is None or uri == default.default else uri


def _find_path(uri: Any) -> str | None:
    """Return the absolute path of a local database; None for others."""
    name = uri.removeprefix("file://") if isinstance(uri, str) else ""
    path = os.path.abspath(os.path.expanduser(name)) if name else ""
    return path if os.path.exists(path) else None
