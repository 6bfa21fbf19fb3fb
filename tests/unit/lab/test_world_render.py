"""Pictures of the world: objects large enough, visible, and readable in colour and texture in every style."""

import math
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world.render import PALETTE, masks, render
from syzygy.lab.world.scene import (
    COLOURS,
    SHAPES,
    STYLES,
    TEXTURES,
    Background,
    Colour,
    Scene,
    Shape,
    Style,
    Texture,
    Thing,
)
from syzygy.lab.world.scene_sampling import CLOSEST, EDGE, RADIUS, sample_scene

SMALLEST = min(low for low, _ in RADIUS.values())
PALE = Background(0.1, 0.1, 0.2, 0.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Pictures of 64 px gain nothing from more, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(shape: Shape, colour: Colour, texture: Texture, style: Style, background: Background = PALE) -> Scene:
    """One of the smallest objects, off the grid of pixels."""
    return Scene((Thing(shape, colour, texture, 0.504, 0.502, SMALLEST),), style, background)


@cache
def smallest_objects(style: Style) -> tuple[Tensor, Tensor]:
    """Pictures [shape, texture, colour, 3, H, W] of the smallest objects, and the masks [shape, H, W]."""
    looks = product(SHAPES, TEXTURES, COLOURS)
    pictures = render([alone(shape, colour, texture, style) for shape, texture, colour in looks])
    inside = torch.cat([masks(alone(shape, "red", "plain", style)) for shape in SHAPES])
    return pictures.unflatten(0, (len(SHAPES), len(TEXTURES), len(COLOURS))), inside


def mean_inside(pictures: Tensor, inside: Tensor) -> Tensor:
    return (pictures * inside).sum((-2, -1)) / inside.sum((-2, -1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_smallest_object_is_ten_pixels_across(shape: Shape) -> None:
    for x, y in product((0.5, 0.503, 0.506, 0.51), repeat=2):
        thing = Thing(shape, "red", "plain", x, y, SMALLEST)
        covered = masks(Scene((thing,), "flat", PALE), 64)[0] > 0.5
        assert covered.any(0).sum() >= 10
        assert covered.any(1).sum() >= 10


def test_objects_of_sampled_scenes_are_inside_the_picture_and_visible() -> None:
    for i in range(250):
        scene = sample_scene(Draw(1, i))
        for thing in scene.things:
            assert thing.radius + EDGE <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) + 1e-9
        visible = masks(scene).sum((1, 2)) / masks(scene, hidden=True).sum((1, 2))
        assert visible.min() >= 0.7


@pytest.mark.parametrize("behind", SHAPES)
def test_neighbours_as_close_as_may_be_hide_less_than_a_third(behind: Shape) -> None:
    low, high = RADIUS[2]
    for front, radius, turn in product(SHAPES, (low, high), range(8)):
        angle, distance = math.tau * turn / 8, CLOSEST * (low + radius)
        x, y = 0.5 + distance * math.cos(angle), 0.5 + distance * math.sin(angle)
        pair = Thing(behind, "red", "plain", 0.5, 0.5, low), Thing(front, "blue", "plain", x, y, radius)
        scene = Scene(pair, "flat", PALE)
        assert masks(scene)[0].sum() >= 0.7 * masks(scene, hidden=True)[0].sum()


@pytest.mark.parametrize(
    ("style", "plain", "marked"),
    [("flat", 0.25, 0.15), ("outline", 0.1, 0.07), ("pastel", 0.2, 0.15), ("night", 0.2, 0.15)],
)
def test_colours_are_apart(style: Style, plain: float, marked: float) -> None:
    """Distances of mean sRGB colours; in the outline style a third or more of a small star is black line."""
    pictures, inside = smallest_objects(style)
    colours = mean_inside(pictures, inside[:, None, None, None])
    distances = torch.cdist(colours, colours) + 9 * torch.eye(len(COLOURS))
    assert distances[:, TEXTURES.index("plain")].min() >= plain
    assert distances.min() >= marked


@pytest.mark.parametrize("style", STYLES)
def test_textures_are_apart(style: Style) -> None:
    """Pixels inside that differ by more than 0.15; the fewest are in a dotted star with an outline."""
    pictures, inside = smallest_objects(style)
    for first, second in combinations(range(len(TEXTURES)), 2):
        difference = (pictures[:, first] - pictures[:, second]).abs().amax(2)
        assert ((difference > 0.15) & (inside[:, None] > 0.5)).sum((2, 3)).min() >= (4 if style == "outline" else 16)
        assert (difference * (inside[:, None] == 0)).max() <= 0.01


@pytest.mark.parametrize("style", STYLES)
def test_objects_stand_out_from_every_background(style: Style) -> None:
    tints = [Background(hue / 12, hue / 12, strength, 0.0) for hue in range(12) for strength in (0.2, 1.0)]
    inside = masks(alone("circle", "red", "plain", style))
    for tint in tints:
        pictures = render([alone("circle", colour, "plain", style, tint) for colour in COLOURS])
        corner = pictures[:, :, 0, 0]
        assert (mean_inside(pictures, inside) - corner).norm(dim=1).min() >= 0.15


def test_a_mask_is_where_its_object_is() -> None:
    ring, square = Thing("ring", "red", "plain", 0.3, 0.3, 0.2), Thing("square", "blue", "plain", 0.7, 0.7, 0.25)
    scene = Scene((ring, square), "flat", PALE)
    picture, regions = render([scene])[0], masks(scene)
    for region, colour in zip(regions, ("red", "blue"), strict=True):
        mean = (picture * (region == 1)).sum((1, 2)) / (region == 1).sum()
        assert torch.allclose(mean, torch.tensor(PALETTE[colour]) / 255, atol=1e-5)
    assert regions[0, 19, 19] == 0  # the hole of the ring
    area = regions.sum((1, 2)) / 64**2
    assert area[0] == pytest.approx(math.pi * 0.2**2 * (0.95**2 - 0.41**2), rel=0.02)
    assert area[1] == pytest.approx((2 * 0.8 * 0.25) ** 2, rel=0.02)


def test_later_things_are_in_front() -> None:
    behind, front = (Thing("circle", c, "plain", x, 0.5, 0.2) for c, x in (("red", 0.45), ("blue", 0.55)))
    scene = Scene((behind, front), "flat", PALE)
    assert torch.allclose(render([scene])[0, :, 32, 32], torch.tensor(PALETTE["blue"]) / 255, atol=1e-5)
    assert masks(scene)[:, 32, 32].tolist() == [0, 1]
    assert masks(scene, hidden=True)[:, 32, 32].tolist() == [1, 1]


@pytest.mark.parametrize("size", [15, 1, 0, -4])
def test_pictures_below_16_px_are_refused(size: int) -> None:
    scene = alone("circle", "red", "plain", "flat")
    for draw in (lambda: render([scene], size), lambda: masks(scene, size)):
        with pytest.raises(UserError, match=f"{size} px cannot show objects; choose 16 px or more"):
            draw()
