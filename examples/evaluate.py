"""Which checkpoint, stage and pooling finds alike what you call alike?

    make evaluate
    python examples/evaluate.py --dataset my-dataset --label-field ground_truth \
        --models facebook/hiera-tiny-224-hf "facebook/hiera-tiny-224-hf stage=3 pooling=cls"

Measures vectors of images against their labels: how often the nearest neighbors vote for
the right label, how many neighbors have it, and how well a classifier does that was
shown a few images of each. Stores nothing in the dataset.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from documents import insert, table
from sandbox import served_archive, use_own_fiftyone

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / ".evaluate"
_NANO = "hiera-nano-digits"

_NEIGHBORS = 5
_RETRIEVED = 10
_SHOWN = (1, 5, 20)
_REPEATS = 10

Results = dict[str, dict[str, float]]


def main() -> None:
    """Measure, and write tables and a plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", help="each: a name, option=value ...")
    parser.add_argument("--dataset", help="one of yours; default: scikit-learn's digits")
    parser.add_argument(
        "--label-field", default="ground_truth", help="of Classifications; %(default)s"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="%(default)s")
    parser.add_argument("--into", type=Path, help="a document whose figures to replace")
    args = parser.parse_args()

    _FOLDER.mkdir(exist_ok=True)
    for name in ("results.json", "results.md", "evaluation.png"):
        (_FOLDER / name).unlink(missing_ok=True)

    models = args.models or list(_nano_models())
    try:
        dataset = _digits() if args.dataset is None else _own(args.dataset)
        check_labels(dataset, args.label_field)
        # What is wrong with one of them is said before any is measured
        for text in models:
            _load(text)
    except ValueError as error:
        raise SystemExit(str(error)) from error

    labels_path = f"{args.label_field}.label"
    samples = dataset.exists(labels_path)
    labels = samples.values(labels_path)
    results: Results = {}
    figures = ""
    for text in models:
        results[text] = _measure(samples, labels, text, args.batch_size)
        print(text, json.dumps(results[text]))
        figures = "\n".join(_table(results))
        (_FOLDER / "results.json").write_text(json.dumps(results, indent=2), "utf-8")
        (_FOLDER / "results.md").write_text(figures, "utf-8")

    _plot(results, _FOLDER / "evaluation.png")
    if args.into is not None:
        insert(f"{len(samples)} images.\n\n{figures}", "figures", args.into)
        picture = args.into.parent / "pictures" / "evaluation.png"
        picture.write_bytes((_FOLDER / "evaluation.png").read_bytes())

    print(f"\n{figures}\nAll of it is in {_FOLDER}")


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """Split the name of a model from its options.

    Args:
        text: ``<name> <option>=<value> ...``, each value as Python has it, or a word

    Returns:
        the name and the options
    """
    name, *pairs = text.split()
    options = {}
    for pair in pairs:
        option, equals, value = pair.partition("=")
        if not equals:
            raise SystemExit(f"{text!r}: {pair!r} is not option=value")

        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[option] = {"true": True, "false": False}.get(value, value)

    return name, options


def _nano_models() -> Iterator[str]:
    for stage in (1, 2, 3, 4):
        for pooling in ("mean", "cls", *(["pooler"] if stage == 4 else [])):
            yield f"{_NANO} stage={stage} pooling={pooling}"


def _digits() -> Any:
    """Return the 597 digits that the nano checkpoint never saw."""
    use_own_fiftyone(_FOLDER / "fiftyone", show_progress_bars=False)
    import fiftyone as fo
    import fiftyone.zoo as foz

    from digits import write_digits

    with served_archive(_FOLDER / "archive") as url:
        foz.register_zoo_model_source(url, overwrite=True)

    dataset = fo.Dataset()
    dataset.add_samples(
        [
            fo.Sample(
                filepath=str(digit.path),
                ground_truth=fo.Classification(label=str(digit.label)),
            )
            for digit in write_digits(_FOLDER / "digits")
            if digit.split == "test"
        ]
    )
    return dataset


def _own(name: str) -> Any:
    import fiftyone as fo

    return fo.load_dataset(name)


def check_labels(dataset: Any, label_field: str) -> None:
    """Check that a field of a dataset tells images apart.

    Args:
        dataset: the dataset
        label_field: the name of the field

    Raises:
        ValueError: if it is no field of Classifications, or if these have fewer than two
            different labels
    """
    import fiftyone as fo

    field = dataset.get_field(label_field)
    if getattr(field, "document_type", None) is not fo.Classification:
        known = [*dataset.get_field_schema(embedded_doc_type=fo.Classification)]
        raise ValueError(
            f"{dataset.name!r} has no Classifications in {label_field!r}. It has them in "
            f"{known}"
        )

    found = dataset.distinct(f"{label_field}.label")
    if len(found) < 2:
        raise ValueError(f"There is nothing to tell apart: all labels are of {found}")


def _load(text: str) -> Any:
    import fiftyone.zoo as foz

    name, options = parse_model(text)
    return foz.load_zoo_model(name, **options)


def _measure(
    samples: Any, labels: list[str | None], text: str, batch_size: int
) -> dict[str, float]:
    import numpy as np

    model = _load(text)
    embedded = list(samples.compute_embeddings(model, batch_size=batch_size))
    # A bad file cost its batch: the others of it, one by one
    missing = [index for index, vector in enumerate(embedded) if vector is None]
    if missing:
        ids = samples.values("id")
        again = samples.select([ids[index] for index in missing], ordered=True)
        for index, vector in zip(
            missing, again.compute_embeddings(model, batch_size=1), strict=True
        ):
            embedded[index] = vector

    pairs = [
        (vector, label)
        for vector, label in zip(embedded, labels, strict=True)
        if vector is not None
    ]
    print(f"{text}: {len(pairs)} of {len(labels)} images")
    if len(pairs) <= _RETRIEVED:
        raise SystemExit(f"{len(pairs)} labelled images are too few to measure anything")

    vectors = np.stack([vector for vector, _ in pairs])
    classes = np.array([label for _, label in pairs])
    return {"dimension": vectors.shape[1], **measure(vectors, classes)}


def measure(vectors: Any, classes: Any) -> dict[str, float]:
    """Measure vectors against labels.

    Args:
        vectors: an array of shape (N, D)
        classes: an array of N labels

    Returns:
        ``knn``: of how many the 5 nearest others, by cosine, vote for their label;
        ``precision``: how many of the 10 nearest others have it, of fewer where fewer
        do; ``shown_<n>``: of how many a logistic regression finds it that was shown n
        of each label, the average of 10 draws. That is of the labels that have more
        images than n, and left out where there are fewer than two
    """
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    index = NearestNeighbors(n_neighbors=_RETRIEVED, metric="cosine").fit(unit)
    nearest = classes[index.kneighbors(return_distance=False)]

    _, members, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    most = np.clip(sizes[members] - 1, 1, _RETRIEVED)
    votes = [_vote(row) for row in nearest[:, :_NEIGHBORS]]
    results = {
        "knn": float(np.mean(np.array(votes) == classes)),
        "precision": float(np.mean((nearest == classes[:, None]).sum(axis=1) / most)),
    }
    for shown in _SHOWN:
        # Of each label some must be left to be found
        if (sizes > shown).sum() >= 2:
            kept = sizes[members] > shown
            scores = [
                _few_shots(unit[kept], classes[kept], shown, seed)
                for seed in range(_REPEATS)
            ]
            results[f"shown_{shown}"] = float(np.mean(scores))

    return results


def _vote(labels: Any) -> Any:
    """Return the most frequent label; of equals, that of the nearest."""
    import numpy as np

    found, first, counts = np.unique(labels, return_index=True, return_counts=True)
    return found[np.lexsort((first, -counts))[0]]


def _few_shots(unit: Any, classes: Any, shown: int, seed: int) -> float:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    draw = np.random.default_rng(seed)
    chosen = np.concatenate(
        [
            draw.permutation(np.flatnonzero(classes == label))[:shown]
            for label in np.unique(classes)
        ]
    )
    rest = np.setdiff1d(np.arange(len(classes)), chosen)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(unit[chosen], classes[chosen])
    return float(classifier.score(unit[rest], classes[rest]))


def _table(results: Results) -> Iterator[str]:
    names = ["knn", "precision", *(f"shown_{shown}" for shown in _SHOWN)]
    few = [f"{shown} shown" for shown in _SHOWN]
    yield from table(
        ["model", "dimension", "5-NN", "precision at 10", *few],
        (
            [
                f"`{text}`",
                str(result["dimension"]),
                *(f"{100 * result[n]:.1f} %" if n in result else "-" for n in names),
            ]
            for text, result in results.items()
        ),
    )


def _plot(results: Results, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (bars, curves) = plt.subplots(
        1, 2, figsize=(15, 0.35 * len(results) + 2.5), layout="constrained"
    )
    names = list(results)
    drawn = bars.barh(names, [100 * results[name]["precision"] for name in names])
    bars.bar_label(drawn, fmt="%.1f", padding=3)
    bars.invert_yaxis()
    bars.set_title("Of the 10 nearest, those with the same label (%)")
    bars.spines[["top", "right"]].set_visible(False)
    for name in names:
        shown = [n for n in _SHOWN if f"shown_{n}" in results[name]]
        shares = [100 * results[name][f"shown_{n}"] for n in shown]
        curves.plot([str(n) for n in shown], shares, marker="o", label=name)

    curves.set_title("Labels found, by images shown of each (%)")
    curves.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    curves.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
