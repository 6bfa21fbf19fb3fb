"""Pictures and masks from clients: few formats, limited pixels, no paths."""

import base64
import binascii
import io
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.core.image_reading import STRIP_ROWS, as_layers, as_mask, as_rgb, loaded, quiet, upright_size
from syzygy.generation.image_files import RECORD_KEY, record_of
from syzygy.generation.pixel_guides import fitted_mask
from syzygy.regions.phrases import blurred, places, resized
from syzygy.server.bodies import DEEPEST, crowded, plain
from syzygy.server.limits import Limits
from syzygy.server.problems import field_errors
from syzygy.server.schema import RegionMask

FORMATS = ("PNG", "JPEG", "WEBP")
"""Fewer than elsewhere in the package, because anyone who reaches the server chooses the files that its decoders read."""
MASK_SIDE = 256
"""Pixels of a mask's longer side. The attention maps that masks are resized to are smaller."""
CHUNKS, TEXTS = 10_000, 100
"""Chunks of a PNG file in all, and those that hold text. Each costs time, however small it is."""
SEGMENTS, SCANS = 1000, 100
"""Segments of a JPEG file before its pixels, and scans; a progressive file has about ten, and each one is as much work as the picture."""
RECORD_BYTES = 2 * 2**20
"""Largest record in a picture. Its masks have at most 1 MiB, and its pictures 256 KiB."""
_SPACE = b" \t\n\r\x0b\x0c"


def unpacked(text: str, name: str) -> bytes:
    """Bytes from base64, with or without the head of a data URL, in one line or in several (as `base64 FILE` writes them).

    Raises:
        UserError: it is not base64.
    """
    head, comma, rest = text.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        text = rest
    try:
        return base64.b64decode(text.encode("ascii").translate(None, _SPACE), validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        raise UserError(f"{name} must be a picture's file in base64, or a data URL of it.") from None


def files_of(texts: Mapping[str, str], limits: Limits) -> dict[str, bytes]:
    """The pictures of one request, from base64, by their fields. Raises Problem as `check`, and for a text that is not base64."""
    files = {}
    for name, text in texts.items():
        with field_errors(name):
            files[name] = unpacked(text, name)
    check(files, limits)
    return files


def check(files: Mapping[str, bytes], limits: Limits) -> None:
    """Check the pictures of one request, by their fields, before any of them is decoded.

    Raises:
        Problem: one has too many parts, or all have too many pixels together.
    """
    pixels = 0
    for name, data in files.items():
        with field_errors(name):
            _check_parts(data, name)
            own = _pixels(data)
            pixels += own
            if pixels > limits.upload_pixels:
                those = "too many pixels" if own == sys.maxsize else f"{own:,} pixels"
                if own < pixels:
                    those = f"{pixels:,} pixels together with the pictures before it"
                raise UserError(f"{name} has {those}; at most {limits.upload_pixels:,} are read. Make it smaller.")


def _pixels(data: bytes) -> int:
    """Read from the header; 0 if the picture is broken."""
    with quiet():
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image.width * image.height
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return sys.maxsize  # the header says more than Pillow opens
        except Exception:  # `opened` says what is wrong
            return 0


def _check_parts(data: bytes, name: str) -> None:
    """Raises UserError for a PNG or JPEG file with so many parts that reading it takes long. Broken files pass: `opened` refuses them."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        many = _png_parts(data)
    elif data.startswith(b"\xff\xd8"):
        many = _jpeg_parts(data)
    else:
        return
    if many:
        raise UserError(f"{name} has too many parts (chunks, segments or scans) for a picture: save it anew.")


def _png_parts(data: bytes) -> bool:
    """Whether there are too many chunks."""
    place, parts, texts = 8, 0, 0
    while place + 8 <= len(data) and parts <= CHUNKS and texts <= TEXTS:
        size, kind = struct.unpack_from(">I4s", data, place)
        place, parts, texts = place + 12 + size, parts + 1, texts + (kind in (b"tEXt", b"zTXt", b"iTXt"))
    return parts > CHUNKS or texts > TEXTS


def _jpeg_parts(data: bytes) -> bool:
    """Whether there are too many segments (a byte that belongs to none counts as one), or scans."""
    place, parts = 2, 0
    while place + 4 <= len(data) and parts <= SEGMENTS and data[place : place + 2] != b"\xff\xda":
        kind = data[place + 1] if data[place] == 0xFF else 0
        if kind in (0, 0xFF):
            place += 1
        elif kind == 1 or 0xD0 <= kind <= 0xD9:  # markers without a length
            place += 2
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
        parts += 1
    return parts > SEGMENTS or data.count(b"\xff\xda") > SCANS


def opened(data: bytes, name: str) -> Image.Image:
    """Decode a client's picture into memory, in its own mode. `check` comes first.

    Raises:
        UserError: it is broken, or not in one of `FORMATS`.
    """
    with quiet():
        return loaded(data, name, FORMATS)


def picture(data: bytes, name: str) -> Image.Image:
    """A client's picture as RGB, upright, on white. Raises as `opened` and `as_rgb`."""
    return as_rgb(opened(data, name), name)


def resized_picture(data: bytes, name: str, size: tuple[int, int]) -> Image.Image:
    """A client's picture as RGB of this height and width, as `fitted` reads it. Raises as `picture`."""
    height, width = size
    return picture(data, name).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=1)


def resized_mask(data: bytes, name: str, size: tuple[int, int]) -> Image.Image:
    """A client's mask in black and white, of this height and width.

    Raises:
        UserError: as `picture`, and as `fitted_mask`.
    """
    return Image.fromarray((fitted_mask(opened(data, name), size) * 255).byte().numpy())


def white_where_transparent(image: Image.Image) -> bytes:
    """A PNG that is white where the picture is transparent: the mask of one of OpenAI's edits as the other masks are.

    Raises:
        UserError: as `transparent`.
    """
    file = io.BytesIO()
    Image.fromarray((transparent(image) * 255).round().byte().numpy()).save(file, "PNG")
    return file.getvalue()


def recipe(data: bytes, name: str, limits: Limits) -> dict[str, Any]:
    """The record inside an uploaded picture, which is read as by `opened`.

    Raises:
        UserError: it has none, or one that is larger than those of this package.
    """
    image = opened(data, name)
    text = image.info.get(RECORD_KEY)
    if isinstance(text, str) and (len(text) > RECORD_BYTES or crowded(text)):
        raise UserError(f"{name} holds a record of {len(text):,} characters, which is too much.")
    record = record_of(image, name)
    if not plain(record, DEEPEST, limits.values):
        raise UserError(f"{name} holds a record with too many values or levels: it is no plain JSON of this package.")
    return record


def regions(given: Sequence[RegionMask], masks: Sequence[bytes], blur: float) -> tuple[Region, ...]:
    """The regions of a prompt.

    Args:
        masks: the files of their masks.

    Raises:
        Problem: a mask is empty or no picture, masks have several sizes.
    """
    found: list[Region] = []
    sizes: set[tuple[int, int]] = set()
    for number, (one, data) in enumerate(zip(given, masks, strict=True)):
        name = f"regions[{number}].mask"
        with field_errors(name):
            image = opened(data, name)
            sizes.add(upright_size(image))
            found.append(drawn(one.phrase, as_mask(image, name, _block(image)), one.weight, blur))
    if len(sizes) > 1:
        with field_errors("regions"):
            raise UserError(f"masks must have one size, got {' and '.join(f'{w} × {h}' for w, h in sorted(sizes))}.")
    return tuple(found)


def check_phrase(prompt: str, phrase: str) -> None:
    """Raises UserError if the phrase is empty or not in the prompt."""
    if not phrase.strip():
        raise UserError("a region needs a phrase: words of the prompt.")
    places(prompt, phrase)


def drawn(phrase: str, mask: Float[Tensor, "H W"], weight: float, blur: float) -> Region:
    """A region that a record can hold exactly: with a small, blurred mask of whole grey levels.

    Raises:
        UserError: the mask is empty.
    """
    soft = blurred(_fitted(Region(phrase, mask, weight)), blur)
    return Region(phrase, (soft.mask * 255).round() / 255, weight)


def transparent(image: Image.Image) -> Float[Tensor, "H W"]:
    """A mask from 0 to 1 as in OpenAI's edits, where the transparent part is the region.

    Raises:
        UserError: no part of it is transparent.
    """
    here = 1 - as_layers(image, "mask")[1]
    if not here.any():
        raise UserError("no part of the mask is transparent: make it transparent where the picture should change.")
    return here


def cut_out(image: Image.Image) -> bool:
    """Whether a picture has fully transparent parts. OpenAI's edits use them as the mask if none is sent."""
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] == 0


def _block(image: Image.Image) -> int:
    """Pixels whose mean is enough: at least twice as many blocks as a mask has pixels remain, down and across."""
    block = 1
    while block < STRIP_ROWS and max(image.size) >= 4 * MASK_SIDE * block:
        block *= 2
    return block


def _fitted(region: Region) -> Region:
    """The region with a mask of at most `MASK_SIDE` pixels a side."""
    height, width = region.mask.shape
    scale = MASK_SIDE / max(height, width)
    return region if scale >= 1 else resized(region, (max(round(height * scale), 1), max(round(width * scale), 1)))
