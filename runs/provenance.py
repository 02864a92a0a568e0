"""What made the vectors of a field, kept in the field's own info."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import fiftyone.core.odm as foo

from ..checkpoints import Checkpoint
from ..config import LAST_STAGE, VERSION, Settings
from ..hiera import abswin
from ..hiera.hub import sha256
from ..images.preprocessing import Preprocessing

Provenance = dict[str, Any]
"""Flat and of plain values, so that FiftyOne's App can show it."""

# Vectors are equal where these are; the engine matters in the reduced dtypes
_OPTIONS = ("pooling", "normalize", "dtype", "engine", "fast_decoding", "stage")
_DECISIVE = ("sha256", *_OPTIONS, "preprocessing")
_PREPARING = ("image_size", "squash")  # options that the preprocessing follows
_KEYS = ("made_with", "checkpoint", "revision", *_DECISIVE, *_PREPARING)

# Runs look at the record before each write: how long a run that changes it waits
# for writes that are under way
_SETTLE_SECONDS = 0.5

# What fields have that were recorded before there were such options
_BEFORE = {
    "engine": "torch",
    "fast_decoding": False,
    "stage": LAST_STAGE,
    "image_size": None,
    "squash": False,
}

_UNKNOWN = "unknown"
_BEING_REPLACED = "none, the vectors are being replaced by run "


@dataclass(frozen=True)
class Origin:
    """Where the weights of a model come from.

    Args:
        checkpoint: the hub's or the zoo's name, or a path
        revision: the commit on the hub, where it is known
        weights: the path of the file
    """

    checkpoint: str
    revision: str | None
    weights: Path


def provenance_of(
    origin: Origin, preprocessing: Preprocessing, settings: Settings
) -> Provenance:
    """Describe what a model makes.

    Args:
        origin: its weights; the file is read whole, for its sha256
        preprocessing: its preprocessing
        settings: its options

    Returns:
        a :data:`Provenance`
    """
    digest = sha256(origin.weights)
    return _describe_run(
        origin.checkpoint, origin.revision, digest, preprocessing, settings
    )


def expected_provenance(checkpoint: Checkpoint, settings: Settings) -> Provenance:
    """Describe what an entry of the zoo will make, before it is loaded.

    Args:
        checkpoint: the entry
        settings: its options, without a checkpoint of the user's own

    Returns:
        a :data:`Provenance`; its sha256 is "unknown" where only the revision pins the
        weights
    """
    record = _describe_run(
        checkpoint.origin,
        checkpoint.revision,
        checkpoint.weights.sha256 or _UNKNOWN,
        settings.apply(checkpoint.preprocessing),
        settings,
    )
    if checkpoint.architecture == abswin.ARCHITECTURE:
        record["preprocessing"] = _UNKNOWN  # the file says it

    return record


def _describe_run(
    checkpoint: str,
    revision: str | None,
    digest: str,
    preprocessing: Preprocessing,
    settings: Settings,
) -> Provenance:
    return {
        "made_with": f"fiftyone-hiera {VERSION}",
        "checkpoint": checkpoint,
        "revision": revision or _UNKNOWN,
        "sha256": digest,
        "pooling": settings.pooling,
        "normalize": settings.normalize,
        "dtype": settings.dtype,
        "engine": settings.engine,
        "fast_decoding": settings.fast_decoding,
        "stage": settings.stage,
        "image_size": [*settings.image_size] if settings.image_size else None,
        "squash": settings.squash,
        "preprocessing": _describe_preprocessing(preprocessing),
    }


def _describe_preprocessing(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.crop_size
    way = f"by filter {preprocessing.resample}"
    geometry = (
        f"squash to {height}x{width} {way}"
        if preprocessing.is_squashed
        else f"resize {_describe_least(preprocessing)} {way}, crop {height}x{width}"
    )
    return f"{geometry}, mean {preprocessing.mean}, std {preprocessing.std}"


def _describe_least(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.least_size
    return f"{height}" if height == width else f"{height}x{width}"


def stored_field(dataset: Any, path: str) -> dict[str, Any] | None:
    """Look a field up in the database itself.

    A dataset in memory does not know of what other processes did since it was
    loaded.

    Args:
        dataset: the dataset
        path: the path of the field

    Returns:
        the document that describes the field, or None if there is none
    """
    document = foo.get_db_conn().datasets.find_one(
        {"_id": dataset._doc.id}, ["sample_fields", "frame_fields"]
    )
    if document is None:
        raise ValueError(f"The dataset {dataset.name!r} was deleted")

    is_frame_field = path.startswith("frames.")
    document["fields"] = document.get("frame_fields" if is_frame_field else "sample_fields")
    for name in path.removeprefix("frames.").split("."):
        named = [field for field in document.get("fields") or [] if field["name"] == name]
        if not named:
            return None

        document = named[0]

    return dict(document)


def read_provenance(dataset: Any, path: str) -> Provenance:
    """Look up what made the vectors of a field.

    Args:
        dataset: the dataset
        path: the path of the field

    Returns:
        a :data:`Provenance`; empty if nothing is recorded
    """
    field = stored_field(dataset, path) or {}
    info = field.get("info") or {}
    record = {name: info[name] for name in _KEYS if name in info}
    if record:
        for name, value in _BEFORE.items():
            record.setdefault(name, value)

    return record


def differing(found: Provenance, record: Provenance) -> list[str]:
    """Return the names of what makes the vectors of two records differ.

    Args:
        found: what made a field
        record: what a model makes, perhaps foreseen
    """
    # Of weights that were not read, the revision says which they will be
    first = "revision" if record["sha256"] == _UNKNOWN else "sha256"
    names = [
        name
        for name in (first, *_DECISIVE[1:])
        if record[name] not in (found.get(name), _UNKNOWN)
    ]
    if "engine" in names and found.get("dtype") == record["dtype"] == "float32":
        names.remove("engine")

    return names


class FieldClaim:
    """A run's right to write to a field: nothing in it was made otherwise.

    Args:
        dataset: the dataset
        path: the path of the field
        record: what the run makes
    """

    def __init__(self, dataset: Any, path: str, record: Provenance) -> None:
        self._dataset = dataset
        self._path = path
        self._record = record
        self._found = self._read()

    @property
    def is_ours(self) -> bool:
        """Whether vectors that the field holds are such as the run makes."""
        return not differing(self._found, self._record)

    def refuse(self, reason: str) -> NoReturn:
        """Refuse to write to the field.

        Args:
            reason: the first words of the message; both descriptions follow

        Raises:
            ValueError: always
        """
        names = differing(self._found, self._record)
        raise ValueError(
            reason
            + (f" They differ in {', '.join(names)}." if self._found else "")
            + f"\n  It holds: {_describe(self._found, names)}."
            + f"\n  This run makes: {_describe(self._record, names)}."
            + _advise(self._found, self._record, names)
        )

    def claim(self, clear: Callable[[], None] | None) -> None:
        """Record what the run makes, before its first vector is written.

        Args:
            clear: what empties the field of vectors that were made otherwise;
                None if there are none. Until it is done, the record fits no
                run, so that it is never wrong about a vector

        Raises:
            ValueError: if another run claimed the field meanwhile
        """
        before = self._found
        self._found = self._read()
        if not self.is_ours and self._found == before:
            if clear is not None:
                self._write({**self._record, "sha256": _BEING_REPLACED + str(uuid.uuid4())})
                clear()

            self._write(self._record)

        self.check()

    def check(self) -> None:
        """Make sure that the field is still recorded as this run's.

        Raises:
            ValueError: if another run claimed it meanwhile
        """
        self._require(self._record)

    def _read(self) -> Provenance:
        return read_provenance(self._dataset, self._path)

    def _write(self, record: Provenance) -> None:
        """Write a record, and wait until other runs must have seen it."""
        field = self._dataset.get_field(self._path)
        if field.path != self._path:
            # FiftyOne loses the prefix of a nested frame field that it just added
            self._dataset.reload()
            field = self._dataset.get_field(self._path)

        field.info = {**(field.info or {}), **record}
        field.save()
        time.sleep(_SETTLE_SECONDS)
        self._require(record)

    def _require(self, record: Provenance) -> None:
        self._found = self._read()
        if differing(self._found, record):
            self.refuse(
                f"Another run began to write to the field {self._path!r} meanwhile."
            )


def _advise(found: Provenance, record: Provenance, names: list[str]) -> str:
    """Say by which options a model makes what there is, if by options alone."""
    if not found:
        return ""

    options = [name for name in (*_OPTIONS, *_PREPARING) if found.get(name) != record[name]]
    explained = {*options, *(["preprocessing"] if {*_PREPARING} & {*options} else [])}
    if not set(names) <= explained:
        return ""

    if found["dtype"] == "float32" and "engine" in options:
        options.remove("engine")

    advice = ", ".join(f"{name}={found[name]!r}" for name in options)
    return f"\n  To add to it, load the model with {advice}."


def _describe(record: Provenance, names: list[str]) -> str:
    if not record:
        return "vectors of which nothing is recorded, made by another tool or natively"

    return ", ".join(
        f"{name} {value}"
        for name, value in record.items()
        if name == "checkpoint" or name in names
    )
