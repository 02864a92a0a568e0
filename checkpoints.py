"""The table of checkpoints, from which the manifest and the documentation are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .hiera.checkpoint_kinds import (
    ABSWIN,
    AUTOENCODER,
    CLASSIFIER,
    HIERA_MODEL,
    Architecture,
)
from .hiera.configuration import Configuration
from .hiera.hub import BundledFile, HubFile
from .images.preprocessing import Preprocessing, for_image_size


@dataclass(frozen=True)
class Checkpoint:
    """An entry of the model zoo.

    Args:
        name: the name of the model in the zoo
        filename: the name of the weights file in the source's folder
        weights: the file on the hub, or the file that comes with this source
        depths: the number of blocks in each stage
        embed_dim: the width of the stem; each stage doubles it
        num_heads: the number of attention heads in each stage
        image_size: the height and width of the input, in pixels
        parameters: the number of parameters in the file
        trained: how the weights were trained, for descriptions
        training_data: the (name, URL) of the training data
        author: the author of the weights
        source: where the weights are documented
        license: the license of the weights, as FiftyOne's own manifests spell it
        architecture (HIERA_MODEL): the kind of checkpoint
        pooling (None): the only pooling under this name; None allows all
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
    architecture: Architecture = HIERA_MODEL
    pooling: str | None = None

    @property
    def embedding_dim(self) -> int:
        """The length of an embedding."""
        return int(self.embed_dim * 2 ** (len(self.depths) - 1))

    @property
    def poolings(self) -> list[str]:
        """The poolings under this name, the default first."""
        return [self.pooling] if self.pooling else [*self.architecture.poolings]

    @property
    def config(self) -> Configuration:
        """The configuration."""
        return Configuration(
            architecture=self.architecture.name,
            depths=self.depths,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            image_size=(self.image_size, self.image_size),
            **self.architecture.config(),
        )

    @property
    def size_bytes(self) -> int:
        """The approximate size of the weights, which are float32."""
        return 4 * self.parameters

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing, unless the weights file itself defines another."""
        return for_image_size((self.image_size, self.image_size))

    @property
    def origin(self) -> str:
        """The name of the weights, which entries may share."""
        return self.weights.repo_id if isinstance(self.weights, HubFile) else self.name

    @property
    def revision(self) -> str | None:
        """The commit on the hub that pins the weights, if known."""
        return self.weights.revision if isinstance(self.weights, HubFile) else None


@dataclass(frozen=True)
class Weights:
    """The weights of a variant and kind.

    Args:
        parameters: the number of parameters
        revision (None): the commit on the hub
        sha256 (None): the hash of the file
    """

    parameters: int
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class _Variant:
    """One of Meta's sizes.

    Args:
        name: the name of the variant
        depths, embed_dim, num_heads: see :class:`Checkpoint`
        weights: the weights by kind
    """

    name: str
    depths: tuple[int, ...]
    embed_dim: int
    num_heads: tuple[int, ...]
    weights: dict[str, Weights]


# Meta's kinds of checkpoints, by the last part of their names
_KINDS = {
    "hf": (
        HIERA_MODEL,
        "pretrained as a masked autoencoder (MAE), not fine-tuned",
    ),
    "in1k-hf": (
        CLASSIFIER,
        "pretrained as a masked autoencoder (MAE), then fine-tuned on labels",
    ),
    "mae-hf": (
        AUTOENCODER,
        "pretrained as a masked autoencoder (MAE), with its decoder",
    ),
}

# Where the revision or the sha256 is missing, no public page shows it, and the other of
# the two pins the file
_VARIANTS = (
    _Variant(
        "tiny",
        depths=(1, 2, 7, 2),
        embed_dim=96,
        num_heads=(1, 2, 4, 8),
        weights={
            "hf": Weights(27_141_216, revision="d801c4d51cda6051d231ef2dae7467a5b8a4cc7f"),
            "in1k-hf": Weights(
                27_910_216, revision="338416869b968d22be84f4f70c3bc8a118df9fa7"
            ),
            "mae-hf": Weights(
                55_020_896, revision="69fe13599be39d20119ed5e03a7ba7f2d83a0830"
            ),
        },
    ),
    _Variant(
        "small",
        depths=(1, 2, 11, 2),
        embed_dim=96,
        num_heads=(1, 2, 4, 8),
        weights={
            "hf": Weights(
                34_239_072,
                sha256="a795c673ccdd15ab5f89d701415633587e03ff5a1a656f8cc20d60485be373f6",
            ),
            "in1k-hf": Weights(
                35_008_072,
                sha256="d71064248e0ebd5248d129809c4243df795b9ee35c79f6d5637ad1c1c9cf437a",
            ),
            "mae-hf": Weights(
                62_118_752,
                sha256="6a1ebcaf716d4a980e89098a383222e96af9f89b1e70dd712216dcdfa90a74c2",
            ),
        },
    ),
    _Variant(
        "base",
        depths=(2, 3, 16, 3),
        embed_dim=96,
        num_heads=(1, 2, 4, 8),
        weights={
            "hf": Weights(50_755_968, revision="0b578d16a6e38b63fd594c2d8f210d63975e7fc4"),
            "in1k-hf": Weights(
                51_524_968, revision="901f17bc4cdf77b2721df755fbf3799d06cad7f2"
            ),
            "mae-hf": Weights(
                78_635_648,
                revision="5d448e9dd3058fa3584c564b1b749b60aca259c4",
                sha256="e59fe8c1412a18c4ab693d510f174460cdac5f3614ebe2e8d6a7a250ed0ebc5f",
            ),
        },
    ),
    _Variant(
        "base-plus",
        depths=(2, 3, 16, 3),
        embed_dim=112,
        num_heads=(2, 4, 8, 16),
        weights={
            "hf": Weights(
                68_999_616,
                revision="6da4c853960cfa015094820318b0be7e971aef74",
                sha256="d03fcd2c2d5a3ea20fd300a82a2c7911b881a7d9e78f270e8e3e8450fbfadcbf",
            ),
            "in1k-hf": Weights(
                69_896_616,
                revision="0ec12171b8ac0f0fa74189a2b48b39ee631830a4",
                sha256="c48e5feeae4637131e7b824064acc6e782e1b419fea3d9aff3d4d0982db8981a",
            ),
            "mae-hf": Weights(
                97_584_064,
                revision="4bf0c16c3edc232ac75e506854049ef5dbb0b159",
                sha256="576e598b304cc094c4e6786a5b85cd5e94520f5518a083e4e1697976bd0abbde",
            ),
        },
    ),
    _Variant(
        "large",
        depths=(2, 6, 36, 4),
        embed_dim=144,
        num_heads=(2, 4, 8, 16),
        weights={
            "hf": Weights(
                212_586_912,
                revision="323cce3c7fc67cece13ab62026d7bdb80f109794",
                sha256="1578c85276c01c729c8b4071045956cf8f12003e42babc85acd1412d1625025a",
            ),
            "in1k-hf": Weights(
                213_739_912,
                revision="d38f02be80f4cb134a790a5a7d5b39dcf54091a1",
                sha256="7e147080cee461cc42ba0af42319c7753490340d58e3a0e09d9de828c815149c",
            ),
            "mae-hf": Weights(
                242_875_808, revision="bf7e0db68143a8daa48554a8aa033b7eb81ba26d"
            ),
        },
    ),
    _Variant(
        "huge",
        depths=(2, 6, 36, 4),
        embed_dim=256,
        num_heads=(4, 8, 16, 32),
        weights={
            "hf": Weights(
                670_730_752,
                revision="25e61b8270e6beab77625ab07373374d76d36224",
                sha256="d222b3c1dd62ca8a33adb7ef9630dc9f081fe60b1680234197223503aab6d209",
            ),
            "in1k-hf": Weights(
                672_779_752,
                revision="3cfffad3fe9e410f70f2ba60ce7aee935303a7d2",
                sha256="6a0eb0662621428526b0f92797722b7ffff102db2e24ed714cb55157efe8e34d",
            ),
            "mae-hf": Weights(
                710_081_792,
                revision="e2efd90ac40fa001a4ef67d99132d382ca81de51",
                sha256="64a0eeaf755e5ac0a0481cfa214216a8a8713c3cce1a28f99ddf9e5921ce9547",
            ),
        },
    ),
)


def _meta_checkpoints() -> Iterator[Checkpoint]:
    for kind, (architecture, trained) in _KINDS.items():
        for variant in _VARIANTS:
            weights = variant.weights[kind]
            filename = f"hiera-{variant.name}-224-{kind}"
            checkpoint = Checkpoint(
                name=f"facebook/{filename}",
                filename=f"{filename}.safetensors",
                weights=HubFile(f"facebook/{filename}", weights.revision, weights.sha256),
                depths=variant.depths,
                embed_dim=variant.embed_dim,
                num_heads=variant.num_heads,
                image_size=224,
                parameters=weights.parameters,
                trained=trained,
                training_data=("ImageNet-1K", "https://www.image-net.org/download.php"),
                author="Chaitanya Ryali, et al.",
                source=f"https://huggingface.co/facebook/{filename}",
                license="CC BY-NC 4.0",
                architecture=architecture,
            )
            yield checkpoint
            if architecture is HIERA_MODEL:
                yield replace(
                    checkpoint,
                    name=f"{checkpoint.name}-cls",
                    filename=f"{filename}-cls.safetensors",
                    pooling="cls",
                )


def _nano_checkpoint(
    kind: str, *, sha256: str, trained: str, training_data: tuple[str, str]
) -> Checkpoint:
    """Return an entry whose weights come with this source."""
    filename = f"hiera-nano-{kind}.safetensors"
    return Checkpoint(
        name=f"hiera-nano-{kind}",
        filename=filename,
        weights=BundledFile(Path(__file__).with_name("assets") / filename, sha256),
        depths=(1, 1, 2, 1),
        embed_dim=24,
        num_heads=(1, 2, 4, 8),
        image_size=64,
        parameters=665_736,
        trained=trained,
        training_data=training_data,
        author="fiftyone-hiera",
        source=f"examples/train_nano_{kind}.py of this source",
        license="Apache 2.0",
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
            architecture=ABSWIN,
        ),
        _nano_checkpoint(
            "digits",
            sha256="9acba5f0399ad6a7d8c4cbb0f9ddbc7755537ab071b1079cf1aa9a8e85b6045c",
            trained="trained with labels on 1,200 handwritten digits, for demonstration",
            training_data=(
                "scikit-learn digits",
                "https://scikit-learn.org/stable/datasets/toy_dataset.html",
            ),
        ),
        _nano_checkpoint(
            "photos",
            sha256="2134c8badfc58ba01380bba5576d81f129f2b5cf1255092ae4219ddde2a65ca2",
            trained="trained without labels on parts of 15 photographs, for demonstration",
            training_data=(
                "photographs of scikit-image and scikit-learn",
                "https://scikit-image.org/docs/stable/api/skimage.data.html",
            ),
        ),
    )
}
"""The entries of the zoo by name."""


def get_checkpoint(name: str) -> Checkpoint:
    """Return an entry of the zoo.

    Args:
        name: its name

    Returns:
        a :class:`Checkpoint`

    Raises:
        ValueError: if there is no entry of that name; the message lists the valid names
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"Unknown model {name!r}. Valid are {list(CHECKPOINTS)}")

    return CHECKPOINTS[name]
