"""Subjects in place of token states: compared with loops over captions and tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from syzygy.core.packed_attention import PackedText
from syzygy.data.references import References

WIDTH = 3
Drawn = list[tuple[int, list[list[int]]]]
"""For each caption its number of tokens, and the token positions of each of its subjects."""


@st.composite
def captions(draw: st.DrawFn) -> Drawn:
    found = []
    for _ in range(draw(st.integers(1, 5))):
        tokens = draw(st.integers(1, 6))
        places = st.lists(st.integers(0, tokens - 1), min_size=1, max_size=tokens, unique=True)
        found.append((tokens, draw(st.lists(places, max_size=3))))
    return found


def made(drawn: Drawn, control: bool) -> tuple[PackedText, References, list[list[tuple[list[int], Tensor]]]]:
    lengths = torch.tensor([tokens for tokens, _ in drawn])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    text = PackedText(torch.randn(int(lengths.sum()), WIDTH), offsets, torch.randn(len(drawn), WIDTH))
    subjects = [[(places, torch.randn(WIDTH)) for places in own] for _, own in drawn]
    controls = torch.randn(len(drawn), WIDTH) if control else None
    return text, References.of(subjects, WIDTH, controls), subjects


def by_hand(text: PackedText, subjects: list[list[tuple[list[int], Tensor]]]) -> Tensor:
    states = text.states.clone()
    for caption, own in enumerate(subjects):
        for places, embedding in own:
            for place in places:
                states[int(text.offsets[caption]) + place] = embedding
    return states


@given(captions(), st.booleans(), st.randoms(use_true_random=False))
def test_subjects_take_their_tokens_places_whatever_captions_are_chosen(drawn: Drawn, control: bool, random) -> None:
    text, references, subjects = made(drawn, control)
    whole = references.placed(text)
    assert torch.equal(whole.states, by_hand(text, subjects))
    assert torch.equal(whole.pooled, text.pooled)
    index = torch.tensor([random.randrange(len(drawn)) for _ in range(4)])
    some = references[index]
    assert torch.equal(some.placed(text[index]).states, by_hand(text[index], [subjects[i] for i in index.tolist()]))
    assert (some.control is not None) == control
    if some.control is not None and references.control is not None:
        assert torch.equal(some.control, references.control[index])


@given(captions(), captions())
def test_joined_references_are_those_of_the_joined_captions(first: Drawn, second: Drawn) -> None:
    one, two = made(first, control=True), made(second, control=True)
    joined = References.cat([one[1], two[1]])
    assert torch.equal(
        joined.placed(PackedText.cat([one[0], two[0]])).states,
        by_hand(PackedText.cat([one[0], two[0]]), one[2] + two[2]),
    )
    assert References.cat([one[1], made(second, control=False)[1]]).control is None


def test_placing_changes_neither_the_text_nor_without_subjects_anything() -> None:
    text, references, _ = made([(2, [[1]])], control=False)
    before = text.states.clone()
    references.placed(text)
    assert torch.equal(text.states, before)
    none = References.of([[]], WIDTH)
    assert torch.equal(none.placed(text).states, before)


def test_only_embeddings_change_their_dtype() -> None:
    references = made([(3, [[0], [2]])], control=True)[1].to("cpu", torch.float64)
    assert references.embeddings.dtype == torch.float64
    assert references.control is not None
    assert references.control.dtype == torch.float64
    assert references.positions.dtype == references.offsets.dtype == torch.int64


def test_the_mean_counts_subjects_that_keep_a_token_of_their_words() -> None:
    one, two, three = torch.eye(3)
    references = References.of([[([1], one), ([1, 2], two)], [([0], one), ([1], three)], []], 3)
    assert torch.equal(references.mean_subjects(), torch.stack([two, (one + three) / 2, torch.zeros(3)]))
    assert references.has_subject.tolist() == [True, True, False]
