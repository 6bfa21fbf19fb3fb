"""Texts of like length are read together, so that little is computed for padding."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from syzygy.clip.clip_model import Clip
from syzygy.clip.tokenization import ENOUGH, LIKE, alike
from syzygy.core.contracts import TextFeatures, TextStates
from syzygy.text_encoders.llm import Llm, LlmRecipe
from syzygy.text_encoders.t5 import T5Config, build_t5
from tests.closeness import NETWORK, assert_close
from tests.tiny_llm import save_tiny_llm
from tests.tiny_unclip import tiny_clip

WORDS = ["a red star", "a ring", "zwei grüne Ringe", "a red star left of a Blue circle, a ring"]


def masked(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=120))
def test_each_text_is_read_once_and_whole(lengths: list[int]) -> None:
    groups = alike(masked(lengths))
    assert sorted(row for rows, _ in groups for row in rows.tolist()) == list(range(len(lengths)))
    for rows, longest in groups:
        assert longest == max(lengths[row] for row in rows.tolist())
    for rows, longest in groups[:-1]:
        assert len(rows) * longest >= ENOUGH, "no pass is too small to be worth it"


@given(st.lists(st.integers(1, 300), min_size=1, max_size=120))
def test_little_is_padding(lengths: list[int]) -> None:
    """At worst a group is begun by few long texts, up to `ENOUGH`, or ends too small."""
    groups = alike(masked(lengths))
    computed = sum(len(rows) * longest for rows, longest in groups)
    assert computed <= sum(lengths) / LIKE + len(groups) * (ENOUGH + max(lengths))


def test_equal_texts_are_one_pass() -> None:
    ((rows, longest),) = alike(masked([9] * 100))
    assert (rows.tolist(), longest) == (list(range(100)), 9)


def test_few_tokens_are_one_pass() -> None:
    assert len(alike(masked([60, 3, 2]))) == 1


def passes(module: nn.Module, encode: Callable[[], TextFeatures | TextStates]) -> tuple[list[tuple[int, int]], Tensor]:
    """Shapes of the token ids of each pass, and the mask of what came out."""
    seen: list[tuple[int, int]] = []

    def note(_module: nn.Module, _given: object, named: dict[str, Tensor], *_: object) -> None:
        seen.append(tuple(named["attention_mask"].shape))  # type: ignore[arg-type]

    handle = module.register_forward_hook(note, with_kwargs=True)
    mask = encode().mask
    handle.remove()
    return seen, mask


@pytest.mark.parametrize("reader", ["llm", "clip", "t5"])
def test_encoders_compute_little_padding_and_the_same(reader: str, tmp_path: Path) -> None:
    texts = [WORDS[i % 2] for i in range(200)] + WORDS
    if reader == "llm":
        llm = Llm.from_pretrained(save_tiny_llm("llama", tmp_path / "llm"))
        module, encode = llm.model, llm.encode_states
    elif reader == "t5":
        t5 = build_t5(T5Config(width=16, layers=1, heads=2), texts, 0)
        module, encode = t5.model.get_encoder(), t5.encode_states
    else:
        clip = Clip.from_pretrained(tiny_clip(tmp_path / "clip"))
        module, encode = clip.model.text_model, clip.encode_text
    shapes, mask = passes(module, lambda: encode(texts))
    computed = sum(rows * length for rows, length in shapes)
    assert len(shapes) > 1
    assert computed < 2 * mask.sum() < mask.numel()
    found = encode(texts)
    for row in (0, 1, 200, 202, 203):
        alone = encode([texts[row]])
        assert_close(found.states[row][found.mask[row]], alone.states[0], depth=NETWORK)
        if isinstance(found, TextFeatures) and isinstance(alone, TextFeatures):
            assert_close(found.pooled[row], alone.pooled[0], depth=NETWORK)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=120), st.integers(1, 2000))
def test_a_pass_has_no_more_tokens_than_allowed(lengths: list[int], most: int) -> None:
    groups = alike(masked(lengths), most)
    assert sorted(row for rows, _ in groups for row in rows.tolist()) == list(range(len(lengths)))
    assert all(len(rows) * longest <= most or len(rows) == 1 for rows, longest in groups)


def test_a_language_model_holds_the_states_of_few_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound counts all layers' states: four of width 32 here."""
    llm = Llm.from_pretrained(save_tiny_llm("llama", tmp_path / "llm"))
    texts = [WORDS[i % 4] for i in range(20)]
    whole = llm.encode_states(texts)
    monkeypatch.setattr("syzygy.text_encoders.llm.MAX_NUMBERS", 4 * 32 * 60)
    shapes, _ = passes(llm.model, lambda: llm.encode_states(texts))
    assert len(shapes) > 1
    assert all(rows * length <= 60 for rows, length in shapes)
    assert_close(llm.encode_states(texts).states, whole.states, depth=NETWORK)
    last = Llm(llm.model, llm.tokenizer, "x", LlmRecipe(layers="last"))
    assert len(passes(llm.model, lambda: last.encode_states(texts))[0]) < len(shapes)
