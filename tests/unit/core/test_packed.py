"""The prior computes no padding: against the same transformer over all 80 tokens, as the published code has it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from syzygy.core import packed_attention
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedAttention, PackedText, Packing, kernel_for
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
from tests.closeness import NETWORK, assert_close, largest_of

WIDTH, TOKENS = 6, 77
LENGTHS = [5, 77, 1, 12, 5, 2, 12]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def prior() -> EclipsePrior:
    prior = EclipsePrior(
        EclipsePriorConfig(embedding_dim=WIDTH, num_layers=3, num_attention_heads=2, attention_head_dim=8)
    )
    with torch.no_grad():
        for i, (name, parameter) in enumerate(prior.named_parameters()):
            parameter.copy_(0.3 * normal(i, *parameter.shape) + ("norm" in name and "weight" in name))
    return prior


def features_of(lengths: list[int], pad: float = 0.7) -> TextFeatures:
    mask = torch.arange(TOKENS) < torch.tensor(lengths)[:, None]
    states = normal(1, len(lengths), TOKENS, WIDTH).masked_fill(~mask[..., None], pad)
    return TextFeatures(states, mask, normal(2, len(lengths), WIDTH))


def over_all_80_tokens(prior: EclipsePrior, features: TextFeatures, noise: Tensor) -> Tensor:
    """The published prior: padding is computed, and masked where attention reads it (additive -10,000, twice)."""
    text = prior.encoder_hidden_states_proj(features.states)
    after = [prior.embedding_proj(features.pooled), prior.proj_in(noise), prior.prd_embedding[0].expand(len(noise), -1)]
    x = torch.cat([text, torch.stack(after, 1)], 1) + prior.positional_embedding
    assert x.shape[1] == 80
    real = F.pad(features.mask, (0, 3), value=True)
    mask = -1e4 * (~real[:, None, None]).float() - 1e4 * torch.ones(80, 80).triu(1)
    for block in prior.transformer_blocks:
        asked = block.norm1(x)
        heads = [
            to(asked).unflatten(-1, (2, 8)).transpose(1, 2)
            for to in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        ]
        weights = (heads[0] @ heads[1].transpose(-1, -2) / 8**0.5 + mask).softmax(-1)
        x = x + block.attn1.to_out((weights @ heads[2]).transpose(1, 2).flatten(2))
        x = x + block.ff(block.norm3(x))
    return prior.proj_to_clip_embeddings(prior.norm_out(x[:, -1]))


def with_gradients(prior: EclipsePrior, predict: Any, features: TextFeatures, noise: Tensor) -> dict[str, Tensor]:
    """Outputs, and gradients of everything that is read or learned."""
    prior.zero_grad()
    read = {"states": features.states.clone(), "pooled": features.pooled.clone(), "noise": noise.clone()}
    for x in read.values():
        x.requires_grad_()
    found = predict(replace(features, states=read["states"], pooled=read["pooled"]), read["noise"])
    (found * normal(9, *found.shape)).sum().backward()
    parts = read | {name: p for name, p in prior.named_parameters() if p.requires_grad}
    gradients = {name: x.grad.clone() for name, x in parts.items() if x.grad is not None}
    assert gradients.keys() == parts.keys()
    return {"output": found.detach()} | gradients


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [77], [4, 4]])
def test_equals_the_computation_over_all_80_tokens(prior: EclipsePrior, lengths: list[int]) -> None:
    features, noise = features_of(lengths), normal(3, len(lengths), WIDTH)
    expected = with_gradients(prior, lambda f, n: over_all_80_tokens(prior, f, n), features, noise)
    found = with_gradients(prior, lambda f, n: prior(PackedText.of(f), n), features, noise)
    assert found.keys() == expected.keys()
    largest = largest_of(expected.values())
    for name, values in expected.items():
        assert_close(found[name], values, depth=NETWORK, largest=largest)


def test_what_padding_holds_reaches_neither_output_nor_gradient(prior: EclipsePrior) -> None:
    noise = normal(3, len(LENGTHS), WIDTH)
    clean, spoilt = (
        with_gradients(prior, lambda f, n: prior(PackedText.of(f), n), features_of(LENGTHS, pad), noise)
        for pad in (0.0, float("nan"))
    )
    for name, values in clean.items():
        assert torch.equal(spoilt[name], values), name


def test_a_batch_equals_its_captions_one_by_one(prior: EclipsePrior) -> None:
    text, noise = PackedText.of(features_of(LENGTHS)), normal(3, len(LENGTHS), WIDTH)
    together = prior(text, noise)
    for i in range(len(LENGTHS)):
        assert_close(prior(text[[i]], noise[[i]])[0], together[i], depth=NETWORK)


def test_no_pad_and_no_token_that_nothing_reads_is_computed(prior: EclipsePrior) -> None:
    rows = []
    hooks = [
        block.ff.register_forward_hook(lambda _, read, __: rows.append(len(read[0])))
        for block in prior.transformer_blocks
    ]
    prior.predict(features_of(LENGTHS))
    for hook in hooks:
        hook.remove()
    assert rows == [sum(LENGTHS) + 3 * len(LENGTHS)] * 2 + [len(LENGTHS)]


def test_a_caption_longer_than_the_positions_is_refused(prior: EclipsePrior) -> None:
    """Its last token would take the position of the pooled embedding."""
    text = PackedText(normal(0, 79, WIDTH), torch.tensor([0, 1, 79]), normal(1, 2, WIDTH))
    with pytest.raises(UserError, match=r"78 tokens.*at most 77"):
        prior(text, normal(2, 2, WIDTH))


def test_tokens_stand_by_length_and_keep_their_positions() -> None:
    packing = Packing.of(torch.tensor([0, 2, 3, 3]), following=2, positions=10)
    assert packing.order.tolist() == [2, 1, 0]
    assert packing.lengths.tolist() == [2, 3, 4]
    assert packing.rows.tolist() == [5, 8, 2, 4, 7, 0, 1, 3, 6]
    assert packing.positions.tolist() == [10, 11, 0, 10, 11, 0, 1, 10, 11]


# The captions themselves.


@st.composite
def padded_texts(draw: st.DrawFn) -> TextFeatures:
    """One to five captions; any position may be padding, and padding holds NaN."""
    masks = draw(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
    mask = torch.tensor(masks)
    states = normal(draw(st.integers(0, 99)), *mask.shape, 3).masked_fill(~mask[..., None], float("nan"))
    return TextFeatures(states, mask, normal(5, len(masks), 3))


def assert_same(found: PackedText, expected: PackedText) -> None:
    assert torch.equal(found.states, expected.states)
    assert torch.equal(found.offsets, expected.offsets)
    assert torch.equal(found.pooled, expected.pooled)


@given(padded_texts())
def test_packing_keeps_the_real_tokens_in_order_and_padding_is_its_inverse(features: TextFeatures) -> None:
    text = PackedText.of(features)
    assert len(text) == len(features)
    assert text.lengths.tolist() == features.mask.sum(1).tolist()
    for i in range(len(features)):
        mine = text.states[text.offsets[i] : text.offsets[i + 1]]
        assert torch.equal(mine, features.states[i][features.mask[i]])
    again = text.padded()
    assert torch.isfinite(again.states).all()
    assert torch.equal(again.mask, features.mask.sort(descending=True).values[:, : again.mask.shape[1]])
    assert_same(PackedText.of(again), text)


@given(padded_texts(), st.data())
def test_rows_are_taken_as_from_padded_features(features: TextFeatures, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(-len(features), len(features) - 1), min_size=1, max_size=6))
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(features), max_size=len(features))))
    text = PackedText.of(features)
    for index in (rows, torch.tensor(rows), keep, slice(1, None), slice(None, -1)):
        assert_same(text[index], PackedText.of(features[index]))
    singly = [text[i : i + 1] for i in range(len(text))]
    assert_same(PackedText.cat(singly), text)


def test_only_the_values_are_converted() -> None:
    half = PackedText.of(features_of([2, 3])).to("cpu", torch.float16)
    assert (half.states.dtype, half.pooled.dtype, half.offsets.dtype) == (torch.float16, torch.float16, torch.int64)


@pytest.mark.parametrize("offsets", [[0, 2], [0, 2, 4], [1, 2, 5], [0, 1, 2, 5]])
def test_offsets_that_do_not_fit_are_our_bug(offsets: list[int]) -> None:
    with pytest.raises((AssertionError, TypeError)):
        PackedText(normal(0, 5, 3), torch.tensor(offsets), normal(1, 2, 3))


# torch's kernel for sequences of different lengths.


def test_the_kernel_is_told_where_sequences_are(prior: EclipsePrior, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_ends: Tensor,
        ends: Tensor,
        longest_q: int,
        longest: int,
        window_size=(-1, -1),
    ) -> Tensor:
        assert q_ends.dtype == ends.dtype == torch.int32
        assert (longest_q, longest) == (int(q_ends.diff().max()), int(ends.diff().max()))
        read = []
        for i in range(len(ends) - 1):
            mine = q[q_ends[i] : q_ends[i + 1]], *(x[ends[i] : ends[i + 1]] for x in (k, v))
            batch = (x.transpose(0, 1) for x in mine)
            read.append(F.scaled_dot_product_attention(*batch, is_causal=window_size == (-1, 0)).transpose(0, 1))
        return torch.cat(read)

    features, noise = features_of(LENGTHS), normal(3, len(LENGTHS), WIDTH)
    expected = prior.predict(features, noise=noise)
    monkeypatch.setattr(packed_attention, "kernel_for", lambda q: kernel)
    assert_close(prior.predict(features, noise=noise), expected, depth=NETWORK)


def test_the_kernel_serves_no_cpu() -> None:
    assert kernel_for(torch.zeros(3, 2, 32, dtype=torch.bfloat16)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["causal", "whole"])
def test_the_kernel_agrees_with_attention_by_length(dtype: torch.dtype, way: str) -> None:
    lengths = torch.tensor(sorted(LENGTHS))
    attention = PackedAttention(lengths, torch.device("cuda"))
    total = int(lengths.sum())
    queries = total if way == "causal" else len(lengths)
    inputs = [normal(i, rows, 16, 32).to("cuda", dtype) for i, rows in enumerate((queries, total, total))]
    weight = normal(4, queries, 16, 32).to("cuda", dtype)
    assert kernel_for(inputs[0]) is not None, "this torch or device has no such kernel"
    results = []
    for by_kernel in (True, False):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        y = getattr(attention, way)(q, k, v) if by_kernel else attention.by_length(q, k, v, causal=way == "causal")
        (y * weight).sum().backward()
        results.append([y, q.grad, k.grad, v.grad])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)
