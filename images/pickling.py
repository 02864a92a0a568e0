"""Objects that data loader workers can unpickle.

FiftyOne imports a zoo source by its path, so workers that are started with
``spawn`` or ``forkserver`` cannot import it by name, and pickle refers to
classes by name. A :class:`Portable` object therefore carries, ahead of itself,
the order to import the package from its folder.
"""

from __future__ import annotations

import importlib.util
import operator
import runpy
import sys
from pathlib import Path
from typing import Any

_PACKAGE = __name__.rpartition(".")[0].rpartition(".")[0]
_FOLDER = Path(__file__).resolve().parents[1]


class Portable:
    """Base class of objects that unpickle where the package was not imported."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A tuple is unpickled in order: import first, then the object
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
    """Import the package in a folder under a name, unless that name is taken.

    Args:
        name: the package's name
        folder: the folder of its ``__init__.py``
    """
    if name in sys.modules:
        return

    spec = importlib.util.spec_from_file_location(name, Path(folder) / "__init__.py")
    assert spec is not None and spec.loader is not None  # always so for a .py path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if "IMPORT" in globals():
    import_package(*globals()["IMPORT"])
