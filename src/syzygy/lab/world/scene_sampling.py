"""Scenes from a seed: at random, or such that a description is true of them."""

import math

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention, check_facts
from syzygy.lab.world.scene import (
    COLOURS,
    MAX_OBJECTS,
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
    shows_unseen_composition,
)

NUMBER_OF_THINGS = (0.3, 0.35, 0.2, 0.15)
"""How often a scene has one, two, three, four things."""

ALIKE = 0.25
"""How often a scene of several things holds alike ones ("three red circles")."""

RADIUS = {1: (0.13, 0.34), 2: (0.12, 0.25), 3: (0.12, 0.20), 4: (0.12, 0.18)}
"""Smallest and largest radius by the number of things. 0.12 keeps every shape ≥ 10 px across at 64 px."""

CLOSEST = 0.95
"""Centres of two things are at least this part of the sum of their radii apart, so ≥ 70 % of each stays visible."""

EDGE = 0.01
"""Nothing reaches closer to the picture's edge."""

Appearance = tuple[Shape, Colour, Texture]


def sample_scene(draw: Draw, *, unseen: bool = True) -> Scene:
    """A random scene. With `unseen=False`, one without unseen compositions (by rejection)."""
    while True:
        scene = _any_scene(draw)
        if unseen or not shows_unseen_composition(scene):
            return scene


def _any_scene(draw: Draw) -> Scene:
    at, number = draw.random(), 1
    while number < MAX_OBJECTS and at >= sum(NUMBER_OF_THINGS[:number]):
        number += 1
    appearances = [_appearance(draw) for _ in range(number)]
    if number > 1 and draw.chance(ALIKE):
        alike = number if number == 2 or draw.chance(0.5) else number - 1
        appearances = [appearances[0]] * alike + appearances[alike:]
    return _place(appearances, draw)


def _appearance(draw: Draw, mention: Mention | None = None) -> Appearance:
    shape = mention.shape if mention else draw.pick(SHAPES)
    colour = (mention and mention.colour) or draw.pick(COLOURS)
    texture = (mention and mention.texture) or draw.pick(TEXTURES)
    return shape, colour, texture


def _place(appearances: list[Appearance], draw: Draw, style: Style | None = None) -> Scene:
    low, high = RADIUS[len(appearances)]
    while True:
        spots: list[tuple[float, float, float]] = []
        for _ in appearances:
            radius = low + (high - low) * draw.random() ** 1.5
            for _try in range(40):
                x, y = (draw.between(radius + EDGE, 1 - radius - EDGE) for _ in range(2))
                if all(math.hypot(x - u, y - v) >= CLOSEST * (radius + r) for u, v, r in spots):
                    spots.append((x, y, radius))
                    break
            else:
                break
        if len(spots) == len(appearances):
            break
    things = tuple(Thing(*appearance, *spot) for appearance, spot in zip(appearances, spots, strict=True))
    background = Background(draw.random(), draw.random(), draw.between(0.2, 1.0), draw.between(0.0, 2 * math.pi))
    return Scene(things, style or draw.pick(STYLES), background)


def scene_for(description: Description, draw: Draw, *, tries: int = 4000) -> Scene:
    """A scene of exactly the things named, omitted attributes at random, for which every named fact holds.

    Raises:
        UserError: more than four objects are named, or no scene was found (contradictory or crowded relations).
    """
    wanted = sum(m.count for m in description.mentions)
    if not 1 <= wanted <= MAX_OBJECTS:
        raise UserError(f"a scene holds 1 to {MAX_OBJECTS} objects; this text names {wanted}. Name fewer.")
    for _ in range(tries):
        appearances = []
        for mention in description.mentions:
            appearances += [_appearance(draw, mention)] * mention.count
        scene = _place(appearances, draw, description.style)
        if all(fact.holds for fact in check_facts(description, scene)):
            return scene
    raise UserError("found no scene for this text: its relations contradict each other or leave no room. Name fewer.")
