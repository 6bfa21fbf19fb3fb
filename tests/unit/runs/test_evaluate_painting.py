"""What "in its place" means: the right thing, with its centre in the mask."""

import pytest
import torch

from syzygy.errors import UserError
from syzygy.runs.evaluate_painting import HALVES, Asked, Outcome, _placed, ask, table
from syzygy.types import Region
from syzygy.world.description import Description, Mention
from syzygy.world.prompts import Prompt, prompts
from syzygy.world.reader import Reading
from syzygy.world.scene import Thing


def thing(shape, colour, x: float, y: float) -> Thing:
    return Thing(shape, colour, "plain", x, y, 0.1)


def read(*things: Thing) -> Reading:
    return Reading(things, "flat", (1.0,) * len(things))


def test_every_prompt_gets_opposite_halves() -> None:
    wanted = prompts("single", 20, 0, False) + prompts("colour", 20, 0, False)
    asked = ask(wanted, 0)
    assert len(asked) > 30
    for one in asked:
        for mention, region in zip(one.mentions, one.regions, strict=True):
            assert region.phrase in one.prompt.text.casefold()
            assert region.phrase.endswith(mention.shape)
        if len(one.regions) == 2:
            first, second = (region.mask for region in one.regions)
            assert not (first * second).any()
            assert torch.equal(first, second.flip(0)) or torch.equal(first, second.flip(1))
    firsts = {tuple(one.regions[0].mask.nonzero()[0].tolist()) for one in asked}
    assert len(firsts) == 3, "left and above begin in the same corner"
    assert len(HALVES) == 4


def test_a_thing_counts_where_it_is_and_as_what_it_is() -> None:
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    told = Description((Mention("star", "red"), Mention("ring", "blue")))
    regions = (Region("red star", left), Region("blue ring", left.flip(1)))
    one = Asked(Prompt("colour", "a red star and a blue ring", told, False), told.mentions, regions)
    star, ring = thing("star", "red", 0.2, 0.5), thing("ring", "blue", 0.9, 0.5)
    assert _placed(one, read(star, ring)) == 1.0
    assert _placed(one.swapped(), read(star, ring)) == 0.0
    assert _placed(one, read(star)) == 0.5
    assert _placed(one, read(thing("star", "green", 0.2, 0.5), ring)) == 0.5
    assert _placed(one, read(thing("star", "red", 0.8, 0.5), ring)) == 0.5


def test_the_table_compares_with_the_unpainted() -> None:
    rows = table({0.0: Outcome([[0.0], [0.5]], [[1.0], [0.0]]), 0.4: Outcome([[1.0], [1.0]], [[1.0], [1.0]])})
    assert [row["strength"] for row in rows] == [0.0, 0.4]
    assert (rows[0]["placed"].mean, rows[1]["placed"].mean) == (0.25, 1.0)
    assert (rows[0]["agreement_gained"].mean, rows[1]["agreement_gained"].mean) == (0.0, 0.5)


def test_nothing_to_paint_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to paint"):
        ask([], 0)
