"""Read files ahead of the encoder, with a bounded pool of threads.

Threads, not processes: Pillow and simplejpeg release Python's lock while they decode;
threads start at once, share the plugins and settings of the process, and do not depend on
how processes are started.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from ..images.decoding import Warn, read_image
from ..images.opening import check_is_file
from ..images.preprocessing import PixelArray, Preprocessing
from .jobs import Failed, Job, Part
from .patches import extract_patch


@dataclass(frozen=True)
class Input:
    """The encoder's input for one part of a file.

    Args:
        job: the file
        part: the part
        pixels: a uint8 array of shape (3, H, W)
        warnings (()): the warnings about the file
    """

    job: Job
    part: Part
    pixels: PixelArray
    warnings: Sequence[str] = ()


Read = Input | Failed

# The number of parts to read, and what reads them
_Task = tuple[int, Callable[[], list[Read]]]


def read_ahead(
    jobs: Iterable[Job],
    preprocessing: Preprocessing,
    *,
    is_video: bool,
    num_workers: int,
    ahead: int,
) -> Generator[Read, None, None]:
    """Read the parts of files, before they are asked for.

    Args:
        jobs: the files
        preprocessing: the preprocessing
        is_video: whether the files are videos
        num_workers: the number of threads; 0 reads in the calling thread. Videos are read
            by a single one: they are decoded in order, by the threads of ffmpeg
        ahead: the approximate number of parts to hold ready

    Yields:
        a :data:`Read` for each part, in the order of the jobs, or for all parts of a file
        that cannot be read; the parts of a video come frame by frame
    """
    split = _split_video if is_video else _split_image
    size = max(1, ahead // 2)
    tasks = (task for job in jobs for task in split(job, preprocessing, size))
    if num_workers == 0:
        for _, read in tasks:
            yield from read()

        return

    pending: deque[tuple[int, Future[list[Read]]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(1 if is_video else num_workers, "hiera-read")
    try:
        for count, read in tasks:
            pending.append((count, pool.submit(read)))
            held += count
            while held >= ahead:
                count, future = pending.popleft()
                held -= count
                yield from future.result()

        for _, future in pending:
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _split_image(job: Job, preprocessing: Preprocessing, size: int) -> Iterator[_Task]:
    """Divide the parts of an image, which is decoded once, by the first thread.

    The image is held until its last part is read. As parts are read ahead in the order of
    the files, these are few images more than there are threads.
    """
    lock = threading.Lock()
    warnings: list[str] = []
    decode = cache(partial(_decode, job, preprocessing, warnings.append))
    unread = len(job.parts)

    def read(parts: Sequence[Part]) -> list[Read]:
        nonlocal unread
        with lock:
            image = decode()
            unread -= len(parts)
            if not unread:
                decode.cache_clear()  # the traceback of an error may hold this function

        if isinstance(image, ValueError):
            return [Failed(job, parts, image)]

        return [_prepare(job, part, image, preprocessing, warnings) for part in parts]

    for start in range(0, len(job.parts), size):
        parts = job.parts[start : start + size]
        yield len(parts), partial(read, parts)


def _decode(job: Job, preprocessing: Preprocessing, warn: Warn) -> Any:
    """Return an image, or an array to crop patches out of, or why it cannot be read."""
    is_whole = job.parts[0].box is None
    shortest_edge = preprocessing.shortest_edge if is_whole else None
    try:
        image = read_image(job.path, shortest_edge=shortest_edge, warn=warn)
    except ValueError as error:
        return error

    return image if is_whole else np.asarray(image)


def _split_video(job: Job, preprocessing: Preprocessing, size: int) -> Iterator[_Task]:
    reads = _read_video(job, preprocessing)
    for _ in range(0, len(job.parts), size):
        yield size, lambda: [*itertools.islice(reads, size)]


def _read_video(job: Job, preprocessing: Preprocessing) -> Iterator[Read]:
    # A second of imports, which images do without
    import eta.core.video as etav

    frames: dict[int | None, list[Part]] = {}
    for part in job.parts:
        frames.setdefault(part.frame_number, []).append(part)

    reason = "it ended early"
    try:
        check_is_file(job.path)
        numbers = [number for number in frames if number is not None]
        with etav.FFmpegVideoReader(job.path, frames=numbers) as reader:
            height, width = _frame_shape(reader)
            for raw in reader:
                image = raw.reshape(height, width, 3)
                for part in frames.pop(reader.frame_number):
                    yield _prepare(job, part, image, preprocessing)
    except Exception as error:  # noqa: BLE001  # as with images: broken files raise anything
        reason = str(error) or type(error).__name__
        if reason.startswith("Command 'ffprobe"):
            reason = "ffprobe finds no video in it"

    if frames:
        unread = [part for parts in frames.values() for part in parts]
        first = unread[0].frame_number
        where = "" if first is None else f" from frame {first} on"
        message = f"Cannot read video {job.path!r}{where}: {reason}"
        yield Failed(job, unread, ValueError(message))


def _frame_shape(reader: Any) -> tuple[int, int]:
    """Return the (height, width) of the frames that ffmpeg returns.

    ffmpeg turns the frames of a rotated video upright. Newer releases note the
    rotation where eta does not look, so that eta swaps height and width.
    """
    width, height = reader.frame_size
    info = reader._stream_info.stream_info
    noted = [data.get("rotation", 0) for data in info.get("side_data_list", [])]
    is_turned = any(abs(int(rotation)) % 180 == 90 for rotation in noted)
    if is_turned and "rotate" not in info.get("tags", {}):
        return width, height

    return height, width


def _prepare(
    job: Job,
    part: Part,
    image: Any,
    preprocessing: Preprocessing,
    warnings: Sequence[str] = (),
) -> Read:
    try:
        if isinstance(part.box, str):
            raise ValueError(part.box)

        cropped = image if part.box is None else extract_patch(image, part.box)
        return Input(job, part, preprocessing.to_pixels(cropped), warnings)
    except Exception as error:  # noqa: BLE001  # one failure costs one part
        of_frame = "" if part.frame_number is None else f"frame {part.frame_number} of "
        reason = str(error) or type(error).__name__
        message = f"Cannot embed {of_frame}{job.path!r}: {reason}"
        return Failed(job, [part], ValueError(message))
