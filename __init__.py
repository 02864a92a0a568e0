"""Hiera image embeddings for FiftyOne: a source of its model zoo, and an App plugin.

FiftyOne executes this file again on every call of a hook, so the hooks only delegate.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Unpack

    from .config import Options
    from .zoo_model import HieraEmbeddingModel

# FiftyOne 1.10 calls a downloaded plugin "@owner.name" without a module "@owner", which
# Python's relative imports need
_OWNER = __name__.rpartition(".")[0]
if _OWNER.startswith("@"):
    sys.modules.setdefault(_OWNER, types.ModuleType(_OWNER))


def download_model(model_name: str, model_path: str) -> None:
    """Download and verify the weights of a model.

    Args:
        model_name: the name of the model, as declared by the manifest
        model_path: the path that FiftyOne expects the weights at

    Raises:
        DownloadError: if they cannot be downloaded or verified
    """
    from .zoo_model import download_weights

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


def resolve_input(model_name: str, ctx: Any) -> Any:
    """Build the form of a model's options, for the zoo's operators in the App.

    Args:
        model_name: the name of the model, as declared by the manifest
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        a :class:`fiftyone.operators.types.Property`
    """
    from .plugin.zoo_form import build_form

    return build_form(model_name, ctx)


def parse_parameters(model_name: str, ctx: Any, params: dict[str, Any]) -> None:
    """Convert the form's values to options of :func:`load_model`, in place.

    Args:
        model_name: the name of the model, as declared by the manifest
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`
        params: the form's values

    Raises:
        ValueError: if the model is not allowed, or if an option or its value is not valid
    """
    from .plugin.zoo_form import parse_options

    parse_options(model_name, ctx, params)


def register(plugin: Any) -> None:
    """Register the operators.

    Args:
        plugin: the :class:`fiftyone.plugins.context.PluginContext`
    """
    from .plugin.operators import OPERATORS

    for operator in OPERATORS:
        plugin.register(operator)
