"""Read the preprocessing of a checkpoint from the settings of its image processor.

The settings are those that transformers saves, and name its class. Only classes whose
steps are those of :class:`Preprocessing` are supported, and of their settings only those
that are known here: others could change the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image

from .preprocessing import Preprocessing

# Settings of which one value alone is supported, the default
_FIXED = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}

# The defaults of transformers' classes
_BIT: dict[str, Any] = {
    "do_normalize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": int(Image.Resampling.BICUBIC),
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_VIT: dict[str, Any] = {
    "do_normalize": True,
    "size": {"height": 224, "width": 224},
    "default_to_square": True,
    "do_center_crop": False,
    "crop_size": None,
    "resample": int(Image.Resampling.BILINEAR),
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_PROCESSORS = {
    "BitImageProcessor": _BIT,
    "CLIPImageProcessor": _BIT,
    "ViTImageProcessor": _VIT,
}
_DEFAULT = "BitImageProcessor"  # transformers' class for Hiera

_FILTERS = range(6)  # releases of Pillow have more, which transformers does not know
_TYPE, _OLD_TYPE = "image_processor_type", "feature_extractor_type"

# Images are RGB here in any case, and the form of the output is that of the network
_NEUTRAL = {
    _TYPE,
    _OLD_TYPE,
    "do_convert_rgb",
    "processor_class",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "model_input_names",
    "_valid_processor_keys",
    "_valid_kwargs_names",
}


def parse_processor(
    values: Mapping[str, Any], image_size: tuple[int, int], source: str
) -> Preprocessing:
    """Return the preprocessing of an image processor that transformers saved.

    Args:
        values: the settings; None turns a step off, as in transformers
        image_size: the (height, width) of the network's input, in pixels
        source: the file that the settings come from, for error messages

    Returns:
        a :class:`Preprocessing` with the results of the class that computes with Pillow

    Raises:
        ValueError: if a setting is not supported; the message names it and its values
    """
    try:
        return _parse(values, image_size)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _parse(values: Mapping[str, Any], image_size: tuple[int, int]) -> Preprocessing:
    defaults = _PROCESSORS[_class_name(values)]
    known = {*defaults, *_FIXED}
    for name, value in values.items():
        if name not in known | _NEUTRAL and value not in (None, False):
            valid = f"only {sorted(known)}. Remove it if it does not change pixels"
            raise _refusal(name, value, valid)

        if name in _FIXED and value != _FIXED[name]:
            raise _refusal(name, value, f"only {_FIXED[name]!r}")

    settings = {**defaults, **values}
    for name in ("do_normalize", "do_center_crop", "default_to_square"):
        if settings[name] not in (True, False, None):
            raise _refusal(name, settings[name], "only true, false and null")

    resample = settings["resample"]
    if type(resample) is not int or resample not in _FILTERS:
        raise _refusal("resample", resample, f"only Pillow's filters, {[*_FILTERS]}")

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings["do_normalize"]:
        mean = _parse_channels("image_mean", settings["image_mean"])
        std = _parse_channels("image_std", settings["image_std"])

    resize_size, is_squashed = _parse_sizes(settings, image_size)
    return Preprocessing(
        resize_size, image_size, resample, mean, std, is_squashed=is_squashed
    )


def _class_name(values: Mapping[str, Any]) -> str:
    """Return the name of the class, without the suffix of its implementation."""
    key = _TYPE if values.get(_TYPE) is not None else _OLD_TYPE
    name = values.get(key)
    if name is None:
        return _DEFAULT

    text = str(name).replace("FeatureExtractor", "ImageProcessor")
    text = text.removesuffix("Fast").removesuffix("Pil")
    if text not in _PROCESSORS:
        raise _refusal(key, name, f"only {[*_PROCESSORS]}")

    return text


def _parse_sizes(
    settings: Mapping[str, Any], image_size: tuple[int, int]
) -> tuple[tuple[int, int], bool]:
    """Return the size to cover, and whether images are resized without cropping."""
    size = _parse_size("size", settings["size"], settings["default_to_square"])
    expected = {"height": image_size[0], "width": image_size[1]}
    if settings["do_center_crop"]:
        crop_size = _parse_size("crop_size", settings["crop_size"], is_square=True)
        if crop_size != expected:
            raise _refusal(
                "crop_size",
                settings["crop_size"],
                f"only the image_size of config.json, {expected}",
            )

    if size == expected:
        return image_size, True

    if not settings["do_center_crop"]:
        raise _refusal(
            "size",
            settings["size"],
            f"without do_center_crop only the image_size of config.json, {expected}",
        )

    edge = size.get("shortest_edge", 0)
    if edge < max(image_size):
        raise _refusal(
            "size",
            settings["size"],
            f"only {{'shortest_edge': N}}, N not less than the crop_size {expected}, or "
            "this size itself",
        )

    return (edge, edge), False


def _parse_size(name: str, value: Any, is_square: bool) -> dict[str, int]:
    size = value
    if type(value) is int:
        edges = ("height", "width") if is_square else ("shortest_edge",)
        size = dict.fromkeys(edges, value)
    elif isinstance(value, list) and len(value) == 2:
        size = {"height": value[0], "width": value[1]}

    if isinstance(size, dict):
        is_valid = all(type(pixels) is int and pixels > 0 for pixels in size.values())
        if is_valid and set(size) in ({"shortest_edge"}, {"height", "width"}):
            return size

    raise _refusal(
        name, value, "only {'height': N, 'width': N} or {'shortest_edge': N}, in pixels"
    )


def _parse_channels(name: str, value: Any) -> tuple[float, float, float]:
    is_valid = (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(type(one) in (int, float) and math.isfinite(one) for one in value)
        and (name == "image_mean" or min(value) > 0)
    )
    if not is_valid:
        above = "" if name == "image_mean" else " above 0"
        raise _refusal(name, value, f"only a list of 3 numbers{above}, one a channel")

    red, green, blue = map(float, value)
    return red, green, blue


def _refusal(name: str, value: Any, valid: str) -> ValueError:
    return ValueError(f"{name} = {value!r} is not supported, {valid}")
