"""Captions go through an encoder in chunks of one size and like length, and come back in their order."""

import torch

from syzygy.core.contracts import TextFeatures, TextStates
from syzygy.data.encoding import encode_captions, joined


def test_chunks_are_alike_and_the_order_is_kept() -> None:
    asked: list[list[str]] = []

    def encode(texts: list[str]) -> TextFeatures:
        asked.append(texts)
        states = torch.full(
            (len(texts), max(map(len, texts)), 2), torch.inf
        )  # what stands in the padding does not matter
        for i, text in enumerate(texts):
            states[i, : len(text)] = ord(text[0])
        mask = states[..., 0].isfinite()
        return TextFeatures(states, mask, torch.tensor([2 * [float(ord(text[0]))] for text in texts]))

    texts = ["ccc", "a", "eeeee", "bb", "dddd", "f", "gg"]
    found = encode_captions(encode, texts, torch.float16, 3)
    assert asked == [["a", "f", "bb"], ["gg", "ccc", "dddd"], ["eeeee"] * 3]
    assert found.faults == [None] * 7
    assert found.pooled is not None
    assert found.pooled[:, 0].tolist() == [ord(text[0]) for text in texts]
    states, offsets = joined(found.states, torch.float16)
    assert states[:, 0].tolist() == [ord(letter) for text in texts for letter in text]
    assert offsets.tolist() == [0, 3, 4, 9, 11, 15, 16, 18]


def test_faults_belong_to_their_captions() -> None:
    def encode(texts: list[str]) -> TextStates:
        values = torch.tensor([float(text) for text in texts])
        states, mask = values[:, None, None].expand(-1, 2, 2), torch.ones(len(texts), 2, dtype=torch.bool)
        return TextStates(states, mask)

    texts = ["70000", "1", "nan", "-70000", "65504", "inf"]
    found = encode_captions(encode, texts, torch.float16, 4)
    assert [fault and fault[:11] for fault in found.faults] == [
        "does not fi",
        None,
        "is not fini",
        "does not fi",
        None,
        "is not fini",
    ]
    assert encode_captions(encode, texts, torch.bfloat16, 4).faults == [
        None,
        None,
        "is not finite",
        None,
        None,
        "is not finite",
    ]
