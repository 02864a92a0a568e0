"""``pip install .``: the same folder as an installed package."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sandbox import served_archive

ROOT = Path(__file__).parents[1]

_EMBED = """
import sys
sys.path.insert(0, sys.argv[1])
import fiftyone_hiera
from PIL import Image

embedding = fiftyone_hiera.load_model("hiera-nano-digits").embed(Image.new("RGB", (9, 9)))
print(fiftyone_hiera.__file__, *embedding.shape)
"""

# As FiftyOne 1.10 registers a plugin that it downloaded
_REGISTER = """
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("@owner.plugin", sys.argv[1] + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules["@owner.plugin"] = module
spec.loader.exec_module(module)

class Plugin(list):
    register = list.append

plugin = Plugin()
module.register(plugin)
model = module.load_model("hiera-nano-digits")
print(len(plugin), "nano" if model.embedding_dim == 192 else "?")
"""


def test_archive_unpacks_inside_its_folder(tmp_path: Path) -> None:
    with served_archive(tmp_path) as _:
        pass

    with zipfile.ZipFile(tmp_path / "fiftyone-hiera.zip") as archive:
        for member in archive.infolist():
            path = Path(member.filename)
            assert path.parts[0] == "fiftyone-hiera"
            assert ".." not in path.parts
            assert not stat.S_ISLNK(member.external_attr >> 16)

    tracked = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert not [line for line in tracked.splitlines() if line.startswith("120000")]


@pytest.mark.slow
def test_plugin_as_older_fiftyones_name_it(tmp_path: Path) -> None:
    folder = tmp_path / "@owner" / "plugin"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "docs", "tests"))
    done = subprocess.run(
        [sys.executable, "-c", _REGISTER, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["5", "nano"]  # two by their old URI


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    # setuptools leaves its traces in the folder that it builds
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    built, installed = tmp_path / "built", tmp_path / "installed"
    subprocess.run(
        [*pip, "wheel", *options, "--wheel-dir", str(built), str(checkout)], check=True
    )
    (wheel,) = built.iterdir()
    subprocess.run(
        [*pip, "install", *options, "--target", str(installed), str(wheel)], check=True
    )

    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}

    folders = [ROOT, *(init.parent for init in ROOT.glob("*/__init__.py"))]
    modules = [module for folder in folders for module in folder.glob("*.py")]
    data = [ROOT / "manifest.json", *ROOT.glob("assets/*.safetensors")]
    expected = {f"fiftyone_hiera/{path.relative_to(ROOT)}" for path in [*modules, *data]}
    assert names == expected

    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _EMBED, str(installed)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    module = installed / "fiftyone_hiera" / "__init__.py"
    assert done.stdout.splitlines()[-1].split() == [str(module), "192"]
