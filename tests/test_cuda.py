"""Embeddings on NVIDIA GPUs; these tests run wherever there is one."""

from __future__ import annotations

from typing import Any

import fiftyone as fo
import numpy as np
import pytest
import torch
from test_engines import _agreement, _cosines, _embed, _prepare_digits

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.hiera.engines import has_bfloat16
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

NANO = "hiera-nano-digits"


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return _prepare_digits(_load("cpu"))


@pytest.fixture(scope="module")
def exact(pixels: torch.Tensor) -> Any:
    """Embeddings in float32 on the CPU, which other tests compare with transformers."""
    return _embed(_load("cpu"), pixels)


def _load(
    device: str, dtype: str = "float32", engine: str = "torch"
) -> HieraEmbeddingModel:
    options: dict[str, Any] = {"device": device, "dtype": dtype, "engine": engine}
    model = fiftyone_hiera.load_model(NANO, **options)
    assert isinstance(model, HieraEmbeddingModel)
    return model


@pytest.mark.parametrize("engine", ["torch", "compile"])
def test_float32_is_exact(pixels: torch.Tensor, exact: Any, engine: str) -> None:
    # The default of torch, under which convolutions are not exact
    assert torch.backends.cudnn.allow_tf32
    embeddings = _embed(_load("cuda", engine=engine), pixels)
    assert np.abs(embeddings - exact).max() < 1e-4


@pytest.mark.parametrize("engine", ["torch", "compile"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_dtypes_keep_the_neighbors(
    pixels: torch.Tensor, exact: Any, engine: str, dtype: str
) -> None:
    embeddings = _embed(_load("cuda", dtype, engine), pixels)
    assert not np.array_equal(embeddings, exact)
    assert _cosines(embeddings, exact).min() >= 0.9999
    assert _agreement(embeddings, exact) >= 0.99


def test_auto() -> None:
    settings = fiftyone_hiera.load_model(NANO).settings
    expected = "bfloat16" if has_bfloat16("cuda") else "float32"
    assert (settings.device, settings.dtype, settings.engine) == ("cuda", expected, "torch")


def test_out_of_memory_halves_the_batch(pixels: torch.Tensor, exact: Any) -> None:
    model = _load("cuda")
    model.preprocess = False
    _embed(model, pixels[:8])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    before = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((before + 100e6) / total)
    try:
        embeddings = model.embed_all(pixels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    largest = model.embedder._embed_batch._largest
    assert largest is not None
    assert largest < len(pixels)
    assert np.abs(embeddings - exact).max() < 1e-4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices(pixels: torch.Tensor, exact: Any) -> None:
    for device in ("cuda:0", "cuda:1"):
        model = _load(device)
        assert model.embedder.encoder.device == torch.device(device)
        assert np.abs(_embed(model, pixels[:64]) - exact[:64]).max() < 1e-4


@pytest.mark.parametrize("num_workers", [0, 4])
def test_runs_equal_those_on_the_cpu(digits: list[Digit], num_workers: int) -> None:
    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=str(digit.path)) for digit in digits[:100]])
    options = {"batch_size": 16, "num_workers": num_workers}
    _load("cuda").embed_samples(dataset, "gpu", **options)
    _load("cpu").embed_samples(dataset, "cpu", **options)
    difference = np.array(dataset.values("gpu")) - np.array(dataset.values("cpu"))
    assert np.abs(difference).max() < 1e-4
    dataset.delete()
