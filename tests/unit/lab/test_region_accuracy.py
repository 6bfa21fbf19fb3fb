"""What "in place" means: the right object, with its centre in the mask."""

import pytest
import torch

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.lab.evaluate.region_accuracy import (
    HALVES,
    WITHOUT,
    RegionCase,
    RegionsConfig,
    chosen,
    in_place,
    name_of,
    region_cases,
    table,
)
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language.base import Span
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.scene import Thing
from syzygy.lab.world.scene_classifier import Prediction


def thing(shape, colour, x: float, y: float) -> Thing:
    return Thing(shape, colour, "plain", x, y, 0.1)


def read(*things: Thing) -> Prediction:
    return Prediction(things, "flat", (1.0,) * len(things))


def test_every_prompt_gets_opposite_halves() -> None:
    wanted = prompts("single", 20, 0, False) + prompts("colour", 20, 0, False)
    asked = region_cases(wanted, 0)
    assert len(asked) > 30
    for one in asked:
        for mention, region in zip(one.mentions, one.regions, strict=True):
            assert region.phrase in one.prompt.text.casefold()
            assert all(word in region.phrase for word in (mention.shape, mention.colour) if word)
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
    one = RegionCase(Prompt("colour", "a red star and a blue ring", told, False), told.mentions, regions)
    star, ring = thing("star", "red", 0.2, 0.5), thing("ring", "blue", 0.9, 0.5)
    assert in_place(one, read(star, ring)) == 1.0
    assert in_place(one.exchanged(), read(star, ring)) == 0.0
    assert in_place(one, read(star)) == 0.5
    assert in_place(one, read(thing("star", "green", 0.2, 0.5), ring)) == 0.5
    assert in_place(one, read(thing("star", "red", 0.8, 0.5), ring)) == 0.5


def test_the_table_compares_with_no_regions_and_by_the_exchanged_masks() -> None:
    asked = region_cases(prompts("single", 3, 0, False) + prompts("colour", 3, 0, False), 0)
    scoring = RegionsConfig(strengths=(0.5, 2.0))

    def perfect(one: RegionCase) -> Prediction:
        things = []
        for mention, region in zip(one.mentions, one.regions, strict=True):
            down, across = (region.mask.nonzero().float().mean(0) / 64).tolist()
            things.append(Thing(mention.shape, mention.colour or "red", mention.texture or "plain", across, down, 0.1))
        return Prediction(tuple(things), one.prompt.description.style or "flat", (1.0,) * len(things))

    two = [one.exchanged() for one in asked if len(one.regions) == 2]
    right, wrong, nothing = (
        [perfect(one) for one in asked],
        [perfect(one.exchanged()) for one in asked],
        [read()] * len(asked),
    )
    found = {WITHOUT: nothing, name_of(0.5): wrong, name_of(2.0): right}
    found |= {
        name_of(0.5, True): [perfect(one.exchanged()) for one in two],
        name_of(2.0, True): [perfect(one) for one in two],
    }
    rows = {(row["candidate"], row["category"]): row for row in table(asked, found, scoring) if row["side"] == "all"}
    assert rows[WITHOUT, "all"]["in_place"].mean == 0
    assert rows[name_of(2.0), "single"]["in_place"].mean == rows[name_of(2.0), "colour"]["in_place"].mean == 1
    assert (
        rows[name_of(2.0), "all"]["against_no_regions"].mean
        == rows[name_of(0.5), "all"]["against_no_regions"].mean
        == 1
    )
    assert rows[name_of(0.5), "colour"]["in_place"].mean == 0, "all right, but elsewhere"
    assert (
        rows[name_of(0.5, True), "colour"]["in_place"].mean,
        rows[name_of(2.0, True), "colour"]["in_place"].mean,
    ) == (
        0,
        1,
    )
    assert (name_of(2.0, True), "single") not in rows
    assert chosen(table(asked, found, scoring), scoring) == 2.0


def test_prompts_without_regions_are_refused() -> None:
    with pytest.raises(UserError, match="no regions to evaluate"):
        region_cases([], 0)
    told = Description((Mention("star"), Mention("ring")))
    spans = (Span(0, 0, 6), Span(1, 11, 17))
    twice = Prompt("colour", "a star and a ring, no: a star", told, False, spans)
    with pytest.raises(UserError, match="no regions to evaluate"):
        region_cases([twice], 0)
