"""The options of a run of ``embed_samples``."""

from __future__ import annotations

from dataclasses import dataclass

KEPT = "Stored embeddings are kept"
"""Said in the message of each run that had to stop."""


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; see :meth:`HieraEmbeddingModel.embed_samples`."""

    batch_size: int | None
    num_workers: int | None
    overwrite: bool
    skip_failures: bool
    shard: tuple[int, int] | None
    failure_tag: str | None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise ValueError(
                    f"Invalid {name} {value!r}: expected an integer of at least {least}"
                )

        if self.shard is not None and not _is_shard(self.shard):
            raise ValueError(
                f"Invalid shard {self.shard!r}: expected (k, n), integers with 0 <= k < n"
            )

        tag: object = self.failure_tag
        if tag is not None and not (isinstance(tag, str) and tag):
            raise ValueError(f"Invalid failure_tag {tag!r}: expected a non-empty string")

    @property
    def advice(self) -> str:
        """What to do after a run that stopped."""
        does = "starts over" if self.overwrite else "resumes there"
        return f"{KEPT}; the same call {does}"


def _is_shard(shard: object) -> bool:
    match shard:
        case (int(index), int(count)):
            return 0 <= index < count

    return False
