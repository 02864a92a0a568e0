"""Check the options of ``embed_samples``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..cluster.options import RayOptions
from ..embedding.arguments import (
    convert_fields,
    optional,
    to_boolean,
    to_integer,
    to_shard,
)
from ..errors import invalid
from ..indexes.options import IndexOptions

KEPT = "Stored embeddings are kept"
"""Said in the message of each run that had to stop."""


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; see ``HieraEmbeddingModel.embed_samples``."""

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
        convert_fields(
            self,
            batch_size=optional(partial(to_integer, least=1)),
            num_workers=optional(partial(to_integer, least=0)),
            verify=partial(to_integer, least=0),
            overwrite=to_boolean,
            skip_failures=to_boolean,
            shard=optional(to_shard),
            failure_tag=optional(_to_text),
        )

    @property
    def advice(self) -> str:
        """What to do after a run that stopped."""
        does = "starts over" if self.overwrite else "resumes there"
        return f"{KEPT}; the same call {does}"


def _to_text(name: str, value: object) -> str:
    if not (isinstance(value, str) and value):
        raise invalid(name, value, "expected a non-empty string")

    return value
