"""The table of checkpoints, from which the manifest and the documentation are made."""

# ruff: noqa: E501  # one row of the table per line

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
        file: the weights on the hub, or those that come with this source
        depths: the number of blocks in each stage
        embed_dim: the width of the stem; each stage doubles it
        num_heads: the number of attention heads in the first stage; each stage doubles it
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
    file: HubFile | BundledFile
    depths: tuple[int, ...]
    embed_dim: int
    num_heads: int
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
    def filename(self) -> str:
        """The name of the weights file in the source's folder."""
        return f"{self.name.rpartition('/')[2]}.safetensors"

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
            num_heads=tuple(self.num_heads * 2**stage for stage in range(len(self.depths))),
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


# Meta's kinds of checkpoints, by the last part of their names; all were pretrained
_KINDS = {
    "hf": (HIERA_MODEL, "not fine-tuned"),
    "in1k-hf": (CLASSIFIER, "then fine-tuned on labels"),
    "mae-hf": (AUTOENCODER, "with its decoder"),
}

# Meta's variants: the depths, the width of the stem and the heads of the first stage
_VARIANTS = {
    "tiny": ((1, 2, 7, 2), 96, 1),
    "small": ((1, 2, 11, 2), 96, 1),
    "base": ((2, 3, 16, 3), 96, 1),
    "base-plus": ((2, 3, 16, 3), 112, 2),
    "large": ((2, 6, 36, 4), 144, 2),
    "huge": ((2, 6, 36, 4), 256, 4),
}

# Kind, variant, parameters, revision and sha256. Where one of the last two is missing, no
# public page shows it, and the other one pins the file
# fmt: off
_WEIGHTS = [
    ("hf", "tiny", 27_141_216, "d801c4d51cda6051d231ef2dae7467a5b8a4cc7f", None),
    ("hf", "small", 34_239_072, None, "a795c673ccdd15ab5f89d701415633587e03ff5a1a656f8cc20d60485be373f6"),
    ("hf", "base", 50_755_968, "0b578d16a6e38b63fd594c2d8f210d63975e7fc4", None),
    ("hf", "base-plus", 68_999_616, "6da4c853960cfa015094820318b0be7e971aef74", "d03fcd2c2d5a3ea20fd300a82a2c7911b881a7d9e78f270e8e3e8450fbfadcbf"),
    ("hf", "large", 212_586_912, "323cce3c7fc67cece13ab62026d7bdb80f109794", "1578c85276c01c729c8b4071045956cf8f12003e42babc85acd1412d1625025a"),
    ("hf", "huge", 670_730_752, "25e61b8270e6beab77625ab07373374d76d36224", "d222b3c1dd62ca8a33adb7ef9630dc9f081fe60b1680234197223503aab6d209"),
    ("in1k-hf", "tiny", 27_910_216, "338416869b968d22be84f4f70c3bc8a118df9fa7", None),
    ("in1k-hf", "small", 35_008_072, None, "d71064248e0ebd5248d129809c4243df795b9ee35c79f6d5637ad1c1c9cf437a"),
    ("in1k-hf", "base", 51_524_968, "901f17bc4cdf77b2721df755fbf3799d06cad7f2", None),
    ("in1k-hf", "base-plus", 69_896_616, "0ec12171b8ac0f0fa74189a2b48b39ee631830a4", "c48e5feeae4637131e7b824064acc6e782e1b419fea3d9aff3d4d0982db8981a"),
    ("in1k-hf", "large", 213_739_912, "d38f02be80f4cb134a790a5a7d5b39dcf54091a1", "7e147080cee461cc42ba0af42319c7753490340d58e3a0e09d9de828c815149c"),
    ("in1k-hf", "huge", 672_779_752, "3cfffad3fe9e410f70f2ba60ce7aee935303a7d2", "6a0eb0662621428526b0f92797722b7ffff102db2e24ed714cb55157efe8e34d"),
    ("mae-hf", "tiny", 55_020_896, "69fe13599be39d20119ed5e03a7ba7f2d83a0830", None),
    ("mae-hf", "small", 62_118_752, None, "6a1ebcaf716d4a980e89098a383222e96af9f89b1e70dd712216dcdfa90a74c2"),
    ("mae-hf", "base", 78_635_648, "5d448e9dd3058fa3584c564b1b749b60aca259c4", "e59fe8c1412a18c4ab693d510f174460cdac5f3614ebe2e8d6a7a250ed0ebc5f"),
    ("mae-hf", "base-plus", 97_584_064, "4bf0c16c3edc232ac75e506854049ef5dbb0b159", "576e598b304cc094c4e6786a5b85cd5e94520f5518a083e4e1697976bd0abbde"),
    ("mae-hf", "large", 242_875_808, "bf7e0db68143a8daa48554a8aa033b7eb81ba26d", None),
    ("mae-hf", "huge", 710_081_792, "e2efd90ac40fa001a4ef67d99132d382ca81de51", "64a0eeaf755e5ac0a0481cfa214216a8a8713c3cce1a28f99ddf9e5921ce9547"),
]
# fmt: on


def _meta_checkpoints() -> Iterator[Checkpoint]:
    for kind, variant, parameters, revision, sha256 in _WEIGHTS:
        architecture, trained = _KINDS[kind]
        depths, embed_dim, num_heads = _VARIANTS[variant]
        name = f"facebook/hiera-{variant}-224-{kind}"
        checkpoint = Checkpoint(
            name=name,
            file=HubFile(name, revision, sha256),
            depths=depths,
            embed_dim=embed_dim,
            num_heads=num_heads,
            image_size=224,
            parameters=parameters,
            trained=f"pretrained as a masked autoencoder (MAE), {trained}",
            training_data=("ImageNet-1K", "https://www.image-net.org/download.php"),
            author="Chaitanya Ryali, et al.",
            source=f"https://huggingface.co/{name}",
            license="CC BY-NC 4.0",
            architecture=architecture,
        )
        yield checkpoint
        if architecture is HIERA_MODEL:
            yield replace(checkpoint, name=f"{name}-cls", pooling="cls")


def _nano_checkpoint(
    kind: str, *, sha256: str, trained: str, training_data: tuple[str, str]
) -> Checkpoint:
    """Return an entry whose weights come with this source."""
    name = f"hiera-nano-{kind}"
    path = Path(__file__).with_name("assets") / f"{name}.safetensors"
    return Checkpoint(
        name=name,
        file=BundledFile(path, sha256),
        depths=(1, 1, 2, 1),
        embed_dim=24,
        num_heads=1,
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
            file=HubFile(
                "birder-project/hiera_abswin_base_mim",
                None,
                "48adf5f778081ea2e5aa98e10149d3bf8f1d4ad15e7998cb5611cd450557dfc1",
                "hiera_abswin_base_mim.safetensors",
            ),
            depths=(2, 3, 16, 3),
            embed_dim=96,
            num_heads=1,
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
    """Return the entry of the zoo that has this name.

    Raises:
        ValueError: if there is no entry of that name; the message lists the valid names
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"Unknown model {name!r}. Valid are {list(CHECKPOINTS)}")

    return CHECKPOINTS[name]
