"""A Ray cluster of several nodes on this machine, and the processes of its runs."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
from other_process import SOURCES
from ray.cluster_utils import Cluster
from waiting import LIMIT

ENCODER = "EncoderActor"

_HOOK = str(Path(__file__).parent / "ray_hook")
_NODE: dict[str, Any] = {"object_store_memory": 200 * 2**20, "include_dashboard": False}


class RayCluster:
    """A head without CPUs and three nodes of one CPU each.

    Their processes load this checkout and ``ray_hook``.
    """

    def __init__(self) -> None:
        # A node that refuses connections is dead after 5 checks; a slow one is not
        often = {"_system_config": {"health_check_period_ms": 500}}
        with _environment():
            self._cluster = Cluster(True, head_node_args={"num_cpus": 0, **often, **_NODE})

        self.complete()

    @property
    def address(self) -> str:
        """Its address."""
        return str(self._cluster.address)

    @contextlib.contextmanager
    def connected(self, **options: Any) -> Iterator[None]:
        """Connect this process for as long as the context lasts.

        Args:
            **options: options of ``ray.init``
        """
        ray.shutdown()  # in case that a test failed while it was connected
        ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **options)
        try:
            yield
        finally:
            ray.shutdown()

    def complete(self) -> None:
        """Add the nodes that are missing."""
        with _environment():
            while len(self._cluster.worker_nodes) < 3:
                self._cluster.add_node(wait=False, num_cpus=1, **_NODE)

        self._cluster.wait_for_nodes(LIMIT)

    def remove_node_of(self, process: psutil.Process) -> None:
        """Remove the node that a process runs on, as if its machine was lost."""
        above = {parent.pid for parent in process.parents()}
        (node,) = [
            node
            for node in self._cluster.worker_nodes
            if node.all_processes["raylet"][0].process.pid in above
        ]
        self._cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        """End all its processes."""
        self._cluster.shutdown()


def processes(title: str) -> set[psutil.Process]:
    """Return the processes below this one that have a word in their title."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # they may end meanwhile
            if title in " ".join(process.cmdline()):
                found.add(process)

    return found


def write_video(path: Path, images: Path, frames: int) -> None:
    """Write a video of the first PNG files of a folder."""
    command = ["ffmpeg", "-v", "error", "-pattern_type", "glob", "-i", f"{images}/*.png"]
    command += ["-vf", "scale=64:64,format=yuv420p", "-frames:v", str(frames), str(path)]
    subprocess.run(command, check=True)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What the nodes that start in this context have in their environment."""
    variables = {
        "PYTHONPATH": os.pathsep.join([SOURCES, _HOOK]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # by default, other programs go first
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
