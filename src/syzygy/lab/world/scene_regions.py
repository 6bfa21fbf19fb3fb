"""Regions as a person might draw them: loosely around the objects that a caption names, for the caption's own words."""

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Region
from syzygy.core.randomness import Draw
from syzygy.lab.world.scene import Thing
from syzygy.lab.world.scene_source import Pair

WITH_REGION = 0.85
"""Fraction of the mentions that get a region, so that a decoder learns to place the others by itself."""
TO_THE_EDGE = 0.3
"""Fraction of the sides that reach the image's edge: with all four a region says nothing, with three it is a strip."""


def regions(pair: Pair, draw: Draw, side: int) -> tuple[Region, ...]:
    """A mask of `side` × `side` for most of the objects that the caption names, at least their centres inside.

    Boxes of any looseness, up to halves and strips of the image, or discs around each object. Words that occur twice in the caption are
    left out, as a region applies to every occurrence of its phrase.
    """
    return tuple(mention_regions(pair, draw, side).values())


def mention_regions(pair: Pair, draw: Draw, side: int) -> dict[int, Region]:
    """`regions` by the number of the mention."""
    text, mentions = pair.caption.text, pair.caption.description.mentions
    phrases = [(span.mention, text[span.start : span.stop]) for span in pair.caption.spans]
    found = {}
    for number, phrase in phrases:
        things = [thing for thing in pair.scene.things if mentions[number].fits(thing)]
        if not things:  # a wrong caption
            continue
        mask = _box(things, draw, side) if draw.chance(0.7) else _discs(things, draw, side)
        if draw.chance(WITH_REGION) and text.casefold().count(phrase.casefold()) == 1:
            found[number] = Region(phrase, mask)
    return found


def _box(things: list[Thing], draw: Draw, side: int) -> Float[Tensor, "side side"]:
    """Around all of them; each side is moved a random part of the way to the image's edge, or all of it."""
    loose = draw.random()

    def outward() -> float:
        return 1.0 if draw.chance(TO_THE_EDGE) else loose * draw.random()

    left, right, top, bottom = (
        max(min(t.x - t.radius for t in things), 0.0) * (1 - outward()),
        1 - max(min(1 - t.x - t.radius for t in things), 0.0) * (1 - outward()),
        max(min(t.y - t.radius for t in things), 0.0) * (1 - outward()),
        1 - max(min(1 - t.y - t.radius for t in things), 0.0) * (1 - outward()),
    )
    axis = (torch.arange(side) + 0.5) / side
    return (((axis >= top) & (axis <= bottom))[:, None] & ((axis >= left) & (axis <= right))).float()


def _discs(things: list[Thing], draw: Draw, side: int) -> Float[Tensor, "side side"]:
    axis = (torch.arange(side) + 0.5) / side
    mask = torch.zeros(side, side)
    for thing in things:
        reach = thing.radius * draw.between(0.9, 2.0)
        mask[torch.hypot(axis[None] - thing.x, axis[:, None] - thing.y) <= reach] = 1
    return mask
