"""Which of its named colours each pixel of a canvas has.

| pixels | belong to |
|---|---|
| within `NEAR` of a named colour, of white or of black | that colour; white and black that no region names are ground |
| with an opacity below `OPAQUE` | no region |
| blended, as anti-aliased edges and soft brushes leave them | the nearest in colour among the colours around them |
| of another colour, in a connected area of `AREA` of the canvas or more | none: the canvas is refused |
| of another colour, in smaller areas | as blended ones |

Blended means: within `NEAR` of the line between two of the colours, and not a flat area. A blend may resemble a third colour. So a pixel
that is near such a colour, but not in a square of four pixels of it, counts as blended if the colours around it explain it.
Shapes: H × W pixels, K colours, N pixels among them, C all colours.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Int, UInt8

from syzygy.core.errors import UserError

GROUND = ((255, 255, 255), (0, 0, 0))
"""White and black belong to no phrase, unless a region names them."""
NEAR = 48
"""Colours that differ by at most this much (of 255, in each channel) are one: compression changes colours slightly."""
EXACT = 12
"""Within this, a pixel alone is of a colour, if no blend of two others resembles it; farther off, only in a square of four."""
OPAQUE = 0.5
"""Pixels less opaque than this are transparent."""
AREA = 1 / 4096
"""An area of this part of the canvas is a position of the finest attention, 64 × 64; smaller ones cannot be placed anyway."""
LEAST_AREA = 9
"""Pixels that are no area, however small the canvas is."""
SCATTERED = 0.002
"""Largest part of the canvas that may be of other colours in all, in whatever areas: a photograph is not a canvas."""
REACH = 3
"""Pixels from a blended one to the colours around it."""
CHUNK = 2**19
"""Pixels that are compared with all colours together: memory stays bounded."""
_OTHER, _BLENDED, _NEAR, _EXACT = range(4)
"""What a colour is to the named ones: something else, between two of them, near one, one of them."""


def labels(
    pixels: UInt8[np.ndarray, "H W 3"],
    opaque: Bool[np.ndarray, "H W"],
    named: Sequence[tuple[int, int, int]],
    name: str,
) -> Int[np.ndarray, "H W"]:
    """The number of each pixel's colour in `named`; other numbers stand for ground, -1 for transparent.

    Args:
        pixels: RGB.
        name: what error messages call the canvas.

    Raises:
        UserError: an area has a colour that `named` lacks.
    """
    palette = np.array([*named, *(ground for ground in GROUND if ground not in named)], np.int16)
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    nearest, kind = _colour_table(packed[opaque], palette)
    found, kinds = nearest[packed], np.where(opaque, kind[packed], _NEAR)
    found[~opaque] = -1
    pure = ~_between(palette, ~np.eye(len(palette), dtype=bool), palette)
    clear = ~opaque | _in_square(np.where(opaque & (kinds >= _NEAR), found, -1)) | ((kinds == _EXACT) & pure[found])
    if clear.all():
        return found
    _check_strays(packed, kinds, name)
    rows, columns = np.nonzero(~clear)
    around = np.pad(np.where(clear, found, -1), REACH, constant_values=-1)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK], columns[start : start + CHUNK]
        found[some] = _assigned(pixels[some].astype(np.int16), kinds[some], _seen(around, *some, len(palette)), palette)
    return found


def _colour_table(
    packed: Int[np.ndarray, "N"], palette: Int[np.ndarray, "K 3"]
) -> tuple[Int[np.ndarray, "C"], UInt8[np.ndarray, "C"]]:
    """For each of the 2²⁴ colours that occurs: the number of the nearest in the palette, and what it is to the palette."""
    nearest, kind = np.full(1 << 24, -1, np.int16), np.full(1 << 24, _OTHER, np.uint8)
    kind[packed] = _BLENDED
    present = np.flatnonzero(kind)
    for colours in np.array_split(present, len(present) // CHUNK + 1):
        rgb = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], 1).astype(np.int16)
        distance = _distances(rgb, palette)
        nearest[colours], least = distance.argmin(1), distance.min(1)
        own = np.where(least <= EXACT, _EXACT, np.where(least <= NEAR, _NEAR, _OTHER)).astype(np.uint8)
        far = np.flatnonzero(own == _OTHER)
        own[far[_between(rgb[far], np.ones((len(far), len(palette)), bool), palette)]] = _BLENDED
        kind[colours] = own
    return nearest, kind


def _distances(rgb: Int[np.ndarray, "N 3"], palette: Int[np.ndarray, "K 3"]) -> Int[np.ndarray, "N K"]:
    """The largest difference in a channel."""
    return np.stack([np.abs(rgb - colour).max(1) for colour in palette], 1)


def _between(
    rgb: Int[np.ndarray, "N 3"], allowed: Bool[np.ndarray, "N K"], palette: Int[np.ndarray, "K 3"]
) -> Bool[np.ndarray, "N"]:
    """Whether each colour is within `NEAR` of the line between two of the palette's that it is allowed."""
    found = np.zeros(len(rgb), bool)
    for i, j in combinations(range(len(palette)), 2):
        rows = np.flatnonzero(allowed[:, i] & allowed[:, j] & ~found)
        way = (palette[j] - palette[i]).astype(np.float32)
        from_start = (rgb[rows] - palette[i]).astype(np.float32)
        part = np.clip(from_start @ way / max(way @ way, 1.0), 0, 1)
        found[rows] = np.abs(from_start - part[:, None] * way).max(1) <= NEAR
    return found


def _in_square(found: Int[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Whether each pixel is one of four in a square that have one number, which is not -1."""
    across, down = found[:, 1:] == found[:, :-1], found[1:] == found[:-1]
    return _spread(across[1:] & across[:-1] & down[:, :-1] & (found[:-1, :-1] >= 0), 2, found.shape)


def _spread(corner: Bool[np.ndarray, "h w"], side: int, shape: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
    """All pixels of squares that are given by their top left corners."""
    found = np.zeros(shape, bool)
    height, width = corner.shape
    for y in range(side):
        for x in range(side):
            found[y : y + height, x : x + width] |= corner
    return found


def _seen(
    around: Int[np.ndarray, "h w"], rows: Int[np.ndarray, "N"], columns: Int[np.ndarray, "N"], number: int
) -> Bool[np.ndarray, "N K"]:
    """Which colours are within `REACH` of each pixel."""
    seen = np.zeros((len(rows), number + 1), bool)  # the last column is that of -1
    every = np.arange(len(rows))
    for y in range(2 * REACH + 1):
        for x in range(2 * REACH + 1):
            seen[every, around[rows + y, columns + x]] = True
    return seen[:, :number]


def _assigned(
    rgb: Int[np.ndarray, "N 3"],
    kinds: UInt8[np.ndarray, "N"],
    seen: Bool[np.ndarray, "N K"],
    palette: Int[np.ndarray, "K 3"],
) -> Int[np.ndarray, "N"]:
    """The nearest of the colours around each pixel; of all colours, where no blend of those around explains it: a dot, a thin line."""
    distance = _distances(rgb, palette)
    explained = _between(rgb, seen, palette)
    free = ~explained & (kinds != _OTHER) | ~seen.any(1)
    return np.where(seen | free[:, None], distance, 256).argmin(1)


def _check_strays(packed: Int[np.ndarray, "H W"], kinds: UInt8[np.ndarray, "H W"], name: str) -> None:
    """Refuse a canvas with an area, or many pixels, of colours that no region names.

    Raises:
        UserError: names the commonest such colour, how many pixels and where.
    """
    other = kinds == _OTHER
    if other.mean() > SCATTERED:
        raise _stray(packed, other, name)
    flat = _flat(packed, kinds <= _BLENDED)
    key = np.where(flat, packed + 2, other)
    if not key.any():
        return
    area = _largest_area(key)
    if area.sum() >= max(LEAST_AREA, AREA * area.size):
        raise _stray(packed, area, name)


def _stray(packed: Int[np.ndarray, "H W"], where: Bool[np.ndarray, "H W"], name: str) -> UserError:
    colours, counts = np.unique(packed[where], return_counts=True)
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return UserError(
        f"{name} has the colour #{colours[counts.argmax()]:06x}, which no region names: {where.sum():,} such pixels, from "
        f"({columns[0]}, {rows[0]}) to ({columns[-1]}, {rows[-1]}). Name its phrase, or make it white, black or transparent."
    )


def _flat(packed: Int[np.ndarray, "H W"], unnamed: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Unnamed pixels in squares of nine that have exactly one colour, which no blend is."""
    across, down = packed[:, 1:] == packed[:, :-1], packed[1:] == packed[:-1]
    three = across[:, 1:] & across[:, :-1]
    corner = three[2:] & three[1:-1] & three[:-2] & down[1:, :-2] & down[:-1, :-2] & unnamed[:-2, :-2]
    return _spread(corner, 3, packed.shape)


def _largest_area(key: Int[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The largest area of one key, 0 excepted, connected along the sides of pixels. Runs along rows are joined, not single pixels."""
    starts = np.ones(key.shape, bool)
    starts[:, 1:] = key[:, 1:] != key[:, :-1]
    run = (np.cumsum(starts) - 1).reshape(key.shape)
    rows, columns = np.nonzero((key[1:] == key[:-1]) & (key[1:] > 0))
    upper, lower = run[rows, columns], run[rows + 1, columns]
    first = np.ones(len(upper), bool)
    first[1:] = (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])
    upper, lower = upper[first], lower[first]
    root = np.arange(run[-1, -1] + 1)
    while (root[upper] != root[lower]).any():
        one, other = root[upper], root[lower]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while (root != root[root]).any():
            root = root[root]
    area = np.bincount(root[run[key > 0]], minlength=len(root))
    return root[run] == area.argmax()
