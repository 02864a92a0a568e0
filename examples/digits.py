"""Scikit-learn's handwritten digits as image files, with a fixed split.

1,797 digits of 8x8 pixels, written as 64x64 PNG files. 1,200 of them trained
hiera-nano-digits; it never saw the other 597.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

_TRAIN_SIZE = 1200
_SPLIT_SEED = 51
_SIDE = 64


@dataclass(frozen=True)
class Digit:
    """One digit on disk.

    Args:
        path: the path of its PNG file
        label: which digit it is
        split: "train" or "test"
    """

    path: Path
    label: int
    split: str


def write_digits(folder: Path) -> list[Digit]:
    """Write the digits that a folder lacks.

    Args:
        folder: the folder

    Returns:
        the digits, in scikit-learn's order
    """
    folder.mkdir(parents=True, exist_ok=True)
    bunch = load_digits()
    shuffled = np.random.default_rng(_SPLIT_SEED).permutation(len(bunch.target))
    train = set(shuffled[:_TRAIN_SIZE].tolist())

    digits = []
    for index, (pixels, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        path = folder / f"{index:04d}.png"
        if not path.exists():
            # Ink is 0 to 16; show it as black on white
            grey = Image.fromarray((255 - pixels * 255 / 16).astype(np.uint8))
            grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path)

        digits.append(Digit(path, int(label), "train" if index in train else "test"))

    return digits
