"""Real files that cannot be embedded, each with the expected reason."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# A 16x16 HEIC, written by pillow-heif 1.8.1
_HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0"
    "AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAACcAAAAjaWluZgAAAAAA"
    "AQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmND"
    "AQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEB"
    "A3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNs"
    "eAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAQAAAAAf///9AAAAAC"
    "////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAL21kYXQAAAAj"
    "KAGvBBITjOD46cJoP91R/FqVtJ7yftCrK+NJn3exGJKp/6A="
)
_LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


def write_bad_files(folder: Path, photo: Image.Image) -> dict[str, str]:
    """Write one bad file of each kind.

    Args:
        folder: an existing folder
        photo: an image of several hundred pixels

    Returns:
        a dict from the paths to regular expressions that match the reasons
    """
    return {str(path): reason for path, reason in _write(folder, photo)}


def _write(folder: Path, photo: Image.Image) -> Iterator[tuple[Path, str]]:
    yield folder / "missing.jpg", "No such file"

    path = folder / "empty.png"
    path.touch()
    yield path, r"empty \(0 bytes\)"

    path = folder / "folder.jpg"
    path.mkdir()
    yield path, "it is a folder"

    path = folder / "dangling.jpg"
    path.symlink_to(folder / "nowhere.jpg")
    yield path, "link to a file that does not exist"

    path = folder / "loop.jpg"
    path.symlink_to(path)
    yield path, "symbolic links"

    path = folder / "fifo.jpg"
    os.mkfifo(path)
    yield path, "FIFO"

    path = folder / "device.jpg"
    path.symlink_to("/dev/zero")
    yield path, "a device"

    path = folder / "page.jpg"
    path.write_text("<!DOCTYPE html><html>404</html>")
    yield path, "it is text, beginning with '<!DOCTYPE'"

    path = folder / "pointer.png"
    path.write_text(_LFS_POINTER)
    yield path, "Git LFS pointer.*git lfs pull"

    for name in ("truncated.jpg", "truncated.png", "truncated.webp"):
        path = folder / name
        photo.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        yield (
            path,
            "truncated|Premature|premature|could not create decoder|unrecognized|no format",
        )

    # A damaged disk block: Pillow and OpenCV decode it without an error
    path = folder / "rotten.jpg"
    photo.save(path, quality=90)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)
    yield path, "Corrupt JPEG data"

    path = folder / "rotten.png"
    photo.save(path)
    content = bytearray(path.read_bytes())
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    yield path, "broken|corrupt|unrecognized data"

    path = folder / "bomb.png"
    path.write_bytes(png(20_000, 10_000))
    yield path, "decompression bomb"

    path = folder / "zero-width.png"
    path.write_bytes(png(0, 10))
    yield path, "Cannot read image"

    path = folder / "photo.heic"
    path.write_bytes(base64.b64decode(_HEIC))
    yield path, "HEIC.*pip install pillow-heif"

    path = folder / "drawing.svg"
    path.write_text('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    yield path, "it is SVG"

    path = folder / "postscript.jpg"
    photo.save(path, "EPS")
    yield path, "PostScript"

    path = folder / "video.jpg"
    _write_video(path)
    yield path, "it is a video"

    yield Path("https://example.com/photo.jpg"), r"it is a URL \(https\)"

    for mode in ("I", "F"):
        path = folder / f"{mode}.tif"
        photo.convert("L").convert(mode).save(path)
        yield path, "32-bit"


def png(width: int, height: int) -> bytes:
    """Return a black PNG of one bit per pixel: few bytes for many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height))
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _write_video(path: Path) -> None:
    target = path.with_suffix(".mp4")
    fourcc = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(target), fourcc, 10, (64, 64))
    for level in range(10):
        writer.write(np.full((64, 64, 3), level, np.uint8))

    writer.release()
    target.rename(path)
