"""The progress bar: FiftyOne's, without FiftyOne."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import eta.core.utils as etau


class ProgressBar(etau.ProgressBar):
    """A progress bar of ETA, as FiftyOne's is.

    Args:
        total: the number of files; without any, no bar is shown
        progress: whether to show it, or what to call with the bar instead
    """

    def __init__(self, total: int, progress: bool | Callable[[Any], None]) -> None:
        self._callback = progress if callable(progress) else None
        is_shown = progress is True and total > 0
        super().__init__(total=total, quiet=not is_shown, iters_str="files")

    def set_iteration(self, *args: Any, **kwargs: Any) -> None:
        """Move to an iteration, and call what was given."""
        super().set_iteration(*args, **kwargs)
        if self._callback is not None:
            self._callback(self)
