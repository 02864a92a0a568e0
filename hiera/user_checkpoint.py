"""Open a user's own checkpoint: a folder, a safetensors file or a hub id.

Any Hiera that transformers saved. ``config.json`` defines the architecture, and the
settings of the image processor, if they are there, the preprocessing: in
``processor_config.json`` as ``image_processor``, or else in ``preprocessor_config.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..images.preprocessing import Preprocessing, for_image_size
from ..images.processor_config import parse_processor
from .checkpoint_kinds import ARCHITECTURES, HIERA_MODEL
from .configuration import Configuration, read_configuration
from .hub import WEIGHTS_NAME, DownloadError, HubFile

_CONFIG_NAME = "config.json"
_PROCESSOR_NAMES = ("processor_config.json", "preprocessor_config.json")
_REQUIRED_KEYS = ("depths", "embed_dim", "image_size", "num_heads")
# Others define their preprocessing in the weights file, and have no config.json
_SUPPORTED = [one.name for one in ARCHITECTURES.values() if not one.read_preprocessing]
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".safetensors.index.json")
_CONVERT = (
    "Sharded and pickle files are not loaded. If you trust them, convert them with "
    "transformers: model = transformers.HieraModel.from_pretrained(folder), or the class "
    "in config.json, then model.save_pretrained(folder, max_shard_size='100GB')"
)
_HUB_ID = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint on disk.

    Args:
        config: the configuration
        path: the path of the safetensors file
        preprocessing: the preprocessing
        revision (None): the commit on the hub, if known
        verify (None): raises an error if a sha256 is not that of the weights
    """

    config: Configuration
    path: Path
    preprocessing: Preprocessing
    revision: str | None = None
    verify: Callable[[str], None] | None = None


def find_checkpoint(checkpoint: str) -> str:
    """Check that a checkpoint exists, without loading it.

    Args:
        checkpoint: a folder, a ``.safetensors`` file, or
            ``<owner>/<name>@<revision>`` on the hub with a full commit hash

    Returns:
        the checkpoint; a path becomes absolute, so that it stays the same wherever the
        process goes

    Raises:
        ValueError: if it is none of these
    """
    path = Path(os.path.abspath(Path(checkpoint).expanduser()))
    if checkpoint and path.is_dir():
        needed = (path / _CONFIG_NAME, path / WEIGHTS_NAME)
    elif path.suffix == ".safetensors":
        needed = (path.with_name(_CONFIG_NAME), path)
    elif _HUB_ID.fullmatch(checkpoint):
        return checkpoint
    else:
        is_other = path.name.endswith(_OTHER_FORMATS)
        raise OptionError(
            "checkpoint",
            f"Invalid checkpoint {checkpoint!r}. Valid are an existing folder, a "
            ".safetensors file, and <owner>/<name>@<revision> on the hub, where the "
            "revision is the full 40-digit commit hash from its page 'Files and "
            "versions', so that embeddings are reproducible"
            + (f". {_CONVERT}" if is_other else ""),
        )

    missing = [str(file) for file in needed if not file.is_file()]
    if missing:
        others = (one.name.endswith(_OTHER_FORMATS) for one in needed[1].parent.glob("*"))
        is_other = not needed[1].is_file() and any(others)
        convert = f". {_CONVERT}" if is_other else ""
        raise OptionError(
            "checkpoint",
            f"Invalid checkpoint {checkpoint!r}: no file {', '.join(missing)}{convert}",
        )

    return str(path)


def open_checkpoint(checkpoint: str) -> LocalCheckpoint:
    """Read the configuration of a checkpoint, and download it if necessary.

    Args:
        checkpoint: see :func:`find_checkpoint`

    Returns:
        a :class:`LocalCheckpoint`

    Raises:
        ValueError: if it is not a Hiera checkpoint that transformers saved
        DownloadError: if it cannot be downloaded
    """
    found = find_checkpoint(checkpoint)
    hub_id = _HUB_ID.fullmatch(found)
    return _open_on_hub(**hub_id.groupdict()) if hub_id else _open_on_disk(Path(found))


def _open_on_hub(repo_id: str, revision: str) -> LocalCheckpoint:
    # Small files first, so that nothing large is downloaded only to be refused
    config = _read_config(HubFile(repo_id, revision, filename=_CONFIG_NAME).fetch())
    nested, plain = (HubFile(repo_id, revision, filename=name) for name in _PROCESSOR_NAMES)
    processors = [None, plain.fetch_optional()]
    # Few repositories have this one, so without a network it is not missed, as by
    # transformers
    with contextlib.suppress(DownloadError):
        processors[0] = nested.fetch_optional()

    preprocessing = _read_preprocessing(processors, config.image_size)
    weights = HubFile(repo_id, revision)
    path = weights.fetch_optional()
    if path is None:
        raise ValueError(f"{repo_id}@{revision} has no file {WEIGHTS_NAME}. {_CONVERT}")

    verify = partial(weights.verify, path)
    return LocalCheckpoint(config, path, preprocessing, revision, verify)


def _open_on_disk(path: Path) -> LocalCheckpoint:
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    config = _read_config(weights.with_name(_CONFIG_NAME))
    paths = [weights.with_name(name) for name in _PROCESSOR_NAMES]
    processors = [path if path.is_file() else None for path in paths]
    preprocessing = _read_preprocessing(processors, config.image_size)
    return LocalCheckpoint(config, weights, preprocessing)


def _read_preprocessing(
    paths: list[Path | None], image_size: tuple[int, int]
) -> Preprocessing:
    """Read the first settings of an image processor, as transformers does."""
    nested, plain = paths
    if nested is not None:
        values = _read_json(nested).get("image_processor")
        if isinstance(values, dict):
            return parse_processor(values, image_size, f"{nested}: image_processor")

        if values is not None:
            raise ValueError(f"{nested}: image_processor = {values!r} is not a dict")

        if plain is None:
            raise ValueError(
                f"{nested} has no image_processor: save the image processor again with "
                "transformers, or remove the file"
            )

    if plain is not None:
        return parse_processor(_read_json(plain), image_size, str(plain))

    return for_image_size(image_size)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error

    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a configuration that transformers saved")

    return values


def _read_config(path: Path) -> Configuration:
    config = _read_json(path)
    if config.get("model_type") != "hiera":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}, not 'hiera'")

    # Early files have other names for these, and the defaults would be silently wrong
    missing = [key for key in _REQUIRED_KEYS if config.get(key) is None]
    if missing:
        raise ValueError(
            f"{path}: missing {missing}; save the model again with transformers"
        )

    architectures = config.get("architectures") or [HIERA_MODEL.name]
    if not isinstance(architectures, list) or architectures[0] not in _SUPPORTED:
        raise ValueError(
            f"{path}: unsupported architectures {architectures!r}; supported are "
            f"{_SUPPORTED}, the first of the list"
        )

    if config.get("num_channels", 3) != 3:
        raise ValueError(f"{path}: num_channels is {config['num_channels']!r}, not 3")

    # Meta's own files have an older name, which transformers does not know
    if "norm_pix_loss" in config:
        config.setdefault("normalize_pixel_loss", config["norm_pix_loss"])

    try:
        return read_configuration(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
