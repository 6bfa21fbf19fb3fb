"""Scenes → images, in torch, anti-aliased from signed distances, at any resolution, on any device.

Legend: S scenes, N objects drawn in one go, H and W pixels, 3 colour channels. Colours are sRGB in [0, 1].
Signed distances follow Quílez, "2D distance functions".
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from syzygy.core.errors import UserError
from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, SHAPES, STYLES, TEXTURES, Scene

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "orange": (250, 136, 16),
    "yellow": (248, 220, 40),
    "green": (44, 160, 60),
    "cyan": (50, 200, 205),
    "blue": (44, 80, 215),
    "purple": (136, 54, 176),
    "pink": (250, 128, 192),
}
TEXTURE_PERIOD = 0.62
"""Distance between two stripes or dots, in radii of the object: 4.8 px for the smallest object at 64 px."""

OWNED = 0.3
"""Share of a cell that a thing must cover for the cell to be labelled with it."""

_STAR = (math.cos(math.pi / 5), math.sin(math.pi / 5))


def _box(x: Tensor, y: Tensor, half_x: float, half_y: float) -> Tensor:
    return torch.maximum(x.abs() - half_x, y.abs() - half_y)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    y = y - 0.2
    slope = 0.5 * math.sqrt(3)
    return torch.maximum(slope * x.abs() - 0.5 * y, y) - 0.55


def _star(x: Tensor, y: Tensor) -> Tensor:
    (c, s), y, x = _STAR, -y, x.abs()
    k = 2 * (c * x - s * y).clamp_min(0)
    x, y = x - k * c, y + k * s
    k = 2 * (-c * x - s * y).clamp_min(0)
    x, y = (x + k * c).abs(), y + k * s - 1
    ba_x, ba_y = 0.45 * s, 0.45 * c - 1
    h = ((x * ba_x + y * ba_y) / (ba_x**2 + ba_y**2)).clamp(0, 1)
    return torch.hypot(x - ba_x * h, y - ba_y * h) * torch.sign(y * ba_x - x * ba_y)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    scale = 0.6
    x, y = (x * scale).abs(), 0.52 - y * scale
    upper = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    m = 0.5 * (x + y).clamp_min(0)
    lower = torch.minimum(x * x + (y - 1) ** 2, (x - m) ** 2 + (y - m) ** 2).sqrt() * torch.sign(x - y)
    return torch.where(x + y > 1, upper, lower) / scale


def _moon(x: Tensor, y: Tensor) -> Tensor:
    x = x - 0.15
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.72 - torch.hypot(x - 0.5, y))


_DISTANCE = {
    "circle": lambda x, y: torch.hypot(x, y) - 0.95,
    "square": lambda x, y: _box(x, y, 0.8, 0.8),
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.95, 0.33), _box(x, y, 0.33, 0.95)),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.68).abs() - 0.27,
    "moon": _moon,
}


def _marks(texture: int, x_NHW: Tensor, y_NHW: Tensor, pixels_N11: Tensor) -> Tensor:
    """How much each pixel belongs to a texture's marks, in [0, 1]; `pixels` = pixels a radius."""
    period = TEXTURE_PERIOD
    if TEXTURES[texture] == "striped":
        wave = torch.sin((x_NHW + y_NHW) * (math.sqrt(2) * math.pi / period))
        return (0.5 + wave * (period / (2 * math.pi)) * pixels_N11).clamp(0, 1)
    u, v = x_NHW / period, y_NHW / period
    distance = torch.hypot(u - u.round(), v - v.round()) - 0.30
    return (0.5 - distance * period * pixels_N11).clamp(0, 1)


def _hue(hue_S: Tensor) -> Float[Tensor, "S 3"]:
    """Fully saturated colours of hues in [0, 1]."""
    offsets = torch.tensor([0.0, 1 / 3, 2 / 3], device=hue_S.device)
    return ((hue_S[:, None] + offsets).remainder(1) * 6 - 3).abs().sub(1).clamp(0, 1)


def _backgrounds(scenes: Sequence[Scene], style_S: Tensor, x_W: Tensor, y_H: Tensor) -> Float[Tensor, "S 3 H W"]:
    values = torch.tensor(
        [(b.hue_from, b.hue_to, b.strength, b.angle) for b in (s.background for s in scenes)], device=x_W.device
    )
    hue_from, hue_to, strength, angle = values.unbind(1)
    across_S1W, down_SH1 = (x_W - 0.5) * angle.cos()[:, None, None], (y_H[:, None] - 0.5) * angle.sin()[:, None, None]
    along = across_S1W + down_SH1
    t_S1HW = (along / 1.2 + 0.5).clamp(0, 1)[:, None]
    # For each style: a grey, and how far tints lead away from it.
    base_and_reach = torch.tensor([[1.0, -0.25], [1.0, -0.12], [1.0, -0.2], [0.05, 0.14]], device=x_W.device)
    base, reach = base_and_reach[style_S].unbind(1)

    def tint(hue_S: Tensor) -> Tensor:
        toward = torch.where((reach < 0)[:, None], 1 - _hue(hue_S), _hue(hue_S))  # away from white, or up from black
        return (base[:, None] + reach[:, None] * strength[:, None] * toward)[..., None, None]

    return tint(hue_from) * (1 - t_S1HW) + tint(hue_to) * t_S1HW


def _object_colours(colour_N: Tensor, style_N: Tensor) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Fill and mark colours of objects, by style: marks darker than the fill, lighter at night."""
    palette = torch.tensor([PALETTE[name] for name in COLOURS], device=colour_N.device) / 255
    pure, night = palette[colour_N], (style_N == STYLES.index("night"))[:, None]
    pastel = (style_N == STYLES.index("pastel"))[:, None]
    fill = torch.where(pastel, 0.75 * pure + 0.25, torch.where(night, 0.85 * pure, pure))
    marks = torch.where(night, 0.35 * fill + 0.65, torch.where(pastel, 0.5 * fill, 0.38 * fill))
    return fill, marks


class _Drawn(NamedTuple):
    inner_colours: Float[Tensor, "N 3 H W"]
    glow_colour: Float[Tensor, "N 3 1 1"]
    coverage: Float[Tensor, "N H W"]
    glow: Float[Tensor, "N H W"]
    where: list[tuple[int, int]]
    """(scene, place in the scene) of each object."""


def _draw_objects(scenes: Sequence[Scene], x_W: Tensor, y_H: Tensor) -> _Drawn:
    """All objects of all scenes, sorted by (shape, texture) so that each formula runs once."""
    size, device = len(x_W), x_W.device
    where = sorted(
        ((s, k) for s, scene in enumerate(scenes) for k in range(len(scene.things))),
        key=lambda at: (
            SHAPES.index(scenes[at[0]].things[at[1]].shape),
            TEXTURES.index(scenes[at[0]].things[at[1]].texture),
        ),
    )
    things = [scenes[s].things[k] for s, k in where]
    spot = torch.tensor([(t.x, t.y, t.radius) for t in things], device=device)
    colour = torch.tensor([COLOURS.index(t.colour) for t in things], device=device)
    style = torch.tensor([STYLES.index(scenes[s].style) for s, _ in where], device=device)
    radius = spot[:, 2, None, None]
    x = (x_W - spot[:, 0, None, None]) / radius
    y = (y_H[:, None] - spot[:, 1, None, None]) / radius
    x, y = torch.broadcast_tensors(x, y)
    pixels = radius * size
    distance, marks = torch.empty_like(x), torch.zeros_like(x)
    appearances = [(t.shape, TEXTURES.index(t.texture)) for t in things]
    for shape, texture in dict.fromkeys(appearances):
        start, stop = appearances.index((shape, texture)), len(appearances) - appearances[::-1].index((shape, texture))
        distance[start:stop] = _DISTANCE[shape](x[start:stop], y[start:stop])
        if texture:
            marks[start:stop] = _marks(texture, x[start:stop], y[start:stop], pixels[start:stop])
    distance = distance * pixels
    coverage = (0.5 - distance).clamp(0, 1)
    is_outline = (style == STYLES.index("outline"))[:, None, None]
    line = (0.5 + distance + (0.12 * pixels).clamp_min(1.3)).clamp(0, 1) * is_outline
    fill, mark = _object_colours(colour, style)
    inner_colours = fill[..., None, None] + (mark - fill)[..., None, None] * marks[:, None]
    inner_colours = inner_colours + (0.08 - inner_colours) * line[:, None]
    is_night = (style == STYLES.index("night"))[:, None, None]
    glow = torch.exp(-distance.clamp_min(0) / (0.35 * pixels)) * 0.35 * is_night
    return _Drawn(inner_colours, fill[..., None, None], coverage, glow, where)


def _check(size: int) -> None:
    if size < 16:
        raise UserError(f"images of {size} px cannot show objects; choose 16 px or more (the world's default is 64).")


def _axes(size: int, device: torch.device | str) -> Tensor:
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size


def render(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Float[Tensor, "S 3 H W"]:
    """Images of the scenes in [0, 1], computed in fp32 on `device`.

    Raises:
        UserError: size below 16 px.
    """
    _check(size)
    axis = _axes(size, device)
    style = torch.tensor([STYLES.index(s.style) for s in scenes], device=axis.device)
    canvas = _backgrounds(scenes, style, axis, axis)
    drawn = _draw_objects(scenes, axis, axis)
    for place in range(max(len(s.things) for s in scenes)):
        rows = [i for i, (_, k) in enumerate(drawn.where) if k == place]
        index = torch.tensor([drawn.where[i][0] for i in rows], device=axis.device)
        under = canvas[index]
        under = under + (drawn.glow_colour[rows] - under) * drawn.glow[rows][:, None]
        canvas[index] = under + (drawn.inner_colours[rows] - under) * drawn.coverage[rows][:, None]
    return canvas.clamp_(0, 1)


def masks(
    scene: Scene, size: int = 64, device: torch.device | str = "cpu", *, hidden: bool = False
) -> Float[Tensor, "K H W"]:
    """How much of each pixel each thing covers, in the order of the things: region masks.

    A thing in front of another one is removed from its mask; with `hidden=True` it is not.
    """
    _check(size)
    axis = _axes(size, device)
    drawn = _draw_objects([scene], axis, axis)
    number = len(scene.things)
    coverage = drawn.coverage[[drawn.where.index((0, k)) for k in range(number)]]
    if hidden:
        return coverage
    seen = torch.ones_like(coverage[0])
    visible = [coverage[k] for k in range(number)]
    for k in reversed(range(number)):
        visible[k] = coverage[k] * seen
        seen = seen * (1 - coverage[k])
    return torch.stack(visible)


def cell_owners(scenes: Sequence[Scene], cells: int = 8) -> Int[Tensor, "S cells cells"]:
    """Which thing of its scene covers most of each cell of a grid; -1 where none covers `OWNED` of it.

    Labels for trainings that supervise patches or attention maps.
    """
    axis = _axes(4 * cells, "cpu")
    drawn = _draw_objects(scenes, axis, axis)
    shares = torch.zeros(len(scenes), MAX_OBJECTS, cells, cells)
    rows = torch.tensor(drawn.where)
    shares[rows[:, 0], rows[:, 1]] = nn.functional.avg_pool2d(drawn.coverage, 4)
    for front in range(1, MAX_OBJECTS):  # approximately: things in front hide their share of those behind
        shares[:, :front] *= 1 - shares[:, front : front + 1]
    most = shares.max(1)
    return torch.where(most.values >= OWNED, most.indices, -1)
