"""Similarity backends of FiftyOne's brain: their settings, packages and tables."""

from __future__ import annotations

import importlib.util
import inspect
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import eta.core.utils as etau
import fiftyone.brain as fob

from ..errors import OptionError
from .table import VectorTable

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

# The classes of those with a table of their own, in modules that import the packages
_TABLES = {"lancedb": "LanceDBTable", "milvus": "MilvusTable", "pgvector": "PgVectorTable"}


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

    def with_defaults(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Add the settings whose defaults in FiftyOne are not good enough."""
        # Milvus' own metric is "dotproduct", which prefers long vectors
        defaults = {"metric": "cosine"}
        if self.name == "pgvector":
            # FiftyOne's default is the same for all indexes of a dataset, of which each
            # new one drops the one before
            defaults["index_name"] = f"hiera-{uuid.uuid4().hex}"

        names = (defaults.keys() & {*self.settings}) - self.configured.keys()
        return {**{name: defaults[name] for name in names}, **settings}

    def describe_table(self, config: Any) -> str:
        """Name the table in the config of an index, to begin a sentence with."""
        setting = self.table_setting
        if setting is None:
            return f"The table of backend {self.name!r}"

        return f"The {setting} {getattr(config, setting)!r} of backend {self.name!r}"

    def cannot_open(self, brain_key: str, error: Exception, advice: str = "") -> ValueError:
        """Make the error for an index whose database cannot be reached or read."""
        where = ""
        if self.credentials:
            others = " and the like" if len(self.credentials) > 1 else ""
            name = self.env_name(self.credentials[0])
            where = f" (place and credentials are read from {name}{others})"

        reason = re.sub(r"//\S*@", "//***@", one_line(error))  # a password
        return ValueError(
            f"Cannot open the index {brain_key!r} with backend {self.name!r}: {reason}"
            f"{where}{advice}"
        )


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
    """Look up a similarity backend, by default FiftyOne's default one.

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
    settings = _argument_names(config_cls.__init__)
    credentials = _argument_names(config_cls.load_credentials)
    return Backend(name, settings, credentials, configured)


def open_table(index: Any) -> VectorTable:
    """Open the table of an index.

    Args:
        index: the :class:`fiftyone.brain.similarity.SimilarityIndex`
    """
    name = index.config.method
    table_class: type[VectorTable] = VectorTable
    if name in _TABLES:
        module = importlib.import_module(f".{name}", __package__)
        table_class = getattr(module, _TABLES[name])

    return table_class(index)


def one_line(error: Exception) -> str:
    """Return the message of a database's error, which may have several lines, as one."""
    return " ".join(str(error).split()) or type(error).__name__


def _argument_names(method: Any) -> list[str]:
    names = inspect.signature(method).parameters
    return [name for name in names if name not in ("self", "kwargs")]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
