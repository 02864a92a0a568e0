"""Settings of image processors: the results of transformers, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pil_processor import META, CLIPProcessor, PilProcessor, ViTProcessor

from fiftyone_hiera.hiera.encoder import Normalization
from fiftyone_hiera.images.preprocessing import for_image_size
from fiftyone_hiera.images.processor_config import parse_processor

_NOISE = np.random.default_rng(51).integers(0, 256, (257, 333, 3), np.uint8)
_OF_OTHERS = {  # what files of several releases have, and what is turned off
    "image_processor_type": "BitImageProcessorFast",
    "do_pad": None,
    "do_flip_channel_order": False,
    "data_format": "channels_first",
    "device": None,
    "_valid_processor_keys": ["images", "do_resize"],
}


@pytest.mark.parametrize(
    ("processor", "values"),
    [
        (PilProcessor, META),
        (PilProcessor, {"feature_extractor_type": "BitFeatureExtractor"}),
        (PilProcessor, {}),
        (PilProcessor, {**_OF_OTHERS, "size": 240, "crop_size": [224, 224]}),
        (PilProcessor, {"do_normalize": None, "image_mean": None, "do_convert_rgb": None}),
        (
            PilProcessor,
            {"do_normalize": False, "resample": 1, "size": {"shortest_edge": 230}},
        ),
        (
            PilProcessor,
            {"do_center_crop": False, "size": {"height": 224, "width": 224}, "resample": 4},
        ),
        (
            PilProcessor,
            {"crop_size": 224, "image_mean": [0, 0.5, 1], "image_std": [1, 2, 3]},
        ),
        (CLIPProcessor, {"image_processor_type": "CLIPImageProcessorPil"}),
        (ViTProcessor, {"image_processor_type": "ViTImageProcessor"}),
        (ViTProcessor, {"feature_extractor_type": "ViTFeatureExtractor", "size": 224}),
    ],
)
def test_equals_the_processor(processor: Any, values: dict[str, Any]) -> None:
    preprocessing = parse_processor(values, (224, 224), "preprocessor_config.json")
    normalize = Normalization(preprocessing, torch.device("cpu"))
    found = normalize(preprocessing(_NOISE).unsqueeze(0))
    given = {name: value for name, value in values.items() if name not in _OF_OTHERS}
    expected = processor(**given)(Image.fromarray(_NOISE), return_tensors="pt")
    assert torch.equal(found, expected.pixel_values)


def test_metas() -> None:
    found = parse_processor(META, (224, 224), "preprocessor_config.json")
    assert found == for_image_size((224, 224))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_processor_type", "LevitImageProcessor"),
        ("image_processor_type", ["BitImageProcessor"]),
        ("feature_extractor_type", "VideoMAEFeatureExtractor"),
        ("do_flip_channel_order", True),
        ("rescale_offset", True),
        ("crop_pct", 0.9),
        ("do_pad", True),
        ("pad_size", {"height": 80, "width": 80}),
        ("auto_map", {"AutoImageProcessor": "own.OwnProcessor"}),
        ("do_resize", False),
        ("do_rescale", False),
        ("rescale_factor", 1.0),
        ("rescale_factor", "0.0039"),
        ("do_normalize", "no"),
        ("do_center_crop", "no"),
        ("rescale_factor", None),
        ("resample", None),
        ("image_std", None),
        ("crop_size", None),
        ("resample", 6),
        ("resample", True),
        ("resample", "bicubic"),
        ("image_mean", 0.5),
        ("image_mean", "0.5"),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, float("nan")]),
        ("image_std", [0.2, 0, 0.2]),
        ("image_std", {"r": 1, "g": 1, "b": 1}),
        ("size", "256"),
        ("size", 256.0),
        ("size", [256]),
        ("size", {"shortest_edge": 0}),
        ("size", {"shortest_edge": 200}),
        ("size", {"shortest_edge": 256, "longest_edge": 300}),
        ("size", {"height": 256, "width": 256}),
        ("crop_size", {"height": 300, "width": 224}),
        ("crop_size", {"height": True, "width": 224}),
        ("crop_size", {"shortest_edge": 224}),
    ],
    ids=str,
)
def test_what_it_does_otherwise_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^a\.json: {name} = .* is not supported, only "):
        parse_processor({**META, name: value}, (224, 224), "a.json")


@pytest.mark.parametrize("off", [False, None])
def test_images_of_different_sizes_are_refused(off: bool | None) -> None:
    with pytest.raises(ValueError, match=r"size = .* without do_center_crop only"):
        parse_processor({**META, "do_center_crop": off}, (224, 224), "a.json")
