"""JPEGs with damaged image data are refused; those with damaged headers are not."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiftyone_hiera.images.decoding import read_image, to_rgb

_APP1, _DQT, _DHT, _SOS = b"\xff\xe1", b"\xff\xdb", b"\xff\xc4", b"\xff\xda"
_RST1, _EOI = b"\xff\xd1", b"\xff\xd9"

# What may stand in a header, and the beginning of the warning
_DEFECTS = {
    "junk": (_DQT, b"\0" * 5, "Corrupt JPEG data: 5 extraneous bytes before marker 0xdb"),
    "stuffed zero": (_DQT, b"\xff\0ab", "Corrupt JPEG data: 4 extraneous bytes"),
    "padding before Exif": (_APP1, b"\0" * 16, "Corrupt JPEG data: 16 extraneous"),
    "restart marker": (_DQT, b"junk\xff\xd0", "Corrupt JPEG data: 4 extraneous bytes"),
    "ICC profile": (
        _DQT,
        b"\xff\xe2\0\x12ICC_PROFILE\0\2\1ab",
        "Corrupt JPEG data: bad ICC marker",
    ),
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.coffee())


def _encode(image: Image.Image, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, **{"quality": 90, **options})
    return file.getvalue()


def _insert(content: bytes, marker: bytes, extra: bytes) -> bytes:
    """Insert bytes before the first marker of a kind."""
    position = content.index(marker)
    return content[:position] + extra + content[position:]


def _zero_block(content: bytes) -> bytes:
    middle = (content.index(_SOS) + len(content)) // 2
    return content[:middle] + bytes(4096) + content[middle + 4096 :]


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("defect", _DEFECTS)
def test_defects_outside_the_image_data_are_skipped(
    photo: Image.Image,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    defect: str,
    mode: str,
    options: dict[str, bool],
) -> None:
    marker, extra, warning = _DEFECTS[defect]
    path = tmp_path / "photo.jpg"
    path.write_bytes(_insert(_encode(photo.convert(mode), **options), marker, extra))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))

    notes: list[str] = []
    assert np.array_equal(np.asarray(read_image(path, warn=notes.append)), expected)
    (note,) = notes
    assert f"{str(path)!r} is damaged outside of its image data: {warning}" in note
    assert not caplog.messages

    # Without anybody to tell, the warning is logged
    read_image(path)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(to_rgb(image)), expected)

    assert caplog.messages == notes * 2


def test_later_revision_of_jfif(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    content = bytearray(_encode(photo))
    version = content.index(b"JFIF\0") + 5
    content[version] = 3
    path.write_bytes(content)
    notes: list[str] = []
    with Image.open(path) as image:
        assert np.array_equal(read_image(path, warn=notes.append), image)

    assert "unknown JFIF revision number 3" in notes[0]
    path.write_bytes(_zero_block(bytes(content)))
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        read_image(path)


@pytest.mark.parametrize("defect", _DEFECTS)
def test_defects_of_the_header_hide_no_damage(
    photo: Image.Image, tmp_path: Path, defect: str
) -> None:
    """libjpeg tells only the first thing that it finds."""
    marker, extra, _ = _DEFECTS[defect]
    content = _insert(_encode(photo), marker, extra)
    path = tmp_path / "photo.jpg"
    for damaged in (_zero_block(content), content[:-5000]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"photo\.jpg': (Corrupt JPEG|Premature end)"):
            read_image(path)


@pytest.mark.parametrize(
    ("options", "marker"),
    [
        ({}, _EOI),
        ({"progressive": True}, _EOI),
        ({"restart_marker_rows": 1}, _RST1),
    ],
    ids=str,
)
def test_bytes_that_no_pixel_needs_are_damage(
    photo: Image.Image, tmp_path: Path, options: dict[str, bool], marker: bytes
) -> None:
    path = tmp_path / "photo.jpg"
    content = _encode(photo, **options)
    position = content.index(marker, content.index(_SOS))
    path.write_bytes(content[:position] + b"\x55" * 40 + content[position:])
    with pytest.raises(ValueError, match=r"extraneous bytes before marker 0xd\d$"):
        read_image(path)


def test_bytes_between_the_scans_are_damage(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    content = _encode(photo, progressive=True)
    position = content.index(_DHT, content.index(_SOS))
    path.write_bytes(content[:position] + b"\x55" * 40 + content[position:])
    with pytest.raises(ValueError, match="extraneous bytes before marker 0xc4"):
        read_image(path)


def test_sound_files_are_read_without_a_warning(
    photo: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(_encode(photo) + b"a second image, as of stereo cameras")
    with caplog.at_level(logging.WARNING):
        read_image(path)

    assert not caplog.messages


def test_image_in_memory(photo: Image.Image) -> None:
    content = _encode(photo)
    assert np.array_equal(read_image(content), Image.open(io.BytesIO(content)))
    cut = content[:-5000]
    with pytest.raises(ValueError, match=rf"image of {len(cut)} bytes: Premature"):
        read_image(cut)

    with pytest.raises(ValueError, match=r"image of 0 bytes: it is empty"):
        read_image(b"")
