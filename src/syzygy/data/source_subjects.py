"""Subjects in a source's metadata: phrases of the captions, and where the image shows what they stand for.

    "subjects": [{"phrase": "dog", "box": [12, 30, 96, 120]}, {"phrase": "red ball", "mask": "masks/7.png"}]

A subject has one of three places:

| key | value |
|---|---|
| `box` | [left, top, right, bottom] in pixels of the upright image |
| `relative_box` | the same in fractions of the image's width and height, from 0 to 1 |
| `mask` | an image of the same size, white where the subject is: the name of a file in the folder; in parquet, the encoded image |

The key decides the unit, never the numbers. A `box` whose numbers are all at most 1 is refused, because it would lie within one pixel.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.core.image_reading import as_mask, loaded, read_bytes
from syzygy.data.pair import RawSubject, clean

PLACES = ("box", "relative_box", "mask")
MARGIN = 0.05
"""Around a mask, as a part of the longer side of its bounding box."""
TOLERANCE = 1.0
"""Pixels by which a box may reach beyond the image, because annotations are rounded."""
COVERED = 0.5
"""From this value on, a mask's pixel belongs to the subject's bounding box."""
LARGEST = 1e9
"""Pixels; no image is larger."""
LIST = 'a list of objects such as {"phrase": "dog", "box": [12, 30, 96, 120]}'
NO_FILES = "its mask is a file's name, and only a folder with metadata.jsonl or metadata.csv has files: give a box"


def subjects_in(value: Any, folder: Path | None = None) -> tuple[RawSubject, ...]:
    """The subjects of a sample, in their order; malformed ones carry the reason.

    Args:
        value: the field of the metadata: a list of objects, the same as text in JSON, or None.
        folder: where files of masks lie; None where the source has no files.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            return (RawSubject("", reason="the subjects are text that is not JSON of " + LIST),)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        return (RawSubject("", reason=f"the subjects are not {LIST}"),)
    return tuple(_subject(one, folder) for one in value)


def _subject(value: Any, folder: Path | None) -> RawSubject:
    if not isinstance(value, Mapping):
        return RawSubject("", reason='it is not an object such as {"phrase": "dog", "box": [12, 30, 96, 120]}')
    phrase = value.get("phrase")
    if not isinstance(phrase, str) or not phrase.strip():
        what = "is missing" if phrase is None else "is empty" if isinstance(phrase, str) else "is not text"
        return RawSubject("", reason=f"its phrase {what}")
    phrase = clean(phrase.strip())
    there = [name for name in PLACES if value.get(name) is not None]
    if len(there) != 1:
        has = " and ".join(there) if there else ", ".join(clean(str(name)) for name in value)
        coco = (
            "; COCO's bbox is [x, y, width, height], and box is [left, top, right, bottom]" if "bbox" in value else ""
        )
        return RawSubject(phrase, reason=f"it needs one of box, relative_box and mask; it has {has}{coco}")
    place = value[there[0]]
    if there[0] == "mask":
        return _masked(phrase, place, folder)
    reason = _box_fault(place, there[0])
    if reason:
        return RawSubject(phrase, reason=reason)
    left, top, right, bottom = map(float, place)
    return RawSubject(phrase, box=(left, top, right, bottom), relative=there[0] == "relative_box")


def _masked(phrase: str, place: Any, folder: Path | None) -> RawSubject:
    data = place.get("bytes") if isinstance(place, Mapping) else place
    if isinstance(data, bytes) and data:
        return RawSubject(phrase, mask=data)
    if not isinstance(place, str) or not place:
        return RawSubject(phrase, reason="its mask is neither the name of a file nor an encoded image")
    if folder is None:
        return RawSubject(phrase, reason=NO_FILES)
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts or "\0" in place:
        return RawSubject(phrase, reason="its mask leads out of the folder")
    return RawSubject(phrase, mask=folder.joinpath(*parts.parts))


def _box_fault(box: Any, name: str) -> str | None:
    """What is wrong with a box, as far as that is known without the image."""
    numbers = list(box) if isinstance(box, list | tuple) else []
    if len(numbers) != 4 or not all(_is_number(x) for x in numbers):
        return f"its {name} is not four finite numbers [left, top, right, bottom]"
    left, top, right, bottom = numbers
    shown = f"[{', '.join(f'{x:g}' for x in numbers)}]"
    if right <= left or bottom <= top:
        return f"its {name} {shown} has no area: it is [left, top, right, bottom], not width and height"
    if name == "box" and (max(numbers) <= 1 or (right - left < 1 and bottom - top < 1)):
        return f"its box {shown} lies within one pixel: box is in pixels, and fractions are called relative_box"
    if name == "relative_box" and (min(numbers) < 0 or max(numbers) > 1):
        return f"its relative_box {shown} is not in fractions from 0 to 1: pixels are called box"
    return None


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= LARGEST  # NaN is not


def cut_out(subject: RawSubject, image: Image.Image) -> Image.Image:
    """The subject on white, in the middle of a square, as RGB.

    A box is cropped. Around a mask the image becomes white, and it is cropped to the mask with a margin of 5 % of its longer side.

    Args:
        subject: one without a reason against it.
        image: the upright image in RGB.

    Raises:
        UserError: the box reaches beyond the image; the mask cannot be read, has another size, or is empty.
    """
    if subject.box is not None:
        return _squared(image.crop(_pixels(subject, image)))
    assert subject.mask is not None, "a subject without a reason against it has a box or a mask"
    mask = _mask(subject.mask)
    if (mask.shape[1], mask.shape[0]) != image.size:
        sizes = f"{mask.shape[1]} × {mask.shape[0]} pixels, and the image {image.width} × {image.height}"
        raise UserError(f"its mask has {sizes}")
    covered = mask >= COVERED
    if not covered.any():
        raise UserError("its mask is empty: it is white where the subject is")
    rows, columns = (covered.any(axis).nonzero().flatten() for axis in (1, 0))
    top, bottom, left, right = (int(x) for x in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    margin = math.ceil(MARGIN * max(bottom - top, right - left))
    left, top = max(left - margin, 0), max(top - margin, 0)
    right, bottom = min(right + margin, image.width), min(bottom + margin, image.height)
    alpha = Image.fromarray((mask[top:bottom, left:right] * 255).round().byte().numpy())
    white = Image.new("RGB", alpha.size, "white")
    white.paste(image.crop((left, top, right, bottom)), mask=alpha)
    return _squared(white)


def _pixels(subject: RawSubject, image: Image.Image) -> tuple[int, int, int, int]:
    """The box in whole pixels."""
    assert subject.box is not None, "asked for a box"
    left, top, right, bottom = subject.box
    if subject.relative:
        left, top, right, bottom = left * image.width, top * image.height, right * image.width, bottom * image.height
    beyond = max(-left, -top, right - image.width, bottom - image.height)
    if beyond > TOLERANCE or left >= image.width or top >= image.height or right <= 0 or bottom <= 0:
        shown = f"[{', '.join(f'{x:g}' for x in subject.box)}]"
        raise UserError(f"its box {shown} reaches beyond the image of {image.width} × {image.height} pixels")
    left, top = max(math.floor(left), 0), max(math.floor(top), 0)
    return left, top, min(math.ceil(right), image.width), min(math.ceil(bottom), image.height)


def _mask(mask: bytes | Path) -> torch.Tensor:
    try:
        return as_mask(loaded(read_bytes(mask) if isinstance(mask, Path) else mask, "the mask"))
    except UserError as error:
        raise UserError(f"its mask cannot be used: {str(error).rstrip('.')}") from None


def _squared(image: Image.Image) -> Image.Image:
    """In the middle of a white square, so that the encoder's centre crop cuts nothing off."""
    side = max(image.size)
    found = Image.new("RGB", (side, side), "white")
    found.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return found
