"""From the results of forward.py and jobs.py to tables with a column per kind of machine.

A column is a JSON file of ``docs/figures``. Only that of this machine's kind is replaced.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from documents import insert, table  # needs the path
from plot import plot

_ROOT = Path(__file__).resolve().parents[1]

Result = Mapping[str, Any]
Rows = dict[str, str]

# Aims by kind of machine: to transformers, to the ceiling, and to FiftyOne's integration
_AIMS = {
    "AVX512-BF16": {
        "forward, cosine >= 0.9999, to transformers": 2.8,
        "the same, of the ceiling": 0.75,
        "forward, cosine >= 0.999999, to transformers": 1.45,
        "compute_embeddings, to the integration": 2.8,
        "embed_samples, to the integration": 3.2,
        "12 MP with fast_decoding, to without": 2.7,
    },
    "AMX-BF16": {
        "forward, cosine >= 0.9999, to transformers": 5.5,
        "the same, of the ceiling": 0.55,
        "forward, cosine >= 0.999999, to transformers": 1.6,
        "compute_embeddings, to the integration": 4.0,
        "embed_samples, to the integration": 5.5,
        "12 MP with fast_decoding, to without": 3,
    },
}
# How the titles of the main tables begin
_MAIN = ("Speed of ", "What was aimed for")

_LIMITS = {
    "memory beyond imports and weights, at most": (600, "MB"),
    "its growth with 9,000 more samples": (50, "MB"),
    "loading tiny by torch": (1, "s"),
    "loading tiny by openvino": (1, "s"),
    "from python to the first vector, less the imports of FiftyOne and torch": (2, "s"),
}


def main() -> None:
    """Write the column of this machine's kind, the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("--forward", type=Path, help="default: forward-cpu.json in there")
    parser.add_argument("--docs", type=Path, default=_ROOT / "docs")
    args = parser.parse_args()

    path = args.forward or args.folder / "forward-cpu.json"
    forward = json.loads(path.read_text("utf-8"))
    # On a machine without FiftyOne there are no jobs
    path = args.folder / "jobs.json"
    jobs = json.loads(path.read_text("utf-8")) if path.exists() else None

    columns = args.docs / "figures"
    kind = forward["machine"]["kind"]
    column = {"machine": _describe(forward["machine"]), "tables": _tables(forward, jobs)}
    text = json.dumps(column, indent=2, ensure_ascii=False)
    (columns / f"{kind}.json").write_text(f"{text}\n", "utf-8")
    for page, is_main in (("performance.md", True), ("measurements.md", False)):
        text = "\n".join(_merge(columns, is_main=is_main))
        insert(text, "figures", args.docs / page)

    plot(forward, jobs, args.docs / "pictures" / "performance.png")


def _describe(machine: Result) -> str:
    packages = ", ".join(f"{name} {v}" for name, v in machine["packages"].items())
    today = datetime.date.today().isoformat()
    return (
        f"{machine['cpu']}, {machine['cores']} cores; {machine['gpu'] or 'no GPU'}; "
        f"{today}; Python {machine['python']}, {packages}"
    )


def _merge(folder: Path, *, is_main: bool) -> Iterator[str]:
    """Yield the lines of the tables, with a column for each file of a folder.

    Args:
        folder: the folder
        is_main: whether to yield the tables of speed and aims, or the others
    """
    columns = {
        path.stem: json.loads(path.read_text("utf-8"))
        for path in sorted(folder.glob("*.json"))
    }
    if is_main:
        for kind, column in columns.items():
            yield f"- **{kind}**: {column['machine']}."

        yield ""

    for title in _ordered(column["tables"] for column in columns.values()):
        if is_main != title.startswith(_MAIN):
            continue

        tables = {
            kind: column["tables"][title]
            for kind, column in columns.items()
            if title in column["tables"]
        }
        yield f"### {title}\n"
        yield from table(
            ["", *tables],
            (
                [name, *(rows.get(name, "") for rows in tables.values())]
                for name in _ordered(tables.values())
            ),
        )


def _ordered(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys of all mappings, in the order of the longest first."""
    longest_first = sorted(mappings, key=len, reverse=True)
    return [*dict.fromkeys(key for mapping in longest_first for key in mapping)]


def _tables(forward: Result, jobs: Result | None) -> dict[str, Rows]:
    tables: dict[str, Rows] = {}
    for run in forward["runs"]:
        of = f"{run['variant']}, batches of {run['batch_size']}"
        contenders = run["contenders"].items()
        tables[
            f"Speed of the forward pass, {of}: images/s, to transformers, of the ceiling"
        ] = {
            name: f"{_rate(result)}, {result['of_ceiling']:.2f}"
            for name, result in contenders
        }
        tables[f"Forward pass, {of}: memory in MB, cosine to float32"] = {
            name: f"{result['peak_mb']:.0f}"
            + (f", {result['cosine']:.7f}" if "cosine" in result else "")
            for name, result in contenders
            if "peak_mb" in result
        }

    if jobs is not None:
        tables |= _job_tables(jobs)
        values = _values(forward, jobs)
        kind = forward["machine"]["kind"]
        tables["What was aimed for"] = {
            name: _compare(name, value, kind) for name, value in values.items()
        }

    return tables


def _job_tables(jobs: Result) -> dict[str, Rows]:
    tables = {
        f"Speed of whole jobs, tiny, VGA, batches of {jobs['batch_size']}: "
        "images/s, to the integration": {
            name.removeprefix("part: "): _rate(result)
            for name, result in jobs["jobs"].items()
        },
        "`embed_samples` by size of the JPEGs: images/s, with fast_decoding": {
            size: f"{result['exact']['images_per_second']:.1f}, "
            f"{_rate(result['fast_decoding'])}"
            for size, result in jobs["sizes"].items()
        },
    }
    for size, results in jobs["reading"].items():
        title = f"Reading {size}, from a file to the network's input: images/s"
        tables[title] = {name: _rate(result) for name, result in results.items()}
        fast = results["ours, fast_decoding"]
        tables[title]["fast_decoding differs by (grey levels: mean, most)"] = (
            f"{fast['mean_difference']:.3f}, {fast['largest_difference']:.0f}"
        )

    processes = jobs["processes"]
    return {
        **tables,
        "Writing vectors of 768 numbers: vectors/s, to SaveContext": {
            name: _rate(result) for name, result in jobs["writing"].items()
        },
        "From `python` to the first vector of tiny, seconds": {
            f"{engine}: {step}": f"{seconds:.2f}"
            for engine, steps in processes["first_vector"].items()
            for step, seconds in steps.items()
        },
        "Memory, tiny, batches of 32: MB after loading, more while embedding": {
            name: f"{result['loaded_mb']:.0f}, {result['more_mb']:.0f}"
            for name, result in processes["memory"].items()
        },
        "Memory of `embed_samples` by size of the JPEGs: more MB while embedding": {
            size: f"{result['more_mb']:.0f}" for size, result in processes["sizes"].items()
        },
        "`embed_samples`, nano, one JPEG many times: ms a sample, more MB": {
            f"{count} samples": f"{1000 * result['embed_seconds'] / int(count):.2f}, "
            f"{result['more_mb']:.0f}"
            for count, result in processes["samples"].items()
        },
    }


def _allowed(jobs: Result) -> float:
    """Return the images per second that the parts of a job allow on these cores."""
    seconds: float = sum(
        1 / result["images_per_second"]
        for name, result in jobs["jobs"].items()
        if name.startswith("part: ")
    )
    return 1 / seconds


def _values(forward: Result, jobs: Result) -> dict[str, float]:
    """Return what this machine reaches of what was aimed for."""
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
    native, runner = (
        jobs["jobs"][f"ours, {way}, auto"]
        for way in ("compute_embeddings", "embed_samples")
    )
    processes = jobs["processes"]
    more = [result["more_mb"] for result in processes["memory"].values()]
    before, after = [result["more_mb"] for result in processes["samples"].values()][-2:]
    first = processes["first_vector"]
    return {
        "forward, cosine >= 0.999999, to transformers": exact["ratio"],
        "forward, cosine >= 0.9999, to transformers": fast["ratio"],
        "the same, of the ceiling": fast["of_ceiling"],
        "compute_embeddings, to the integration": native["ratio"],
        "embed_samples, to the integration": runner["ratio"],
        "embed_samples, of what its parts allow": runner["images_per_second"]
        / _allowed(jobs),
        "12 MP with fast_decoding, to without": jobs["sizes"]["12 MP"]["fast_decoding"][
            "ratio"
        ],
        "memory beyond imports and weights, at most": max(more),
        "its growth with 9,000 more samples": after - before,
        **{f"loading tiny by {name}": steps["load"] for name, steps in first.items()},
        "from python to the first vector, less the imports of FiftyOne and torch": max(
            sum(steps.values()) - steps["import fiftyone, torch, torchvision"]
            for steps in first.values()
        ),
    }


def _compare(name: str, value: float, kind: str) -> str:
    if name in _LIMITS:
        limit, unit = _LIMITS[name]
        verdict = "reached" if value < limit else "missed"
        return f"{value:.3g} {unit}; under {limit} {unit}: {verdict}"

    aim = _AIMS.get(kind, {}).get(name)
    if aim is None:
        return f"{value:.3g}"

    return f"{value:.3g}; {aim:g}: {'reached' if value >= aim else 'missed'}"


def _rate(result: Result) -> str:
    return f"{result['images_per_second']:.1f}, {result['ratio']:.2f} x"


if __name__ == "__main__":
    main()
