"""Decode JPEGs strictly: refuse damaged image data, skip defects outside of it.

libjpeg decodes on after damage, and reports only the first thing it notices. A defect of
the header, which costs no pixel, may therefore hide damage of the image data: such files
are decoded once more, without anything in their header that no pixel needs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]
"""An array of shape (H, W, 3), or (H, W, 1) in the color space "GRAY"."""

# libjpeg's warnings, as far as they depend on the file. Once the header is reduced to what
# the decoder needs, the first kind can only come from the image data: bytes that a scan
# holds beyond its last pixel are damage like the others, see docs/images.md
_OUTSIDE_IMAGE_DATA = (
    "extraneous bytes before marker",
    "bad ICC marker",
    "unknown JFIF revision number",
)
_IN_IMAGE_DATA = (
    "Corrupt JPEG data",  # bad codes, early ends, lost restart markers, extraneous bytes
    "Premature end of JPEG file",
    "Inconsistent progression sequence",
)

_SOI, _SOS, _APP0, _APP14, _APP15, _COM = 0xD8, 0xDA, 0xE0, 0xEE, 0xEF, 0xFE
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))  # TEM, RST0 to RST7


def decode(
    data: bytes, colorspace: str, *, min_edge: int = 0, min_factor: int = 1
) -> tuple[Pixels, str | None] | None:
    """Decode a JPEG.

    Args:
        data: the content of the file
        colorspace: "RGB" or "GRAY"
        min_edge (0): decode at reduced size, with at least this many pixels on each
            edge. By default, at full size
        min_factor (1): reduce the size by at least this factor, up to 8

    Returns:
        the pixels, and libjpeg's warning if there are defects outside of the image data;
        or None if this decoder cannot decode the file

    Raises:
        ValueError: if the image data is damaged; the message is libjpeg's
    """
    scale = {"min_height": min_edge, "min_width": min_edge, "min_factor": min_factor}
    try:
        return simplejpeg.decode_jpeg(data, colorspace, **scale), None
    except ValueError as error:
        message = str(error)

    if any(kind in message for kind in _OUTSIDE_IMAGE_DATA):
        return simplejpeg.decode_jpeg(_reduce_header(data), colorspace, **scale), message

    if message.startswith(_IN_IMAGE_DATA):
        raise ValueError(message)

    return None


def _reduce_header(data: bytes) -> bytes:
    """Remove what the decoder does not need from the header of a JPEG.

    These are application segments, comments, and bytes between the segments. Kept are
    tables and frames, and the segments of JFIF and Adobe, on which the colors depend.
    """
    kept = bytearray((0xFF, _SOI))
    position = 2
    while True:
        # As libjpeg finds the next marker: 0xff, repeated at will, and a byte but 0 or 0xff
        position = data.find(0xFF, position)
        while 0 <= position < len(data) and data[position] == 0xFF:
            position += 1

        if not 0 <= position < len(data):
            return bytes(kept)

        marker = data[position]
        if marker == 0 or marker in _WITHOUT_LENGTH:
            continue

        if marker == _SOS:
            return bytes(kept) + data[position - 1 :]

        end = position + 1 + int.from_bytes(data[position + 1 : position + 3])
        segment = data[position - 1 : end]
        if _is_needed(marker, segment):
            kept += segment

        position = max(end, position + 1)


def _is_needed(marker: int, segment: bytes) -> bool:
    if marker == _APP0:
        return segment[4:10] == b"JFIF\0\1"  # of revision 1

    return marker == _APP14 or not (_APP0 < marker <= _APP15 or marker == _COM)
