"""Laws of every language of the world: what is said is read back, stands where it is said to stand, and is its own language."""

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syzygy.core.randomness import Draw
from syzygy.lab.world.description import ALL_FACTS
from syzygy.lab.world.language import LANGUAGES, detect_language, language, parse_caption
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.parallel_corpus import parallel
from syzygy.lab.world.scene_source import pair
from tests.any_description import any_description

LENGTHS: tuple[Length, ...] = get_args(Length)
NUMBERS = st.integers(0, 2**32)
CODES = st.sampled_from(list(LANGUAGES))
OTHERS = [code for code in LANGUAGES if code != "en"]  # English: test_world_laws


@pytest.mark.parametrize("code", OTHERS)
def test_thousands_of_descriptions_are_read_back(code: str) -> None:
    for i in range(1000):
        description = any_description(i)
        said = language(code).caption(description, Draw(3, i), LENGTHS[i % 3])
        parsed = language(code).parse(said.text)
        assert parsed.description.key == description.key, said.text
        assert (parsed.unknown, parsed.unused) == ({}, ()), said.text


@settings(max_examples=300)
@given(CODES, NUMBERS, NUMBERS, st.sampled_from(LENGTHS))
def test_spans_are_the_words_of_their_mentions(code: str, number: int, seed: int, length: Length) -> None:
    description = any_description(number)
    said = language(code).caption(description, Draw(seed), length)
    spans = sorted(said.spans, key=lambda span: span.start)
    assert sorted(span.mention for span in spans) == list(range(len(description.mentions)))
    assert all(a.stop < b.start for a, b in pairwise(spans))
    for span in spans:
        words = said.text[span.start : span.stop]
        assert words == words.strip(" ,.")
        parsed = language(code).parse(words)
        assert parsed.description.mentions == (description.mentions[span.mention],), words
        assert (parsed.unknown, parsed.unused) == ({}, ()), words


@settings(max_examples=120)
@given(CODES, NUMBERS, NUMBERS, st.sampled_from(LENGTHS))
def test_a_caption_is_known_by_its_language(code: str, number: int, seed: int, length: Length) -> None:
    said = language(code).caption(any_description(number), Draw(seed), length)
    assert language(code).unknown(said.text) == ()
    assert (
        detect_language(said.text) == code or language("en").unknown(said.text) == ()
    )  # "3 Ringe": nothing to tell them by
    assert parse_caption(said.text).description.key == said.description.key


@settings(max_examples=60)
@given(NUMBERS, st.integers(0, 1000), st.booleans(), st.sampled_from(LENGTHS))
def test_parallel_captions_are_those_of_the_pair(seed: int, index: int, held_out: bool, length: Length) -> None:
    found = parallel(seed, index, list(LANGUAGES), facts=ALL_FACTS, unseen=held_out, length=length)
    for code, caption in found.captions.items():
        assert caption == pair(seed, index, facts=ALL_FACTS, unseen=held_out, length=length, lang=code).caption
        assert caption.description == found.description
    assert held_out or not found.description.unseen
