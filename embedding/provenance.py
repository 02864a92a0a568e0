"""Describe and compare the settings that embeddings are computed with.

This provenance is recorded in ``field.info``. Embeddings with different provenances are
never mixed in a field. Fields that older releases wrote are read as well.
"""

from __future__ import annotations

import re
from typing import Any

from ..checkpoints import Checkpoint
from ..config import LAST_STAGE, Settings
from ..images.preprocessing import Preprocessing
from .version import VERSION

Provenance = dict[str, Any]
"""The settings by name, of types that JSON and MongoDB have."""

_COMPARED_OPTIONS = ("pooling", "normalize", "dtype", "engine", "fast_decoding", "stage")

PREPROCESSING_OPTIONS = ("image_size", "squash")
"""The options that the preprocessing depends on, which is recorded and compared."""

RECORDED_OPTIONS = (*_COMPARED_OPTIONS, *PREPROCESSING_OPTIONS)
"""The options of a model that its embeddings depend on."""

# Release 0.1.0 recorded no version, and its preprocessing as a text
_VERSION = 2
_KEYS = (
    "provenance_version",
    "made_with",
    "checkpoint",
    "revision",
    "sha256",
    *RECORDED_OPTIONS,
    "preprocessing",
)

# The values of options that did not exist when a field was written
_DEFAULTS = {
    "engine": "torch",
    "fast_decoding": False,
    "stage": LAST_STAGE,
    "image_size": None,
    "squash": False,
}

_UNKNOWN = "unknown"

_PREPROCESSING_TEXT = re.compile(
    r"(?:squash to (?P<squash>\d+x\d+)|resize (?P<resize>\d+(?:x\d+)?)) "
    r"by filter (?P<resample>\d+)(?:, crop (?P<crop>\d+x\d+))?, "
    r"mean \((?P<mean>[^)]*)\), std \((?P<std>[^)]*)\)"
)


def provenance_of(
    checkpoint: str,
    revision: str | None,
    sha256: str,
    preprocessing: Preprocessing,
    settings: Settings,
) -> Provenance:
    """Describe the embeddings of a model.

    Args:
        checkpoint: the name on the hub or in the zoo, or an absolute path
        revision: the commit on the hub, if known
        sha256: the hash of the bytes of the weights
        preprocessing: the preprocessing
        settings: the options
    """
    return {
        "provenance_version": _VERSION,
        "made_with": f"fiftyone-hiera {VERSION}",
        "checkpoint": checkpoint,
        "revision": revision or _UNKNOWN,
        "sha256": sha256,
        **{name: getattr(settings, name) for name in _COMPARED_OPTIONS},
        "image_size": [*settings.image_size] if settings.image_size else None,
        "squash": settings.squash,
        "preprocessing": _preprocessing_to_dict(preprocessing),
    }


def expected_provenance(checkpoint: Checkpoint, settings: Settings) -> Provenance:
    """Describe the embeddings of a checkpoint of the zoo, before it is loaded.

    Args:
        checkpoint: the checkpoint
        settings: the options, without a checkpoint of the user's own

    Returns:
        a :data:`Provenance`; its sha256 is "unknown" where only the revision pins the
        weights
    """
    file = checkpoint.file
    expected = provenance_of(
        file.origin,
        file.revision,
        file.sha256 or _UNKNOWN,
        settings.apply(checkpoint.preprocessing),
        settings,
    )
    if checkpoint.architecture.read_preprocessing is not None:
        expected["preprocessing"] = _UNKNOWN  # the file itself says it

    return expected


def provenance_in(info: dict[str, Any] | None) -> Provenance:
    """Return the provenance in the info of a field; empty if none is recorded."""
    if info is None or "sha256" not in info:
        return {}

    found = {**_DEFAULTS, **info}
    text = found.get("preprocessing")

    # Told by the text, not by the version: a run of 0.1.0 that overwrites a field of this
    # release leaves the version there
    if isinstance(text, str):
        found["provenance_version"] = _VERSION
        found["preprocessing"] = _parse_preprocessing(text)

    return {name: found[name] for name in _KEYS if name in found}


def with_provenance(info: dict[str, Any] | None, provenance: Provenance) -> dict[str, Any]:
    """Return the info of a field with another provenance instead of its own."""
    others = {name: value for name, value in (info or {}).items() if name not in _KEYS}

    # A null in a field's info breaks the App's tooltip
    recorded = {name: value for name, value in provenance.items() if value is not None}
    return {**others, **recorded}


def differing(found: Provenance, wanted: Provenance) -> list[str]:
    """List the settings in which two provenances differ, if their embeddings do.

    Args:
        found: the provenance of a field
        wanted: the provenance of a model, perhaps the expected one
    """
    # Where the sha256 of the weights is unknown, their revision pins them
    weights = "revision" if wanted["sha256"] == _UNKNOWN else "sha256"
    names = [
        name
        for name in ("provenance_version", weights, *_COMPARED_OPTIONS, "preprocessing")
        if wanted[name] not in (found.get(name), _UNKNOWN)
    ]

    # Engines differ in the reduced dtypes only
    if "engine" in names and found.get("dtype") == wanted["dtype"] == "float32":
        names.remove("engine")

    return names


def _preprocessing_to_dict(preprocessing: Preprocessing) -> dict[str, Any]:
    is_squashed = preprocessing.is_squashed
    size = preprocessing.crop_size if is_squashed else preprocessing.resize_size
    return {
        "resize": [*size],
        "crop": [*preprocessing.crop_size],
        "resample": preprocessing.resample,
        "mean": [*preprocessing.mean],
        "std": [*preprocessing.std],
        "squash": is_squashed,
    }


def _parse_preprocessing(text: str) -> dict[str, Any] | str:
    """Parse a text of release 0.1.0; return it as it is if it is of another form."""
    match = _PREPROCESSING_TEXT.fullmatch(text)
    if match is None:
        return text

    resize = match["squash"] or match["resize"]
    return {
        "resize": _parse_size(resize),
        "crop": _parse_size(match["crop"] or resize),
        "resample": int(match["resample"]),
        "mean": _parse_floats(match["mean"]),
        "std": _parse_floats(match["std"]),
        "squash": match["squash"] is not None,
    }


def _parse_size(text: str) -> list[int]:
    height, _, width = text.partition("x")
    return [int(height), int(width or height)]


def _parse_floats(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]
