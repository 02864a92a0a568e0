"""Check the options of ``embed_samples``."""

from __future__ import annotations

from dataclasses import dataclass

from ..cluster.options import RayOptions
from ..embedding.arguments import check_boolean, to_integer, to_shard
from ..indexes.options import IndexOptions

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
    verify: int = 3
    ray: RayOptions | None = None
    index: IndexOptions | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0), ("verify", 0)):
            value = getattr(self, name)
            if value is not None or name == "verify":
                object.__setattr__(self, name, to_integer(name, value, least))

        check_boolean("overwrite", self.overwrite)
        check_boolean("skip_failures", self.skip_failures)
        if self.shard is not None:
            object.__setattr__(self, "shard", to_shard(self.shard))

        tag: object = self.failure_tag
        if tag is not None and not (isinstance(tag, str) and tag):
            raise ValueError(f"Invalid failure_tag {tag!r}: expected a non-empty string")

    @property
    def advice(self) -> str:
        """What to do after a run that stopped."""
        does = "starts over" if self.overwrite else "resumes there"
        return f"{KEPT}; the same call {does}"
