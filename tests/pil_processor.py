"""Transformers' image processors that compute with Pillow, and Meta's settings."""

from __future__ import annotations

from typing import Any

try:
    from transformers import BitImageProcessorPil as PilProcessor
    from transformers import CLIPImageProcessorPil as CLIPProcessor
    from transformers import ViTImageProcessorPil as ViTProcessor
except ImportError:  # their names before the other kind became the default
    from transformers.models.bit.image_processing_bit import (
        BitImageProcessor as PilProcessor,
    )
    from transformers.models.clip.image_processing_clip import (
        CLIPImageProcessor as CLIPProcessor,
    )
    from transformers.models.vit.image_processing_vit import (
        ViTImageProcessor as ViTProcessor,
    )

__all__ = ["META", "CLIPProcessor", "PilProcessor", "ViTProcessor"]

# What preprocessor_config.json of Meta's repositories says
META: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
