"""How fast whole jobs are: files in, vectors stored in FiftyOne; and their parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from measure import describe_machine, interleave, measure_steps, prepare
from network import save_checkpoint
from pictures import write_jpegs
from sandbox import served_archive

_HERE = Path(__file__).resolve().parent

NANO = "hiera-nano-digits"
BATCH_SIZE = 32
INTEGRATION = "FiftyOne's transformers integration"

# Of how many of the VGA images there is one of each size
_SHARES = {"VGA": 1, "2 MP": 2, "12 MP": 4}


def main() -> None:
    """Measure and save."""
    args = prepare(
        __doc__,
        has_document=False,
        rounds=3,
        images={"type": int, "default": 128, "help": "VGA; of larger ones fewer"},
        samples=[100, 1000, 10_000],
    )
    folder = args.folder
    files = {
        size: write_jpegs(folder / "pictures", size, args.images // share)
        for size, share in _SHARES.items()
    }
    tiny = save_checkpoint("tiny", folder / "tiny")

    results: dict[str, Any] = {"machine": describe_machine(), "batch_size": BATCH_SIZE}
    steps: dict[str, Callable[[], Any]] = {
        "reading": partial(_measure_reading, files, args.rounds),
        "writing": partial(_measure_writing, 16 * args.images, args.rounds),
        "jobs": partial(_measure_jobs, files["VGA"], tiny, args.rounds),
        "sizes": partial(_measure_sizes, files, tiny, args.rounds),
        "processes": partial(_measure_processes, files, tiny, args.samples, folder),
    }
    measure_steps(results, steps, folder / "jobs.json")


def _measure_reading(files: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """From files to the encoder's input, in one thread and in as many as cores."""
    import torch
    from PIL import Image
    from transformers import BitImageProcessor, BitImageProcessorPil

    from fiftyone_hiera.images.preprocessing import for_image_size

    exact = for_image_size((224, 224))
    fast = type(exact)(exact.resize_size, exact.crop_size, is_fast=True)
    options: dict[str, Any] = {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
    }
    processors = {
        "transformers, Pillow": BitImageProcessorPil(**options),
        "transformers, torchvision": BitImageProcessor(**options),
    }

    def theirs(processor: Any, paths: list[str]) -> int:
        for path in paths:
            processor(Image.open(path).convert("RGB"), return_tensors="pt")

        return len(paths)

    results = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for size, paths in files.items():
        few = paths[: max(8, len(paths) // 4)]
        contenders: dict[str, Callable[[], int]] = {
            **{name: partial(theirs, p, few) for name, p in processors.items()},
            "ours": partial(_read, exact, few),
            "ours, fast_decoding": partial(_read, fast, few),
            "ours, a thread per core": partial(_read_in_threads, exact, few),
            "ours, fast_decoding, a thread per core": partial(_read_in_threads, fast, few),
        }
        results[size] = interleave(contenders, rounds, baseline="transformers, Pillow")
        difference = [(exact(path).float() - fast(path).float()).abs() for path in few]
        results[size]["ours, fast_decoding"] |= {
            "mean_difference": torch.stack(difference).mean().item(),
            "largest_difference": torch.stack(difference).max().item(),
        }

    torch.set_num_threads(threads)
    return results


def _read(prepare: Any, paths: list[str]) -> int:
    for path in paths:
        prepare(path)

    return len(paths)


def _read_in_threads(prepare: Any, paths: list[str]) -> int:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda path: _read(prepare, [path]), paths))


def _measure_writing(count: int, rounds: int) -> dict[str, Any]:
    """Vectors into the database: as FiftyOne's own loop does it, and as ours."""
    import fiftyone as fo
    import numpy as np

    from fiftyone_hiera.embedding.jobs import Part
    from fiftyone_hiera.runs.target import Target

    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=f"/{index}.jpg") for index in range(count)])
    ids = dataset.values("id")
    vectors = np.random.default_rng(51).normal(size=(len(ids), 768)).astype(np.float32)
    target = Target(dataset, "ours")
    target.add_field()

    def native() -> int:
        with dataset.save_context() as context:
            for sample, vector in zip(dataset, vectors, strict=True):
                sample["theirs"] = vector
                context.save(sample)

        return len(ids)

    def ours() -> int:
        for start in range(0, len(ids), BATCH_SIZE):
            end = start + BATCH_SIZE
            target.store([Part(i, i) for i in ids[start:end]], vectors[start:end])

        return len(ids)

    contenders = {"SaveContext": native, "ours": ours}
    results = interleave(contenders, rounds, baseline="SaveContext")
    dataset.delete()
    return results


def _measure_jobs(files: list[str], tiny: Path, rounds: int) -> dict[str, Any]:
    """Everything, against what users have today."""
    import fiftyone.utils.transformers as fout
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, HieraModel

    import fiftyone_hiera

    dataset = _make_dataset(files)
    hiera = HieraModel.from_pretrained(tiny).eval()
    integration = fout.convert_transformers_model(hiera)
    processor = AutoImageProcessor.from_pretrained(tiny)

    def native(model: Any, field: str) -> int:
        dataset.compute_embeddings(model, embeddings_field=field, batch_size=BATCH_SIZE)
        return len(files)

    def runner(model: Any, field: str) -> int:
        model.embed_samples(dataset, field, batch_size=BATCH_SIZE, overwrite=True)
        return len(files)

    @torch.inference_mode()
    def loop() -> int:
        view = dataset.limit(len(files) // 4)
        for sample in view.iter_samples():
            image = Image.open(sample.filepath).convert("RGB")
            tokens = hiera(**processor(image, return_tensors="pt")).last_hidden_state
            sample["loop"] = tokens[0].mean(dim=0).numpy()
            sample.save()

        return len(view)

    load = partial(fiftyone_hiera.load_model, NANO, checkpoint=str(tiny))
    models = {
        "float32, torch": load(dtype="float32", engine="torch"),
        "auto, torch": load(engine="torch"),
        "auto": load(),
        "auto, fast_decoding": load(fast_decoding=True),
    }
    contenders: dict[str, Callable[[], int]] = {
        INTEGRATION: partial(native, integration, "integration"),
        "an image at a time": loop,
    }
    for name, model in models.items():
        contenders[f"ours, compute_embeddings, {name}"] = partial(native, model, "ours")

    # Each to a field of its own: taking over that of another would be work of its own
    for index, (name, model) in enumerate(models.items()):
        run = partial(runner, model, f"runner_{index}")
        contenders[f"ours, embed_samples, {name}"] = run

    auto = models["auto"]
    pixels = torch.stack([auto.transforms(Image.open(path)) for path in files])

    def network() -> int:
        for batch in pixels.split(BATCH_SIZE):
            auto.embedder.embed(batch)

        return len(pixels)

    contenders["part: the network alone, auto"] = network
    contenders["part: reading alone, a thread per core"] = partial(
        _read_in_threads, auto.transforms, files
    )
    results = interleave(contenders, rounds, baseline=INTEGRATION)
    for name, model in models.items():
        for way in ("compute_embeddings", "embed_samples"):
            results[f"ours, {way}, {name}"] |= {
                "dtype": model.settings.dtype,
                "engine": model.settings.engine,
            }

    dataset.delete()
    return results


def _measure_sizes(files: dict[str, list[str]], tiny: Path, rounds: int) -> dict[str, Any]:
    """Whole runs over images of different sizes, with and without fast decoding."""
    import fiftyone_hiera

    load = partial(fiftyone_hiera.load_model, NANO, checkpoint=str(tiny))
    exact, fast = load(), load(fast_decoding=True)
    results = {}
    for size, paths in files.items():
        dataset = _make_dataset(paths)

        def run(model: Any, field: str, dataset: Any = dataset) -> int:
            model.embed_samples(dataset, field, batch_size=BATCH_SIZE, overwrite=True)
            return len(dataset)

        contenders = {
            "exact": partial(run, exact, "exact"),
            "fast_decoding": partial(run, fast, "fast"),
        }
        results[size] = interleave(contenders, rounds, baseline="exact")
        dataset.delete()

    return results


def _measure_processes(
    files: dict[str, list[str]], tiny: Path, counts: list[int], folder: Path
) -> dict[str, Any]:
    """What it takes to start, and what memory, in processes of their own."""
    import fiftyone.zoo as foz
    import torch

    digits = write_jpegs(folder / "pictures", "VGA", 1)
    with served_archive(folder / "served") as url:
        foz.register_zoo_model_source(url, overwrite=True)

    results: dict[str, Any] = {
        "first_vector": {},
        "memory": {},
        "sizes": {},
        "samples": {},
    }
    dataset = _make_dataset(files["VGA"])
    options: dict[str, Any] = {"checkpoint": str(tiny)}
    engines = ("torch",) if torch.cuda.is_available() else ("torch", "openvino")
    for engine in engines:
        results["first_vector"][engine] = _run("first_vector.py", engine, str(tiny))
        for way in ("native", "runner"):
            results["memory"][f"{way}, {engine}"] = _run_alone(
                dataset.name, way, {**options, "engine": engine}
            )

    dataset.delete()
    for size, paths in files.items():
        dataset = _make_dataset(paths)
        results["sizes"][size] = _run_alone(dataset.name, "runner", options)
        dataset.delete()

    for count in counts:
        dataset = _make_dataset(digits * count)
        results["samples"][count] = _run_alone(dataset.name, "runner", {})
        dataset.delete()

    return results


def _run_alone(dataset: str, way: str, options: dict[str, Any]) -> dict[str, float]:
    return _run("one_job.py", dataset, way, json.dumps(options))


def _run(script: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, str(_HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)

    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _make_dataset(paths: list[str]) -> Any:
    import fiftyone as fo

    dataset = fo.Dataset(persistent=True)
    dataset.add_samples([fo.Sample(filepath=path) for path in paths])
    return dataset


if __name__ == "__main__":
    main()
