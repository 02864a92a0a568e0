"""Models that administrators allow, by the secrets that FiftyOne's plugins obey."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..checkpoints import CHECKPOINTS, Checkpoint

_NAMES = "FIFTYONE_ZOO_ALLOWED_MODEL_NAMES"
_LICENSES = "FIFTYONE_ZOO_ALLOWED_MODEL_LICENSES"


@dataclass(frozen=True)
class AllowedModels:
    """The models that may be used, by name and by license; None allows all."""

    names: list[str] | None
    licenses: list[str] | None

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The entries of the zoo that are allowed."""
        return [c for c in CHECKPOINTS.values() if self._reason(c.name, c.license) is None]

    @property
    def restrictions(self) -> str | None:
        """What is allowed, for users; None if everything is."""
        given = ((_NAMES, self.names), (_LICENSES, self.licenses))
        texts = [
            f"{secret} allows {values}" for secret, values in given if values is not None
        ]
        return " and ".join(texts) or None

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Check that an entry of the zoo is allowed; see :meth:`check`."""
        self.check(checkpoint.name, checkpoint.license)

    def check(self, name: str, license_name: str | None) -> None:
        """Check that a model, or weights of the user's own, may be used.

        Raises:
            ValueError: if they may not; the message says why
        """
        reason = self._reason(name, license_name)
        if reason is not None:
            raise ValueError(f"Model {name!r} is not allowed here: {reason}")

    def _reason(self, name: str, license_name: str | None) -> str | None:
        if self.names is not None and name not in self.names:
            return f"{_NAMES} allows {self.names}"

        # As FiftyOne reads the licenses of its manifests
        has = _split(license_name or "")
        if self.licenses is None or not set(has).isdisjoint(self.licenses):
            return None

        its = f"its license is {license_name!r}" if has else "its license is unknown"
        return f"{its}, and {_LICENSES} allows {self.licenses}"


def read_allowed(ctx: Any) -> AllowedModels:
    """Read which models are allowed from the secrets of an operator's context."""
    return AllowedModels(_read(ctx, _NAMES), _read(ctx, _LICENSES))


def _read(ctx: Any, secret: str) -> list[str] | None:
    # The context of another plugin's operator has only the secrets of that plugin
    value = ctx.secret(secret) if secret in ctx.secrets else os.environ.get(secret)
    return _split(value) if value else None


def _split(values: str) -> list[str]:
    return [value.strip() for value in values.split(",") if value.strip()]
