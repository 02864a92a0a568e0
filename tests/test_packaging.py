"""The checkout as an archive and as a plugin; what its files say about each other."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from oldest import oldest

import fiftyone_hiera
from fiftyone_hiera.__main__ import main
from fiftyone_hiera.embedding.version import VERSION
from sandbox import served_archive

ROOT = Path(__file__).parents[1]


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


def _read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def _project() -> dict[str, Any]:
    return tomllib.loads(_read("pyproject.toml"))["project"]


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load(_read("CITATION.cff"))
    plugin = yaml.safe_load(_read("fiftyone.yml"))
    newest = re.search(r"^## \[([\d.]+)\] - ([\d-]+)$", _read("CHANGELOG.md"), re.M)
    assert newest is not None
    stated = [one["version"] for one in (_project(), citation, plugin)]
    assert [*stated, newest[1]] == [VERSION] * 4
    assert str(citation["date-released"]) == newest[2]


def test_command_line_shows_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])

    assert end.value.code == 0
    assert capsys.readouterr().out == f"fiftyone-hiera {VERSION}\n"


_NAMES = """
import sys

import fiftyone_hiera

print(fiftyone_hiera.__version__)
assert not {"fiftyone", "numpy", "torch"} & {*sys.modules}
from fiftyone_hiera import *
assert {*fiftyone_hiera.__all__} <= {*globals()}
assert issubclass(EmbeddingError, RuntimeError) and issubclass(FilesError, RuntimeError)
assert "torch" not in sys.modules
"""


def test_public_names() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", _NAMES],
        env={**os.environ, "PYTHONPATH": str(Path(fiftyone_hiera.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert (printed.stdout, printed.stderr) == (f"{VERSION}\n", "")
    table = _read("docs/README.md").partition("| name | what it is |")[2]
    listed = {
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.M)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert listed == {*fiftyone_hiera.__all__}


def test_changelog_links_every_release() -> None:
    changelog = _read("CHANGELOG.md")
    links = re.findall(r"^\[(\S+)\]: https://", changelog, re.M)
    assert re.findall(r"^## \[(\S+)\]", changelog, re.M) == links


def test_homepage_is_the_same_everywhere() -> None:
    homepage = _project()["urls"]["Homepage"]
    assert yaml.safe_load(_read("CITATION.cff"))["repository-code"] == homepage
    assert yaml.safe_load(_read("fiftyone.yml"))["url"] == homepage


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    """The jobs of continuous integration."""
    return yaml.safe_load(_read(".github/workflows/ci.yml"))["jobs"]


def test_workflow_tests_the_classified_pythons(jobs: dict[str, Any]) -> None:
    tested = jobs["test"]["strategy"]["matrix"]["python"]
    classifiers = "\n".join(_project()["classifiers"])
    assert re.findall(r"Python :: (3\.\d+)", classifiers) == tested


def test_workflow_runs_what_exists(jobs: dict[str, Any]) -> None:
    steps = [step for job in jobs.values() for step in job["steps"]]
    commands = "\n".join(step.get("run", "") for step in steps)

    # Targets with % stand for those of every extra
    targets = re.findall(r"^([\w.%/-]+):", _read("Makefile"), re.M)
    extras = re.findall(r"^EXTRAS_(\w+) :=", _read("Makefile"), re.M)
    known = {target.replace("%", extra) for target in targets for extra in extras}
    made = set(re.findall(r"\bmake (\S+)", commands))
    assert made and made <= known

    options = tomllib.loads(_read("pyproject.toml"))["tool"]["pytest"]["ini_options"]
    markers = {marker.partition(":")[0] for marker in options["markers"]}
    marked = set(re.findall(r"pytest\b.* -m (\S+)", commands))
    assert marked and marked <= markers

    programs = set(re.findall(r"\.ci/\w+|scripts/\w+\.py", commands))
    assert ".ci/run" in programs
    assert all((ROOT / program).is_file() for program in programs)


@pytest.mark.xdist_group("a group")
def test_groups_of_tests_are_heeded(request: pytest.FixtureRequest) -> None:
    # By the ends of their IDs, which pytest 9.2 does not let xdist 3.8 write
    if request.config.getoption("loadgroup", False):
        assert request.node.nodeid.endswith("@a group")


def test_oldest_packages_are_the_lower_ends() -> None:
    constraints = dict(one.split("==") for one in oldest())
    assert constraints["torch"] == "2.6"
    assert constraints["ray"] == "2.55"
    assert constraints.keys() >= {_name(one) for one in _project()["dependencies"]}
    assert not constraints.keys() & {"pytest", "scikit-learn"}


def test_errors_name_the_requirements() -> None:
    extras = _project()["optional-dependencies"]
    for extra, module in [("ray", "cluster/options.py"), ("files", "files/arrow.py")]:
        (requirement,) = extras[extra]
        assert requirement in _read(module)


def _name(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement)[0]
