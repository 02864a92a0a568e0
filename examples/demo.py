"""The main job, start to finish: embed images, search them, draw their map.

    make demo
    make demo PHOTOS=1
    make demo MODEL=facebook/hiera-tiny-224-hf IMAGES=path/to/folder

Everything it writes lies in .demo/, a database of its own included, except
weights from the Hugging Face hub, which go to the hub's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

from sandbox import served_archive, use_own_fiftyone

_ROOT = Path(__file__).resolve().parents[1]
_DEMO = _ROOT / ".demo"
_IMAGE_TYPES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_NEIGHBORS = 8


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the nano checkpoint for these images")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--images", type=Path, help="default: scikit-learn's digits")
    images.add_argument("--photos", action="store_true", help="embed parts of photographs")
    parser.add_argument("--app", action="store_true", help="open the App at the end")
    args = parser.parse_args()
    args.model = args.model or f"hiera-nano-{'photos' if args.photos else 'digits'}"

    use_own_fiftyone(_DEMO, default_app_address="localhost")
    os.environ["MPLCONFIGDIR"] = str(_DEMO / "matplotlib")
    import fiftyone as fo
    import fiftyone.zoo as foz

    if (args.images or args.photos) and args.model == "hiera-nano-digits":
        print(
            "Note: hiera-nano-digits knows digits only; for photos, choose another MODEL."
        )

    print("Registering the model source, from an archive...")
    with served_archive(_DEMO / "archive") as url:
        foz.register_zoo_model_source(url, overwrite=True)

    if args.model not in foz.list_zoo_models(source=url):
        names = "\n    ".join(foz.list_zoo_models(source=url))
        raise SystemExit(f"Unknown model {args.model!r}. Valid are:\n    {names}")

    dataset = _load_dataset(args.images, args.photos)
    field = re.sub(r"\W", "_", args.model.rpartition("/")[2])
    try:
        _embed(dataset, args.model, field)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error

    if args.images is None:
        unseen = "parts of the photographs" if args.photos else "digits"
        print(f"5-NN accuracy on unseen {unseen}: {_accuracy(dataset, field):.1%}")

    map_path = _draw_map(dataset, field, _DEMO / f"{dataset.name}-map.png")
    query_path = _draw_query(dataset, field, _DEMO / f"{dataset.name}-query.png")
    print(f"\nThe map:                   {map_path}")
    print(f"A query and its neighbors: {query_path}")
    if args.app:
        fo.launch_app(dataset).wait()
        return

    again = shlex.join(["make", "demo", "APP=1", *_variables(args)])
    print(
        "\nTo open it in the App, then choose the map in the Embeddings panel, or select "
        f"\nan image and sort by similarity:\n\n    {again}\n"
    )


def _variables(args: argparse.Namespace) -> list[str]:
    """Return the variables of make that stand for the arguments."""
    images = [] if args.images is None else [f"IMAGES={args.images}"]
    photos = ["PHOTOS=1"] if args.photos else []
    return [f"MODEL={args.model}", *images, *photos]


def _load_dataset(images: Path | None, has_photos: bool) -> Any:
    """Return a persistent dataset that holds every image, old or new."""
    import fiftyone as fo

    from digits import write_digits
    from photographs import write_photographs

    if has_photos:
        name = "photographs"
        views = write_photographs(_DEMO / "photographs")
        found = {str(view.path): (view.photograph, [view.split]) for view in views}
    elif images is None:
        name = "digits"
        digits = write_digits(_DEMO / "digits")
        found = {str(d.path): (str(d.label), [d.split]) for d in digits}
    else:
        folder = images.expanduser().resolve()
        if not folder.is_dir():
            raise SystemExit(f"No such folder: {folder}")

        # Folders of one name are different datasets
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:6]
        name = f"images-{re.sub(r'[^A-Za-z0-9-]+', '-', folder.name)}-{digest}"
        found = {
            str(path): (path.parent.name, [])
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in _IMAGE_TYPES
        }
        if len(found) < 2:
            raise SystemExit(
                f"A map needs 2 images or more; found {len(found)} in {folder}"
            )

    dataset = (
        fo.load_dataset(name)
        if fo.dataset_exists(name)
        else fo.Dataset(name, persistent=True)
    )
    ids = dict(zip(*dataset.values(["filepath", "id"]), strict=True))
    new = [
        fo.Sample(filepath=path, tags=tags, label=fo.Classification(label=label))
        for path, (label, tags) in found.items()
        if path not in ids
    ]
    if new:
        dataset.add_samples(new)

    dataset.delete_samples([ids[path] for path in ids if path not in found])
    return dataset


def _embed(dataset: Any, model_name: str, field: str) -> None:
    """Compute what is missing: embeddings, the similarity index and the map."""
    import fiftyone.brain as fob
    import fiftyone.zoo as foz

    print(f"Embedding {len(dataset)} images with {model_name}...")
    model = foz.load_zoo_model(model_name)
    print(model.embed_samples(dataset, field, progress=True))

    view = dataset.exists(field)
    if len(view) < 2:
        raise SystemExit("Fewer than 2 images could be embedded; see the messages above")

    keys = {f"{field}_similarity", f"{field}_map"}
    existing = keys & set(dataset.list_brain_runs())
    if existing == keys:
        results = dataset.load_brain_results(f"{field}_map")
        if set(results.sample_ids) == set(view.values("id")):
            return

    for key in existing:
        dataset.delete_brain_run(key)

    print("Building the similarity index...")
    fob.compute_similarity(
        view, model=model_name, embeddings=field, brain_key=f"{field}_similarity"
    )
    print("Drawing the map...")
    warnings.filterwarnings("ignore", message="n_jobs value")  # of UMAP, with a seed
    options = {"method": "umap", "verbose": False} if len(view) >= 20 else {"method": "pca"}
    fob.compute_visualization(
        view, embeddings=field, brain_key=f"{field}_map", seed=51, **options
    )


def _accuracy(dataset: Any, field: str) -> float:
    """Return how often the 5 nearest images for training vote for the right label."""
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    train, test = dataset.match_tags("train"), dataset.match_tags("test")
    knn = KNeighborsClassifier(5)
    knn.fit(np.stack(train.values(field)), train.values("label.label"))
    return float(knn.score(np.stack(test.values(field)), test.values("label.label")))


def _draw_map(dataset: Any, field: str, path: Path) -> Path:
    """Draw the map, one color per label."""
    plt = _pyplot()
    results = dataset.load_brain_results(f"{field}_map")
    labels = dict(zip(*dataset.values(["id", "label.label"]), strict=True))
    classes = [labels[sample_id] for sample_id in results.sample_ids]

    figure, axes = plt.subplots(figsize=(8, 7), layout="constrained")
    palette = plt.colormaps["tab20" if len(set(classes)) > 10 else "tab10"]
    for number, label in enumerate(sorted(set(classes))):
        points = results.points[[c == label for c in classes]]
        axes.scatter(*points.T, s=6, color=palette(number % palette.N), label=label)

    if 1 < len(set(classes)) <= 20:
        axes.legend(
            markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )

    axes.set(title=f"{dataset.name}: {len(classes)} images, {field}", xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
    return path


def _draw_query(dataset: Any, field: str, path: Path) -> Path:
    """Draw one image and its nearest neighbors."""
    from PIL import Image

    plt = _pyplot()
    query = (dataset.match_tags("test") or dataset.exists(field)).first()
    view = dataset.sort_by_similarity(
        query.id, k=_NEIGHBORS + 1, brain_key=f"{field}_similarity"
    )
    samples = [query, *(sample for sample in view if sample.id != query.id)]

    figure, axes = plt.subplots(1, len(samples), figsize=(1.4 * len(samples), 1.8))
    for axis, sample in zip(axes, samples, strict=True):
        axis.imshow(Image.open(sample.filepath).convert("RGB"))
        label = sample.label.label
        axis.set_title(f"query: {label}" if sample.id == query.id else label)
        axis.axis("off")

    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    main()
