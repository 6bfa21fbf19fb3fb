"""Descriptions of every kind that a sentence can say, by number."""

from itertools import pairwise

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention, Placed
from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, RELATIONS, SHAPES, STYLES, TEXTURES


def any_description(index: int) -> Description:
    """Description number `index`: mentions in any order, in chains of relations or in none, with a style or without."""
    draw = Draw(0, "any description", index)
    told = []
    for _ in range(1 + int(draw.random() * MAX_OBJECTS)):
        count = 1 + int(draw.random() * (MAX_OBJECTS - sum(m.count for m in told)))
        if sum(m.count for m in told) < MAX_OBJECTS:
            told.append(Mention(draw.pick(SHAPES), draw.pick((None, *COLOURS)), draw.pick((None, *TEXTURES)), count))
    relations = [draw.pick((None, *RELATIONS)) for _ in told[1:]]
    links = [Placed(a, r, b) for (a, b), r in zip(pairwise(draw.order(range(len(told)))), relations, strict=True) if r]
    return Description(tuple(told), tuple(links), draw.pick((None, *STYLES)))
