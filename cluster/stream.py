"""Streams: one execution of Ray Data, fed by the driver and read by it."""

from __future__ import annotations

import itertools
import queue
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError, RayTaskError
from ray.util.annotations import RayDeprecationWarning
from ray.util.queue import Queue

from ..embedding.jobs import Job
from ..images.preprocessing import Preprocessing
from .blocks import AnswerBlock, pack_jobs, unpack_answers
from .encoding import EncodeBlocks
from .ledger import Ledger
from .reading import read_block
from .session import Actors, own_node
from .spec import EncoderSpec

# How long to wait for a result before the caller gets control
_POLL_SECONDS = 0.2

_END = object()


@dataclass(frozen=True)
class StreamSettings:
    """What a stream does.

    Args:
        spec: the encoder
        preprocessing: the preprocessing
        actors: the encoders' number and resources
        is_video: whether the files are videos
        batch_size: the number of images per forward pass
        num_workers: the number of threads of each task that reads
        block_size: the number of parts in a block
    """

    spec: EncoderSpec
    preprocessing: Preprocessing
    actors: Actors
    is_video: bool
    batch_size: int
    num_workers: int
    block_size: int


class Stream:
    """Reads and embeds blocks of files on the cluster, in any order.

    Leaving its context ends the execution and its actors.

    Args:
        blocks: the files, looked up by a thread while others are embedded
        ledger: the ledger
        settings: the settings
    """

    def __init__(
        self, blocks: Iterable[Sequence[Job]], ledger: Ledger, settings: StreamSettings
    ) -> None:
        self._blocks = blocks
        self._ledger = ledger
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._input = Queue(
            actor_options={"num_cpus": 0, "scheduling_strategy": own_node()}
        )
        self._plan = _make_plan(self._input, settings)
        self._threads = [
            threading.Thread(target=self._send, name="hiera-send", daemon=True),
            threading.Thread(target=self._receive, name="hiera-receive", daemon=True),
        ]

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()

        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ledger.close()
        self._input.shutdown(force=True)
        executor = getattr(self._plan, "_current_executor", None)
        if executor is not None:
            executor.shutdown(force=True)

        for thread in self._threads:
            thread.join()

    def read(self, patience: float) -> Iterator[AnswerBlock | None]:
        """Read the results.

        Args:
            patience: after so many seconds without a result, others are sent, as those
                on their way may be lost; before the first result, which waits for the
                encoders to start, six times as many

        Yields:
            blocks of embeddings; None while there is none
        """
        last, limit = time.monotonic(), 6 * patience
        while True:
            try:
                item = self._results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if time.monotonic() - last > limit:
                    self._ledger.make_room()
                    last = time.monotonic()

                yield None
                continue

            if item is _END:
                return

            if isinstance(item, BaseException):
                raise item

            last, limit = time.monotonic(), patience
            yield item

    def _send(self) -> None:
        try:
            for block in self._blocks:
                jobs = self._ledger.send(block)
                if jobs is None:
                    return

                self._input.put(pack_jobs(jobs))

            self._input.put(None)
        except RayError as error:
            self._results.put(RuntimeError(f"Ray was lost: {error}"))
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            self._results.put(error)

    def _receive(self) -> None:
        try:
            for table in self._plan.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for block in unpack_answers(table):
                    self._results.put(block)

            self._results.put(_END)
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            self._results.put(RuntimeError(f"Ray stopped: {error}"))


class _Feed(Datasource):
    """The blocks that come out of a queue, read by a single task until None comes."""

    def __init__(self, blocks: Queue) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._queue = blocks

    @property
    def supports_distributed_reads(self) -> bool:
        return False  # the task stays on this node, which is there as long as the run

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        blocks = self._queue

        def read() -> Iterator[pa.Table]:
            while (block := blocks.get()) is not None:
                yield block

        unknown = BlockMetadata(
            num_rows=None, size_bytes=None, input_files=None, exec_stats=None
        )
        return [ReadTask(read, unknown)]


def read_one_by_one(
    jobs: Sequence[Job], ledger: Ledger, settings: StreamSettings
) -> Iterator[Iterator[AnswerBlock] | None]:
    """Read files without Ray Data, each in a task of its own.

    Args:
        jobs: the files
        ledger: a ledger with room for all
        settings: the settings

    Yields:
        the blocks of pixels of each file whose tasks were not killed; None while there
        are none
    """
    read: Any = ray.remote(num_cpus=1, max_retries=1)(cast(Any, read_block))
    arguments = _reading(settings)
    waiting = iter(jobs)
    running: list[Any] = []
    while True:
        for job in itertools.islice(
            waiting, 2 * settings.actors.num_readers - len(running)
        ):
            numbered = ledger.send([job])
            running.append(read.remote(pack_jobs(numbered or []), **arguments))

        if not running:
            return

        done, running = ray.wait(running, timeout=_POLL_SECONDS)
        if not done:
            yield None

        for tables in done:
            yield _get_blocks(cast(Any, tables))


def _get_blocks(tables: Iterable[Any]) -> Iterator[AnswerBlock]:
    """Get the blocks of a task, as far as it came."""
    try:
        for table in tables:
            yield from unpack_answers(ray.get(table))
    except RayTaskError:  # no loss, but a fault of ours
        raise
    except RayError:
        return


def _reading(settings: StreamSettings) -> dict[str, Any]:
    """Return the keyword arguments of :func:`read_block`."""
    preprocessing = settings.preprocessing
    return {
        "preprocessing": {
            field.name: getattr(preprocessing, field.name)
            for field in fields(preprocessing)
        },
        "is_video": settings.is_video,
        "num_workers": settings.num_workers,
        "block_size": settings.block_size,
    }


def _make_plan(blocks: Queue, settings: StreamSettings) -> ray.data.Dataset:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # each row is a block, see blocks.py
    context.max_errored_blocks = -1  # what is lost is read again
    actors = settings.actors
    with DataContext.current(context), warnings.catch_warnings():
        # See options.py
        warnings.simplefilter("ignore", RayDeprecationWarning)
        files: ray.data.Dataset = ray.data.read_datasource(
            _Feed(blocks), override_num_blocks=1, num_cpus=0
        )
        read = files.map_batches(
            cast(Any, read_block),  # the types of Ray know no keyword arguments
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs=_reading(settings),
            num_cpus=1,
            max_retries=1,
        )
        embedded: ray.data.Dataset = read.map_batches(
            EncodeBlocks,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_kwargs={
                "spec": settings.spec,
                "batch_size": settings.batch_size,
                "num_threads": actors.num_threads,
            },
            compute=ActorPoolStrategy(size=actors.count),
            num_cpus=actors.num_cpus,
            num_gpus=actors.num_gpus,
            max_task_retries=1,
        )

    return embedded
