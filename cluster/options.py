"""Options of a run on Ray."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..embedding.arguments import to_integer

REQUIREMENT = "ray>=2.55,<3"
"""What must be installed, here and on each node."""


@dataclass(frozen=True)
class RayOptions:
    """Cluster that embeds, and number and resources of its encoders.

    Args:
        address (None): the address of a cluster, such as ``"10.0.0.1:6379"``, or
            ``"auto"`` for the one that this machine belongs to. By default, the cluster
            that this process is connected to, or that the environment variable
            ``RAY_ADDRESS`` names; if there is none, a local one is started for the run
        num_actors (None): the number of encoders. By default, as many as the GPUs
            suffice for; without GPUs, one
        num_gpus (None): the number of GPUs per encoder, 0 for the CPU. By default, 1 if
            the cluster has GPUs
        num_cpus (None): the number of CPUs per encoder. By default, 0 with a GPU and 1
            without. The other CPUs read files, one task each
        block_size (128): the number of images that a task reads and hands over at once
    """

    address: str | None = None
    num_actors: int | None = None
    num_gpus: float | None = None
    num_cpus: float | None = None
    block_size: int = 128

    def __post_init__(self) -> None:
        address: object = self.address
        if address is not None and not (isinstance(address, str) and address):
            raise ValueError(
                f"Invalid address {address!r}: expected a non-empty string, such as "
                "'10.0.0.1:6379'"
            )

        if address is not None and str(address).startswith("ray://"):
            raise ValueError(
                f"Invalid address {address!r}: Ray Client is not supported. Run on a "
                "machine of the cluster with address 'auto', or submit a job"
            )

        for name in ("num_actors", "block_size"):
            value = getattr(self, name)
            if value is not None or name == "block_size":
                object.__setattr__(self, name, to_integer(name, value, 1))

        for name in ("num_gpus", "num_cpus"):
            value = getattr(self, name)
            if value is None:
                continue

            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                raise ValueError(f"Invalid {name} {value!r}: expected a number, 0 or more")


def to_ray_options(ray: Any) -> RayOptions | None:
    """Convert an argument ``ray``.

    Args:
        ray: None or False for this process alone, True, an address or a
            :class:`RayOptions`

    Returns:
        a :class:`RayOptions`; None for this process alone

    Raises:
        ValueError: if it is not valid
        ImportError: if Ray is not installed
    """
    if ray is None or ray is False:
        return None

    if ray is True:
        options = RayOptions()
    elif isinstance(ray, str):
        options = RayOptions(ray)
    elif isinstance(ray, RayOptions):
        options = ray
    else:
        raise ValueError(
            f"Invalid ray {ray!r}: expected True, an address, RayOptions or None"
        )

    if importlib.util.find_spec("ray") is None:
        raise ImportError(
            f"ray={ray!r} needs Ray: pip install '{REQUIREMENT}'",
            name="ray",
        )

    return options
