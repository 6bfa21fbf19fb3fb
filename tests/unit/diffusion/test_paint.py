"""Paint-with-words at the level of functions: what the bias does to an attention, and what it must not do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from syzygy.diffusion import paint
from syzygy.diffusion.paint import Painting, bias, largest_score, strength

B, N, L, T, D = 2, 3, 16, 5, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(q: Tensor, k: Tensor, v: Tensor, painted: Tensor | None) -> Tensor:
    mask = None if painted is None else bias(painted, largest_score(q, k))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return draw(B, N, L, D), draw(B, N, T, D, seed=1), draw(B, N, T, D, seed=2)


def test_the_papers_formula(qkv) -> None:
    q, k, v = qkv
    painted = (draw(B, L, T, seed=3) > 0).float()
    sigma, own = torch.tensor([0.5, 40.0]), 0.3
    products = q @ k.transpose(-1, -2)
    w = own * torch.log(1 + sigma)[:, None] * products.amax((2, 3))
    wanted = ((products + w[:, :, None, None] * painted[:, None]) / math.sqrt(D)).softmax(-1) @ v
    made = attention(q, k, v, painted * (own * strength(sigma))[:, None, None])
    torch.testing.assert_close(made, wanted)


@given(st.floats(-3, 3))
def test_an_equal_bias_on_all_keys_changes_nothing(level: float) -> None:
    q, k, v = draw(B, N, L, D), draw(B, N, T, D, seed=1), draw(B, N, T, D, seed=2)
    painted = level * draw(B, L, 1, seed=3).expand(B, L, T)
    torch.testing.assert_close(attention(q, k, v, painted), attention(q, k, v, None), atol=2e-5, rtol=1e-4)


def test_painting_draws_attention_where_it_is(qkv) -> None:
    q, k, _ = qkv
    one_hot = torch.eye(T).expand(B, N, T, T)
    painted = torch.zeros(B, L, T)
    painted[:, : L // 2, 2] = 0.8
    gained = (attention(q, k, one_hot, painted) - attention(q, k, one_hot, None))[..., 2]
    assert (gained[:, :, : L // 2] > 0).all()
    torch.testing.assert_close(gained[:, :, L // 2 :], torch.zeros(B, N, L // 2), atol=1e-6, rtol=0)


def test_the_maximum_is_of_one_sample_and_head(qkv) -> None:
    q, k, _ = qkv
    loud = q.clone()
    loud[1, 2] *= 100
    quiet, other = largest_score(q, k), largest_score(loud, k)
    assert (other == quiet).sum() == B * N - 1
    assert other[1, 2] > 50 * quiet[1, 2]


def test_hidden_tokens_do_not_count(qkv, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = qkv
    k = k.clone()
    k[:, :, -1] *= 1000
    visible = torch.tensor([[True] * (T - 1) + [False]] * B)
    assert torch.equal(largest_score(q, k, visible), largest_score(q, k[:, :, :-1]))
    # The same, a few rows at a time.
    monkeypatch.setattr(paint, "CHUNK", 2 * B * N * T)
    torch.testing.assert_close(largest_score(q, k, visible), largest_score(q, k[:, :, :-1]))


def test_masks_shrink_to_the_share_they_cover() -> None:
    weights = torch.zeros(1, 2, 8, 16)
    weights[0, 1, :, :8] = 1
    painting = Painting(weights)
    small = painting.at(2 * 4)
    assert small.shape == (1, 8, 2)
    assert small[0, :, 0].abs().max() == 0
    half = small[0, :, 1].view(2, 4)
    torch.testing.assert_close(half[:, 0], torch.ones(2))
    torch.testing.assert_close(half[:, 3], torch.zeros(2))
    assert painting.at(8) is small
    torch.testing.assert_close(painting.at(8 * 16)[0, :, 1].view(8, 16), weights[0, 1])
    with pytest.raises(AssertionError, match="no picture of 8 × 16"):
        painting.at(7)


def test_noise_makes_it_stronger() -> None:
    assert strength(torch.tensor([0.0, 80.0])).tolist() == pytest.approx([0, 4.394], rel=1e-3)
