"""Hiera image embeddings for FiftyOne: a source of its model zoo, and an App plugin.

FiftyOne executes this file again on every call of a hook, so the hooks only delegate.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .embedding.version import VERSION

if TYPE_CHECKING:
    from os import PathLike
    from typing import Literal, Unpack

    import fiftyone.core.collections as foc

    from .cluster.options import RayOptions as RayOptions
    from .config import Options
    from .files.report import FilesError as FilesError
    from .files.report import FilesReport
    from .models.embedding import HieraEmbeddingModel
    from .runs.attach import AttachReport
    from .runs.report import EmbeddingError as EmbeddingError
    from .runs.report import EmbeddingReport as EmbeddingReport

__all__ = [
    "EmbeddingError",
    "EmbeddingReport",
    "FilesError",
    "RayOptions",
    "__version__",
    "attach_embeddings",
    "embed_files",
    "load_model",
]

__version__ = VERSION

# Imported when they are used: the hooks need none of them
_MODULES = {
    "EmbeddingError": ".runs.report",
    "EmbeddingReport": ".runs.report",
    "FilesError": ".files.report",
    "RayOptions": ".cluster.options",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def download_model(model_name: str, model_path: str) -> None:
    """Download and verify the weights of a model.

    Args:
        model_name: the name of the model, as declared by the manifest
        model_path: the path that FiftyOne expects the weights at

    Raises:
        DownloadError: if they cannot be downloaded or verified
    """
    from .embedding.loading import download_weights

    download_weights(model_name, Path(model_path))


def load_model(
    model_name: str, model_path: str | None = None, **kwargs: Unpack[Options]
) -> HieraEmbeddingModel:
    """Load a model.

    Args:
        model_name: the name of the model, as declared by the manifest
        model_path (None): the path of its weights; None takes them from the
            hub's cache, and downloads them if they are not there
        **kwargs: the options, see :class:`fiftyone_hiera.config.Settings`

    Returns:
        a :class:`fiftyone.core.models.Model`

    Raises:
        ValueError: if the name, an option or the weights are not valid
        DownloadError: if weights cannot be downloaded or verified
    """
    from .zoo_model import load

    return load(model_name, Path(model_path) if model_path else None, {**kwargs})


def embed_files(
    manifest: str | PathLike[str],
    out: str | PathLike[str],
    *,
    model: str,
    ray: bool | str | RayOptions | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    part_size: int = 100_000,
    vectors: Literal["float32", "float16"] = "float32",
    shard: tuple[int, int] | None = None,
    retry_failed: bool = False,
    progress: bool | Callable[[Any], None] = True,
    **kwargs: Unpack[Options],
) -> FilesReport:
    """Embed the images that a manifest lists, without FiftyOne.

    The output is a folder of Parquet files with the columns ``id``, ``uri``,
    ``vector`` (a list of fixed size) and ``error``: each row of the manifest has one row,
    with a vector or with the reason why it has none. Its files are complete when they are
    there. A run that was interrupted resumes when this function is called again; a
    record in the folder refuses other settings and other manifests.

    Args:
        manifest: the path of a Parquet file, or of a folder of such files, with the
            columns ``id`` (strings or int64, unique) and ``uri`` (paths, or what
            fsspec opens); other columns are ignored, and so are outputs below the folder
        out: the folder of the output, on a local or shared disk; created if it does
            not exist
        model: the name of the model in the zoo
        ray (None): where to read and embed: None is this process, True a local Ray
            cluster, or the one that this process is connected to; a string is the
            address of a cluster, a :class:`fiftyone_hiera.RayOptions` says more. The
            nodes must see the files by the same paths
        batch_size (None): the number of images per forward pass. By default, 32
        num_workers (None): the number of threads that decode images; with 0, the
            calling thread does. By default, one per core. On Ray, the number in each
            task that reads files, 0 by default
        part_size (100000): the number of rows in an output file
        vectors ("float32"): the dtype that vectors are stored in, "float32" or
            "float16". float16 halves the output, and rounds by at most 0.0005 of
            each number
        shard (None): a tuple ``(k, n)``: embed only the k-th of n disjoint sets of
            output files, 0 <= k < n. The first run checks that IDs are unique: let it
            begin to embed before you start others
        retry_failed (False): whether to try rows with an error again, whose files in the
            output are then replaced
        progress (True): whether to render a progress bar, or a function to call with
            the bar instead
        **kwargs: the options of the model, see
            :class:`fiftyone_hiera.config.Settings`

    Returns:
        a :class:`fiftyone_hiera.files.report.FilesReport` with the attributes
        ``embedded``, ``skipped``, ``failed``, ``warned``, ``seconds`` and ``examples``

    Raises:
        ValueError: if an argument or the manifest is not valid, or if the output was
            made with other settings or of another manifest
        FilesError: a RuntimeError, if the run had to stop or if all files failed; its
            attribute ``report`` has what was done
        ImportError: if pyarrow is not installed, or Ray if ``ray`` is given
    """
    from .cluster.options import to_ray_options
    from .files.embed_manifest import FileOptions, embed_manifest
    from .images.opening import to_local_path

    options = FileOptions(
        to_ray_options(ray),
        batch_size,
        num_workers,
        part_size,
        vectors,
        shard,
        retry_failed,
        progress,
    )
    return embed_manifest(
        to_local_path("manifest", manifest),
        to_local_path("out", out),
        model,
        {**kwargs},
        options,
    )


def attach_embeddings(
    samples: foc.SampleCollection,
    embeddings_field: str,
    out: str | PathLike[str],
    *,
    by: Literal["id", "filepath"] = "id",
    overwrite: bool = False,
) -> AttachReport:
    """Store the output of :func:`embed_files` in the samples of a dataset.

    The provenance of the output becomes that of the field, so that
    ``model.embed_samples()`` continues it, and embeddings computed with different
    settings are refused. Output files that are not complete yet are attached when this
    function is called again.

    The IDs or paths of the samples without an embedding are held in memory.

    Args:
        samples: a :class:`fiftyone.core.dataset.Dataset` or a
            :class:`fiftyone.core.view.DatasetView` of images
        embeddings_field: the field to store the embeddings in, created if it does
            not exist
        out: the folder of the output
        by ("id"): what to find a sample's row by: "id" compares its ID with the
            column ``id``, "filepath" its path with the local path that the column
            ``uri`` names, or with the URI as it is
        overwrite (False): whether to replace embeddings that exist already. Those of
            different settings are removed from the whole field first

    Returns:
        an :class:`fiftyone_hiera.runs.attach.AttachReport` with the attributes
        ``attached``, ``skipped``, ``missing`` and ``failed``

    Raises:
        ValueError: if an argument is not valid, or if the field is read-only or holds
            embeddings computed with different settings
        OSError: if the output cannot be read
        ImportError: if pyarrow is not installed
    """
    from .images.opening import to_local_path
    from .runs.attach import attach

    return attach(samples, embeddings_field, to_local_path("out", out), by, overwrite)


def resolve_input(model_name: str, ctx: Any) -> Any:
    """Build the form of a model's options, for the zoo's operators in the App.

    Returns:
        a :class:`fiftyone.operators.types.Property`
    """
    from .plugin.zoo_form import build_form

    return build_form(model_name, ctx)


def parse_parameters(model_name: str, ctx: Any, params: dict[str, Any]) -> None:
    """Convert the form's values to options of :func:`load_model`, in place.

    Raises:
        ValueError: if the model is not allowed, or if an option or its value is not valid
    """
    from .plugin.zoo_form import parse_options

    parse_options(model_name, ctx, params)


def register(plugin: Any) -> None:
    """Register the operators in a :class:`fiftyone.plugins.context.PluginContext`."""
    from .plugin.operators import OPERATORS

    for operator in OPERATORS:
        plugin.register(operator)
