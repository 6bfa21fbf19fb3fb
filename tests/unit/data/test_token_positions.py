"""Which tokens of a caption stand for a phrase."""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from syzygy.clip.clip_model import Clip
from syzygy.core.phrase_places import places
from syzygy.data.store_subjects import token_positions

words = st.sampled_from(["dog", "dogs", "a", "red", "Dog", "cat"])


@given(text=st.lists(words, min_size=1, max_size=8), phrase=st.lists(words, min_size=1, max_size=2))
def test_positions_are_those_of_the_words(text: list[str], phrase: list[str]) -> None:
    """With one token for each word, they are where the words stand."""
    caption, spans, start = " ".join(text), [(0, 0)], 0
    for word in text:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    lower, wanted = [w.lower() for w in text], [w.lower() for w in phrase]
    size = len(wanted)
    starts = [i for i in range(len(text)) if lower[i : i + size] == wanted]
    expected = sorted({1 + i + k for i in starts for k in range(size)})
    found = token_positions(torch.tensor([*spans, (0, 0)]), places(caption, " ".join(phrase)))
    assert found == expected


def test_only_the_phrases_own_place_counts(tiny_model: Path) -> None:
    """Not every token that is equal to one of the phrase's."""
    clip = Clip.from_pretrained(tiny_model / "clip")
    caption = "a red star and a red ring"
    (spans,) = clip.token_spans([caption])
    first = token_positions(spans, places(caption, "red star"))
    assert [caption[a:b] for a, b in spans[first].tolist()] == ["red", "star"]
    both = token_positions(spans, places(caption, "red"))
    assert [caption[a:b] for a, b in spans[both].tolist()] == ["red", "red"]
    assert len(spans) == clip.encode_text([caption]).mask.sum()


def test_what_the_encoder_cuts_off_has_no_tokens(tiny_model: Path) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip")
    caption = "red " * 100 + "star"
    (spans,) = clip.token_spans([caption])
    assert token_positions(spans, places(caption, "star")) == []
    assert len(token_positions(spans, places(caption, "red"))) == clip.positions - 2
