"""Span corruption: what is left out, what is asked for, and that nothing is lost between them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syzygy.core.randomness import generator
from syzygy.lab.starter.t5_training import T5Task, T5TaskConfig, corrupted, spans_left_out
from syzygy.text_encoders.t5 import SENTINELS, T5Config, build_t5

MARKS, END = list(range(100, 100 + SENTINELS)), 1


@given(st.integers(1, 200), st.floats(0.01, 0.9), st.floats(1, 8), st.integers(0, 99))
def test_nothing_is_lost_between_text_and_answer(length: int, density: float, span: float, seed: int) -> None:
    ids = list(range(1000, 1000 + length))
    out = spans_left_out(length, density, span, generator(seed, "t"))
    assert len(out) == length
    assert not out[0]
    assert int(out.sum()) == min(max(round(length * density), 1), length - 1)
    text, answer = corrupted(ids, out, MARKS, END)
    assert (text[-1], answer[-1]) == (END, END)
    # Put the answer's spans in place of their sentinels: the text is whole again.
    spans: dict[int, list[int]] = {}
    for token in answer[:-1]:
        if token in MARKS:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    assert list(spans) == MARKS[: len(spans)]
    whole = [one for token in text[:-1] for one in spans.get(token, [token])]
    assert whole == ids


def test_spans_are_about_as_long_as_asked() -> None:
    out = spans_left_out(400, 0.15, 3.0, generator(0, "t"))
    starts = (out[1:] & ~out[:-1]).sum()
    assert (int(out.sum()), int(starts)) == (60, 20)


def test_a_small_t5_learns_its_texts() -> None:
    texts = ["a red star left of a blue circle", "two green rings above a black heart"] * 4
    t5 = build_t5(T5Config(width=32, layers=1, decoder_layers=1, heads=2), texts * 20, seed=0)
    found = t5.tokenize(texts)
    ids = [row[mask].tolist()[:-1] for row, mask in zip(found.ids, found.mask, strict=True)]
    marks = [t5.tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(SENTINELS)]
    special = {"pad": t5.tokenizer.pad_token_id, "end": t5.tokenizer.eos_token_id, "sentinels": marks}
    task = T5Task(t5.model, lambda step: ids, ids[:2], T5TaskConfig(), 0, **special)
    before, again = task.validate(), task.validate()
    assert before == again
    optimizer = torch.optim.Adam(t5.model.parameters(), 5e-3)
    for step in range(60):
        optimizer.zero_grad()
        task.loss(step)["loss"].backward()
        optimizer.step()
    after = task.validate()
    assert after["loss"] < 0.3 * before["loss"]
    assert after["accuracy"] > before["accuracy"] + 0.3


@pytest.mark.parametrize("seed", [0, 1])
def test_spans_follow_from_the_seed(seed: int) -> None:
    first, second = (spans_left_out(60, 0.15, 3.0, generator(seed, "t")) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, spans_left_out(60, 0.15, 3.0, generator(seed + 2, "t")))
