"""Brain keys under which FiftyOne registers a run before it computes anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def deleted_on_error(dataset: Any, brain_key: str) -> Iterator[None]:
    """Delete a brain run if computing it fails.

    Args:
        dataset: the :class:`fiftyone.core.dataset.Dataset`
        brain_key: the brain key, which was free
    """
    try:
        yield
    except BaseException:
        if brain_key in dataset.list_brain_runs():
            dataset.delete_brain_run(brain_key)

        raise
