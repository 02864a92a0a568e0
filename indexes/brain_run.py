"""The brain run of a similarity index: making it, and checking that it is the right one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..embedding.provenance import Provenance, differing
from ..errors import OptionError
from .backends import SKLEARN, Backend, get_backend
from .credentials import advise, save_config
from .fiftyone_index import (
    RECORD,
    cannot_open,
    connect,
    find_config,
    given_credentials,
    is_other_database,
    keep_settings,
    load,
    make_record,
)
from .options import Contents, IndexOptions
from .table import VectorTable, open_table

REBUILD = "overwrite=True for the whole dataset rebuilds it; or choose another brain_key"
"""What to do about an index that a run may not feed."""


def read_record(config: Any) -> Provenance:
    """Return the provenance that the config of a brain run records; empty if none."""
    record = getattr(config, RECORD, None) or {}
    return dict(record.get("provenance") or {})


def with_provenance(config: Any, provenance: Provenance) -> Any:
    """Record the provenance of an index in its config, which is returned."""
    record = getattr(config, RECORD, None) or {}
    setattr(config, RECORD, {**record, "provenance": provenance})
    return config


def check_index(
    dataset: Any, options: IndexOptions, contents: Contents, *, overwrite: bool
) -> None:
    """Check, without a connection, that an index may be fed.

    Args:
        dataset: the dataset
        options: the index
        contents: what it is to hold
        overwrite: whether it may be rebuilt if it was made otherwise

    Raises:
        ValueError: if an option is not valid, or if the brain key belongs to another run
        ImportError: if the package of the backend is not installed
    """
    config = find_config(dataset, options.brain_key)
    if config is not None:
        _check_kind(config, options.brain_key, contents)

    backend = _backend(options, config, overwrite)
    backend.check(options.settings)
    if not backend.has_table and contents.embeddings_field is None:
        raise ValueError(
            f"Backend {backend.name!r} reads the vectors from a field: give an "
            "embeddings_field, or another backend"
        )

    if config is not None and not overwrite:
        _check_same(config, options, contents)


def open_index(
    dataset: Any,
    options: IndexOptions,
    contents: Contents,
    *,
    rebuild: bool,
    check_rows: Callable[[Any, VectorTable], None] = lambda *_: None,
) -> VectorTable:
    """Open the table of an index, which is made if it does not exist.

    Args:
        dataset: the dataset
        options: the index, which was checked, and whose backend has a table
        contents: what it is to hold
        rebuild: whether to drop the index first if it exists
        check_rows (None): checks the rows of an index that has no recorded provenance;
            called with FiftyOne's index and its table

    Returns:
        a :class:`fiftyone_hiera.indexes.table.VectorTable`

    Raises:
        ValueError: if the database cannot be reached, or if the table is not this index's
    """
    config = find_config(dataset, options.brain_key)
    backend = _backend(options, config, rebuild)
    # A copy of a dataset leaves the table to the dataset that it is a copy of. A run that
    # was killed before it had a table has no results
    is_owner = config is not None and _owns(config, contents)
    index = load(dataset, config, options) if is_owner else None
    if index is None or rebuild:
        replaced = index
        if config is not None:
            replaced = None if is_other_database(config, options) else index
            options = keep_settings(backend, config, options, is_owner)

        options = _check_new(dataset, backend, options, contents, replaced)
        _drop(dataset, options.brain_key, config, index)
        index = connect(dataset, backend, options, contents)
        return _open_table(index, options.brain_key, contents)

    table = _open_table(index, options.brain_key, contents)
    is_recorded = bool(read_record(config))
    if not is_recorded:
        check_rows(index, table)
        setattr(index.config, RECORD, make_record(index.config.method, contents))

    if not is_recorded or given_credentials(config, options):
        save_config(dataset, options.brain_key, index.config)

    return table


def list_indexes(dataset: Any, contents: Contents) -> list[str]:
    """Return the brain keys of the indexes whose tables hold the embeddings of a field."""
    found = []
    for key in dataset.list_brain_runs(type="similarity"):
        config = dataset.get_brain_info(key).config
        if config.method != SKLEARN and not _other_place(config, contents):
            found.append(key)

    return found


def has_table(dataset: Any, options: IndexOptions, *, overwrite: bool) -> bool:
    """Return whether the backend of an index keeps the vectors by itself."""
    config = find_config(dataset, options.brain_key)
    return _backend(options, config, overwrite).has_table


def register_index(dataset: Any, options: IndexOptions, contents: Contents) -> None:
    """Make an index of a backend that reads the vectors from the field, if there is none.

    One with other settings is replaced.

    Args:
        dataset: the dataset
        options: the index, which was checked
        contents: what it is to hold
    """
    config = find_config(dataset, options.brain_key)
    if config is not None and _conflict(config, options) is None:
        return

    if config is not None:
        index = load(dataset, config, options) if _owns(config, contents) else None
        _drop(dataset, options.brain_key, config, index)

    connect(dataset, get_backend(options.backend), options, contents)


def advise_on_credentials(dataset: Any, options: IndexOptions) -> str | None:
    """Say how sessions get the given credentials of an index; None if they have them."""
    config = find_config(dataset, options.brain_key)
    return advise(options.brain_key, config, given_credentials(config, options))


def _backend(options: IndexOptions, config: Any, overwrite: bool) -> Backend:
    if config is None or (overwrite and options.backend is not None):
        return get_backend(options.backend)

    return get_backend(config.method)


def _check_kind(config: Any, brain_key: str, contents: Contents) -> None:
    if config.type != "similarity":
        raise ValueError(
            f"Brain key {brain_key!r} is taken by a run of type {config.type!r}: choose "
            "another"
        )

    name = _other_place(config, contents)
    if name is not None:
        raise ValueError(
            f"The index {brain_key!r} has {name} {getattr(config, name, None)!r}, and this "
            f"run {getattr(contents, name)!r}: choose another brain_key"
        )


def _other_place(config: Any, contents: Contents) -> str | None:
    """Return which setting says that an index is of another field; None if none does."""
    names = ("embeddings_field", "patches_field")
    differ = (n for n in names if getattr(config, n, None) != getattr(contents, n))
    return next(differ, None)


def _check_same(config: Any, options: IndexOptions, contents: Contents) -> None:
    key = options.brain_key
    conflict = _conflict(config, options)
    if conflict is not None:
        raise OptionError("overwrite", f"The index {key!r} has {conflict}: {REBUILD}")

    if not _owns(config, contents):
        raise ValueError(
            f"The index {key!r} belongs to the dataset that this one is a copy of. Delete "
            "the brain run of this copy, or choose another brain_key"
        )

    found = read_record(config)
    if not found:
        if contents.embeddings_field is None:
            raise OptionError(
                "overwrite",
                f"The index {key!r} has no recorded provenance, and no field that says "
                f"what its vectors are: {REBUILD}",
            )

        return  # the field's provenance says it

    names = differing(found, contents.provenance)
    if names:
        raise OptionError(
            "overwrite",
            f"The index {key!r} holds embeddings computed with different settings. They "
            f"differ in {', '.join(names)}. Embeddings must not be mixed: {REBUILD}",
        )


def _conflict(config: Any, options: IndexOptions) -> str | None:
    """Return which setting of an index is not as given; None if all are."""
    if options.backend not in (None, config.method):
        return f"backend {config.method!r}, not {options.backend!r}"

    credentials = get_backend(config.method).credentials
    for name, value in options.settings.items():
        found = getattr(config, name, None)
        if name not in credentials and found != value:
            return f"{name} {found!r}, not {value!r}"

    if is_other_database(config, options):
        return f"uri {config.uri!r}, not {options.settings['uri']!r}"

    return None


def _owns(config: Any, contents: Contents) -> bool:
    """Return whether an index is of this dataset, not of one that this is a copy of."""
    record = getattr(config, RECORD, None) or {}
    return record.get("dataset_id") in (None, contents.dataset_id)


def _check_new(
    dataset: Any, backend: Backend, options: IndexOptions, contents: Contents, old: Any
) -> IndexOptions:
    """Check, with a connection, that an index can be made.

    Args:
        dataset: the dataset
        backend: the backend of the index
        options: the index
        contents: what it is to hold
        old: FiftyOne's index in the same database that it is to replace, if there is one

    Returns:
        the options, with the name of its table

    Raises:
        ValueError: if the database cannot be reached, or if the table is not free
    """
    index = connect(dataset, backend, options, contents, register=False)
    name = backend.table_setting
    if name is not None:
        settings = {**options.settings, name: getattr(index.config, name)}
        options = IndexOptions(options.brain_key, backend.name, settings)
        if old is not None and getattr(old.config, name) == settings[name]:
            open_table(index).close()
            return options

    with contextlib.closing(_open_table(index, options.brain_key, contents)) as table:
        held = table.count()

    if held:
        raise ValueError(
            f"{_name_table(index.config)} exists and has {held:,} rows, but no index of "
            "this dataset: choose another name"
        )

    return options


def _drop(dataset: Any, brain_key: str, config: Any, index: Any) -> None:
    """Drop the table of an index and delete its run, as far as there are any."""
    if index is not None:
        open_table(index).drop()

    if config is not None:
        dataset.delete_brain_run(brain_key)


def _open_table(index: Any, brain_key: str, contents: Contents) -> VectorTable:
    try:
        table = open_table(index)
        found = table.dim()
    except ValueError:
        raise
    except Exception as error:
        raise cannot_open(index.config.method, brain_key, error) from error

    if found not in (None, contents.dim):
        raise ValueError(
            f"{_name_table(index.config)} has vectors of {found} dimensions, and this "
            f"model computes {contents.dim}: choose another name"
        )

    return table


def _name_table(config: Any) -> str:
    setting = get_backend(config.method).table_setting
    if setting is None:
        return f"The table of backend {config.method!r}"

    return f"The {setting} {getattr(config, setting)!r} of backend {config.method!r}"
