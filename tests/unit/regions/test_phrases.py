"""Phrases and masks become maps over tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.regions.phrases import blurred, check_read, places, region_maps
from tests.closeness import assert_close

PROMPT = "a red star left of a red circle"


def spans(*prompts: str) -> torch.Tensor:
    """A token a word, between a start and an end."""
    rows = []
    for prompt in prompts:
        row, at = [(0, 0)], 0
        for word in prompt.split():
            at = prompt.index(word, at)
            row.append((at, at + len(word)))
            at += len(word)
        rows.append([*row, (0, 0)])
    length = max(map(len, rows))
    return torch.tensor([row + [(0, 0)] * (length - len(row)) for row in rows])


def half(left: bool, size: int = 4) -> torch.Tensor:
    mask = torch.zeros(size, size)
    mask[:, : size // 2] = float(left)
    mask[:, size // 2 :] = float(not left)
    return mask


def test_a_phrase_is_found_as_whole_words() -> None:
    assert places(PROMPT, "red star") == [(2, 10)]
    assert places(PROMPT, " Red Star ") == [(2, 10)]
    assert places(PROMPT, "red") == [(2, 5), (21, 24)]
    assert places("a starry star, a star's", "star") == [(9, 13), (17, 21)]
    assert places("红色的星星", "星星") == [(3, 5)]
    assert places("«звезда» и круг", "Звезда") == [(1, 7)]


@pytest.mark.parametrize(
    ("prompt", "phrase", "found"),
    [
        ("un cafe\u0301 rouge", "caf\u00e9", ["cafe\u0301"]),
        ("un caf\u00e9 rouge", "cafe\u0301 rouge", ["caf\u00e9 rouge"]),
        ("e\u0301t\u00e9 d\u2019un \u00e9te\u0301", "\u00e9t\u00e9", ["e\u0301t\u00e9", "\u00e9te\u0301"]),
        ("a red\nstar", "a red star", ["a red\nstar"]),
        ("a red \u00a0\t star!", "red star", ["red \u00a0\t star"]),
        ("a red star", " red\u3000star\n", ["red star"]),
        ("the king\u2019s crown", "king's crown", ["king\u2019s crown"]),
        ("the king's crown", "king\u2019s", ["king's"]),
        ("a sign \u201copen\u201d here", '"open"', ["\u201copen\u201d"]),
        ("a well\u2011known star", "well-known star", ["well\u2011known star"]),
        ("a lo\u00adng star\u200b", "long star", ["lo\u00adng star"]),
        ("ein gro\u00dfer Kreis", "GROSSER kreis", ["gro\u00dfer Kreis"]),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af \ubcc4", "\ud55c\uae00", ["\u1112\u1161\u11ab\u1100\u1173\u11af"]),
        ("\u2764\ufe0f and a star", "\u2764", ["\u2764\ufe0f"]),
    ],
)
def test_what_looks_alike_is_found_where_it_stands(prompt: str, phrase: str, found: list[str]) -> None:
    assert [prompt[start:end] for start, end in places(prompt, phrase)] == found


@pytest.mark.parametrize(
    ("prompt", "phrase"), [("gro\u00df", "gros"), ("cafe\u0301", "cafe"), ("\u0915\u093f", "\u0915"), ("a", "\u200b")]
)
def test_a_part_of_a_letter_is_no_place(prompt: str, phrase: str) -> None:
    """Half of ß, an e without its accent, a consonant without its vowel sign, nothing at all."""
    with pytest.raises(UserError, match="does not contain the phrase"):
        places(prompt, phrase)


def test_tokens_of_a_phrase_that_is_spelt_otherwise_are_painted() -> None:
    """The accent is a character of its own, so that every later token stands one farther on."""
    prompt = "un cafe\u0301 rouge et\u00a0bleu"
    maps = region_maps(
        [prompt], spans(prompt), [[Region("caf\u00e9", half(True)), Region("et bleu", half(False))]], 1.0
    )
    assert maps.flatten(2).sum(2)[0].nonzero()[:, 0].tolist() == [2, 4, 5]


@pytest.mark.parametrize("before", ["\U0001f31f", " ", "-"])
def test_a_mark_without_a_letter_hides_no_word(before: str) -> None:
    """Thai's short a after an emoji or a blank: the page offers it as a part of the word that follows."""
    assert places(f"a star{before}\u0e31b ring", "\u0e31b") == [(7, 9)]


@pytest.mark.parametrize("phrase", ["blue star", "sta", "ed star", "star left off"])
def test_an_absent_phrase_is_refused(phrase: str) -> None:
    with pytest.raises(UserError, match="does not contain the phrase"):
        places(PROMPT, phrase)


def test_masks_stand_in_the_columns_of_their_words() -> None:
    maps = region_maps(
        [PROMPT], spans(PROMPT), [[Region("red star", half(True)), Region("circle", half(False), weight=2.0)]], 0.5
    )
    assert maps.shape == (1, 10, 4, 4)
    assert maps.flatten(2).sum(2)[0].nonzero()[:, 0].tolist() == [2, 3, 8]
    assert_close(maps[0, 2], 0.5 * half(True))
    assert_close(maps[0, 8], half(False))


def test_overlaps_add_and_every_occurrence_is_meant() -> None:
    maps = region_maps(
        [PROMPT], spans(PROMPT), [[Region("red", half(True)), Region("red star", torch.ones(4, 4))]], 1.0
    )
    assert_close(maps[0, 2], 1 + half(True))
    assert_close(maps[0, 7], half(True))


def test_each_prompt_is_searched() -> None:
    prompts = ["a star", "a very red star"]
    star = Region("star", half(True))
    maps = region_maps(prompts, spans(*prompts), [[star], [star]], 1.0)
    assert maps.flatten(2).sum(2).nonzero().tolist() == [[0, 2], [1, 4]]
    maps = region_maps(prompts, spans(*prompts), [[], [star]], 1.0)
    assert maps.flatten(2).sum(2).nonzero().tolist() == [[1, 4]]


@given(st.text(alphabet="abc äß星 ", min_size=1, max_size=12), st.integers(0, 11), st.integers(1, 12))
def test_what_stands_between_spaces_is_found(text: str, start: int, length: int) -> None:
    words = text.split()
    if not words:
        return
    chosen = words[start % len(words)]
    assert any(text[a:b].casefold() == chosen.casefold() for a, b in places(text, chosen))


def test_words_cut_off_are_refused() -> None:
    with pytest.raises(UserError, match="after the last token"):
        check_read([PROMPT], [spans(PROMPT)[:, :6]], [[Region("circle", half(True))]])


def test_one_encoder_that_reads_the_words_is_enough() -> None:
    cut, whole, regions = spans(PROMPT)[:, :6], spans(PROMPT), [[Region("circle", half(True))]]
    check_read([PROMPT], [cut, whole], regions)
    check_read([PROMPT], [whole, cut], regions)
    with pytest.raises(UserError, match="after the last token"):
        check_read([PROMPT], [cut, cut], regions)


def test_blur_keeps_what_is_painted_and_softens_its_border() -> None:
    region = Region("star", half(True, 16))
    soft = blurred(region, 0.1).mask
    assert soft[:, 0].min() > 0.99
    assert 0.4 < soft[0, 7] < 0.9
    torch.testing.assert_close(soft.mean(), region.mask.mean(), atol=0.02, rtol=0)
    assert blurred(region, 0.0) is region
    dot = torch.zeros(9, 9)
    dot[2, 6] = 1
    spread = blurred(Region("star", dot), 0.1).mask
    assert spread.argmax() == 2 * 9 + 6
    assert_close(spread[1, 6], spread[2, 5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phrase": " "}, "needs the phrase"),
        ({"mask": torch.zeros(4, 4)}, "is empty"),
        ({"mask": torch.full((4, 4), 1.5)}, "from 0 to 1"),
        ({"mask": torch.full((4, 4), float("nan"))}, "from 0 to 1"),
        ({"weight": -1.0}, "at least 0"),
        ({"weight": float("inf")}, "at least 0"),
    ],
)
def test_wrong_regions(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Region(**{"phrase": "star", "mask": torch.ones(4, 4)} | settings)


def test_wrong_maps() -> None:
    with pytest.raises(UserError, match="one size"):
        region_maps([PROMPT], spans(PROMPT), [[Region("star", half(True)), Region("circle", half(True, 8))]], 1.0)
    with pytest.raises(UserError, match="region strength"):
        region_maps([PROMPT], spans(PROMPT), [[Region("star", half(True))]], -1.0)
    with pytest.raises(UserError, match="below 1"):
        blurred(Region("star", half(True)), 1.5)
