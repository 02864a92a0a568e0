"""Files that are read ahead: how often they are decoded, and how many are held."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import Digit
from fiftyone_hiera.embedding import prefetch
from fiftyone_hiera.embedding.jobs import Job, Part
from fiftyone_hiera.embedding.prefetch import Input, read_ahead
from fiftyone_hiera.images.decoding import read_image
from fiftyone_hiera.models.embedding import HieraEmbeddingModel


def _jobs(digits: Sequence[Digit], counts: Sequence[int]) -> list[Job]:
    """Return files with so many parts each, whose boxes all differ."""
    return [
        Job(str(n), str(digit.path), [_part(f"{n}-{k}", k / count) for k in range(count)])
        for n, (digit, count) in enumerate(zip(digits, counts, strict=True))
    ]


def _part(id: str, left: float) -> Part:
    return Part(id, id, box=(left / 2, 0, 0.5, 1))


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_each_image_is_decoded_once(
    digits: list[Digit],
    model: HieraEmbeddingModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
) -> None:
    jobs = _jobs(digits[:60], [200, 1, 8, *[9] * 55, 3, 50])
    bad = Job("bad", str(tmp_path / "absent.png"), [_part(f"bad-{k}", 0) for k in range(9)])
    decoded: list[str] = []
    held: list[weakref.ref[Any]] = []
    most = 0
    lock = threading.Lock()

    def read(path: str, **options: Any) -> Any:
        nonlocal most
        with lock:
            decoded.append(path)

        image = np.asarray(read_image(path, **options))
        with lock:
            held.append(weakref.ref(image))
            most = max(most, sum(one() is not None for one in held))

        return image

    monkeypatch.setattr(prefetch, "read_image", read)
    files = [*jobs[:2], bad, *jobs[2:]]
    options = {"is_video": False, "num_workers": num_workers, "ahead": 16}
    reads = [*read_ahead(files, model.transforms, **options)]
    assert sorted(decoded) == sorted(job.path for job in files)
    assert most <= num_workers + 4
    assert not any(one() is not None for one in held)

    # In order, and each part from its own file
    inputs = [one for one in reads if isinstance(one, Input)]
    assert [one.part for one in inputs] == [part for job in jobs for part in job.parts]
    failed = [one for one in reads if not isinstance(one, Input)]
    assert [part for one in failed for part in one.parts] == bad.parts
    monkeypatch.undo()
    for job in (jobs[0], jobs[-1]):
        last = Job(job.sample_id, job.path, job.parts[-1:])
        (alone,) = read_ahead([last], model.transforms, **{**options, "num_workers": 0})
        (among,) = (one for one in inputs if one.part == last.parts[0])
        assert np.array_equal(among.pixels, alone.pixels)
