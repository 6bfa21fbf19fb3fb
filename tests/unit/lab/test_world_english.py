"""English: lengths, readings of a person's words, and what is not understood."""

import pytest

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import ALL_FACTS, Description, Mention, Placed
from syzygy.lab.world.language import LANGUAGES, Parsed, language
from syzygy.lab.world.language.english import ENGLISH, KNOWN_WORDS
from syzygy.lab.world.scene import Style

FILLERS = tuple(ENGLISH.fillers.sentences)


def read(text: str) -> Parsed:
    return language("en").parse(text)


def said(*mentions: Mention, relations: tuple[Placed, ...] = (), style: Style | None = None) -> Description:
    return Description(mentions, relations, style)


LEFT = (Placed(0, "left of", 1),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("circle", said(Mention("circle"))),
        ("A RED  Circle,\nleft  of a star!", said(Mention("circle", "red"), Mention("star"), relations=LEFT)),
        ("an outlined drawing of spotted moons", said(Mention("moon", None, "dotted", 2), style="outline")),
        ("3 blue hearts in night style", said(Mention("heart", "blue", None, 3), style="night")),
        ("a ring that is red and stripy", said(Mention("ring", "red", "striped"))),
        ("the circle is red and the star is blue", said(Mention("circle", "red"), Mention("star", "blue"))),
        ("circle is red, star is blue", said(Mention("circle", "red"), Mention("star", "blue"))),
        (
            "left of a star that is pink is a red circle",
            said(Mention("star", "pink"), Mention("circle", "red"), relations=(Placed(1, "left of", 0),)),
        ),
        (
            "left of blue star is red circle",
            said(Mention("star", "blue"), Mention("circle", "red"), relations=(Placed(1, "left of", 0),)),
        ),
        (
            "a circle to the left of a star over a moon",
            said(Mention("circle"), Mention("star"), Mention("moon"), relations=(*LEFT, Placed(1, "above", 2))),
        ),
        (f"{FILLERS[0]} {FILLERS[3]} a square. {FILLERS[1]}", said(Mention("square"))),
    ],
)
def test_readings(text: str, expected: Description) -> None:
    assert read(text) == Parsed(expected, {}, ())


@pytest.mark.parametrize(
    ("text", "unused"),
    [
        ("a circle left of", ("left of",)),
        ("a circle left of above a star", ("left of",)),
        ("above a circle", ("above",)),
        ("a red blue circle", ("red",)),
        ("a dotted circle that is striped", ("dotted",)),
        ("a circle, red", ("red",)),
        ("a flat picture of a circle in night style", ("flat",)),
    ],
)
def test_known_words_that_belong_to_nothing_are_told(text: str, unused: tuple[str, ...]) -> None:
    assert read(text).unused == unused


def test_unknown_words_come_with_the_nearest_known() -> None:
    found = read("a yelow circel-like circle beside a strypd leftof star 17").unknown
    assert list(found) == ["yelow", "circel-like", "beside", "strypd", "leftof", "17"]
    assert found["yelow"][0] == "yellow"
    assert found["strypd"][0] in ("stripy", "striped")
    assert found["leftof"][0] == "left of"
    assert all(len(near) == 3 and set(near) <= set(KNOWN_WORDS) for near in found.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty. Describe one to four objects"),
        (" \n ", "the text is empty"),
        ("red and striped", "names no object of this world in English. Objects: circle, square"),
        ("a big sqare", "names no object of this world in English. Did you mean 'square'?"),
        (FILLERS[2], "names no object of this world"),
        ("five circles", "names more than 4 objects. Name fewer"),
        ("two circles, two stars and a moon", "names more than 4 objects"),
    ],
)
def test_texts_without_a_scene(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_lengths() -> None:
    for i in range(400):
        found = {n: scene_source.pair(2, i, length=n, facts=ALL_FACTS).caption for n in ("short", "medium", "long")}
        words = {name: len(caption.text.split()) for name, caption in found.items()}
        assert words["short"] <= 35
        assert 8 < words["medium"] <= 70  # of 77 tokens
        assert sum(len(f.split()) for f in FILLERS if f in found["medium"].text) <= 34  # room for the longest sentence
        assert 100 <= words["long"] <= 300
        for name in ("medium", "long"):
            assert found[name].text.startswith(FILLERS)
            first = min(span.start for span in found[name].spans)
            assert not any(filler in found[name].text[first:] for filler in FILLERS)


def test_phrasings_vary() -> None:
    told = said(Mention("circle", "red", "dotted"), Mention("star", "blue"), relations=LEFT, style="night")
    texts = {language("en").caption(told, Draw(0, i)).text for i in range(200)}
    assert len(texts) > 100
    assert any(" right of " in text for text in texts)
    assert any(text.startswith(("left of", "to the left of")) for text in texts)


def test_relations_that_no_sentence_can_say_are_our_bug() -> None:
    circle, star, moon = Mention("circle"), Mention("star"), Mention("moon")
    for relations in ((Placed(0, "left of", 2), Placed(1, "left of", 2)), (*LEFT, Placed(1, "above", 0))):
        with pytest.raises(AssertionError, match="chains"):
            language("en").caption(said(circle, star, moon, relations=relations), Draw(0))


def test_unknown_language() -> None:
    with pytest.raises(UserError, match="unknown language 'xx'"):
        language("xx")
    assert list(LANGUAGES) == ["en", "de", "es", "fr", "ru", "zh"]
