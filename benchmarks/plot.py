"""The plot of the results of forward.py and jobs.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]


def plot(forward: Result, jobs: Result | None, path: Path) -> None:
    """Draw the images per second of each contender.

    Args:
        forward: the results of forward.py
        jobs: the results of jobs.py, or None
        path: the path of the picture
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    bars = [
        (f"Forward, {run['variant']}, batches of {run['batch_size']}", run["contenders"])
        for run in forward["runs"]
    ]
    if jobs is not None:
        bars.append(("Whole jobs, tiny, VGA", jobs["jobs"]))

    size = (6.5 * len(bars), 5)
    figure, axes = pyplot.subplots(
        1, len(bars), figsize=size, layout="constrained", squeeze=False
    )
    for axis, (title, results) in zip(axes[0], bars, strict=True):
        left_out = ("matrix product", "part: ")
        names = [name for name in results if not name.startswith(left_out)]
        rates = [results[name]["images_per_second"] for name in names]
        colors = ["#f4731b" if name.startswith("ours") else "#999999" for name in names]
        drawn = axis.barh(names, rates, color=colors)
        axis.bar_label(drawn, fmt="%.1f", padding=3)
        axis.invert_yaxis()
        axis.set_title(f"{title}: images/s")
        axis.spines[["top", "right"]].set_visible(False)

    machine = forward["machine"]
    figure.suptitle(f"{machine['kind']}, {machine['cpu']}, {machine['cores']} cores")
    figure.savefig(path, dpi=110)
