"""Record a run's provenance in its field, and refuse to mix embeddings."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from typing import NoReturn

from ..embedding.jobs import Embedded
from ..embedding.provenance import (
    PREPROCESSING_OPTIONS,
    RECORDED_OPTIONS,
    Provenance,
    differing,
    provenance_in,
    with_provenance,
)
from ..errors import OptionError
from .index_model import keep_provenance_of_tables, update_index_models
from .schema import StoredField, find_stored_field, read_provenance, replace_info
from .target import Target

_BEING_REPLACED = "none, the embeddings are being replaced by run "
_NO_PROVENANCE = (
    "with no recorded provenance (computed by another tool or by compute_embeddings)"
)
_ADOPT = " If you know which model computed them, its adopt_embeddings() records that."


class FieldClaim:
    """Claims a field for a run, so that its embeddings all have one provenance.

    The provenance in the field's info is the claim. It is replaced only if it is still
    what was read, so that one of several runs succeeds.

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

    def check(
        self,
        *,
        overwrite: bool,
        shard: tuple[int, int] | None = None,
        spot_check: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Check that the run may write to the field; change nothing yet.

        Args:
            overwrite: whether existing embeddings may be replaced
            shard (None): the shard of the samples to embed
            spot_check (None): returns which embedding in the field is not the
                model's, as a sentence, or None. It is called if the field's
                provenance is that of the run, unless only some embeddings are
                overwritten

        Raises:
            ValueError: if the field is read-only, or if the run would mix its
                embeddings with others
        """
        if (stored := self._stored) is not None:
            self._check_writable(stored)

        mismatch = None
        if self._matches:
            if not overwrite or self._is_whole(shard):
                mismatch = spot_check()

            if mismatch is None:
                return

        held, _ = self._target.count_embeddings()
        if not held:
            return

        if not overwrite:
            self._refuse_to_mix(held, mismatch)

        if not self._is_whole(shard):
            self._refuse(
                "overwrite",
                f"{self._describe_held(held, mismatch)}, and only some would be "
                "overwritten. Embeddings must not be mixed: use another field, overwrite "
                "all samples in one run, or remove them first with "
                "dataset.clear_sample_field() or clear_frame_field().",
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
        if self._must_clear:
            if self._found:
                keep_provenance_of_tables(self._target, self._found)

            mark = _BEING_REPLACED + str(uuid.uuid4())
            self._record({**self._provenance, "sha256": mark})
            self._target.clear()

        self._record(self._provenance, is_empty=not self._must_clear)
        self._is_taken = True

    def confirm(self) -> None:
        """Check that the field still has the run's provenance.

        Raises:
            ValueError: if another run took it meanwhile
        """
        self._found = self._read()
        if not self._found:
            # FiftyOne saves fields as whole lists: a process may have saved an older one
            self._record(self._provenance)
        elif not self._matches:
            self._refuse_other_run()

    def store(self, batch: Sequence[Embedded]) -> dict[str, str]:
        """Write embeddings, unless another run took the field meanwhile.

        Returns:
            why some are not stored, by ID; see :meth:`Target.store`

        Raises:
            ValueError: if another run did
        """
        self.confirm()
        refused = self._target.store(
            [result.part for result in batch], [result.embedding for result in batch]
        )
        try:
            self.confirm()
        except ValueError:
            # It removed the field's embeddings, perhaps before these were stored
            self._target.remove(batch)
            raise

        return refused

    def adopt(self) -> None:
        """Record the provenance for the embeddings that the field holds.

        Raises:
            ValueError: if the field is read-only, or if a run took it meanwhile
        """
        self._record(self._provenance)

    @property
    def _matches(self) -> bool:
        return not differing(self._found, self._provenance)

    @property
    def _stored(self) -> StoredField | None:
        return find_stored_field(self._target.dataset, self._target.path)

    def _read(self) -> Provenance:
        return read_provenance(self._target.dataset, self._target.path)

    def _is_whole(self, shard: tuple[int, int] | None) -> bool:
        """Return whether the run is about all embeddings in the field."""
        held, inside = self._target.count_embeddings()
        return shard is None and inside == held

    def _check_writable(self, stored: StoredField) -> None:
        if stored.is_read_only:
            raise ValueError(
                f"The field {self._target.path!r} is read-only: use another field"
            )

    def _record(self, provenance: Provenance, *, is_empty: bool = False) -> None:
        """Record a provenance if the field has the one found before, or this one.

        With ``is_empty``, refuse a field that holds embeddings of another one.
        """
        before = self._found
        while True:
            stored = self._stored
            if stored is None:
                raise ValueError(f"The field {self._target.path!r} was deleted")

            self._check_writable(stored)
            self._found = provenance_in(stored.info)
            if not differing(self._found, provenance):
                return

            if self._found != before:
                self._refuse_other_run()

            if is_empty:
                held, _ = self._target.count_embeddings()
                if held and self._read() == before:
                    self._refuse_to_mix(held)

            info = with_provenance(stored.info, provenance)
            if replace_info(self._target.dataset, self._target.path, stored, info):
                self._found = provenance_in(info)
                update_index_models(self._target.dataset)
                return

    def _describe_held(self, held: int, mismatch: str | None) -> str:
        if mismatch is not None:
            return f"{mismatch} The field holds {held} embeddings"

        found = "computed with different settings" if self._found else _NO_PROVENANCE
        return f"The field {self._target.path!r} holds {held} embeddings {found}"

    def _refuse_to_mix(self, held: int, mismatch: str | None = None) -> NoReturn:
        advice = "" if self._found and mismatch is None else _ADOPT
        self._refuse(
            "overwrite",
            f"{self._describe_held(held, mismatch)}. Embeddings must not be mixed: use "
            "another field, or overwrite=True, which removes all of them before the first "
            f"new one is stored.{advice}",
        )

    def _refuse_other_run(self) -> NoReturn:
        reason = f"Another run started to write to {self._target.path!r}."
        self._refuse("embeddings_field", reason)

    def _refuse(self, option: str, reason: str) -> NoReturn:
        found, ours = self._found, self._provenance
        names = differing(found, ours) if found else []
        if names:
            reason += (
                f" They differ in {', '.join(names)}."
                f"\n  The field: {_describe(found, ours, names)}."
                f"\n  This run: {_describe(ours, found, names)}."
                f"{_advise(found, ours, names)}"
            )

        raise OptionError(option, reason)


def _describe(provenance: Provenance, other: Provenance, names: list[str]) -> str:
    """Describe a provenance by its checkpoint and by what differs in another."""
    shown = {
        name: value
        for name, value in provenance.items()
        if name == "checkpoint" or name in names
    }
    if "preprocessing" in shown:
        shown["preprocessing"] = _difference(provenance, other)

    if re.fullmatch("[0-9a-f]{64}", str(shown.get("sha256"))):
        shown["sha256"] = shown["sha256"][:10]  # as docs/weights.md has them

    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _difference(provenance: Provenance, other: Provenance) -> object:
    value, others = provenance["preprocessing"], other.get("preprocessing")
    if not isinstance(value, dict) or not isinstance(others, dict):
        return value

    return {name: item for name, item in value.items() if item != others.get(name)}


def _advise(found: Provenance, ours: Provenance, names: list[str]) -> str:
    """Say how to load a model that continues the field, if options alone do it."""
    options = [name for name in RECORDED_OPTIONS if found.get(name) != ours[name]]
    explained = {*options}
    if explained & {*PREPROCESSING_OPTIONS}:
        explained.add("preprocessing")

    if not explained.issuperset(names):
        return ""

    if found["dtype"] == "float32" and "engine" in options:
        options.remove("engine")

    advice = ", ".join(f"{name}={found[name]!r}" for name in options)
    return f"\n  To add to it, load the model with {advice}."
