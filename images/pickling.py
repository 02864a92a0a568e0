"""Pickle objects for data loader workers that cannot import this package by name.

Pickle stores the names of classes, not their code. FiftyOne imports a zoo source or a
plugin by its path, so a worker that is started with ``spawn`` or ``forkserver`` does not
find the package on ``sys.path``. The pickle of a :class:`Portable` object therefore first
runs this file with the name and the folder of the package, which imports it.

``runpy`` runs this file outside of its package: it must have no relative imports, and must
stay one folder below the package's ``__init__.py``.
"""

from __future__ import annotations

import importlib.util
import operator
import runpy
import sys
from pathlib import Path
from typing import Any

# The name under which FiftyOne imported the package
_PACKAGE = __name__.rpartition(".images.")[0]
_FOLDER = Path(__file__).resolve().parents[1]


class Portable:
    """Base class of objects that import this package when they are unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Tuples are unpickled in order: first the import, then the object
        return operator.itemgetter(1), ((_PackageImport(), _Instance(self)),)


class _PackageImport:
    def __reduce__(self) -> tuple[Any, ...]:
        return runpy.run_path, (__file__, {"IMPORT": (_PACKAGE, str(_FOLDER))})


class _Instance:
    def __init__(self, obj: Portable) -> None:
        self._obj = obj

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (type(self._obj),), self._obj.__dict__


def import_package(name: str, folder: str) -> None:
    """Import a package from its folder, unless a module of its name is imported."""
    if name in sys.modules:
        return

    spec = importlib.util.spec_from_file_location(name, Path(folder) / "__init__.py")
    assert spec is not None and spec.loader is not None  # true for any .py path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if "IMPORT" in globals():
    import_package(*globals()["IMPORT"])
