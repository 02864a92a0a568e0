"""The checkpoints of this source: the one table that all else is made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .hiera import abswin
from .hiera.hub import BundledFile, HubFile
from .hiera.pooling import POOLINGS
from .images.preprocessing import Preprocessing, for_image_size


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
        parameters: the number of parameters in the file
        trained: what the weights are, for the description
        training_data: the (name, URL) of the data they were trained on
        author: who made them
        source: where they are documented
        license: their licence, as FiftyOne's own manifests spell it
        architecture ("HieraModel"): what the file holds, one of
            :data:`hiera.tensors.ARCHITECTURES`
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
    architecture: str = "HieraModel"
    pooling: str | None = None

    @property
    def embedding_dim(self) -> int:
        """The length of an embedding."""
        return int(self.embed_dim * 2 ** (len(self.depths) - 1))

    @property
    def poolings(self) -> list[str]:
        """The poolings under this name, the default first."""
        if self.pooling:
            return [self.pooling]

        return poolings_of(self.architecture)

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


@dataclass(frozen=True)
class _Variant:
    """One of Meta's sizes.

    Args:
        name: the name of the variant
        depths, embed_dim, num_heads: see :class:`Checkpoint`
        files: of each kind the number of parameters, the revision and the sha256
    """

    name: str
    depths: tuple[int, ...]
    embed_dim: int
    num_heads: tuple[int, ...]
    files: dict[str, tuple[int, str | None, str | None]]


# By the last part of their names, what each kind of checkpoint is
_KINDS = {
    "hf": (
        "HieraModel",
        "pretrained as a masked autoencoder (MAE), not fine-tuned",
    ),
    "in1k-hf": (
        "HieraForImageClassification",
        "pretrained as a masked autoencoder (MAE), then fine-tuned on labels",
    ),
    "mae-hf": (
        "HieraForPreTraining",
        "pretrained as a masked autoencoder (MAE), with its decoder",
    ),
}

# A revision or a sha256 that is missing here was not to be had from a public
# page: the other of the two pins the file. None was completed or guessed
_VARIANTS = (
    _Variant(
        "tiny",
        depths=(1, 2, 7, 2),
        embed_dim=96,
        num_heads=(1, 2, 4, 8),
        files={
            "hf": (27_141_216, "d801c4d51cda6051d231ef2dae7467a5b8a4cc7f", None),
            "in1k-hf": (27_910_216, "338416869b968d22be84f4f70c3bc8a118df9fa7", None),
            "mae-hf": (55_020_896, "69fe13599be39d20119ed5e03a7ba7f2d83a0830", None),
        },
    ),
    _Variant(
        "small",
        depths=(1, 2, 11, 2),
        embed_dim=96,
        num_heads=(1, 2, 4, 8),
        files={
            "hf": (
                34_239_072,
                None,
                "a795c673ccdd15ab5f89d701415633587e03ff5a1a656f8cc20d60485be373f6",
            ),
            "in1k-hf": (
                35_008_072,
                None,
                "d71064248e0ebd5248d129809c4243df795b9ee35c79f6d5637ad1c1c9cf437a",
            ),
            "mae-hf": (
                62_118_752,
                None,
                "6a1ebcaf716d4a980e89098a383222e96af9f89b1e70dd712216dcdfa90a74c2",
            ),
        },
    ),
    _Variant(
        "base",
        depths=(2, 3, 16, 3),
        embed_dim=96,
        num_heads=(1, 2, 4, 8),
        files={
            "hf": (50_755_968, "0b578d16a6e38b63fd594c2d8f210d63975e7fc4", None),
            "in1k-hf": (51_524_968, "901f17bc4cdf77b2721df755fbf3799d06cad7f2", None),
            "mae-hf": (
                78_635_648,
                "5d448e9dd3058fa3584c564b1b749b60aca259c4",
                "e59fe8c1412a18c4ab693d510f174460cdac5f3614ebe2e8d6a7a250ed0ebc5f",
            ),
        },
    ),
    _Variant(
        "base-plus",
        depths=(2, 3, 16, 3),
        embed_dim=112,
        num_heads=(2, 4, 8, 16),
        files={
            "hf": (
                68_999_616,
                "6da4c853960cfa015094820318b0be7e971aef74",
                "d03fcd2c2d5a3ea20fd300a82a2c7911b881a7d9e78f270e8e3e8450fbfadcbf",
            ),
            "in1k-hf": (
                69_896_616,
                "0ec12171b8ac0f0fa74189a2b48b39ee631830a4",
                "c48e5feeae4637131e7b824064acc6e782e1b419fea3d9aff3d4d0982db8981a",
            ),
            "mae-hf": (
                97_584_064,
                "4bf0c16c3edc232ac75e506854049ef5dbb0b159",
                "576e598b304cc094c4e6786a5b85cd5e94520f5518a083e4e1697976bd0abbde",
            ),
        },
    ),
    _Variant(
        "large",
        depths=(2, 6, 36, 4),
        embed_dim=144,
        num_heads=(2, 4, 8, 16),
        files={
            "hf": (
                212_586_912,
                "323cce3c7fc67cece13ab62026d7bdb80f109794",
                "1578c85276c01c729c8b4071045956cf8f12003e42babc85acd1412d1625025a",
            ),
            "in1k-hf": (
                213_739_912,
                "d38f02be80f4cb134a790a5a7d5b39dcf54091a1",
                "7e147080cee461cc42ba0af42319c7753490340d58e3a0e09d9de828c815149c",
            ),
            "mae-hf": (242_875_808, "bf7e0db68143a8daa48554a8aa033b7eb81ba26d", None),
        },
    ),
    _Variant(
        "huge",
        depths=(2, 6, 36, 4),
        embed_dim=256,
        num_heads=(4, 8, 16, 32),
        files={
            "hf": (
                670_730_752,
                "25e61b8270e6beab77625ab07373374d76d36224",
                "d222b3c1dd62ca8a33adb7ef9630dc9f081fe60b1680234197223503aab6d209",
            ),
            "in1k-hf": (
                672_779_752,
                "3cfffad3fe9e410f70f2ba60ce7aee935303a7d2",
                "6a0eb0662621428526b0f92797722b7ffff102db2e24ed714cb55157efe8e34d",
            ),
            "mae-hf": (
                710_081_792,
                "e2efd90ac40fa001a4ef67d99132d382ca81de51",
                "64a0eeaf755e5ac0a0481cfa214216a8a8713c3cce1a28f99ddf9e5921ce9547",
            ),
        },
    ),
)


def _meta_checkpoints() -> Iterator[Checkpoint]:
    for kind, (architecture, trained) in _KINDS.items():
        for variant in _VARIANTS:
            parameters, revision, sha256 = variant.files[kind]
            filename = f"hiera-{variant.name}-224-{kind}"
            checkpoint = Checkpoint(
                name=f"facebook/{filename}",
                filename=f"{filename}.safetensors",
                weights=HubFile(f"facebook/{filename}", revision, sha256),
                depths=variant.depths,
                embed_dim=variant.embed_dim,
                num_heads=variant.num_heads,
                image_size=224,
                parameters=parameters,
                trained=trained,
                training_data=("ImageNet-1K", "https://www.image-net.org/download.php"),
                author="Chaitanya Ryali, et al.",
                source=f"https://huggingface.co/facebook/{filename}",
                license="CC BY-NC 4.0",
                architecture=architecture,
            )
            yield checkpoint
            if architecture == "HieraModel":
                yield replace(
                    checkpoint,
                    name=f"{checkpoint.name}-cls",
                    filename=f"{filename}-cls.safetensors",
                    pooling="cls",
                )


CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        *_meta_checkpoints(),
        Checkpoint(
            name="birder-project/hiera_abswin_base_mim",
            filename="hiera_abswin_base_mim.safetensors",
            weights=HubFile(
                "birder-project/hiera_abswin_base_mim",
                None,
                "48adf5f778081ea2e5aa98e10149d3bf8f1d4ad15e7998cb5611cd450557dfc1",
                "hiera_abswin_base_mim.safetensors",
            ),
            depths=(2, 3, 16, 3),
            embed_dim=96,
            num_heads=(1, 2, 4, 8),
            image_size=224,
            parameters=50_479_872,
            trained="pretrained by masked image modeling (MIM), not fine-tuned",
            training_data=(
                "about 12 M images",
                "https://huggingface.co/birder-project/hiera_abswin_base_mim",
            ),
            author="birder",
            source="https://huggingface.co/birder-project/hiera_abswin_base_mim",
            license="Apache 2.0",
            architecture=abswin.ARCHITECTURE,
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

OUTPUTS = {
    "HieraModel": ("embeddings", "heatmap"),
    "HieraForImageClassification": ("classification", "heatmap"),
    "HieraForPreTraining": ("reconstruction_error", "heatmap"),
    abswin.ARCHITECTURE: ("embeddings", "heatmap"),
}
"""What ``apply_model`` can give, the default first; "embeddings" is no label at all."""


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


def poolings_of(architecture: str) -> list[str]:
    """Return the poolings of an architecture, the default first."""
    # An autoencoder's LayerNorm is one of all stages together
    if architecture == "HieraForPreTraining":
        return [name for name in POOLINGS if name != "pooler"]

    # What birder calls the embedding is through the LayerNorm
    first = "pooler" if architecture == abswin.ARCHITECTURE else next(iter(POOLINGS))
    return sorted(POOLINGS, key=lambda name: name != first)
