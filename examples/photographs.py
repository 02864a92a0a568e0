"""Photographs that come with packages, cut into overlapping square views.

2,000 views of 15 photographs, written as JPEG files of 128x128 pixels. Views are
"train" or "test" by region: the right third of each photograph is in no view of
"train". Nothing is downloaded.

From scikit-image, in the public domain, under CC0, or with no known copyright
restrictions:

- astronaut (Eileen Collins), hubble_deep_field: NASA, public domain
- rocket: SpaceX, public domain
- camera: Lav Varshney, CC0
- chelsea (a cat): Stefan van der Walt, CC0
- coffee: Rachel Michetti, Pikolo Espresso Bar, CC0
- brick, gravel: CC0Textures, CC0; grass: linolafett, CC0
- retina: Mikael Häggström, CC0
- coins: Brooklyn Museum, no known copyright restrictions
- ihc (stained tissue): Center for Microscopy and Molecular Imaging, no known
  copyright restrictions
- moon: comes with scikit-image, which names no author

From scikit-learn, under CC BY 2.0:

- china: danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035
- flower: vultilion, https://www.flickr.com/photos/vultilion/6056698931
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

_FILES = {
    "skimage.data": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}
_PATHS = {
    name.partition(".")[0]: (package, name)
    for package, names in _FILES.items()
    for name in names
}

PHOTOGRAPHS = tuple(_PATHS)
"""The names of the photographs."""

_SEED = 51
_SIDE = 128
_SIZES = (1 / 4, 1 / 3)  # of a view's side, relative to the photograph's shorter side
_TEST_SHARE = 1 / 4


@dataclass(frozen=True)
class View:
    """One view on disk.

    Args:
        path: the path of its JPEG file
        photograph: the name of the photograph
        box: its (left, top, right, bottom) in the photograph, in pixels
        split: "test" if it lies in the photograph's right third, else "train"
    """

    path: Path
    photograph: str
    box: tuple[int, int, int, int]
    split: str


def open_photograph(name: str) -> Image.Image:
    """Open a photograph in full.

    Args:
        name: one of :data:`PHOTOGRAPHS`

    Returns:
        the RGB image
    """
    package, filename = _PATHS[name]
    with (files(package) / filename).open("rb") as file:
        return Image.open(file).convert("RGB")


def write_photographs(folder: Path, count: int = 2000) -> list[View]:
    """Write the views that a folder lacks.

    Args:
        folder: the folder
        count (2000): the number of views; the first views are the same for any count

    Returns:
        the views, which go through the photographs in turn
    """
    folder.mkdir(parents=True, exist_ok=True)
    photographs = {name: open_photograph(name) for name in PHOTOGRAPHS}
    generator = np.random.default_rng(_SEED)

    views = []
    for index in range(count):
        name = PHOTOGRAPHS[index % len(PHOTOGRAPHS)]
        photograph = photographs[name]
        split = "test" if generator.random() < _TEST_SHARE else "train"
        box = _random_box(photograph, split, generator)
        path = folder / f"{index:04d}-{name}.jpg"
        if not path.exists():
            view = photograph.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box)
            view.save(path, quality=90)

        views.append(View(path, name, box, split))

    return views


def _random_box(
    photograph: Image.Image, split: str, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    width, height = photograph.size
    border = round(width * 2 / 3)
    start, end = (border, width) if split == "test" else (0, border)
    shortest = min(width, height)
    side = min(int(shortest * generator.uniform(*_SIZES)), end - start)
    left = int(generator.integers(start, end - side, endpoint=True))
    top = int(generator.integers(0, height - side, endpoint=True))
    return left, top, left + side, top + side
