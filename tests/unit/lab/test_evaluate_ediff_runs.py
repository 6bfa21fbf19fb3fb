"""What is asked and measured: references of other content, pairs that differ in everything, decisive words last, verdicts."""

import pytest

from syzygy.core.errors import UserError
from syzygy.lab.evaluate import encoders, temporal
from syzygy.lab.evaluate import style as evaluate_style
from syzygy.lab.evaluate.bootstrap import Interval
from syzygy.lab.evaluate.style import PRIOR, REFERENCE, TEXT, StyleConfig, Use
from syzygy.lab.evaluate.temporal import FEW, TemporalConfig, steps_of, verdict
from syzygy.lab.world.language import language
from syzygy.lab.world.scene import COLOURS, STYLES, Thing
from syzygy.lab.world.scene_classifier import Prediction


def seen(style, *looks) -> Prediction:
    return Prediction(
        tuple(Thing(*look, 0.1 * i, 0.5, 0.1) for i, look in enumerate(looks)), style, (0.9,) * len(looks)
    )


@pytest.fixture(scope="module")
def asked() -> list[evaluate_style.StyleCase]:
    return evaluate_style.style_cases(StyleConfig(prompts=4, references=2))


def test_references_have_another_content_and_take_styles_in_turn(asked: list[evaluate_style.StyleCase]) -> None:
    assert len(asked) == 4 * 13
    assert {one.prompt.unseen for one in asked} == {True, False}
    for row, one in enumerate(asked):
        assert one.prompt.description.style is None
        assert [scene.style for scene in one.references] == [STYLES[row % 4], STYLES[(row + 1) % 4]]
        first, second = one.references
        assert (first.things, first.background) == (second.things, second.background)
        named = one.prompt.description.mentions
        assert not {thing.shape for thing in first.things} & {m.shape for m in named}
        assert not {thing.colour for thing in first.things} & {m.colour for m in named}
        for words, scene in zip(one.words, one.references, strict=True):
            told = language("en").parse(words).description
            assert told.style == scene.style
            assert {m.shape for m in told.mentions} == {m.shape for m in named}


def test_style_and_leaks_are_counted_beside_each_reference(asked: list[evaluate_style.StyleCase]) -> None:
    one = next(one for one in asked if len(one.references[0].things) == 1)
    thing = one.references[0].things[0]
    own = [(m.shape, m.colour or "red", m.texture or "plain") for m in one.prompt.description.mentions]
    first, second = (scene.style for scene in one.references)
    other = next(style for style in STYLES if style not in (first, second))
    another = next(colour for colour in COLOURS if colour != thing.colour)
    found = {
        TEXT: [seen(first, *own)],
        REFERENCE: [seen(first, thing.appearance), seen(other, (thing.shape, another, "plain"))],
    }
    scores = evaluate_style.scores([one], found)
    assert scores[TEXT]["style"] == [[1.0, 0.0]]
    assert scores[REFERENCE]["style"] == [[1.0, 0.0]]
    assert scores[TEXT]["leaked"] == scores[TEXT]["leaked_shape"] == [[0.0, 0.0]]
    assert (scores[REFERENCE]["leaked"], scores[REFERENCE]["leaked_shape"]) == ([[1.0, 0.0]], [[1.0, 1.0]])
    assert scores[TEXT]["prompt_accuracy"] == [[1.0, 1.0]]
    assert scores[REFERENCE]["prompt_accuracy"] == [[0.0, 0.0]]
    rows = evaluate_style.table([one], found | {PRIOR: found[TEXT]})
    assert {row["candidate"] for row in rows if "against_text_alone" in row} == {REFERENCE}


def test_the_guidance_with_most_accuracy_that_keeps_the_style_is_chosen() -> None:
    def row(candidate: str, style: float, agreement: float) -> dict:
        return {"candidate": candidate, "category": "all", "side": "seen"} | {
            name: Interval(mean, 0.0, 1.0, 9) for name, mean in (("style", style), ("prompt_accuracy", agreement))
        }

    scoring = StyleConfig(weights=(0.5, 2.0), guidance_scale=3.0)
    asked = [Use(weight, without_content) for without_content in (False, True) for weight in (0.5, 2.0, 3.0)]
    assert evaluate_style.uses(scoring) == asked
    scored = ((0.5, 0.9), (0.85, 0.6), (0.95, 0.2), (0.4, 0.9), (0.92, 0.5), (0.95, 0.3))
    good = [row(use.name, *values) for use, values in zip(asked, scored, strict=True)]
    assert evaluate_style.chosen(good, scoring) == Use(2.0, True)
    scored = ((0.4, 0.5), (0.7, 0.4), (0.85, 0.2), (0.4, 0.3), (0.5, 0.3), (0.6, 0.1))
    bad = [row(use.name, *values) for use, values in zip(asked, scored, strict=True)]
    assert evaluate_style.chosen(bad, scoring) == Use(2.0, False)


def test_pairs_differ_in_everything() -> None:
    asked = temporal.paired_prompts(TemporalConfig(prompts=50))
    assert len(asked) == 200
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        assert (first.category, first.unseen) == (second.category, second.unseen)
        shapes, colours = (
            [{getattr(m, kind) for m in p.description.mentions} for p in (first, second)]
            for kind in ("shape", "colour")
        )
        assert not shapes[0] & shapes[1]
        assert not (colours[0] & colours[1]) - {None}
    assert len({prompt.text for prompt in asked}) == 200


def test_shares_of_the_steps_are_whole_steps() -> None:
    assert [steps_of(share, 25) for share in (0.0, 40.0, 93.0, 100.0)] == [0, 10, 23, 25]
    assert list(TemporalConfig(swaps=(20, 40, 93.5)).steps_before) == [0, 5, 10, 23, 25]


@pytest.mark.parametrize(
    ("value", "told", "said"),
    [
        ((-0.01, -0.04, 0.03), 0.2, "confirmed"),
        ((-0.04, -0.08, 0.01), 0.2, "undecided"),
        ((-0.2, -0.3, -0.1), 0.2, "refuted"),
        ((-0.06, -0.07, -0.04), 0.2, "undecided"),
        ((0.0, 0.0, 0.0), 0.0, "cannot be decided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(value, told: float, said: str) -> None:
    assert verdict(Interval(*value, 9), Interval(0.5, told, 0.9, 9)).startswith(said)


def test_the_papers_statements_on_pictures_that_bear_them_out() -> None:
    scoring = TemporalConfig(prompts=4, steps=25, swaps=(60,))
    asked = temporal.paired_prompts(scoring)
    exact = [
        seen("flat", *((m.shape, m.colour or "red", m.texture or "plain") for m in p.description.mentions))
        for p in asked
    ]
    swapped = [exact[row ^ 1] for row in range(len(exact))]
    found = {temporal.name_of(before): exact if before >= 15 else swapped for before in scoring.steps_before}
    measured = temporal.scores(asked, found, scoring.steps)
    assert measured["swapped after 10"]["second"] == measured["swapped after 15"]["first"] == [[1.0]] * len(asked)
    assert measured["swapped after 10"]["unchanged"] == [[0.0]] * len(asked)
    assert measured["swapped after 23"]["unchanged"] == [[1.0]] * len(asked)
    said = temporal.statements(measured, scoring)
    assert [one["verdict"] for one in said] == ["confirmed"] * 4
    found["swapped after 23"] = swapped
    found["swapped after 10"] = exact
    said = temporal.statements(temporal.scores(asked, found, 25), scoring)
    assert [one["verdict"] for one in said] == ["refuted"] * 4
    few = TemporalConfig(prompts=4, steps=1)
    found = {temporal.name_of(before): exact for before in few.steps_before}
    said = temporal.statements(temporal.scores(asked, found, 1), few)
    assert {one["verdict"] for one in said} == {FEW}


def test_long_prompts_end_with_the_short_ones() -> None:
    asked = encoders.length_cases(encoders.EncodersConfig(prompts=4))
    for one in asked:
        assert one.long.endswith(one.prompt.text)
        head = one.long.removesuffix(one.prompt.text)
        assert 90 <= len(head.split()) <= 240
        assert head.endswith(". ")
        assert (
            language("en").parse(one.long).description.mentions
            == language("en").parse(one.prompt.text).description.mentions
        )
        assert language("en").parse(one.long).unknown == {}


def test_what_is_compared_is_what_the_decoder_reads() -> None:
    whole = encoders.conditions_compared(("image", "text", "t5"))
    assert whole == {
        "CLIP text": ("text",), "T5": ("t5",), "both texts": ("text", "t5"),
        "image of the prior": ("image",), "everything": ("image", "text", "t5"),
    }  # fmt: skip
    assert list(encoders.conditions_compared(("image", "text"))) == ["CLIP text", "image of the prior", "everything"]
    assert list(encoders.conditions_compared(("text", "t5"))) == ["CLIP text", "T5", "both texts"]
    assert encoders.left_out(("image", "text", "t5")) == []
    assert "reads no T5" in encoders.left_out(("image", "text"))[0]
    with pytest.raises(UserError, match="only image embeddings"):
        encoders.conditions_compared(("image",))
