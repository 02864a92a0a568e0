"""Run ``python -m fiftyone_hiera embed``, ``embed-files`` and ``--version``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import fiftyone_hiera
from fiftyone_hiera.embedding.version import VERSION

_FAILED, _INVALID, _INTERRUPTED = 1, 2, 130
"""The exit statuses."""

_FLAGS = ("overwrite", "retry_failed")
_HINT = (
    "Here, overwrite=True is --overwrite, retry_failed=True is --retry-failed, and "
    "pooling='cls' is --option pooling=cls"
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments (None): the arguments, by default those of the process

    Returns:
        the exit status: 0, 1 if the run had to stop or everything failed, 2 if an
        argument is not valid
    """
    given = vars(_build_parser().parse_args(arguments))
    command: Callable[..., object] = given.pop("command")
    given["options"] = dict(given["options"])
    try:
        print(command(**given))
    except KeyboardInterrupt:
        return _fail("Interrupted: the same command resumes there", _INTERRUPTED)
    except ValueError as error:
        return _fail(error, _INVALID)
    except (RuntimeError, OSError, ImportError) as error:
        return _fail(error, _FAILED)

    return 0


def _embed(
    dataset: str,
    field: str | None,
    model: str,
    options: dict[str, Any],
    backend_options: list[tuple[str, Any]],
    **given: Any,
) -> object:
    import fiftyone as fo

    samples = fo.load_dataset(dataset)
    loaded = fiftyone_hiera.load_model(model, **options)
    settings = dict(backend_options) or None
    return loaded.embed_samples(samples, field, backend_kwargs=settings, **given)


def _embed_files(manifest: str, out: str, options: dict[str, Any], **given: Any) -> object:
    return fiftyone_hiera.embed_files(manifest, out, **given, **options)


def _fail(reason: object, status: int) -> int:
    hint = f"\n{_HINT}" if getattr(reason, "option", None) in _FLAGS else ""
    print(f"fiftyone_hiera: {reason}{hint}", file=sys.stderr)
    return status


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fiftyone_hiera", description="Compute embeddings with a Hiera model."
    )
    parser.add_argument("--version", action="version", version=f"fiftyone-hiera {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    embed = commands.add_parser("embed", help="embed the samples of a FiftyOne dataset")
    embed.set_defaults(command=_embed)
    embed.add_argument("dataset", metavar="DATASET", help="the name of the dataset")
    embed.add_argument(
        "field",
        metavar="FIELD",
        nargs="?",
        help="the field for the embeddings; none to store them in an index alone",
    )
    _add_common(embed)
    embed.add_argument("--patches-field", help="embed the patches of this label field")
    embed.add_argument(
        "--overwrite", action="store_true", help="embed what has an embedding already too"
    )
    embed.add_argument(
        "--no-skip-failures",
        dest="skip_failures",
        action="store_false",
        help="stop at the first failure",
    )
    embed.add_argument("--failure-tag", help="a tag for the samples that fail")
    embed.add_argument(
        "--verify",
        type=int,
        default=3,
        help="how many existing embeddings to check (default: 3)",
    )

    embed.add_argument("--brain-key", help="the brain key of a similarity index to feed")
    embed.add_argument("--backend", help="the similarity backend of the index")
    embed.add_argument(
        "--backend-option",
        dest="backend_options",
        action="append",
        default=[],
        type=_parse_option,
        metavar="NAME=VALUE",
        help="a setting of the backend, such as metric=cosine; may be repeated",
    )

    files = commands.add_parser(
        "embed-files", help="embed the files that a Parquet manifest lists"
    )
    files.set_defaults(command=_embed_files)
    files.add_argument(
        "manifest", metavar="MANIFEST", help="a Parquet file of (id, uri), or a folder"
    )
    files.add_argument("out", metavar="OUT", help="the folder for the embeddings")
    _add_common(files)
    files.add_argument(
        "--part-size",
        type=int,
        default=100_000,
        help="the number of rows per output file (default: 100000)",
    )
    files.add_argument(
        "--vectors",
        default="float32",
        choices=["float32", "float16"],
        help="the dtype to store (default: float32)",
    )
    files.add_argument(
        "--retry-failed", action="store_true", help="try rows with an error again"
    )
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="the name of the model in the zoo")
    parser.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        type=_parse_option,
        metavar="NAME=VALUE",
        help="an option of the model, such as normalize=true; may be repeated",
    )
    parser.add_argument(
        "--ray",
        type=lambda address: True if address == "local" else address,
        metavar="ADDRESS",
        help="embed on a Ray cluster: 'local' starts one here, 'auto' is this machine's",
    )
    parser.add_argument("--batch-size", type=int, help="images per forward pass")
    parser.add_argument("--num-workers", type=int, help="threads that decode images")
    parser.add_argument(
        "--shard", type=_parse_shard, metavar="K/N", help="embed only the K-th of N shards"
    )


def _parse_option(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")

    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _parse_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    try:
        return int(index), int(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected K/N, found {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
