"""What strict decoding refuses: damaged copies of photos, and sound files of a folder."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from measure import INTO, insert, read_arguments, table
from network import import_package

Array = npt.NDArray[np.uint8]
Damage = Callable[[bytearray, int, random.Random], None]

_FORMS: tuple[dict[str, Any], ...] = ({}, {"progressive": True}, {"restart_marker_rows": 1})
_BEYOND = re.compile(r"(\d+) extraneous bytes before marker")


@dataclass(frozen=True)
class Copy:
    """A damaged copy.

    Args:
        reason: the reason why it is refused, or ""
        difference: the mean absolute difference of what OpenCV decodes, in gray levels;
            or None if it refuses the copy, too
    """

    reason: str
    difference: float | None


def main() -> None:
    """Measure and write the tables."""
    args = read_arguments(
        __doc__,
        copies={"type": int, "default": 20, "help": "of each file and damage"},
        sound={"type": Path, "nargs": "*", "default": [], "help": "folders"},
        into=INTO,
    )

    import_package()
    intact = [*_write_photos()]
    lines = [
        f"{len(intact)} files, {args.copies} copies of each for each kind of damage:\n",
        *table(
            [
                "damage to the image data",
                "refused",
                "for bytes beyond the last pixel alone",
                "these differ by, median",
                "fewest bytes",
                "what is accepted differs by, median",
            ],
            (
                [name, *_summarize([*_copies(intact, damage, args.copies)])]
                for name, damage in _DAMAGES.items()
            ),
        ),
    ]
    if args.sound:
        lines += _report_sound(args.sound)

    text = "\n".join(lines)
    print(text)
    if args.into is not None:
        insert(text, "damage", args.into)


def _write_photos() -> Iterator[bytes]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    photos = [*load_sample_images().images, data.astronaut(), data.coffee(), data.cat()]
    for photo in photos:
        for form in _FORMS:
            file = io.BytesIO()
            Image.fromarray(photo).save(file, "JPEG", quality=90, **form)
            yield file.getvalue()


def _zero(size: int) -> Damage:
    def damage(content: bytearray, start: int, rng: random.Random) -> None:
        content[start : start + size] = bytes(size)

    return damage


def _lose(size: int) -> Damage:
    def damage(content: bytearray, start: int, rng: random.Random) -> None:
        del content[start : start + size]

    return damage


def _insert(size: int) -> Damage:
    def damage(content: bytearray, start: int, rng: random.Random) -> None:
        content[start:start] = rng.randbytes(size)

    return damage


def _change(content: bytearray, start: int, rng: random.Random) -> None:
    content[start] ^= 1 << rng.randrange(8)


_DAMAGES = {
    "4 kB lost": _lose(4096),
    "4 kB zeroed": _zero(4096),
    "512 bytes zeroed": _zero(512),
    "16 bytes inserted": _insert(16),
    "1 byte inserted": _insert(1),
    "1 bit changed": _change,
}


def _copies(files: Iterable[bytes], damage: Damage, count: int) -> Iterator[Copy]:
    rng = random.Random(51)
    for intact in files:
        expected = _decode_leniently(intact)
        assert expected is not None
        start = intact.index(b"\xff\xda") + 16  # after the header of the first scan
        for _ in range(count):
            content = bytearray(intact)
            damage(content, rng.randrange(start, len(intact) - 4098), rng)
            found = _decode_leniently(bytes(content))
            difference = None
            if found is not None and found.shape == expected.shape:
                difference = float(cv2.absdiff(found, expected).mean())

            yield Copy(_refuse(bytes(content)), difference)


def _decode_leniently(content: bytes) -> Array | None:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)  # type: ignore[return-value]


def _refuse(content: bytes) -> str:
    from fiftyone_hiera.images.decoding import read_image

    try:
        read_image(content, warn=lambda _: None)
    except ValueError as error:
        return str(error)

    return ""


def _summarize(copies: list[Copy]) -> list[str]:
    refused = [copy for copy in copies if copy.reason]
    beyond = [copy for copy in refused if _BEYOND.search(copy.reason)]
    accepted = [copy for copy in copies if not copy.reason]
    fewest = [int(match[1]) for copy in beyond if (match := _BEYOND.search(copy.reason))]
    return [
        f"{len(refused) / len(copies):.0%}",
        f"{len(beyond) / len(copies):.0%}",
        _median(beyond),
        f"{min(fewest, default=0)}",
        _median(accepted),
    ]


def _median(copies: list[Copy]) -> str:
    found = [copy.difference for copy in copies if copy.difference is not None]
    return f"{np.median(found):.2f}" if found else ""


def _report_sound(folders: Iterable[Path]) -> Iterator[str]:
    """Yield what is said of the JPEGs that Pillow decodes in full."""
    from fiftyone_hiera.images.decoding import read_image

    count = 0
    said: list[str] = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.jp*g")):
        try:
            with Image.open(path) as image:
                image.load()
        except OSError:
            continue

        count += 1
        notes: list[str] = []
        try:
            read_image(path, warn=notes.append)
        except ValueError as error:
            said.append(f"`{path.name}` is refused: {str(error).rpartition(': ')[2]}")

        said += [f"`{path.name}`: {note.rpartition(': ')[2]}" for note in notes]

    yield f"Of {count} JPEG files that Pillow decodes, these are refused or warned of:\n"
    yield from (f"- {line}" for line in said)


if __name__ == "__main__":
    main()
