"""Embed the parts of files on a cluster."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError

from ..embedding.embedder import Embedder
from ..embedding.jobs import Failed, Job, Result
from .blocks import Block, in_blocks
from .encoder_actor import describe_encoder
from .encoders import Encoders
from .options import RayOptions
from .reading import read_block
from .session import Actors, connect

# How long to wait for the cluster before the caller gets control
_POLL_SECONDS = 0.2

# The pieces that a task has ready before it waits for the driver to take one
_MOST_PIECES_AHEAD = 2


def embed_on_ray(
    jobs: Iterable[Job],
    embedder: Embedder,
    options: RayOptions,
    *,
    is_video: bool = False,
    batch_size: int,
    num_workers: int = 0,
) -> Generator[list[Result], None, None]:
    """Embed the parts of files on a cluster.

    A file that kills the process that reads it takes its block with it. What is lost is
    read again, each file in a task of its own.

    The arguments are those of :func:`fiftyone_hiera.cluster.start.start_embedding`, where
    ``num_workers`` (0) is its ``task_workers``; with 0, the tasks' own threads read.

    Yields:
        lists of results, one for each part; an empty list while there is none

    Raises:
        ValueError: if the cluster cannot be used
        RuntimeError: if no encoder can be loaded or can go on
    """
    jobs = iter(jobs)
    first = next(jobs, None)
    if first is None:
        return

    with connect(options) as actors:
        read_options = {
            "preprocessing": vars(embedder.preprocessing),
            "is_video": is_video,
            "num_workers": num_workers,
            "block_size": options.block_size,
        }
        jobs = itertools.chain([first], jobs)
        blocks = in_blocks(jobs, 1 if is_video else options.block_size)
        spec = describe_encoder(embedder, actors.device)
        encoders = Encoders(spec, actors, batch_size)
        driver = _Driver(blocks, read_options, encoders, most_blocks(actors), embedder)
        try:
            yield from driver.results()
        finally:
            driver.stop_reading()
            encoders.stop()


def most_blocks(actors: Actors) -> int:
    """Return how many blocks may be on their way at once.

    Enough that no reader and no encoder waits for the driver; more would only take
    memory.
    """
    return 3 * actors.num_readers + 4 * actors.count + 2


class _Driver:
    """Sends blocks to readers and what they read to encoders, and takes the results."""

    def __init__(
        self,
        blocks: Iterator[Sequence[Job]],
        read_options: dict[str, Any],
        encoders: Encoders,
        most_blocks: int,
        embedder: Embedder,
    ) -> None:
        self._blocks = blocks
        self._read_options = read_options
        self._encoders = encoders
        self._most_blocks = most_blocks
        self._dtype = embedder.settings.dtype
        self._unread: deque[Block] = deque()
        self._reading: dict[Any, Block] = {}
        self._open_blocks = 0  # that have parts without a result
        self._read: Any = cast(Any, ray.remote)(
            num_cpus=1,
            max_retries=1,
            scheduling_strategy="SPREAD",
            # Ray has no public name for it, and its types do not know it
            _generator_backpressure_num_objects=_MOST_PIECES_AHEAD,
        )(read_block)

    def results(self) -> Iterator[list[Result]]:
        """Yield lists of results, empty ones while there is none."""
        results: list[Result] = []
        while self._send():
            yield results  # the cluster works meanwhile
            results = self._receive()

        yield results

    def stop_reading(self) -> None:
        """Stop the tasks that read."""
        for pixels in self._reading:
            ray.cancel(pixels, force=True)

        self._reading.clear()

    def _send(self) -> bool:
        """Send blocks to readers, and return whether any is on its way."""
        while self._open_blocks < self._most_blocks and (jobs := next(self._blocks, None)):
            self._add(Block(jobs))

        if not self._encoders.are_ready:
            self._pause()
        else:
            while self._unread:
                block = self._unread.popleft()
                pixels = self._read.remote(block.jobs, **self._read_options)
                self._reading[pixels] = block

        return self._open_blocks > 0

    def _add(self, block: Block) -> None:
        self._unread.append(block)
        self._open_blocks += 1

    def _pause(self) -> None:
        """Read later what is being read: readers that wait may hold an encoder's CPU."""
        blocks = [*self._reading.values()]
        self.stop_reading()
        for block in blocks:
            block.pending -= 1
            self._close(block)

    def _receive(self) -> list[Result]:
        """Wait a little for embeddings and, if an encoder has room, for pixels."""
        waiting = self._encoders.calls
        if self._encoders.have_room:
            waiting += self._reading

        done, _ = ray.wait(waiting, timeout=_POLL_SECONDS, fetch_local=False)
        if done:
            done, _ = ray.wait(
                waiting, num_returns=len(waiting), timeout=0, fetch_local=False
            )
        else:
            self._encoders.check()

        results: list[Result] = []
        for item in done:
            if item not in self._reading:
                results += self._take_embeddings(item)
            elif self._encoders.have_room:
                results += self._take_pixels(item)

        return results

    def _take_pixels(self, pixels: Any) -> list[Result]:
        block = self._reading[pixels]
        try:
            piece = next(pixels)
            if piece == pixels.completed():
                ray.get(piece)  # it raises why the task failed
        except StopIteration:
            pass
        except RayTaskError as error:  # no loss, but a fault of ours
            raise RuntimeError(f"Ray stopped: {error}") from error
        except RayError:
            block.has_killed = True
        else:
            self._encoders.encode(block, piece)
            return []

        del self._reading[pixels]
        block.pending -= 1
        return self._close(block)

    def _take_embeddings(self, call: Any) -> list[Result]:
        taken = self._encoders.take(call)
        if taken is None:
            return []

        block, piece = taken
        return block.settle(piece, self._dtype) + self._close(block)

    def _close(self, block: Block) -> list[Result]:
        """Read what a block lost again, once no more of it comes."""
        if block.pending:
            return []

        self._open_blocks -= 1
        missing = block.missing()
        if block.has_killed and block.is_alone:
            kind = "video" if self._read_options["is_video"] else "image"
            reason = "it killed each process that read it"
            return [
                Failed(
                    job, job.parts, ValueError(f"Cannot read {kind} {job.path!r}: {reason}")
                )
                for job in missing
            ]

        if block.has_killed:
            for job in missing:
                self._add(Block([job], is_alone=True))
        elif missing:
            self._add(Block(missing, block.is_alone, block.losses))

        return []
