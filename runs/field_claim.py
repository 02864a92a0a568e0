"""The claim of a run to a field, by which embeddings are never mixed."""

from __future__ import annotations

import time
import uuid
from typing import NoReturn

from .provenance import (
    OPTIONS,
    PREPROCESSING_OPTIONS,
    Provenance,
    differing,
    read_provenance,
    write_provenance,
)
from .target import Target

# Runs read the provenance of their field before each write. A run that changes it waits
# so long for writes that are under way
_SETTLE_SECONDS = 0.5

_BEING_REPLACED = "none, the embeddings are being replaced by run "
_NO_PROVENANCE = (
    "with no recorded provenance (computed by another tool or by compute_embeddings)"
)


class FieldClaim:
    """The claim of a run to a field, whose embeddings all have one provenance.

    Args:
        target: the field
        provenance: the provenance of the run's embeddings
    """

    def __init__(self, target: Target, provenance: Provenance) -> None:
        self._target = target
        self._provenance = provenance
        self._found = self._read()
        self._must_clear = False
        self._is_taken = False

    def check(self, *, overwrite: bool, shard: tuple[int, int] | None = None) -> None:
        """Check that the run may write to the field; change nothing yet.

        Args:
            overwrite: whether existing embeddings may be replaced
            shard (None): the part of the samples to embed

        Raises:
            ValueError: if the run would mix its embeddings with others
        """
        if self._matches:
            return

        held, inside = self._target.count_embeddings()
        if not held:
            return

        found = "computed with different settings" if self._found else _NO_PROVENANCE
        holds = f"The field {self._target.path!r} holds {held} embeddings {found}"
        if not overwrite:
            self._refuse(
                f"{holds}. Embeddings must not be mixed: use another field, or "
                "overwrite=True, which removes all of them before the first new one is "
                "stored."
            )

        if inside < held or shard is not None:
            self._refuse(
                f"{holds}, and only some would be overwritten. Embeddings must not be "
                "mixed: use another field, overwrite all samples in one run, or remove "
                "them first with dataset.clear_sample_field() or clear_frame_field()."
            )

        self._must_clear = True

    def take(self) -> None:
        """Add the field and record the run's provenance, before its first write.

        If other embeddings have to be removed, a provenance that fits no run is
        recorded until they are, so that it is never wrong about an embedding.

        Raises:
            ValueError: if another run took the field meanwhile
        """
        if self._is_taken:
            return

        self._target.add_field()
        before = self._found
        self._found = self._read()
        if not self._matches and self._found == before:
            if self._must_clear:
                mark = _BEING_REPLACED + str(uuid.uuid4())
                self._record({**self._provenance, "sha256": mark})
                self._target.clear()

            self._record(self._provenance)

        self.confirm()
        self._is_taken = True

    def confirm(self) -> None:
        """Check that the field still has the run's provenance.

        Raises:
            ValueError: if another run took it meanwhile
        """
        self._require(self._provenance)

    @property
    def _matches(self) -> bool:
        return not differing(self._found, self._provenance)

    def _read(self) -> Provenance:
        return read_provenance(self._target.dataset, self._target.path)

    def _record(self, provenance: Provenance) -> None:
        """Record a provenance, and wait until other runs must have seen it."""
        write_provenance(self._target.dataset, self._target.path, provenance)
        time.sleep(_SETTLE_SECONDS)
        self._require(provenance)

    def _require(self, provenance: Provenance) -> None:
        self._found = self._read()
        if differing(self._found, provenance):
            self._refuse(f"Another run started to write to {self._target.path!r}.")

    def _refuse(self, reason: str) -> NoReturn:
        found, ours = self._found, self._provenance
        if not found:
            raise ValueError(reason)

        names = differing(found, ours)
        raise ValueError(
            f"{reason} They differ in {', '.join(names)}."
            f"\n  The field: {_describe(found, ours, names)}."
            f"\n  This run: {_describe(ours, found, names)}."
            f"{_advise(found, ours, names)}"
        )


def _describe(provenance: Provenance, other: Provenance, names: list[str]) -> str:
    """Describe a provenance by its checkpoint and by what differs in another."""
    shown = {
        name: value
        for name, value in provenance.items()
        if name == "checkpoint" or name in names
    }
    if "preprocessing" in shown:
        shown["preprocessing"] = _difference(provenance, other)

    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _difference(provenance: Provenance, other: Provenance) -> object:
    value, others = provenance["preprocessing"], other.get("preprocessing")
    if not isinstance(value, dict) or not isinstance(others, dict):
        return value

    return {name: item for name, item in value.items() if item != others.get(name)}


def _advise(found: Provenance, ours: Provenance, names: list[str]) -> str:
    """Say how to load a model that continues the field, if options alone do it."""
    options = [
        name for name in (*OPTIONS, *PREPROCESSING_OPTIONS) if found.get(name) != ours[name]
    ]
    explained = {*options}
    if explained & {*PREPROCESSING_OPTIONS}:
        explained.add("preprocessing")

    if not explained.issuperset(names):
        return ""

    if found["dtype"] == "float32" and "engine" in options:
        options.remove("engine")

    advice = ", ".join(f"{name}={found[name]!r}" for name in options)
    return f"\n  To add to it, load the model with {advice}."
