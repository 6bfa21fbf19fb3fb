"""Pictures of unknown origin."""

import io
import struct
import zlib
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.core.image_reading import FORMATS, loaded, quiet
from syzygy.data.pair import Bad, RawPair, Skipped
from syzygy.data.prefetch import Prepared, prepared


def test_animations_and_odd_modes(picture: Callable[..., bytes]) -> None:
    frames = [Image.new("P", (3, 2), i) for i in range(3)]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    assert loaded(data.getvalue(), "a", FORMATS).size == (3, 2)
    for mode in ("1", "L", "LA", "RGBA", "CMYK", "I;16"):
        data = io.BytesIO()
        Image.new(mode, (3, 2)).save(data, "TIFF")
        assert loaded(data.getvalue(), "a", FORMATS).mode == mode


def test_formats_that_run_programs_are_refused() -> None:
    data = io.BytesIO()
    Image.new("RGB", (3, 2)).save(data, "EPS")
    with pytest.raises(UserError, match=r"cannot be read: its format is not known; allowed are JPEG"):
        loaded(data.getvalue(), "a", FORMATS)


@pytest.mark.parametrize("side", [10_000, 100_000])  # beyond the limit, and so far that Pillow itself refuses
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    """One bit a pixel; unpacked it would be 13 MB to 1.3 GB, and as colours 24 times that."""
    head = struct.pack(">4s2I5B", b"IHDR", side, side, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    with (
        quiet(),
        pytest.raises(UserError, match=r"it has too many pixels; at most 89,478,485 are read\. Make it smaller"),
    ):
        loaded(png + struct.pack(">I4s", 10**6, b"IDAT"), "it", FORMATS)


def test_messages_do_not_depend_on_the_run(picture: Callable[..., bytes]) -> None:
    for data in (b"", b"x", picture()[:30], picture(kind="JPEG")[:200], picture(kind="WEBP")[:30]):
        says = []
        for _ in range(2):
            with pytest.raises(UserError) as error:
                loaded(bytes(bytearray(data)), "it", FORMATS)
            says.append(str(error.value))
        assert says[0] == says[1]
        assert "0x" not in says[0]


def test_decoding_ahead_is_bounded_and_keeps_the_order(picture: Callable[..., bytes]) -> None:
    taken: list[int] = []

    def samples():
        for i in range(50):
            taken.append(i)
            if i % 10 == 3:
                yield Bad(f"{i}", "bad")
            elif i % 10 == 4:
                yield Skipped(f"{i}")
            else:
                yield RawPair(f"{i}", ("a",), picture(size=(i + 1, 1)))

    def prepare(image):
        return torch.tensor([float(image.width)])

    found = prepared(samples(), prepare, threads=3, ahead=7)
    for i, sample in enumerate(found):
        assert sample.key == f"{i}"
        assert len(taken) <= i + 8
        if isinstance(sample, Prepared):
            assert sample.image.tolist() == [i + 1]
            assert sample.columns == {"width": i + 1, "height": 1}


def test_a_picture_that_preparation_chokes_on_is_bad(picture: Callable[..., bytes]) -> None:
    def prepare(image):
        raise TypeError(f"{image} has an odd palette")

    (found,) = prepared(iter([RawPair("a", ("a",), picture())]), prepare, threads=1, ahead=1)
    assert found == Bad("a", "the picture cannot be prepared (TypeError)")


def test_lack_of_memory_is_no_fault_of_the_picture(picture: Callable[..., bytes]) -> None:
    def prepare(image):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(prepared(iter([RawPair("a", ("a",), picture())]), prepare, threads=1, ahead=1))
