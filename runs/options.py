"""How a run of embed_samples goes about its work."""

from __future__ import annotations

from dataclasses import dataclass

KEPT = "What was stored is kept"
"""Said wherever a run had to stop."""


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about its work; see :meth:`HieraEmbeddingModel.embed_samples`."""

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
                    f"Invalid {name} {value!r}: it is a whole number from {least}"
                )

        if self.shard is not None and not _is_shard(self.shard):
            raise ValueError(
                f"Invalid shard {self.shard!r}: it is (k, n), whole numbers with 0 <= k < n"
            )

        tag: object = self.failure_tag
        if tag is not None and not (isinstance(tag, str) and tag):
            raise ValueError(f"Invalid failure_tag {tag!r}: it is a text")

    @property
    def advice(self) -> str:
        """What to do after a run that stopped."""
        if self.overwrite:
            return f"{KEPT}; the same call begins anew"

        return f"{KEPT}; the same call goes on from there"


def _is_shard(shard: object) -> bool:
    match shard:
        case (int(index), int(count)):
            return 0 <= index < count

    return False
