"""Meta's networks with random weights: their speed is that of the real ones."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from transformers import HieraConfig, HieraModel

_ROOT = Path(__file__).resolve().parents[1]

LAYOUTS = {
    "tiny": ((1, 2, 7, 2), 96, (1, 2, 4, 8)),
    "small": ((1, 2, 11, 2), 96, (1, 2, 4, 8)),
    "base": ((2, 3, 16, 3), 96, (1, 2, 4, 8)),
    "base-plus": ((2, 3, 16, 3), 112, (2, 4, 8, 16)),
    "large": ((2, 6, 36, 4), 144, (2, 4, 8, 16)),
    "huge": ((2, 6, 36, 4), 256, (4, 8, 16, 32)),
}
"""Of each variant the depths, the width of the stem and the heads.

A test compares them with the table of checkpoints, which takes FiftyOne to import."""

GMACS = {
    "tiny": 4.91,
    "small": 6.42,
    "base": 9.40,
    "base-plus": 12.67,
    "large": 40.3,
    "huge": 124.9,
}
"""The multiplications of one image of 224 px, in 10^9, from the authors' table."""


def import_package() -> None:
    """Make this checkout importable as ``fiftyone_hiera``, without FiftyOne."""
    pickling = str(_ROOT / "images" / "pickling.py")
    runpy.run_path(pickling, {"IMPORT": ("fiftyone_hiera", str(_ROOT))})


def make_hiera(variant: str) -> HieraModel:
    """Return transformers' model of a variant."""
    depths, embed_dim, num_heads = LAYOUTS[variant]
    config = HieraConfig(depths=depths, embed_dim=embed_dim, num_heads=num_heads)
    hiera: HieraModel = HieraModel(config).eval().requires_grad_(False)
    return hiera


def save_checkpoint(variant: str, folder: Path) -> Path:
    """Save a checkpoint as on the hub, for transformers and for this package.

    Returns:
        the folder
    """
    if (folder / "preprocessor_config.json").exists():
        return folder

    make_hiera(variant).save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    text = json.dumps(preprocessing)
    (folder / "preprocessor_config.json").write_text(text, "utf-8")
    return folder
