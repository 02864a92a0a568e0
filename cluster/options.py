"""Options of a run on Ray."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from ..embedding.arguments import convert_fields, optional, to_integer
from ..errors import invalid


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
        convert_fields(
            self,
            address=optional(_to_address),
            num_actors=optional(partial(to_integer, least=1)),
            block_size=partial(to_integer, least=1),
            num_gpus=optional(_to_number),
            num_cpus=optional(_to_number),
        )


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
        raise invalid("ray", ray, "expected True, an address, RayOptions or None")

    if importlib.util.find_spec("ray") is None:
        raise ImportError(f"ray={ray!r} needs Ray: pip install 'ray>=2.55,<3'", name="ray")

    return options


def _to_address(name: str, value: object) -> str:
    if not (isinstance(value, str) and value):
        reason = "expected a non-empty string, such as '10.0.0.1:6379'"
        raise invalid(name, value, reason)

    if value.startswith("ray://"):
        raise invalid(
            name,
            value,
            "Ray Client is not supported. Run on a machine of the cluster with address "
            "'auto', or submit a job",
        )

    return value


def _to_number(name: str, value: Any) -> Any:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise invalid(name, value, "expected a number, 0 or more")

    return value
