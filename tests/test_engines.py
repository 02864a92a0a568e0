"""Embeddings of each engine and dtype, and how both are picked."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cpu_kinds import COMPUTES_BFLOAT16, say_bfloat16
from PIL import Image
from random_hiera import configuration, make_config, make_hiera, save_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import HieraModel

import fiftyone_hiera
from fiftyone_hiera.checkpoints import CHECKPOINTS
from fiftyone_hiera.embedding import loading
from fiftyone_hiera.hiera import engines
from fiftyone_hiera.hiera.backbone import Backbone
from fiftyone_hiera.hiera.engines import run_torch
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from photographs import write_photographs

Embeddings = npt.NDArray[np.float32]

NANO = "hiera-nano-digits"
_BATCH = 128
_VIEW = 128  # pixels


@pytest.fixture(scope="module")
def pixels(model: HieraEmbeddingModel) -> torch.Tensor:
    return _prepare_digits(model)


def _prepare_digits(model: HieraEmbeddingModel) -> torch.Tensor:
    """Return the 1,797 digits, as the encoder takes them."""
    from sklearn.datasets import load_digits

    images = (load_digits().images * 15.9).astype(np.uint8)
    return torch.stack([model.transforms(image) for image in images])


def _embed(model: HieraEmbeddingModel, pixels: torch.Tensor) -> Embeddings:
    model.preprocess = False
    try:
        return np.concatenate([model.embed_all(part) for part in pixels.split(_BATCH)])
    finally:
        model.preprocess = True


@pytest.fixture(scope="module")
def exact(model: HieraEmbeddingModel, pixels: torch.Tensor) -> Embeddings:
    """Embeddings in float32 by torch, which other tests compare with transformers."""
    return _embed(model, pixels)


def _cosines(some: Embeddings, others: Embeddings) -> Embeddings:
    products: Embeddings = (_unit(some) * _unit(others)).sum(axis=1)
    return products


def _agreement(some: Embeddings, others: Embeddings) -> float:
    """Return how many of the ten nearest neighbors are the same."""
    pairs = zip(_neighbors(some), _neighbors(others), strict=True)
    return float(np.mean([len(set(one) & set(other)) / 10 for one, other in pairs]))


def _neighbors(embeddings: Embeddings) -> npt.NDArray[np.intp]:
    similarities = _unit(embeddings) @ _unit(embeddings).T
    np.fill_diagonal(similarities, -1)
    return np.argsort(-similarities, axis=1)[:, :10]


def _unit(embeddings: Embeddings) -> Embeddings:
    unit: Embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit


def _load(
    patch: pytest.MonkeyPatch, engine: str, dtype: str, **options: Any
) -> HieraEmbeddingModel:
    """Load a model that computes in a dtype, whether or not the CPU is made for it."""
    if engine == "openvino":
        pytest.importorskip("openvino")

    say_bfloat16(patch, dtype == "bfloat16")
    model = fiftyone_hiera.load_model(NANO, engine=engine, dtype=dtype, **options)
    assert (model.settings.engine, model.settings.dtype) == (engine, dtype)
    return model


def _is_rounded(engine: str, dtype: str) -> bool:
    """Return whether an engine computes in a dtype on this CPU, and not in another."""
    return COMPUTES_BFLOAT16 or (engine, dtype) != ("openvino", "bfloat16")


@pytest.mark.parametrize(
    ("engine", "dtype", "least_cosine", "least_agreement"),
    [
        pytest.param("torch", "bfloat16", 0.9999, 0.99, marks=pytest.mark.slow),
        pytest.param("torch", "float16", 0.99999, 0.995, marks=pytest.mark.slow),
        ("openvino", "float32", 0.999999, 0.999),
        ("openvino", "bfloat16", 0.9999, 0.99),
    ],
)
def test_fidelity(
    monkeypatch: pytest.MonkeyPatch,
    pixels: torch.Tensor,
    exact: Embeddings,
    engine: str,
    dtype: str,
    least_cosine: float,
    least_agreement: float,
) -> None:
    if engine == "torch":  # which is slow at them
        pixels, exact = pixels[:600], exact[:600]

    model = _load(monkeypatch, engine, dtype)
    embeddings = _embed(model, pixels)
    assert embeddings.dtype == np.float32
    if not _is_rounded(engine, dtype):
        return

    assert not np.array_equal(embeddings, exact), "it was computed as usual"
    assert _cosines(embeddings, exact).min() >= least_cosine
    assert _agreement(embeddings, exact) >= least_agreement
    if dtype == "float32":
        assert np.abs(embeddings - exact).max() < 1e-4

    few = pixels[:9]
    single = np.concatenate([_embed(model, one[None]) for one in few])
    assert _cosines(single, embeddings[:9]).min() > 0.999999
    assert np.abs(single - embeddings[:9]).max() < (1e-4 if dtype == "float32" else 1e-3)


@pytest.mark.slow
def test_fidelity_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(51)
    layout = CHECKPOINTS["facebook/hiera-tiny-224-hf"].config
    config = layout.at_size((_VIEW, _VIEW))
    checkpoint = str(save_checkpoint(tmp_path, HieraModel(config.to_transformers())))
    exact = _load(monkeypatch, "torch", "float32", checkpoint=checkpoint)
    views = write_photographs(tmp_path / "views", 500)
    pixels = torch.stack([exact.transforms(Image.open(view.path)) for view in views])
    expected = _embed(exact, pixels)
    for dtype, least_cosine, least_agreement in (
        ("float32", 0.999999, 0.999),
        ("bfloat16", 0.9999, 0.99),
    ):
        if not _is_rounded("openvino", dtype):
            continue

        reduced = _load(monkeypatch, "openvino", dtype, checkpoint=checkpoint)
        embeddings = _embed(reduced, pixels)
        assert not np.array_equal(embeddings, expected), "it was computed as usual"
        assert _cosines(embeddings, expected).min() >= least_cosine
        assert _agreement(embeddings, expected) >= least_agreement


@pytest.mark.slow
def test_compiled_once_for_all_batch_sizes(
    monkeypatch: pytest.MonkeyPatch, pixels: torch.Tensor, exact: Embeddings
) -> None:
    pixels, exact = pixels[:600], exact[:600]
    model = fiftyone_hiera.load_model(NANO, engine="compile", dtype="bfloat16")
    monkeypatch.setattr("torch._dynamo.config.error_on_recompile", True)
    embeddings = _embed(model, pixels)
    assert not np.array_equal(embeddings, exact)
    assert _cosines(embeddings, exact).min() >= 0.9999
    assert _agreement(embeddings, exact) >= 0.99
    for size in (1, 2, 7):
        few = _embed(model, pixels[:size])
        assert _cosines(few, embeddings[:size]).min() > 0.999999


def test_openvino_in_several_threads(pixels: torch.Tensor, exact: Embeddings) -> None:
    model = fiftyone_hiera.load_model(NANO, engine="openvino", dtype="float32")
    model.preprocess = False
    parts = pixels[:512].split(16)
    with ThreadPoolExecutor(4) as pool:
        embeddings = np.concatenate([*pool.map(model.embed_all, parts)])

    assert np.abs(embeddings - exact[:512]).max() < 1e-4


def _run(script: str, *arguments: str, **variables: str) -> None:
    """Run a script in a new process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    command = [sys.executable, "-c", script, *arguments]
    subprocess.run(command, env=environment, check=True)


_ALONE = """
import numpy as np, fiftyone_hiera
model = fiftyone_hiera.load_model("hiera-nano-digits", engine="openvino")
assert np.isfinite(model.embed(np.zeros((9, 9, 3), np.uint8))).all()
"""


@pytest.mark.slow
def test_openvino_keeps_to_itself(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    _run(_ALONE, HOME=str(tmp_path))
    assert not (tmp_path / "intel").exists(), "OpenVINO reported to its authors"


_FREED_ELSEWHERE = """
import gc, signal, subprocess, sys, threading
import fiftyone_hiera
from fiftyone_hiera.images.pickling import import_package

# As FiftyOne imports a plugin: by its path, as modules of their own
plugin = "fiftyone.plugins.orgs.owner.plugin"
import_package(plugin, sys.argv[1])
packages = fiftyone_hiera, sys.modules[plugin]
models = [one.load_model("hiera-nano-digits", engine="openvino") for one in packages]
if "drop" in sys.argv:
    packages = ()
    for name in [name for name in sys.modules if name.startswith(plugin)]:
        del sys.modules[name]

thread = threading.Thread(target=lambda: (models.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGCHLD, lambda *_: None)
subprocess.run(["true"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["keep", "drop"])
def test_openvino_freed_in_another_thread(which: str) -> None:
    pytest.importorskip("openvino")
    _run(_FREED_ELSEWHERE, str(Path(__file__).parents[1]), which)


def test_threads_that_load_at_once_share_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    cores: list[Any] = []

    class Core:
        def __init__(self) -> None:
            cores.append(self)
            time.sleep(0.2)  # the other thread begins meanwhile

        def compile_model(self, *_: Any) -> Any:
            return self

    monkeypatch.setattr(engines, "import_openvino", lambda: SimpleNamespace(Core=Core))
    engines._openvino_core.cache_clear()
    try:
        with ThreadPoolExecutor(2) as pool:
            used = [*pool.map(engines.compile_openvino, [None, None])]
    finally:
        engines._openvino_core.cache_clear()

    assert len(cores) == 1
    assert used == cores * 2


_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path

import numpy as np
import torch
import fiftyone_hiera

checkpoint, threads, megabytes, is_used = sys.argv[1:]
torch.set_num_threads(int(threads))
options = {"checkpoint": checkpoint, "dtype": "float32"}
images = torch.randint(0, 256, (48, 3, 448, 448), dtype=torch.uint8)
exact = fiftyone_hiera.load_model("hiera-nano-digits", engine="torch", **options)
exact.preprocess = False
expected = np.concatenate([exact.embed_all(part) for part in images.split(4)])
model = fiftyone_hiera.load_model("hiera-nano-digits", engine="openvino", **options)
model.preprocess = False
if is_used == "True":
    model.embed_all(images[:24])

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(megabytes) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
for order in (range(48), range(47, -1, -1)):
    try:
        embeddings = model.embed_all(images[list(order)])
    except MemoryError as error:
        print("stopped:", error)
        break

    assert embeddings.shape == expected.shape
    assert np.abs(embeddings - expected[list(order)]).max() < 1e-4
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize(
    ("threads", "megabytes", "is_used"), [(1, 500, False), (2, 300, True)]
)
def test_openvino_without_memory_is_never_wrong(
    tmp_path: Path, threads: int, megabytes: int, is_used: bool
) -> None:
    large = make_hiera(make_config(image_size=(448, 448)))
    checkpoint = str(save_checkpoint(tmp_path, large))
    _run(_LITTLE_MEMORY, checkpoint, str(threads), str(megabytes), str(is_used))


@pytest.mark.parametrize(
    ("options", "picked"),
    [
        ({}, ["dtype", "engine"]),
        ({"dtype": "float32"}, ["engine"]),
        ({"engine": "torch"}, ["dtype"]),
        ({"dtype": "float32", "engine": "torch"}, []),
    ],
    ids=str,
)
def test_what_was_picked_is_said(
    caplog: pytest.LogCaptureFixture, options: dict[str, Any], picked: list[str]
) -> None:
    loading._inform.cache_clear()  # once per process
    with caplog.at_level(logging.INFO, loading.logger.name):
        settings = vars(fiftyone_hiera.load_model(NANO, **options).settings)
        fiftyone_hiera.load_model(NANO, **options)

    said = " and ".join(f"{name} {settings[name]!r}" for name in picked)
    lines = [f"{NANO} on {settings['device']}: auto picked {said}"] if picked else []
    assert [line for line in caplog.messages if NANO in line] == lines


class _LargestTensor(TorchDispatchMode):
    """Looks for the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())

        return result


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_does_not_grow_with_the_square_of_the_tokens(dtype: torch.dtype) -> None:
    size = (768, 512)
    config = make_config(image_size=size)
    own = configuration(config)
    down, across = own.grid_size(3)
    backbone = Backbone(own).eval()
    backbone.load_state_dict(make_hiera(config).state_dict(), strict=False)
    run = run_torch(backbone, dtype, size)
    with _LargestTensor() as largest:
        run(torch.randn(1, 3, *size))

    assert 0 < largest.numel < config.num_heads[2] * (down * across) ** 2
