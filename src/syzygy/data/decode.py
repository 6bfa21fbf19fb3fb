"""Pictures of unknown origin, opened with care."""

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from syzygy.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What pictures of a data set may be. Pillow reads more, with decoders of less repute (EPS starts another program)."""
MAX_BYTES = 256 * 2**20
"""Larger files are not read into memory."""


def loaded(data: bytes | Path, name: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    """A picture, whole in memory, in its own mode; of an animation the first frame.

    Args:
        data: an encoded picture, or where its file is.
        name: what errors call it.
        formats: Pillow's names of the allowed formats; None allows all.

    Raises:
        UserError: it is missing, broken, too large, or no picture.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"there is no file {name}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = Image.MAX_IMAGE_PIXELS or 0
        raise UserError(f"{name} has too many pixels; at most {most:,} are read. Make it smaller.") from None
    except UnidentifiedImageError:  # its own message tells the address of a buffer
        allowed = f"; allowed are {', '.join(formats)}" if formats else ""
        raise UserError(f"{name} cannot be read as a picture: its format is not known{allowed}.") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways on data made to break them
        raise UserError(f"{name} cannot be read as a picture: {error or type(error).__name__}.") from None


def read_bytes(path: Path) -> bytes:
    """A picture's file, whole.

    Raises:
        UserError: it is missing, no ordinary file, or larger than `MAX_BYTES`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path.name} is not an ordinary file.")
        if status.st_size > MAX_BYTES:
            raise UserError(too_large(status.st_size))
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {path.name}.") from None


def too_large(size: int) -> str:
    """Why a picture of so many bytes is not read."""
    return f"the picture's file has {size:,} bytes; at most {MAX_BYTES:,} are read."


@contextmanager
def quiet() -> Iterator[None]:
    """Within: Pillow's remarks on odd files are not shown. Not per thread: enter it before threads start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
