"""From the results of forward.py and jobs.py to tables and a plot."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from documents import insert, table  # needs the path

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
        insert(text, "figures", args.into)
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
        yield from table(
            ["", "images/s", "to transformers", "of the ceiling", "peak MB", "cosine"],
            (
                [
                    name,
                    f"{result['images_per_second']:.1f}",
                    f"{result['ratio']:.2f} x",
                    f"{result['of_ceiling']:.2f}",
                    f"{result['peak_mb']:.0f}" if "peak_mb" in result else "",
                    f"{result['cosine']:.7f}" if "cosine" in result else "",
                ]
                for name, result in run["contenders"].items()
            ),
        )

    if jobs is not None:
        yield from _write_jobs(jobs)
        yield from _write_aims(forward, jobs)


def _write_jobs(jobs: Result) -> Iterator[str]:
    yield f"### Whole jobs, tiny, batches of {jobs['batch_size']}, VGA\n"
    yield from table(
        ["", "images/s", "to the integration"],
        ([_name(n, r), *_rates(r)] for n, r in jobs["jobs"].items()),
    )
    share = jobs["jobs"]["ours, embed_samples, auto"]["images_per_second"] / _allowed(jobs)
    yield (
        f"Reading and the network, one after the other on all cores, allow "
        f"{_allowed(jobs):.1f} images/s; `embed_samples` reaches {share:.2f} of that.\n"
    )
    yield "### Whole runs by `embed_samples`, by size of the JPEGs\n"
    yield from table(
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
        yield from table(
            ["", "images/s", "to transformers"],
            ([name, *_rates(result)] for name, result in results.items()),
        )
        fast = results["ours, fast_decoding"]
        yield (
            f"With `fast_decoding` the pixels differ by {fast['mean_difference']:.3f} grey "
            f"levels on average, by {fast['largest_difference']:.0f} at most.\n"
        )

    yield "### Writing vectors of 768 numbers\n"
    yield from table(
        ["", "vectors/s", "to SaveContext"],
        ([name, *_rates(result)] for name, result in jobs["writing"].items()),
    )
    yield from _write_processes(jobs["processes"])


def _write_processes(processes: Result) -> Iterator[str]:
    yield "### Starting, in a process of its own, after the imports\n"
    yield from table(
        ["engine", "seconds to load tiny"],
        ([name, f"{r['load_seconds']:.2f}"] for name, r in processes["start"].items()),
    )
    yield "### Memory, tiny, batches of 32, in a process of its own\n"
    yield from table(
        ["", "after loading, MB", "more while embedding, MB"],
        (
            [name, f"{result['loaded_mb']:.0f}", f"{result['more_mb']:.0f}"]
            for name, result in processes["memory"].items()
        ),
    )
    yield "### Memory by size of the JPEGs: `embed_samples`, tiny, batches of 32\n"
    yield from table(
        ["", "more while embedding, MB"],
        ([size, f"{result['more_mb']:.0f}"] for size, result in processes["sizes"].items()),
    )
    yield "### By number of samples: `embed_samples`, nano, one JPEG many times\n"
    yield from table(
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


def _allowed(jobs: Result) -> float:
    """Return the images per second that the parts of a job allow on these cores."""
    seconds: float = sum(
        1 / result["images_per_second"]
        for name, result in jobs["jobs"].items()
        if name.startswith("part: ")
    )
    return 1 / seconds


def _write_aims(forward: Result, jobs: Result) -> Iterator[str]:
    """Say what this machine reaches of what was aimed for."""
    runs = next(run for run in forward["runs"] if run["variant"] == "tiny")["contenders"]
    exact, fast = (
        max(
            (
                result
                for name, result in runs.items()
                if name.startswith("ours") and result["cosine"] >= cosine
            ),
            key=lambda result: result["ratio"],
        )
        for cosine in (0.999999, 0.9999)
    )
    ceilings = {
        dtype: max(
            result["ratio"]
            for name, result in runs.items()
            if name.startswith("matrix product") and name.endswith(dtype)
        )
        for dtype in ("float32", "bfloat16")
    }
    native, runner = (
        jobs["jobs"][f"ours, {way}, auto"]
        for way in ("compute_embeddings", "embed_samples")
    )
    processes = jobs["processes"]
    more = [result["more_mb"] for result in processes["memory"].values()]
    (few, before), (many, after) = list(processes["samples"].items())[-2:]
    growth = after["more_mb"] - before["more_mb"]
    aims = [
        ("forward, cosine >= 0.999999, to transformers", exact["ratio"], 2.2, "x"),
        ("forward, cosine >= 0.9999, to transformers", fast["ratio"], 4.5, "x"),
        ("the same, of the ceiling", fast["of_ceiling"], 0.75, ""),
        ("compute_embeddings, to the integration", native["ratio"], 3.5, "x"),
        ("embed_samples, to the integration", runner["ratio"], 4.5, "x"),
        (
            "embed_samples, of what its parts allow",
            runner["images_per_second"] / _allowed(jobs),
            0.8,
            "",
        ),
        (
            "12 MP with fast_decoding, to without",
            jobs["sizes"]["12 MP"]["fast_decoding"]["ratio"],
            3,
            "x",
        ),
        ("memory beyond imports and weights, at most", max(more), -600, "MB"),
        (f"its growth from {few} to {many} samples", growth, -50, "MB"),
        ("loading tiny by torch", processes["start"]["torch"]["load_seconds"], -2, "s"),
    ]
    yield "### What was aimed for\n"
    yield from table(
        ["", "aim", "here", ""],
        (
            [
                what,
                f"{'under' if aim < 0 else ''} {abs(aim):g} {unit}".strip(),
                f"{value:.3g} {unit}".strip(),
                "reached" if (value < -aim if aim < 0 else value >= aim) else "missed",
            ]
            for what, value, aim, unit in aims
        ),
    )
    yield (
        f"A matrix product alone is {ceilings['float32']:.2f} x as fast as transformers in "
        f"float32 here, and {ceilings['bfloat16']:.2f} x in bfloat16: on this machine no "
        "network can be faster than that.\n"
    )


def _name(name: str, result: Result) -> str:
    if "engine" not in result:
        return name

    return f"{name} ({result['dtype']}, {result['engine']})"


def _rates(result: Result) -> list[str]:
    return [f"{result['images_per_second']:.1f}", f"{result['ratio']:.2f} x"]


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
        left_out = ("matrix product", "part: ")
        names = [name for name in results if not name.startswith(left_out)]
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
