"""The sdist of this checkout, the wheel that is built from it, and their installation."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from fiftyone_hiera.embedding.version import VERSION

ROOT = Path(__file__).parents[1]
_NAME = f"fiftyone_hiera-{VERSION}"

_EMBED = """
import fiftyone_hiera
from PIL import Image

embedding = fiftyone_hiera.load_model("hiera-nano-digits").embed(Image.new("RGB", (9, 9)))
print(fiftyone_hiera.__file__, *embedding.shape)
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("sdist")

    # setuptools leaves its traces in the folder that it builds
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    (checkout / ".demo").mkdir()
    (checkout / ".demo" / "map.safetensors").touch()
    return _build("sdist", checkout, folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.unpack_archive(sdist, folder)
    return _build("wheel", folder / _NAME, folder)


def _build(kind: str, sources: Path, folder: Path) -> Path:
    """Build a distribution as pip does, in this environment."""
    call = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", call], cwd=sources, check=True)
    (built,) = folder.glob(f"{_NAME}*.*")
    return built


def _package_files() -> set[str]:
    folders = [ROOT, *(init.parent for init in ROOT.glob("*/__init__.py"))]
    modules = [module for folder in folders for module in folder.glob("*.py")]
    data = [ROOT / "manifest.json", ROOT / "py.typed", *ROOT.glob("assets/*.safetensors")]
    return {str(path.relative_to(ROOT)) for path in [*modules, *data]}


def test_sdist_has_the_package_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}

    added = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")  # and by setuptools:
    generated = {"PKG-INFO", "setup.cfg"}
    found = {name.removeprefix(f"{_NAME}/") for name in names if ".egg-info/" not in name}
    assert found == _package_files().union(added, generated)


def test_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    info = f"{_NAME}.dist-info"
    package = {f"fiftyone_hiera/{name}" for name in _package_files()}
    generated = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt"}
    assert names == package | {f"{info}/{name}" for name in generated}


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"{_NAME}.dist-info/METADATA"))

    assert metadata["Version"] == VERSION
    assert metadata["Author"] == "The fiftyone-hiera authors"
    assert metadata["License-Expression"] == "Apache-2.0"
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert list(urls) == ["Homepage", "Documentation", "Changelog", "Issues"]
    for name in ("Documentation", "Changelog"):
        path = urls[name].removeprefix(f"{urls['Homepage']}/blob/main/")
        assert (ROOT / path).is_file()


def test_twine_accepts_both(sdist: Path, wheel: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    # An environment of its own, which borrows the dependencies from this one
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    folder = "lib/python{}.{}/site-packages".format(*sys.version_info)
    packages = environment / folder
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(packages)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True
    )

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python, "-I", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert run("-m", "fiftyone_hiera", "--version") == f"fiftyone-hiera {VERSION}"
    module = packages / "fiftyone_hiera" / "__init__.py"
    assert run("-c", _EMBED).split() == [str(module), "192"]
