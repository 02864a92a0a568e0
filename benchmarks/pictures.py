"""JPEG files like those of cameras, from public-domain photographs that packages bring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"VGA": (640, 480), "2 MP": (1632, 1224), "12 MP": (4000, 3000)}
"""The (width, height) in pixels by name."""

_SENSOR_NOISE = 4  # grey levels; without any, enlarged pictures would be too easy


def write_jpegs(folder: Path, size: str, count: int) -> list[str]:
    """Write different JPEG files of one size.

    Args:
        folder: the folder
        size: one of :data:`SIZES`
        count: how many files

    Returns:
        their paths
    """
    from skimage import data
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    photos = [*load_sample_images().images, data.astronaut(), data.coffee(), data.cat()]
    generator = np.random.default_rng(51)
    paths = []
    for index in range(count):
        path = folder / f"{size.replace(' ', '-')}-{index:04}.jpg"
        paths.append(str(path))
        if path.exists():
            continue

        photo = Image.fromarray(photos[index % len(photos)])
        # A part of the photo, another one each time
        left, top = generator.uniform(0, 0.3, 2)
        box = (
            int(left * photo.width),
            int(top * photo.height),
            int((left + 0.7) * photo.width),
            int((top + 0.7) * photo.height),
        )
        pixels = np.asarray(photo.resize(SIZES[size], Image.Resampling.BICUBIC, box))
        noisy = pixels + generator.normal(0, _SENSOR_NOISE, pixels.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)

    return paths
