"""Connect to a cluster, check it, and leave it as it was."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..embedding.version import VERSION
from .options import RayOptions

_LOCAL = "local"
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_CONNECT_SECONDS = 5
_CHECK_SECONDS = 60

_PACKAGE = __name__.removesuffix(".cluster.session")
_FOLDER = Path(__file__).absolute().parents[1]


@dataclass(frozen=True)
class Actors:
    """Number and resources of the encoders of a run.

    Args:
        count: how many there are
        num_gpus: the number of GPUs of each
        num_cpus: the number of CPUs of each
        num_readers: the number of CPUs that are left for reading
        num_threads: the number of threads that each computes with, if its node has as
            many cores. As in one process, readers and encoders share the cores: how much
            of them each needs is not known ahead
    """

    count: int
    num_gpus: float
    num_cpus: float
    num_readers: int
    num_threads: int

    @property
    def device(self) -> str:
        """The device of the encoders."""
        return "cuda" if self.num_gpus else "cpu"


@contextlib.contextmanager
def connect(options: RayOptions) -> Iterator[Actors]:
    """Connect to a cluster, or start one, for as long as the context lasts.

    Yields:
        the :class:`Actors` that the cluster has room for

    Raises:
        ValueError: if the cluster cannot be reached or has no room, or if its nodes
            cannot import this package in this version
    """
    is_own = not ray.is_initialized()
    if is_own:
        _init(options.address or os.environ.get("RAY_ADDRESS") or _LOCAL)
    elif options.address is not None:
        raise ValueError(
            f"This process is connected to a cluster already: pass ray=True instead of "
            f"{options.address!r}, or call ray.shutdown() first"
        )

    try:
        _check_nodes()
        yield plan_actors(options, ray.cluster_resources())
    finally:
        if is_own:
            ray.shutdown()


def plan_actors(options: RayOptions, resources: dict[str, float]) -> Actors:
    """Decide how many encoders there are, and what each of them takes.

    Args:
        options: what is wanted
        resources: the resources of the cluster by name

    Raises:
        ValueError: if the cluster has no room for them and one reader
    """
    gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 0)
    num_gpus = options.num_gpus
    if num_gpus is None:
        num_gpus = 1 if gpus >= 1 else 0

    num_cpus = options.num_cpus
    if num_cpus is None:
        num_cpus = 0 if num_gpus else 1

    count = options.num_actors or max(1, int(gpus // num_gpus) if num_gpus else 1)
    num_readers = int(cpus - count * num_cpus)
    if num_readers < 1 or count * num_gpus > gpus:
        raise ValueError(
            f"The cluster has {cpus:g} CPUs and {gpus:g} GPUs, too few for num_actors="
            f"{count} with num_cpus={num_cpus:g} and num_gpus={num_gpus:g} each, and one "
            "CPU that reads files: pass smaller ones in ray=RayOptions(...)"
        )

    num_threads = max(1, int(cpus // count))
    return Actors(count, num_gpus, num_cpus, num_readers, num_threads)


def _init(address: str) -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == _LOCAL:
        # FiftyOne imports the sources of its zoo by their paths
        paths = [str(_FOLDER.parents[_PACKAGE.count(".")])]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        environment = {"PYTHONPATH": os.pathsep.join(paths)}
        settings["runtime_env"] = {"env_vars": environment}
        settings["include_dashboard"] = False
    else:
        _check_is_open(address)

    try:
        ray.init(address, **settings)
    except ConnectionError as error:
        raise ValueError(
            f"Cannot connect to Ray at {address!r}: {error}. If the cluster wants a token, "
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error
    except (RayError, RuntimeError, ValueError) as error:
        raise ValueError(f"Cannot connect to Ray at {address!r}: {error}") from error


def _check_is_open(address: str) -> None:
    """Check that something listens at an address: Ray would try for ever."""
    match = re.fullmatch(r"\[?(?P<host>[^\[\]]+)\]?:(?P<port>\d+)", address)
    if match is None:
        return  # "auto", or what Ray itself refuses

    try:
        with socket.create_connection(
            (match["host"], int(match["port"])), _CONNECT_SECONDS
        ):
            pass
    except (OSError, OverflowError) as error:
        raise ValueError(f"Cannot connect to Ray at {address!r}: {error}") from error


def _check_nodes() -> None:
    """Check that the nodes that read and embed have this package in this version."""
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]
    get_version = ray.remote(num_cpus=0, max_retries=0)(_get_version)
    asked = {
        get_version.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node["NodeManagerHostname"]
        for node in nodes
    }
    for answer, name in asked.items():
        try:
            version = ray.get(answer, timeout=_CHECK_SECONDS)
        except GetTimeoutError as error:
            raise ValueError(
                f"Node {name} does not answer within {_CHECK_SECONDS} s"
            ) from error
        except (RayError, ImportError) as error:
            reason = [type(error).__name__, *str(error).splitlines()][-1]
            raise ValueError(
                f"Node {name} cannot import {_PACKAGE}: install version {VERSION} there. "
                f"{reason}"
            ) from error

        if version != VERSION:
            raise ValueError(
                f"Node {name} has version {version} of {_PACKAGE}, this process {VERSION}: "
                "install the same on both"
            )


def _get_version() -> str:
    return VERSION
