"""The brain run of a similarity index: making it, and checking that it is the right one."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fiftyone.brain as fob

from ..embedding.provenance import Provenance, differing
from .backends import SKLEARN, Backend, get_backend
from .credentials import advise, is_elsewhere, save_config
from .table import VectorTable, open_table

# The attribute of a run's config that says what its vectors are
_RECORD = "hiera"

REBUILD = "overwrite=True for the whole dataset rebuilds it; or choose another brain_key"
"""What to do about an index that a run may not feed."""


@dataclass(frozen=True)
class IndexOptions:
    """Which similarity index to feed.

    Args:
        brain_key: its brain key
        backend (None): the similarity backend; None is FiftyOne's default, or that of the
            index if it exists
        settings: the settings of the backend, such as ``metric`` or ``table_name``

    Raises:
        ValueError: if an option is not valid
    """

    brain_key: str
    backend: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_brain_key(self.brain_key)
        settings: object = self.settings
        if not isinstance(settings, Mapping):
            raise ValueError(f"Invalid backend_kwargs {settings!r}: expected a dict")


@dataclass(frozen=True)
class Contents:
    """What the vectors of an index are.

    Args:
        dataset_id: the ID of the dataset
        embeddings_field: the field that also holds them, for patches an attribute of the
            labels; None if the index alone has them
        patches_field: the field of the labels; None for whole images
        dim: the number of dimensions
        provenance: the provenance of the embeddings
    """

    dataset_id: str
    embeddings_field: str | None
    patches_field: str | None
    dim: int
    provenance: Provenance


def check_brain_key(key: object) -> None:
    """Check that something can be a brain key.

    Raises:
        ValueError: if it cannot
    """
    if not isinstance(key, str) or not key.isidentifier():
        raise ValueError(
            f"Invalid brain key {key!r}: use letters, digits and underscores, and begin "
            "with a letter"
        )


def to_index_options(
    brain_key: str | None, backend: str | None, backend_kwargs: Mapping[str, Any] | None
) -> IndexOptions | None:
    """Return the options of an index; None if none is asked for.

    Raises:
        ValueError: if an argument is not valid
    """
    if brain_key is not None:
        settings = {} if backend_kwargs is None else backend_kwargs
        return IndexOptions(brain_key, backend, settings)

    if backend is not None or backend_kwargs is not None:
        raise ValueError("backend and backend_kwargs are for an index: give a brain_key")

    return None


def read_record(config: Any) -> Provenance:
    """Return the provenance that the config of a brain run records; empty if none."""
    record = getattr(config, _RECORD, None) or {}
    return dict(record.get("provenance") or {})


def with_provenance(config: Any, provenance: Provenance) -> Any:
    """Record the provenance of an index in its config, which is returned."""
    record = getattr(config, _RECORD, None) or {}
    setattr(config, _RECORD, {**record, "provenance": provenance})
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
    config = _find_config(dataset, options.brain_key)
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
    config = _find_config(dataset, options.brain_key)
    backend = _backend(options, config, rebuild)
    # A copy of a dataset leaves the table to the dataset that it is a copy of. A run that
    # was killed before it had a table has no results
    is_owner = config is not None and _owns(config, contents)
    index = _load(dataset, config, options) if is_owner else None
    if index is None or rebuild:
        replaced = index
        if config is not None:
            replaced = None if _is_other_database(config, options) else index
            options = _keep_settings(backend, config, options, is_owner)

        options = _check_new(dataset, backend, options, contents, replaced)
        _drop(dataset, options.brain_key, config, index)
        index = _compute(dataset, backend, options, contents)
        return _open_table(index, options.brain_key, contents)

    table = _open_table(index, options.brain_key, contents)
    is_recorded = bool(read_record(config))
    if not is_recorded:
        check_rows(index, table)
        setattr(index.config, _RECORD, _make_record(index.config.method, contents))

    if not is_recorded or _credentials(config, options):
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
    config = _find_config(dataset, options.brain_key)
    return _backend(options, config, overwrite).has_table


def register_index(dataset: Any, options: IndexOptions, contents: Contents) -> None:
    """Make an index of a backend that reads the vectors from the field, if there is none.

    One with other settings is replaced.

    Args:
        dataset: the dataset
        options: the index, which was checked
        contents: what it is to hold
    """
    config = _find_config(dataset, options.brain_key)
    if config is not None and _conflict(config, options) is None:
        return

    if config is not None:
        index = _load(dataset, config, options) if _owns(config, contents) else None
        _drop(dataset, options.brain_key, config, index)

    _compute(dataset, get_backend(options.backend), options, contents)


def advise_on_credentials(dataset: Any, options: IndexOptions) -> str | None:
    """Say how sessions get the given credentials of an index; None if they have them."""
    config = _find_config(dataset, options.brain_key)
    return advise(options.brain_key, config, _credentials(config, options))


def _backend(options: IndexOptions, config: Any, overwrite: bool) -> Backend:
    if config is None or (overwrite and options.backend is not None):
        return get_backend(options.backend)

    return get_backend(config.method)


def _find_config(dataset: Any, brain_key: str) -> Any:
    """Return the config of a brain run, or None if there is no run of that key."""
    if brain_key not in dataset.list_brain_runs():
        dataset.reload()  # another process may have made it
        if brain_key not in dataset.list_brain_runs():
            return None

    return dataset.get_brain_info(brain_key).config


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
        raise ValueError(f"The index {key!r} has {conflict}: {REBUILD}")

    if not _owns(config, contents):
        raise ValueError(
            f"The index {key!r} belongs to the dataset that this one is a copy of. Delete "
            "the brain run of this copy, or choose another brain_key"
        )

    found = read_record(config)
    if not found:
        if contents.embeddings_field is None:
            raise ValueError(
                f"The index {key!r} has no recorded provenance, and no field that says "
                f"what its vectors are: {REBUILD}"
            )

        return  # the field's provenance says it

    names = differing(found, contents.provenance)
    if names:
        raise ValueError(
            f"The index {key!r} holds embeddings computed with different settings. They "
            f"differ in {', '.join(names)}. Embeddings must not be mixed: {REBUILD}"
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

    if _is_other_database(config, options):
        return f"uri {config.uri!r}, not {options.settings['uri']!r}"

    return None


def _is_other_database(config: Any, options: IndexOptions) -> bool:
    """Return whether the database that is given is another one than that of an index."""
    if options.backend not in (None, config.method):
        return True

    return is_elsewhere(config, options.settings.get("uri"))


def _owns(config: Any, contents: Contents) -> bool:
    """Return whether an index is of this dataset, not of one that this is a copy of."""
    record = getattr(config, _RECORD, None) or {}
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
    index = _compute(dataset, backend, options, contents, register=False)
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
        raise _cannot_open(index.config.method, brain_key, error) from error

    if found not in (None, contents.dim):
        raise ValueError(
            f"{_name_table(index.config)} has vectors of {found} dimensions, and this "
            f"model computes {contents.dim}: choose another name"
        )

    return table


def _compute(
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
    record = _make_record(backend.name, contents)
    try:
        index = fob.compute_similarity(
            dataset,
            patches_field=contents.patches_field,
            embeddings=False,
            embeddings_field=contents.embeddings_field,
            brain_key=key if register else None,
            backend=backend.name,
            **{**settings, _RECORD: record},
        )
        if register:
            save_config(dataset, key, index.config)

        return index
    except Exception as error:
        # FiftyOne registers a run before it connects. One that another process registered
        # meanwhile stays
        config = _find_config(dataset, key)
        if config is not None and getattr(config, _RECORD, None) == record:
            dataset.delete_brain_run(key)

        raise _cannot_open(backend.name, key, error) from error


def _make_record(method: str, contents: Contents) -> dict[str, Any]:
    record = {"dataset_id": contents.dataset_id, "run": str(uuid.uuid4())}
    if method == SKLEARN:
        return record  # the field has the provenance

    return {**record, "provenance": contents.provenance}


def _load(dataset: Any, config: Any, options: IndexOptions) -> Any:
    """Load an index; None if its run has no results."""
    given = _credentials(config, options)
    try:
        return dataset.load_brain_results(
            options.brain_key, cache=False, load_view=False, **given
        )
    except Exception as error:
        forget = (
            f". If it is gone for good, dataset.delete_brain_run({options.brain_key!r}) "
            "forgets the index"
        )
        raise _cannot_open(config.method, options.brain_key, error, forget) from error


def _credentials(config: Any, options: IndexOptions) -> dict[str, Any]:
    """Return the given credentials of the database of an index."""
    if _is_other_database(config, options):
        return {}

    names = get_backend(config.method).credentials
    return {name: v for name, v in options.settings.items() if name in names}


def _cannot_open(
    method: str, brain_key: str, error: Exception, advice: str = ""
) -> ValueError:
    backend = get_backend(method)
    names = [*map(backend.env_name, backend.credentials)]
    where = f" (place and credentials are read from {names[0]}" if names else ""
    where += " and the like)" if len(names) > 1 else ")" if names else ""
    reason = re.sub(r"//\S*@", "//***@", one_line(error))  # a password
    return ValueError(
        f"Cannot open the index {brain_key!r} with backend {method!r}: {reason}{where}"
        f"{advice}"
    )


def one_line(error: Exception) -> str:
    """Return the message of a database's error, which may have several lines."""
    return " ".join(str(error).split()) or type(error).__name__


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


def _keep_settings(
    backend: Backend, config: Any, options: IndexOptions, is_owner: bool
) -> IndexOptions:
    """Return the options of an index with its settings, where no others are given."""
    if config.method != backend.name:
        return options

    config.load_credentials(**_credentials(config, options))
    names = {*backend.settings}
    if not is_owner:
        names -= {backend.table_setting, "index_name"}

    kept = {name: getattr(config, name, None) for name in names}
    kept = {name: value for name, value in kept.items() if value is not None}
    return IndexOptions(options.brain_key, backend.name, {**kept, **options.settings})


def _name_table(config: Any) -> str:
    setting = get_backend(config.method).table_setting
    if setting is None:
        return f"The table of backend {config.method!r}"

    return f"The {setting} {getattr(config, setting)!r} of backend {config.method!r}"
