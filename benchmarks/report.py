"""From the results of forward.py and jobs.py to tables and a plot."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

BEGIN = "<!-- figures -->"
END = "<!-- /figures -->"

Result = Mapping[str, Any]


def main() -> None:
    """Write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("--forward", type=Path, help="default: forward-cpu.json in there")
    parser.add_argument("--into", type=Path, help="a document whose figures to replace")
    args = parser.parse_args()

    path = args.forward or args.folder / "forward-cpu.json"
    forward = json.loads(path.read_text("utf-8"))
    # On a machine without FiftyOne there are no jobs
    path = args.folder / "jobs.json"
    jobs = json.loads(path.read_text("utf-8")) if path.exists() else None
    text = "\n".join(_write(forward, jobs))
    (args.folder / "figures.md").write_text(text, "utf-8")
    plot = args.folder / "performance.png"
    _plot(forward, jobs, plot)
    if args.into is not None:
        document = args.into.read_text("utf-8")
        head, _, rest = document.partition(BEGIN)
        _, _, tail = rest.partition(END)
        args.into.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{tail}", "utf-8")
        pictures = args.into.parent / "pictures"
        (pictures / plot.name).write_bytes(plot.read_bytes())

    print(text)


def _write(forward: Result, jobs: Result | None) -> Iterator[str]:
    machine = forward["machine"]
    packages = ", ".join(f"{name} {v}" for name, v in machine["packages"].items())
    has = "with" if machine["bfloat16_instructions"] else "without"
    yield f"Machine: {machine['cpu']}, {machine['cores']} cores, {has} bfloat16 "
    yield f"instructions; {machine['gpu'] or 'no GPU'}. Python {machine['python']}, "
    yield f"{packages}.\n"

    for run in forward["runs"]:
        yield f"### Forward, {run['variant']}, batches of {run['batch_size']}\n"
        yield from _table(
            ["", "images/s", "to transformers", "of the ceiling", "cosine"],
            (
                [
                    name,
                    f"{result['images_per_second']:.1f}",
                    f"{result['ratio']:.2f} x",
                    f"{result['of_ceiling']:.2f}",
                    f"{result['cosine']:.7f}" if "cosine" in result else "",
                ]
                for name, result in run["contenders"].items()
            ),
        )

    if jobs is not None:
        yield from _write_jobs(forward, jobs)


def _write_jobs(forward: Result, jobs: Result) -> Iterator[str]:
    yield f"### Whole jobs, tiny, batches of {jobs['batch_size']}, VGA\n"
    yield from _table(
        ["", "images/s", "to the integration"],
        ([_name(n, r), *_rates(r)] for n, r in jobs["jobs"].items()),
    )
    yield _allowed(forward, jobs)

    yield "### Whole runs by `embed_samples`, by size of the JPEGs\n"
    yield from _table(
        ["", "images/s", "with fast_decoding", ""],
        (
            [
                size,
                f"{result['exact']['images_per_second']:.1f}",
                f"{result['fast_decoding']['images_per_second']:.1f}",
                f"{result['fast_decoding']['ratio']:.2f} x",
            ]
            for size, result in jobs["sizes"].items()
        ),
    )

    yield "### Reading: from a file to the network's input\n"
    for size, results in jobs["reading"].items():
        yield f"{size}:\n"
        yield from _table(
            ["", "images/s", "to transformers"],
            ([name, *_rates(result)] for name, result in results.items()),
        )
        fast = results["ours, fast_decoding"]
        yield (
            f"With `fast_decoding` the pixels differ by {fast['mean_difference']:.3f} grey "
            f"levels on average, by {fast['largest_difference']:.0f} at most.\n"
        )

    yield "### Writing vectors of 768 numbers\n"
    yield from _table(
        ["", "vectors/s", "to SaveContext"],
        ([name, *_rates(result)] for name, result in jobs["writing"].items()),
    )
    if "processes" in jobs:  # the last step, of a run that may have been cut
        yield from _write_processes(jobs["processes"])


def _write_processes(processes: Result) -> Iterator[str]:
    yield "### Starting, in a process of its own, after the imports\n"
    yield from _table(
        ["engine", "seconds to load tiny"],
        ([name, f"{r['load_seconds']:.2f}"] for name, r in processes["start"].items()),
    )
    yield "### Memory, tiny, batches of 32, in a process of its own\n"
    yield from _table(
        ["", "after loading, MB", "more while embedding, MB"],
        (
            [name, f"{result['loaded_mb']:.0f}", f"{result['more_mb']:.0f}"]
            for name, result in processes["memory"].items()
        ),
    )
    yield "### By number of samples: `embed_samples`, nano, one JPEG many times\n"
    yield from _table(
        ["samples", "seconds", "ms a sample", "more memory, MB"],
        (
            [
                count,
                f"{result['embed_seconds']:.1f}",
                f"{1000 * result['embed_seconds'] / int(count):.2f}",
                f"{result['more_mb']:.0f}",
            ]
            for count, result in processes["samples"].items()
        ),
    )


def _allowed(forward: Result, jobs: Result) -> str:
    """Say what the runner reaches of what its parts allow on these cores."""
    job = jobs["jobs"]["ours, embed_samples, auto"]
    runs = [run for run in forward["runs"] if run["variant"] == "tiny"]
    name = f"ours, {job['engine']} {job['dtype']}"
    if not runs or name not in runs[0]["contenders"]:
        return ""

    ahead = runs[0]["contenders"][name]
    read = jobs["reading"]["VGA"]["ours, a thread per core"]["images_per_second"]
    allowed = 1 / (1 / ahead["images_per_second"] + 1 / read)
    return (
        f"Reading and the network, one after the other on all cores, allow "
        f"{allowed:.1f} images/s; `embed_samples` reaches "
        f"{job['images_per_second'] / allowed:.2f} of that. (These three were not measured "
        "in the same turns.)\n"
    )


def _name(name: str, result: Result) -> str:
    if "engine" not in result:
        return name

    return f"{name} ({result['dtype']}, {result['engine']})"


def _rates(result: Result) -> list[str]:
    return [f"{result['images_per_second']:.1f}", f"{result['ratio']:.2f} x"]


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"

    yield ""


def _plot(forward: Result, jobs: Result | None, path: Path) -> None:
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
        names = [name for name in results if not name.startswith("matrix product")]
        rates = [results[name]["images_per_second"] for name in names]
        colors = ["#f4731b" if name.startswith("ours") else "#999999" for name in names]
        drawn = axis.barh(names, rates, color=colors)
        axis.bar_label(drawn, fmt="%.1f", padding=3)
        axis.invert_yaxis()
        axis.set_title(f"{title}: images/s")
        axis.spines[["top", "right"]].set_visible(False)

    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
