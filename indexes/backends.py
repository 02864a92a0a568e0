"""Similarity backends of FiftyOne's brain, and the settings that each takes."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import eta.core.utils as etau
import fiftyone.brain as fob

from ..errors import OptionError

SKLEARN = "sklearn"
"""The backend that reads the vectors from the dataset's field, and has no table."""

# What FiftyOne's classes import by backend, and the distributions that have it; with
# versions where those of pyproject.toml were tested
_PACKAGES = {
    "elasticsearch": ("elasticsearch", "elasticsearch"),
    "lancedb": ("lancedb", '"lancedb>=0.40,<1"'),
    "milvus": ("pymilvus", '"pymilvus>=3,<4"'),
    "mosaic": ("databricks.ai_search", "databricks-ai-search"),
    "pgvector": ("psycopg2", '"psycopg2-binary>=2.9,<3"'),
    "pinecone": ("pinecone", "pinecone-client"),
    "qdrant": ("qdrant_client", "qdrant-client"),
    "redis": ("redis", "redis"),
}

# FiftyOne fills these in by itself
_NOT_SETTINGS = {
    "config_cls",
    "embeddings_field",
    "model",
    "model_kwargs",
    "patches_field",
    "roi_field",
    "supports_prompts",
}


@dataclass(frozen=True)
class Backend:
    """A similarity backend.

    Args:
        name: its name in ``fiftyone.brain.brain_config.similarity_backends``
        settings: the names of its settings
        credentials: those of them that say where the database is and who may use it, which
            FiftyOne takes from the environment and never stores
        configured: the settings in FiftyOne's brain config
    """

    name: str
    settings: Sequence[str]
    credentials: Sequence[str]
    configured: Mapping[str, Any]

    @property
    def has_table(self) -> bool:
        """Whether the backend keeps the vectors by itself."""
        return self.name != SKLEARN

    @property
    def table_setting(self) -> str | None:
        """The setting that names the table, collection or index."""
        names = ("table_name", "collection_name", "index_name")
        return next((name for name in names if name in self.settings), None)

    def env_name(self, credential: str) -> str:
        """Return the name of the environment variable that FiftyOne reads."""
        return f"FIFTYONE_BRAIN_SIMILARITY_{self.name}_{credential}".upper()

    def check(self, settings: Mapping[str, Any]) -> None:
        """Check settings before anything is connected to.

        Raises:
            ValueError: if a setting does not exist or its value is not valid
        """
        unknown = sorted(settings.keys() - {*self.settings})
        if unknown:
            raise OptionError(
                unknown[0],
                f"Unknown settings {unknown} of backend {self.name!r}. Valid are "
                f"{[*self.settings]}",
            )

        config = {**self.configured, **settings}
        etau.get_class(config.pop("config_cls"))(**config)
        metric = settings.get("metric")
        if self.name == SKLEARN and metric is not None:  # whose class checks at a search
            from sklearn.neighbors import VALID_METRICS  # takes a while to import

            valid = sorted(VALID_METRICS["brute"])
            if metric not in valid:
                raise OptionError("metric", f"Invalid metric {metric!r}. Valid are {valid}")


def list_backends() -> list[str]:
    """Return the names of FiftyOne's similarity backends, the default one first."""
    default = fob.brain_config.default_similarity_backend
    names = sorted(fob.brain_config.similarity_backends)
    return [default, *(name for name in names if name != default)]


def missing_package(name: str) -> str | None:
    """Return what to install for a backend, or None if nothing is missing."""
    module, package = _PACKAGES.get(name, (None, ""))
    return None if module is None or _is_installed(module) else package


def get_backend(name: str | None = None) -> Backend:
    """Look up a similarity backend.

    Args:
        name (None): its name; None is FiftyOne's default backend

    Returns:
        a :class:`Backend`

    Raises:
        ValueError: if there is none of that name
        ImportError: if its package is not installed
    """
    valid = list_backends()
    if name is None:
        name = valid[0]

    if name not in valid:
        raise OptionError("backend", f"Invalid backend {name!r}. Valid are {valid}")

    package = missing_package(name)
    if package is not None:
        raise ImportError(f"Backend {name!r} needs a package: pip install {package}")

    configured = fob.brain_config.similarity_backends[name]
    config_cls = etau.get_class(configured["config_cls"])
    credentials = [*inspect.signature(config_cls.load_credentials).parameters]
    credentials = [name for name in credentials if name not in ("self", "kwargs")]
    settings = [*inspect.signature(config_cls.__init__).parameters]
    settings = [name for name in settings if name not in ("self", "kwargs")]
    settings = [name for name in settings if name not in _NOT_SETTINGS]
    return Backend(name, settings, credentials, configured)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
