"""The checkpoints of this source and the options of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from .hiera.checkpoint import validate_checkpoint
from .hiera.engines import ENGINES, OPENVINO, has_bfloat16, has_openvino
from .hiera.pooling import POOLINGS
from .hiera.preprocessing import Preprocessing, for_image_size
from .hiera.weights import BundledFile, HubFile

VERSION = "0.1.0"
"""The version of this package."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The types to compute in by name."""

AUTO = "auto"
"""The choice of what is fastest on this machine; see ``docs/performance.md``."""


@dataclass(frozen=True)
class Checkpoint:
    """One entry of the model zoo.

    Args:
        name: the zoo's name of the model
        filename: the file in this source's folder that holds its weights
        weights: the file on the hub, or that comes with this source
        depths: the number of blocks in each stage
        embed_dim: the width of the stem; each stage doubles it
        num_heads: the number of attention heads in each stage
        image_size: the length in pixels of both sides of the input
        parameters: the number of parameters of the encoder
        trained: what the weights are, for the description
        training_data: the (name, URL) of the data they were trained on
        author: who made them
        source: where they are documented
        license: their licence, as FiftyOne's own manifests spell it
        pooling (None): the only pooling under this name; None allows each
    """

    name: str
    filename: str
    weights: HubFile | BundledFile
    depths: tuple[int, ...]
    embed_dim: int
    num_heads: tuple[int, ...]
    image_size: int
    parameters: int
    trained: str
    training_data: tuple[str, str]
    author: str
    source: str
    license: str
    pooling: str | None = None

    @property
    def embedding_dim(self) -> int:
        """The length of an embedding."""
        return int(self.embed_dim * 2 ** (len(self.depths) - 1))

    @property
    def poolings(self) -> list[str]:
        """The poolings under this name, the default first."""
        return [self.pooling] if self.pooling else list(POOLINGS)

    @property
    def size_bytes(self) -> int:
        """The size of the weights, about; they are float32."""
        return 4 * self.parameters

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are prepared."""
        return for_image_size((self.image_size, self.image_size))

    @property
    def origin(self) -> str:
        """The name of its weights, which both entries of a variant share."""
        return self.weights.repo_id if isinstance(self.weights, HubFile) else self.name

    @property
    def revision(self) -> str | None:
        """The commit on the hub that pins its weights, if one does."""
        return self.weights.revision if isinstance(self.weights, HubFile) else None


def _hub_checkpoints(
    variant: str,
    *,
    depths: tuple[int, ...],
    embed_dim: int,
    num_heads: tuple[int, ...],
    parameters: int,
    revision: str | None,
    sha256: str | None,
) -> list[Checkpoint]:
    """Return both entries of one of Meta's variants."""
    repo_id = f"facebook/hiera-{variant}-224-hf"
    return [
        Checkpoint(
            name=repo_id + suffix,
            filename=f"hiera-{variant}-224-hf{suffix}.safetensors",
            weights=HubFile(repo_id, revision, sha256),
            depths=depths,
            embed_dim=embed_dim,
            num_heads=num_heads,
            image_size=224,
            parameters=parameters,
            trained="pretrained as a masked autoencoder (MAE), not fine-tuned",
            training_data=("ImageNet-1K", "https://www.image-net.org/download.php"),
            author="Chaitanya Ryali, et al.",
            source=f"https://huggingface.co/{repo_id}",
            license="CC BY-NC 4.0",
            pooling=pooling,
        )
        for suffix, pooling in (("", None), ("-cls", "cls"))
    ]


# A revision or a sha256 that is missing here was not to be had from a public
# page: the other of the two pins the file. None was completed or guessed
CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        *_hub_checkpoints(
            "tiny",
            depths=(1, 2, 7, 2),
            embed_dim=96,
            num_heads=(1, 2, 4, 8),
            parameters=27_141_216,
            revision="d801c4d51cda6051d231ef2dae7467a5b8a4cc7f",
            sha256=None,
        ),
        *_hub_checkpoints(
            "small",
            depths=(1, 2, 11, 2),
            embed_dim=96,
            num_heads=(1, 2, 4, 8),
            parameters=34_239_072,
            revision=None,
            sha256="a795c673ccdd15ab5f89d701415633587e03ff5a1a656f8cc20d60485be373f6",
        ),
        *_hub_checkpoints(
            "base",
            depths=(2, 3, 16, 3),
            embed_dim=96,
            num_heads=(1, 2, 4, 8),
            parameters=50_755_968,
            revision="0b578d16a6e38b63fd594c2d8f210d63975e7fc4",
            sha256=None,
        ),
        *_hub_checkpoints(
            "base-plus",
            depths=(2, 3, 16, 3),
            embed_dim=112,
            num_heads=(2, 4, 8, 16),
            parameters=68_999_616,
            revision="6da4c853960cfa015094820318b0be7e971aef74",
            sha256="d03fcd2c2d5a3ea20fd300a82a2c7911b881a7d9e78f270e8e3e8450fbfadcbf",
        ),
        *_hub_checkpoints(
            "large",
            depths=(2, 6, 36, 4),
            embed_dim=144,
            num_heads=(2, 4, 8, 16),
            parameters=212_586_912,
            revision="323cce3c7fc67cece13ab62026d7bdb80f109794",
            sha256="1578c85276c01c729c8b4071045956cf8f12003e42babc85acd1412d1625025a",
        ),
        *_hub_checkpoints(
            "huge",
            depths=(2, 6, 36, 4),
            embed_dim=256,
            num_heads=(4, 8, 16, 32),
            parameters=670_730_752,
            revision="25e61b8270e6beab77625ab07373374d76d36224",
            sha256="d222b3c1dd62ca8a33adb7ef9630dc9f081fe60b1680234197223503aab6d209",
        ),
        Checkpoint(
            name="hiera-nano-digits",
            filename="hiera-nano-digits.safetensors",
            weights=BundledFile(
                Path(__file__).with_name("assets") / "hiera-nano-digits.safetensors",
                "9acba5f0399ad6a7d8c4cbb0f9ddbc7755537ab071b1079cf1aa9a8e85b6045c",
            ),
            depths=(1, 1, 2, 1),
            embed_dim=24,
            num_heads=(1, 2, 4, 8),
            image_size=64,
            parameters=665_736,
            trained="trained with labels on 1,200 handwritten digits, for demonstration",
            training_data=(
                "scikit-learn digits",
                "https://scikit-learn.org/stable/datasets/toy_dataset.html",
            ),
            author="fiftyone-hiera",
            source="examples/train_nano_digits.py of this source",
            license="Apache 2.0",
        ),
    )
}
"""The entries of the zoo by name."""


@dataclass(frozen=True)
class Settings:
    """The options of a model.

    Args:
        pooling ("mean"): how the tokens become one vector: "mean" averages
            them, "cls" takes the first, "pooler" applies the final LayerNorm
            to the average
        normalize (False): whether to scale each vector to length 1 (L2)
        dtype ("auto"): the type to compute in: "float32", "bfloat16" or
            "float16"; vectors are float32 in each case. "auto" is bfloat16 on
            CPUs with AVX512-BF16, and float32 elsewhere
        engine ("auto"): what runs the network: "torch", "compile" (by
            torch.compile) or "openvino". "auto" is OpenVINO on CPUs, if it is
            installed and can compute in the dtype there, and torch elsewhere
        device (None): the torch device; None is cuda, else mps, else cpu
        fast_decoding (False): whether to read images faster, large JPEGs
            several times, to pixels that are a grey level or so off
        checkpoint (None): weights of your own instead of the entry's: a
            folder, a ``.safetensors`` file, or ``<owner>/<name>@<revision>``
    """

    pooling: str = next(iter(POOLINGS))
    normalize: bool = False
    dtype: str = AUTO
    engine: str = AUTO
    device: str | None = None
    fast_decoding: bool = False
    checkpoint: str | None = None

    def apply(self, preprocessing: Preprocessing) -> Preprocessing:
        """Return a checkpoint's preprocessing as these options ask for it."""
        return replace(preprocessing, is_fast=self.fast_decoding)


def get_checkpoint(name: str) -> Checkpoint:
    """Look an entry of the zoo up.

    Args:
        name: its name

    Returns:
        a :class:`Checkpoint`

    Raises:
        ValueError: if there is none of that name
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"Unknown model {name!r}. Valid are {list(CHECKPOINTS)}")

    return CHECKPOINTS[name]


def parse_settings(checkpoint: Checkpoint, options: Mapping[str, Any]) -> Settings:
    """Validate the options of a model, before any weights are touched.

    Args:
        checkpoint: the entry of the zoo
        options: the options that were given

    Returns:
        a :class:`Settings`; device, dtype and engine are those that will be used

    Raises:
        ValueError: if an option or its value is unknown; the message gives it
            and the valid ones
    """
    names = [field.name for field in fields(Settings)]
    for name in options:
        if name not in names:
            raise ValueError(f"Unknown option {name!r}. Valid are {names}")

    settings = Settings(**{"pooling": checkpoint.poolings[0], **options})
    _check_choice(f"pooling of {checkpoint.name}", settings.pooling, checkpoint.poolings)
    _check_choice("normalize", settings.normalize, [False, True])
    _check_choice("dtype", settings.dtype, [AUTO, *DTYPES])
    _check_choice("engine", settings.engine, [AUTO, *ENGINES])
    _check_choice("fast_decoding", settings.fast_decoding, [False, True])

    if settings.checkpoint is not None:
        settings = replace(settings, checkpoint=str(settings.checkpoint))
        validate_checkpoint(str(settings.checkpoint))

    settings = replace(settings, device=_parse_device(settings.device))
    settings = replace(settings, dtype=_choose_dtype(settings))
    return replace(settings, engine=_choose_engine(settings))


def _choose_dtype(settings: Settings) -> str:
    if settings.dtype != AUTO:
        return settings.dtype

    # By the machine alone, so that it never changes there
    return "bfloat16" if settings.device == "cpu" and has_bfloat16() else "float32"


def _choose_engine(settings: Settings) -> str:
    obstacle = _openvino_obstacle(settings)
    if settings.engine == AUTO:
        return "torch" if obstacle else "openvino"

    if settings.engine == "openvino" and obstacle:
        raise ValueError(f"Invalid engine: 'openvino' {obstacle}")

    return settings.engine


def _openvino_obstacle(settings: Settings) -> str | None:
    if settings.device != "cpu":
        return f"is for device 'cpu', not {settings.device!r}"

    dtypes = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    if settings.dtype not in dtypes:
        return f"cannot compute in {settings.dtype!r} on this CPU, only in {dtypes}"

    if not has_openvino():
        return f"is not installed: pip install '{OPENVINO}'"

    return None


def _check_choice(option: str, value: object, valid: list[Any]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in valid):
        raise ValueError(f"Invalid {option}: {value!r}. Valid are {valid}")


def _parse_device(device: object) -> str:
    available = _available_devices()
    if device is None:
        return available[0]

    name = str(device)
    if name not in available:
        raise ValueError(
            f"Invalid device: {name!r}. Available are {available}, None takes the first"
        )

    return name


def _available_devices() -> list[str]:
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [
        *(["cuda", *cuda] if cuda else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
        "cpu",
    ]
