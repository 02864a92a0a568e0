"""The similarity index of a brain run: checked, made, opened and rebuilt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fiftyone.brain as fob

from ..embedding.provenance import differing
from ..errors import OptionError
from .backends import SKLEARN, Backend, get_backend, open_table
from .brain_run import (
    RECORD,
    config_record,
    find_config,
    make_record,
    table_provenance,
)
from .credentials import advise, is_elsewhere, save_config
from .options import Contents, IndexOptions
from .table import VectorTable

REBUILD = "overwrite=True for the whole dataset rebuilds it; or choose another brain_key"
"""What to do about an index that a run may not feed."""


@dataclass
class BrainIndex:
    """A similarity index of a dataset, which may exist or not.

    Args:
        dataset: the dataset
        options: the index
        contents: what it is to hold
        may_rebuild: whether it may be dropped and made anew if it exists
    """

    dataset: Any
    options: IndexOptions
    contents: Contents
    may_rebuild: bool
    _config: Any = field(default=None, init=False)  # as it is stored; None without a run

    def check(self) -> None:
        """Check, without a connection, that the index may be fed.

        Raises:
            ValueError: if an option is not valid, or if the brain key is another run's
            ImportError: if the package of the backend is not installed
        """
        self._config = find_config(self.dataset, self._key)
        if self._config is not None:
            self._check_kind()

        backend = self._backend
        backend.check(self.options.settings)
        if backend.name == SKLEARN and self.contents.embeddings_field is None:
            raise ValueError(
                f"Backend {backend.name!r} reads the vectors from a field: give an "
                "embeddings_field, or another backend"
            )

        if self._config is not None and not self.may_rebuild:
            self._check_same()

    def open(
        self, check_rows: Callable[[VectorTable], None] = lambda _: None
    ) -> VectorTable | None:
        """Open the table of the index, which is made if it does not exist.

        Args:
            check_rows (None): checks the rows of a table that has no recorded provenance

        Returns:
            a :class:`fiftyone_hiera.indexes.table.VectorTable`; None if the backend reads
            the vectors from the field

        Raises:
            ValueError: if the database cannot be reached, or if the table is another's
        """
        if self._config is None:
            self.check()  # another process may have made it meanwhile

        if self._backend.name == SKLEARN:
            return None

        index = self._load()
        if index is None or self.may_rebuild:
            return self._make(index)

        table = self._open_table(index)
        is_recorded = bool(table_provenance(self._config))
        if not is_recorded:
            check_rows(table)
            setattr(index.config, RECORD, make_record(index.config.method, self.contents))

        if not is_recorded or self._given_credentials():
            save_config(self.dataset, self._key, index.config)

        return table

    def register(self) -> None:
        """Register an index that reads the vectors from the field.

        One that exists is kept, or replaced if it may be and has other settings.
        """
        self.check()  # another process may have made it meanwhile
        if self._config is not None:
            if self._find_conflict() is None:
                return

            self._drop(self._load())

        self._connect(self.options.settings)

    def advise_on_credentials(self) -> str | None:
        """Say how sessions get the given credentials; None if they have them."""
        self._config = find_config(self.dataset, self._key)
        return advise(self._key, self._config, self._given_credentials())

    @property
    def _key(self) -> str:
        return self.options.brain_key

    @property
    def _backend(self) -> Backend:
        if self._config is None or (self.may_rebuild and self.options.backend is not None):
            return get_backend(self.options.backend)

        return get_backend(self._config.method)

    @property
    def _is_owner(self) -> bool:
        """Whether the index is of this dataset, not of one that this is a copy of."""
        owner = config_record(self._config).get("dataset_id")
        return owner in (None, self.contents.dataset_id)

    @property
    def _is_other_database(self) -> bool:
        """Whether the database that is given is another one than that of the index."""
        if self.options.backend not in (None, self._config.method):
            return True

        return is_elsewhere(self._config, self.options.settings.get("uri"))

    def _given_credentials(self) -> dict[str, Any]:
        """Return the given credentials of the database of the index."""
        if self._is_other_database:
            return {}

        names = get_backend(self._config.method).credentials
        return {name: v for name, v in self.options.settings.items() if name in names}

    def _check_kind(self) -> None:
        config = self._config
        if config.type != "similarity":
            raise ValueError(
                f"Brain key {self._key!r} is taken by a run of type {config.type!r}: "
                "choose another"
            )

        for name in ("embeddings_field", "patches_field"):
            found, wanted = getattr(config, name, None), getattr(self.contents, name)
            if found != wanted:
                raise ValueError(
                    f"The index {self._key!r} has {name} {found!r}, and this run "
                    f"{wanted!r}: choose another brain_key"
                )

    def _check_same(self) -> None:
        conflict = self._find_conflict()
        found = table_provenance(self._config)
        names = differing(found, self.contents.provenance) if found else []
        if conflict is not None:
            reason = f"has {conflict}"
        elif not self._is_owner:
            raise ValueError(
                f"The index {self._key!r} belongs to the dataset that this one is a copy "
                "of. Delete the brain run of this copy, or choose another brain_key"
            )
        elif names:
            reason = (
                "holds embeddings computed with different settings. They differ in "
                f"{', '.join(names)}. Embeddings must not be mixed"
            )
        elif not found and self.contents.embeddings_field is None:
            reason = (
                "has no recorded provenance, and no field that says what its vectors are"
            )
        else:
            return  # of a table that has none, the field's provenance says it

        raise OptionError("overwrite", f"The index {self._key!r} {reason}: {REBUILD}")

    def _find_conflict(self) -> str | None:
        """Return which setting of the index is not as given; None if all are."""
        config, options = self._config, self.options
        if options.backend not in (None, config.method):
            return f"backend {config.method!r}, not {options.backend!r}"

        credentials = get_backend(config.method).credentials
        for name, value in options.settings.items():
            found = getattr(config, name, None)
            if name not in credentials and found != value:
                return f"{name} {found!r}, not {value!r}"

        if self._is_other_database:
            return f"uri {config.uri!r}, not {options.settings['uri']!r}"

        return None

    def _make(self, old: Any) -> VectorTable:
        """Make the index, instead of FiftyOne's old one if there is one."""
        settings, free = self.options.settings, None
        if self._config is not None:
            free = None if self._is_other_database else old
            settings = self._keep_settings()

        settings = self._check_new(settings, free)
        self._drop(old)
        return self._open_table(self._connect(settings))

    def _keep_settings(self) -> Mapping[str, Any]:
        """Return the given settings, and those of the index where none are given."""
        config, backend, given = self._config, self._backend, self.options.settings
        if config.method != backend.name:
            return given

        config.load_credentials(**self._given_credentials())
        names = {*backend.settings}
        if not self._is_owner:
            names -= {backend.table_setting, "index_name"}

        kept = {name: getattr(config, name, None) for name in names}
        return {**{name: v for name, v in kept.items() if v is not None}, **given}

    def _check_new(self, settings: Mapping[str, Any], free: Any) -> Mapping[str, Any]:
        """Check, with a connection, that the index can be made.

        Args:
            settings: its settings, which are returned with the name of its table
            free: FiftyOne's index whose table it may have; None if there is none
        """
        index = self._connect(settings, register=False)
        name = self._backend.table_setting
        if name is not None:
            settings = {**settings, name: getattr(index.config, name)}
            if free is not None and getattr(free.config, name) == settings[name]:
                open_table(index).close()
                return settings

        with contextlib.closing(self._open_table(index)) as table:
            held = table.count()

        if held:
            found = self._backend.describe_table(index.config)
            raise ValueError(
                f"{found} exists and has {held:,} rows, but no index of this dataset: "
                "choose another name"
            )

        return settings

    def _drop(self, index: Any) -> None:
        """Drop the table of FiftyOne's index, if any, and delete the brain run, if any."""
        if index is not None:
            open_table(index).drop()

        if self._config is not None:
            self.dataset.delete_brain_run(self._key)

    def _connect(self, settings: Mapping[str, Any], *, register: bool = True) -> Any:
        """Connect to the index by FiftyOne's class, and register its run if wanted."""
        dataset, contents, backend = self.dataset, self.contents, self._backend
        record = make_record(backend.name, contents)
        try:
            index = fob.compute_similarity(
                dataset,
                patches_field=contents.patches_field,
                embeddings=False,
                embeddings_field=contents.embeddings_field,
                brain_key=self._key if register else None,
                backend=backend.name,
                **{**backend.with_defaults(settings), RECORD: record},
            )
            if register:
                save_config(dataset, self._key, index.config)

            return index
        except Exception as error:
            # FiftyOne registers a run before it connects. One that another process
            # registered meanwhile stays
            config = find_config(dataset, self._key)
            if config is not None and config_record(config) == record:
                dataset.delete_brain_run(self._key)

            raise backend.cannot_open(self._key, error) from error

    def _load(self) -> Any:
        """Load FiftyOne's index, if there is one of this dataset.

        A run that was killed before it had a table has none.
        """
        if self._config is None or not self._is_owner:
            return None

        given = self._given_credentials()
        try:
            return self.dataset.load_brain_results(
                self._key, cache=False, load_view=False, **given
            )
        except Exception as error:
            forget = (
                f". If it is gone for good, dataset.delete_brain_run({self._key!r}) "
                "forgets the index"
            )
            backend = get_backend(self._config.method)
            raise backend.cannot_open(self._key, error, forget) from error

    def _open_table(self, index: Any) -> VectorTable:
        """Open the table of FiftyOne's index, and check its columns and dimensions."""
        try:
            table = open_table(index)
            found = table.dim()
        except ValueError:
            raise
        except Exception as error:
            raise self._backend.cannot_open(self._key, error) from error

        if found not in (None, self.contents.dim):
            raise ValueError(
                f"{self._backend.describe_table(index.config)} has vectors of {found} "
                f"dimensions, and this model computes {self.contents.dim}: choose another "
                "name"
            )

        return table
