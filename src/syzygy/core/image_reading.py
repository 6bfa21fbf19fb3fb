"""Reading of pictures, for `embed`, training, masks, canvases, styles, `vary`, `mix`, the server and Python calls alike.

A file and a Pillow image are treated alike, in this order:

| property | rule |
|---|---|
| format | One of `FORMATS`, recognised by content; the name does not matter. The first frame of an animation. |
| limits | Files of at most `MAX_BYTES`; at most `PIL.Image.MAX_IMAGE_PIXELS` pixels, checked before decoding. |
| mode | Every mode of Pillow becomes RGB, with opacity if the picture has transparency. ICC profiles are not applied. |
| depth | 16 and 12 bits are scaled to 8 over the format's whole range (65,535 and 4,095 are white), never clipped. |
| floating point | 0 is black and 1 is white; pictures with other values are refused. |
| 32-bit integers | Refused, as no format defines their range. |
| orientation | The EXIF (or XMP) orientation is applied, then forgotten, so that it cannot be applied twice. |
| transparency | Pictures get a white background. In masks and canvases, transparent means elsewhere. |

All functions raise `UserError`, which says why and what to do, for a file or picture that cannot be read.
"""

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from syzygy.core.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats of picture files, in data sets and on the command line, by Pillow's names.

Cameras and collections of pictures use these formats, and Pillow decodes them with well-maintained libraries. Its other decoders are
rarely maintained, and the one for EPS starts another program. A data set may come from anyone, so none of them is enabled.
The server accepts fewer (`server.uploads.FORMATS`).
"""
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".avifs")  # fmt: skip
"""Suffixes of files in these formats, in lower case."""
FOREIGN_SUFFIXES = (
    ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jxr", ".mpo", ".ico", ".icns", ".tga", ".dds", ".exr", ".hdr",
    ".dib", ".pcx", ".qoi", ".pbm", ".pgm", ".ppm", ".pnm", ".psd", ".psb", ".xcf", ".kra", ".svg", ".svgz", ".eps", ".raw", ".dng", ".cr2",
    ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".erf", ".mrw",
)  # fmt: skip
"""Suffixes of picture files in other formats. They cannot be read, but they are not texts either."""
STRIP_ROWS = 256
"""Rows of an image that are converted at a time."""
MAX_BYTES = 256 * 2**20
"""Larger files are not read into memory."""
READING = {"version": 2, "orientation": "EXIF applied", "depth": "scaled to 8 bits", "transparency": "on white"}
"""How this version reads pictures. Stores of embeddings and of latents record it, because another version gives other features.

Version 1, which was not recorded, ignored the orientation and clipped 16 bits to 8 in `embed` and in training.
"""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that undoes each EXIF orientation."""
_WHITE_IS_ZERO = 0
"""TIFF's photometric interpretation in which 0 is white. Pillow follows it with 8 bits, but not with 16."""


def open_file(path: Path) -> Image.Image:
    """Read a picture file into memory, in its own mode, for `as_rgb`, `as_mask` or `as_layers`."""
    with quiet():
        return loaded(read_bytes(path, str(path)), str(path))


def loaded(data: bytes, name: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decode a picture file in its own mode. Errors call it `name`; `formats` are Pillow's names of the allowed formats."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = Image.MAX_IMAGE_PIXELS or 0
        raise UserError(f"{name} has too many pixels; at most {most:,} are read. Make it smaller.") from None
    except UnidentifiedImageError:  # its own message holds the address of a buffer
        raise UserError(
            f"{name} cannot be read: its format is not known; allowed are {', '.join(formats)}.{_conversion(name)}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways on data made to break them
        raise _unreadable(name, error) from None


def as_rgb(image: Image.Image, name: str = "the picture") -> Image.Image:
    """Convert a Pillow image of any mode to upright RGB on white, with 8 bits per channel. If it is so already, it is returned itself.

    Errors call it `name`. Images whose values have no defined range are refused (see the module's table).
    """
    image = _upright(image, name)
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    found = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        white = Image.new("RGBA", strip.size, "white")
        found.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return found


def as_mask(image: Image.Image, name: str = "the mask", block: int = 1) -> Float[Tensor, "H W"]:
    """Convert a Pillow image to a mask from 0 to 1: its brightness times its opacity, upright. See `as_rgb`.

    Args:
        block: make the mask smaller: a value is the mean of so many pixels down and across (a divisor of `STRIP_ROWS`), or of those left at
            the end. Numbers for all pixels of a large image would need four times its memory.
    """
    assert STRIP_ROWS % block == 0
    image, strips = _upright(image, name), []
    for _, strip in _strips(image):
        grey = _unit(strip.convert("L"))
        mask = grey * _unit(strip.getchannel("A")) if strip.mode == "RGBA" else grey
        strips.append(F.avg_pool2d(mask[None], block, ceil_mode=True)[0] if block > 1 else mask)
    return torch.cat(strips)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image after its orientation is applied."""
    T = Image.Transpose
    turned = _turn(image) in (T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
    return (image.height, image.width) if turned else image.size


def as_layers(image: Image.Image, name: str = "the picture") -> tuple[Image.Image, Float[Tensor, "H W"]]:
    """Convert a Pillow image to its colours (RGB, 8 bits, not blended with a background) and opacities from 0 to 1. See `as_rgb`."""
    image = _upright(image, name)
    opacity = _unit(image.getchannel("A")) if image.mode == "RGBA" else torch.ones(image.height, image.width)
    return image.convert("RGB"), opacity


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """An image in strips, with the row where each begins.

    Work on strips needs little memory at a time, and each call holds the interpreter only briefly, so a server answers others meanwhile.
    """
    for top in range(0, image.height, STRIP_ROWS):
        yield top, image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))


def _unit(image: Image.Image) -> Float[Tensor, "H W"]:
    """Grey levels as numbers in [0, 1]."""
    return torch.from_numpy(np.array(image)) / 255


def _upright(image: Image.Image, name: str) -> Image.Image:
    """The image as L, RGB or, if it has transparency, RGBA; upright, and without the metadata that says how to turn it.

    Grey stays grey, because three channels of a large mask would take three times its memory.
    """
    try:
        image.load()
        if image.mode in ("L", "RGB") and not image.info:
            return image
        turn, transparent = _turn(image), image.has_transparency_data
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            found = _eight_bits(image, name)
        else:
            found = image.convert("LA") if image.mode == "La" else image
            key = found.info.get("transparency")
            if isinstance(key, tuple) and max(key) > 255:  # of a PNG with 16 bits, whose colours Pillow reduced to 8
                found = found.copy()
                found.info["transparency"] = tuple(level >> 8 for level in key)
        found = found.convert("RGBA" if transparent else "L" if found.mode == "L" else "RGB")
        if turn is not None:
            found = found.transpose(turn)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a file that is opened lazily, or an odd palette
        raise _unreadable(name, error) from None
    found.info = {}
    return found


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # metadata that cannot be read says nothing
        return None


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """An image with one deep channel as L, or as LA if one of its values means transparent."""
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"{name} holds floating-point numbers from {low:g} to {high:g}; allowed are 0 (black) to 1 (white). "
                "Scale them, or save it with 8 or 16 bits a channel."
            )
        levels = np.round(values * 255)
    elif image.mode == "I" and image.format != "PNG":  # Pillow 11 opens PNGs of 16 bits so
        raise UserError(
            f"{name} holds 32-bit integers, whose range no format defines. Save it with 8 or 16 bits a channel."
        )
    else:
        tags: Any = getattr(image, "tag_v2", {})
        white = 4095 if tags.get(258) == (12,) else 65535
        levels = (values.astype(np.uint32) * 255 + white // 2) // white
        if tags.get(262) == _WHITE_IS_ZERO:
            levels = 255 - levels
    grey, key = Image.fromarray(levels.astype(np.uint8)), image.info.get("transparency")
    if key is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(f"{name} cannot be read as a picture: {str(error).rstrip('.') or type(error).__name__}.")


def _conversion(name: str) -> str:
    """How to get a readable file, if the name is a file's."""
    suffix = Path(name).suffix.lower()
    if suffix in SUFFIXES:
        return " The file may be damaged, or not a picture."
    if suffix in FOREIGN_SUFFIXES:
        return f" Convert it first, for example with ImageMagick: magick {name} {Path(name).with_suffix('.png')}"
    return ""


def read_bytes(path: Path, name: str | None = None) -> bytes:
    """The bytes of a picture file. Errors call it `name`, which defaults to the file's name without its folder."""
    name = path.name if name is None else name
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{name} is a folder, not a picture. Name the files in it.")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{name} is not an ordinary file.")
        if status.st_size > MAX_BYTES:
            raise UserError(too_large(status.st_size))
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {name}.") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise _unreadable(name, error) from None


def too_large(size: int) -> str:
    """Why a picture of so many bytes is not read."""
    return f"the picture's file has {size:,} bytes; at most {MAX_BYTES:,} are read."


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Pillow's warnings about unusual files. This is not per thread: enter it before threads start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
