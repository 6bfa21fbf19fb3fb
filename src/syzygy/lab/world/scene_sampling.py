"""Scenes from a seed: at random, or such that a description is true of them."""

import math

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention, judge
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
    is_held_out,
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

Look = tuple[Shape, Colour, Texture]


def sample_scene(draw: Draw, *, held_out: bool = True) -> Scene:
    """A random scene. With `held_out=False`, one that shows no held-out composition (rejection)."""
    while True:
        scene = _any_scene(draw)
        if held_out or not is_held_out(scene):
            return scene


def _any_scene(draw: Draw) -> Scene:
    at, number = draw.random(), 1
    while number < MAX_OBJECTS and at >= sum(NUMBER_OF_THINGS[:number]):
        number += 1
    looks = [_look(draw) for _ in range(number)]
    if number > 1 and draw.chance(ALIKE):
        alike = number if number == 2 or draw.chance(0.5) else number - 1
        looks = [looks[0]] * alike + looks[alike:]
    return _place(looks, draw)


def _look(draw: Draw, mention: Mention | None = None) -> Look:
    shape = mention.shape if mention else draw.pick(SHAPES)
    colour = (mention and mention.colour) or draw.pick(COLOURS)
    texture = (mention and mention.texture) or draw.pick(TEXTURES)
    return shape, colour, texture


def _place(looks: list[Look], draw: Draw, style: Style | None = None) -> Scene:
    low, high = RADIUS[len(looks)]
    while True:
        spots: list[tuple[float, float, float]] = []
        for _ in looks:
            radius = low + (high - low) * draw.random() ** 1.5
            for _try in range(40):
                x, y = (draw.between(radius + EDGE, 1 - radius - EDGE) for _ in range(2))
                if all(math.hypot(x - u, y - v) >= CLOSEST * (radius + r) for u, v, r in spots):
                    spots.append((x, y, radius))
                    break
            else:
                break
        if len(spots) == len(looks):
            break
    things = tuple(Thing(*look, *spot) for look, spot in zip(looks, spots, strict=True))
    background = Background(draw.random(), draw.random(), draw.between(0.2, 1.0), draw.between(0.0, 2 * math.pi))
    return Scene(things, style or draw.pick(STYLES), background)


def scene_for(description: Description, draw: Draw, *, tries: int = 4000) -> Scene:
    """A scene of exactly the things named, untold attributes at random, for which every named atom holds.

    Raises:
        UserError: more than four objects are named, or no scene was found (contradictory or crowded relations).
    """
    wanted = sum(m.count for m in description.mentions)
    if not 1 <= wanted <= MAX_OBJECTS:
        raise UserError(f"a scene holds 1 to {MAX_OBJECTS} objects; this text names {wanted}. Name fewer.")
    for _ in range(tries):
        looks = []
        for mention in description.mentions:
            looks += [_look(draw, mention)] * mention.count
        scene = _place(looks, draw, description.style)
        if all(atom.holds for atom in judge(description, scene)):
            return scene
    raise UserError("found no scene for this text: its relations contradict each other or leave no room. Name fewer.")
