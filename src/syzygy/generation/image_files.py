"""Images as files: PNG that record how they were made, animations and contact sheets."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.image_reading import FORMATS, as_rgb, open_file

RECORD_KEY = "syzygy"
"""The PNG text chunk with the record, as JSON."""
FONT_SIZE, LABEL_LINES, MARGIN = 14, 3, 8
CARD_FONT_SIZE, CARD_LINES = 20, 6
FRAME_MS, END_MS = 120, 600
FONTS = ("DejaVuSans.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc",
         "Hiragino Sans GB.ttc", "Arial Unicode.ttf")  # fmt: skip
"""Fonts for labels in scripts that Pillow's own font lacks, on Linux, Windows and macOS."""
NOWHERE = "\U0010fffe"
"""A character that no font has."""


def save_png(image: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a PNG atomically, with `record` (plain JSON values) in text chunks: all of it, and its "prompt" in clear.

    Raises:
        UserError: the file cannot be written.
    """
    artifacts.write_bytes(path, png_bytes(image, record))


def png_bytes(image: Image.Image, record: Mapping[str, Any]) -> bytes:
    """The bytes that `save_png` writes."""
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=_chunks(record))
    return data.getvalue()


def save_animation(frames: Sequence[Image.Image], path: Path, record: Mapping[str, Any]) -> None:
    """Write frames as an animated PNG that runs there and back in a loop and rests at the ends; with `record`, as `save_png`.

    Raises:
        UserError: the file cannot be written.
    """
    back = frames[-2:0:-1]
    rest = [END_MS] + [FRAME_MS] * (len(frames) - 2) + [END_MS] * (len(frames) > 1) + [FRAME_MS] * len(back)
    data = io.BytesIO()
    frames[0].save(
        data, "PNG", save_all=True, append_images=[*frames[1:], *back], duration=rest, loop=0, pnginfo=_chunks(record)
    )
    artifacts.write_bytes(path, data.getvalue())


def _chunks(record: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    if "prompt" in record:
        chunks.add_text("prompt", record["prompt"])
    chunks.add_text(RECORD_KEY, json.dumps(record, sort_keys=True))
    return chunks


def read_record(path: Path) -> dict[str, Any]:
    """Read how the image in this PNG was made.

    Raises:
        UserError: no picture, or one that `save_png` did not write.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return record_of(image, str(path))
    except (OSError, Image.DecompressionBombError) as error:  # Pillow's UnidentifiedImageError is an OSError
        raise UserError(f"{path} cannot be read as a picture: {error}.") from None


def record_of(image: Image.Image, name: str) -> dict[str, Any]:
    """Read how an image was made that was opened as `name`.

    Raises:
        UserError: `save_png` did not write it.
    """
    try:
        record = json.loads(image.info.get(RECORD_KEY, ""))
    except (TypeError, ValueError, RecursionError):  # ValueError: no JSON, or a number of too many digits
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{name} holds no record of how it was made: syzygy did not write it.")
    return record


def open_picture(path: Path) -> Image.Image:
    """Read a picture file as RGB, 8 bits a channel, upright, on white (`data.decode` has the rules).

    Raises:
        UserError: the file is missing, broken, too large, or not in one of `FORMATS`.
    """
    return as_rgb(open_file(path), str(path))


def to_tensor(image: Image.Image) -> Float[Tensor, "3 H W"]:
    """A Pillow image as numbers in [0, 1], as `as_rgb` reads it. Raises as `as_rgb`."""
    return torch.from_numpy(np.array(as_rgb(image))).permute(2, 0, 1) / 255


def place_for(path: Path, record: Mapping[str, Any]) -> Path:
    """`path`, or the first of `…-2`, `…-3` that is free. Only a file with the same record may be overwritten."""
    same = json.loads(json.dumps(record))
    names = chain([path], (path.with_stem(f"{path.stem}-{number}") for number in count(2)))
    return next(name for name in names if not name.exists() or _record_or_none(name) == same)


def _record_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return read_record(path)
    except UserError:
        return None


def slug(text: str, longest: int = 40) -> str:
    """The text as part of a file name: words in lower case joined by hyphens, cut at a word where it can be."""
    words = re.findall(r"\w+", text.lower())
    name = ""
    for word in words:
        if name and len(name) + len(word) >= longest:
            break
        name += f"-{word}" if name else word[:longest]
    return name or "picture"


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[Sequence[str]], *, cell: int = 192
) -> Image.Image:
    """Pictures in a grid, each enlarged or reduced to fit `cell` pixels, its label below in three lines at most."""
    assert [len(row) for row in rows] == [len(row) for row in labels], "a label for each picture"
    line = FONT_SIZE + 3
    width, height = cell + MARGIN, cell + LABEL_LINES * line + MARGIN
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * width + MARGIN, len(rows) * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for r, (row, texts) in enumerate(zip(rows, labels, strict=True)):
        for c, (image, text) in enumerate(zip(row, texts, strict=True)):
            left, top = MARGIN + c * width, MARGIN + r * height
            scale = cell / max(image.size)
            size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
            sheet.paste(as_rgb(image).resize(size, Image.Resampling.LANCZOS), (left, top))
            font = font_for(text, FONT_SIZE)
            lines = "\n".join(_wrapped(text, font, cell))
            draw.multiline_text((left, top + cell + 2), lines, fill="black", font=font, spacing=2)
    return sheet


def card(text: str, side: int = 192) -> Image.Image:
    """A text as an image, for a contact sheet."""
    image = Image.new("RGB", (side, side), "#f4f4f4")
    font = font_for(text, CARD_FONT_SIZE)
    lines = "\n".join(_wrapped(text, font, side - 2 * MARGIN, CARD_LINES))
    draw = ImageDraw.Draw(image)
    draw.multiline_text((side / 2, side / 2), lines, fill="black", font=font, anchor="mm", align="center")
    return image


Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> Font:
    """Pillow's own font if it has every character of the text; else the system's, of `FONTS`, that has most of them."""
    characters = frozenset(text) - {" ", "\n"}
    best, most = ImageFont.load_default(size), -1
    for name in ("", *FONTS):
        if (font := _font(name, size)) is None:
            continue
        known = sum(_has(name, size, character) for character in characters)
        if known > most:
            best, most = font, known
        if known == len(characters):
            break
    return best


@lru_cache
def _font(name: str, size: int) -> Font | None:
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has(name: str, size: int, character: str) -> bool:
    """Whether the font draws it as anything but the box for what it lacks."""
    font = _font(name, size)
    assert font is not None
    own: Any = font.getmask(character)
    box: Any = font.getmask(NOWHERE)
    return bytes(own) != bytes(box)


def _wrapped(text: str, font: Font, width: int, most: int = LABEL_LINES) -> list[str]:
    """`text` in at `most` so many lines that fit `width` pixels; what does not fit becomes an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif lines[-1]:
            lines.append(word)
        else:
            lines[-1] = word
    shown = lines[:most]
    if len(lines) > most:
        shown[-1] += " …"
    return [_cut(one, font, width) for one in shown]


def _cut(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    kept = text.removesuffix(" …")
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept + "…"
