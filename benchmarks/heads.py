"""What labels, heatmaps and larger images cost: time, memory and space."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measure import (
    describe_machine,
    insert,
    interleave,
    measure_steps,
    peak_memory,
    prepare,
    table,
)
from pictures import write_jpegs

_NANO = "hiera-nano-digits"
_BATCH_SIZE = 16
_LARGE_BATCH = 4
_VECTORS = "vectors"


def main() -> None:
    """Measure, save and write the tables."""
    args = prepare(
        __doc__,
        image_sizes=[224, 448, 672, 1024],
        images={"type": int, "default": 32, "help": "VGA; of 12 MP half as many"},
        rounds=2,
    )
    folder = args.folder
    results: dict[str, Any] = {"machine": describe_machine(), "batch_size": _BATCH_SIZE}
    steps: dict[str, Callable[[], Any]] = {
        "sizes": partial(_measure_sizes, folder, args.image_sizes, args.rounds),
        "heads": partial(_measure_heads, folder, args.images, args.rounds),
    }
    measure_steps(results, steps, folder / "heads.json")

    text = "\n".join(_write(results))
    (folder / "heads.md").write_text(text, "utf-8")
    print(text)
    if args.into is not None:
        insert(text, "heads", args.into)


def _load(folder: Path, suffix: str = "hf", **options: Any) -> Any:
    """Load an entry of the zoo with random weights: its speed is that of the real ones."""
    import transformers

    import fiftyone_hiera
    from fiftyone_hiera.checkpoints import get_checkpoint

    path = folder / f"tiny-{suffix}"
    checkpoint = get_checkpoint(f"facebook/hiera-tiny-224-{suffix}")
    if not path.exists():
        network = getattr(transformers, checkpoint.architecture.name)
        network(checkpoint.config.to_transformers()).save_pretrained(path)

    return fiftyone_hiera.load_model(_NANO, checkpoint=str(path), **options)


def _measure_sizes(folder: Path, sizes: list[int], rounds: int) -> dict[str, Any]:
    """The network alone, for images of different sizes."""
    ways: dict[str, dict[str, Any]] = {
        "auto": {},
        "auto, torch": {"engine": "torch"},
        "float32, torch": {"engine": "torch", "dtype": "float32"},
    }
    results: dict[str, Any] = {}
    for size in sizes:
        pixels = torch.randint(0, 256, (_LARGE_BATCH, 3, size, size), dtype=torch.uint8)
        contenders: dict[str, Callable[[], int]] = {}
        more: dict[str, float | None] = {}
        for way, options in ways.items():
            embed = _load(folder, image_size=size, **options).embedder.embed

            def run(embed: Any = embed, pixels: torch.Tensor = pixels) -> int:
                embed(pixels)
                return len(pixels)

            embed(pixels[:1])
            more[way] = peak_memory(run, pixels.device)
            contenders[way] = run

        results[str(size)] = {
            way: {**result, "peak_mb": more[way]}
            for way, result in interleave(contenders, rounds, baseline="auto").items()
        }

    return results


def _measure_heads(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Whole jobs: files in, vectors, labels and heatmaps stored in FiftyOne."""
    models = {
        _VECTORS: _load(folder),
        "labels": _load(folder, "in1k-hf"),
        "heatmaps of stage 3": _load(folder, stage=3, output="heatmap"),
        "reconstruction errors": _load(folder, "mae-hf"),
    }
    results: dict[str, Any] = {}
    for size, count in {"VGA": images, "12 MP": images // 2}.items():
        dataset = _make_dataset(write_jpegs(folder / "pictures", size, count))
        models["heatmaps of stage 3"].fit_heatmap(dataset)
        contenders: dict[str, Callable[[], int]] = {}
        space: dict[str, float] = {}
        for name, model in models.items():
            contenders[name] = run = partial(_apply, dataset, model, _field(name), None)
            before = dataset.stats()["samples_bytes"]
            run()
            space[name] = (dataset.stats()["samples_bytes"] - before) / count

        name = "heatmaps of stage 3"
        maps = folder / "maps"
        run = partial(_apply, dataset, models[name], "written", maps)
        name += ", to output_dir"
        contenders[name] = run
        run()
        files = [path.stat().st_size for path in maps.rglob("*") if path.is_file()]
        space[name] = sum(files) / count
        measured = interleave(contenders, rounds, baseline=_VECTORS)
        results[size] = {
            name: {**result, "bytes": space[name]} for name, result in measured.items()
        }
        dataset.delete()

    return results


def _field(name: str) -> str:
    return name.replace(" ", "_")


def _apply(dataset: Any, model: Any, field: str, maps: Path | None) -> int:
    if field == _VECTORS:
        dataset.compute_embeddings(model, field, batch_size=_BATCH_SIZE)
        return len(dataset)

    options = {}
    if maps is not None:
        # Files of earlier rounds would be kept, beside new ones
        shutil.rmtree(maps, ignore_errors=True)
        options["output_dir"] = str(maps)

    dataset.apply_model(model, label_field=field, batch_size=_BATCH_SIZE, **options)
    return len(dataset)


def _make_dataset(paths: list[str]) -> Any:
    import fiftyone as fo

    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=path) for path in paths])
    return dataset


def _write(results: dict[str, Any]) -> Iterator[str]:
    yield f"### By `image_size`: the network, tiny, batches of {_LARGE_BATCH}\n"
    ways = [*next(iter(results["sizes"].values()))]
    yield from table(
        ["px", *(f"{way}: images/s; MB" for way in ways)],
        (
            [
                size,
                *(
                    f"{runs[way]['images_per_second']:.2f}; {runs[way]['peak_mb']:.0f}"
                    for way in ways
                ),
            ]
            for size, runs in results["sizes"].items()
        ),
    )
    for size, heads in results["heads"].items():
        yield f"### More than vectors: whole jobs, tiny, {size}\n"
        yield from table(
            ["", "images/s", "to vectors", "stored, kB an image"],
            (
                [
                    name,
                    f"{result['images_per_second']:.1f}",
                    f"{result['ratio']:.2f} x",
                    f"{result['bytes'] / 1000:.1f}",
                ]
                for name, result in heads.items()
            ),
        )


if __name__ == "__main__":
    main()
