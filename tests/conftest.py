"""Folders, a database and a hub cache of the tests' own, before anything is imported."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import use_own_fiftyone

_HOME = tempfile.TemporaryDirectory(
    prefix="fiftyone-hiera-tests-", ignore_cleanup_errors=True
)


def _isolate(home: Path) -> None:
    # The tests of the real hub add to the user's cache and change nothing in it
    user_cache = Path.home() / ".cache" / "huggingface"
    os.environ["USER_HUB"] = os.environ.get("HF_HOME", str(user_cache))

    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")):
            del os.environ[name]

    # The App offers to schedule runs only if somebody may run them
    use_own_fiftyone(home, show_progress_bars=False, allow_legacy_orchestrators=True)
    os.environ["HOME"] = str(home)
    os.environ["HF_HOME"] = str(home / "hub")
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Two processes of two threads each spend their time waiting for a core
        os.environ["OMP_NUM_THREADS"] = "1"


_isolate(Path(_HOME.name))


@pytest.fixture(scope="session")
def nano() -> Path:
    """The weights that this repository carries."""
    return Path(__file__).parents[1] / "assets" / "hiera-nano-digits.safetensors"


@pytest.fixture
def own(nano: Path, tmp_path: Path) -> Path:
    """A folder of the user's own weights."""
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(nano, folder / "model.safetensors")
    config = {
        "model_type": "hiera",
        "architectures": ["HieraModel"],
        "depths": [1, 1, 2, 1],
        "embed_dim": 24,
        "num_heads": [1, 2, 4, 8],
        "image_size": [64, 64],
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Scikit-learn's handwritten digits as files."""
    from digits import write_digits

    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def model() -> Any:
    """The model whose weights this repository carries."""
    import fiftyone_hiera

    return fiftyone_hiera.load_model("hiera-nano-digits", dtype="float32", engine="torch")


@pytest.fixture(scope="session")
def plugin() -> Any:
    """The operators' plugin, linked into the tests' plugins folder."""
    import fiftyone as fo
    import fiftyone.plugins as fop

    link = Path(fo.config.plugins_dir) / "fiftyone-hiera"
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path(__file__).parents[1])

    return fop.get_plugin("@fiftyone-hiera/hiera")


@pytest.fixture(scope="module")
def zoo_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A user of the model zoo who has only the URL of an archive of this checkout."""
    from zoo_user import make_zoo_user

    home = tmp_path_factory.mktemp("zoo-user")
    with make_zoo_user(home, tmp_path_factory.mktemp("served")) as zoo_user:
        yield zoo_user


@pytest.fixture
def dataset() -> Iterator[Any]:
    """An empty dataset in the tests' own database."""
    import fiftyone as fo

    dataset = fo.Dataset()
    yield dataset
    dataset.delete()


_crashed: set[str] = set()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: Any, sched: Any) -> None:
    """Run a test again whose worker crashed, once.

    About every second whole run on two workers, one crashes with SIGSEGV, always in the
    same innocent test and never in a smaller run. The cause is in native code and is not
    known yet.
    """
    if crashitem not in _crashed:
        _crashed.add(crashitem)
        sched.mark_test_pending(crashitem)
        report.outcome = "rerun"
