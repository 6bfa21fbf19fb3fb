"""Paint-with-words at the level of functions: what the bias does to an attention, and what it must not do."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from syzygy.core.errors import UserError
from syzygy.regions.region_bias import RegionBias, attention, noise_factor
from tests.closeness import NETWORK, assert_close

B, N, L, T, D = 2, 3, 16, 5, 4
SIZE = (4, 4)
ONE = torch.ones(B)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(seed: int = 3) -> Tensor:
    return (draw(B, T, *SIZE, seed=seed) > 0).float()


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return draw(B, N, L, D), draw(B, N, T, D, seed=1), draw(B, N, T, D, seed=2)


def test_the_papers_formula(qkv) -> None:
    q, k, v = qkv
    sigma, own = torch.tensor([0.5, 40.0]), 0.3
    products = q @ k.transpose(-1, -2)
    w = own * torch.log(1 + sigma)[:, None] * products.amax((2, 3))
    a = maps().flatten(2).transpose(1, 2)
    wanted = ((products + w[:, :, None, None] * a[:, None]) / math.sqrt(D)).softmax(-1) @ v
    assert_close(attention(q, k, v, RegionBias(own * maps(), SIZE, noise_factor(sigma))), wanted)


@given(st.floats(-3, 3))
def test_an_equal_bias_on_all_keys_changes_nothing(level: float) -> None:
    q, k, v = draw(B, N, L, D), draw(B, N, T, D, seed=1), draw(B, N, T, D, seed=2)
    painting = RegionBias(level * draw(B, 1, *SIZE, seed=3).expand(B, T, *SIZE), SIZE, ONE)
    assert_close(attention(q, k, v, painting), F.scaled_dot_product_attention(q, k, v), depth=NETWORK)


def test_painting_draws_attention_where_it_is(qkv) -> None:
    q, k, _ = qkv
    one_hot, painted = torch.eye(T).expand(B, N, T, T), torch.zeros(B, T, *SIZE)
    painted[:, 2, :2] = 0.8
    plain = F.scaled_dot_product_attention(q, k, one_hot)
    gained = (attention(q, k, one_hot, RegionBias(painted, SIZE, ONE)) - plain)[..., 2]
    assert (gained[:, :, : L // 2] > 0).all()
    assert_close(gained[:, :, L // 2 :], torch.zeros(B, N, L // 2), largest=1.0)


def test_the_maximum_is_of_one_sample_and_head(qkv) -> None:
    q, k, v = qkv
    loud, painting = q.clone(), RegionBias(0.4 * maps(), SIZE, ONE)
    loud[1, 2] *= 100
    quiet, other = (attention(x, k, v, painting) for x in (q, loud))
    same = (quiet == other).flatten(2).all(-1)
    assert same.sum() == B * N - 1
    assert not same[1, 2]


def test_hidden_keys_and_those_of_no_word_do_not_count(qkv) -> None:
    q, k, v = qkv
    painting, mask = RegionBias(0.4 * maps(), SIZE, ONE), torch.zeros(B, 1, 1, T)
    mask[..., -1] = -10_000.0
    loud = k.clone()
    loud[:, :, -1] *= 1000
    left = replace(painting, weights=painting.weights[:, :-1], _resized={})
    assert_close(attention(q, loud, v, painting, mask), attention(q, k[:, :, :-1], v[:, :, :-1], left))
    # Two keys before the words and one after them: their scores are shared with, but set no scale.
    more = torch.cat([2 * k[:, :, :2], k, 3 * k[:, :, :1]], 2)
    scores = q @ more.transpose(-1, -2) / math.sqrt(D)
    words = scores[..., 2:7]
    words += painting.at(L)[:, None] * words.amax((2, 3), keepdim=True)
    values = draw(B, N, T + 3, D, seed=5)
    shifted = replace(painting, start=2)
    assert_close(attention(q, more, values, shifted), scores.softmax(-1) @ values)


def test_how_strong_a_pull_is_is_no_way_to_learn(qkv) -> None:
    """The gradient is that of the formula with the maximum as a number."""
    painting = RegionBias(0.4 * maps(), SIZE, ONE)

    def gradient(read) -> Tensor:
        q, k, v = (x.clone().requires_grad_() for x in qkv)
        return torch.autograd.grad(read(q, k, v).square().sum(), q)[0]

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(D)
        largest = torch.tensor(scores.amax((2, 3), keepdim=True).tolist())
        return (scores + largest * painting.at(L)[:, None]).softmax(-1) @ v

    assert_close(gradient(lambda q, k, v: attention(q, k, v, painting)), gradient(formula))


def test_a_line_does_not_fall_between_the_places() -> None:
    weights = torch.zeros(1, 1, 32, 32)
    weights[..., 3] = 1
    small = RegionBias(weights, (32, 32), torch.ones(1)).at(4 * 4).view(4, 4)
    torch.testing.assert_close(small.mean(), weights.mean(), atol=0.005, rtol=0)


def test_masks_shrink_to_the_share_they_cover() -> None:
    weights = torch.zeros(1, 2, 8, 16)
    weights[0, 1, :, :8] = 1
    painting = RegionBias(weights, (8, 16), torch.ones(1))
    small = painting.at(2 * 4)
    assert small.shape == (1, 8, 2)
    assert small[0, :, 0].abs().max() == 0
    half = small[0, :, 1].view(2, 4)
    assert_close(half[:, 0], torch.ones(2))
    assert_close(half[:, 3], torch.zeros(2))
    assert painting.at(8) is small
    assert replace(painting, level=torch.zeros(1)).at(8) is small
    assert_close(painting.at(8 * 16)[0, :, 1].view(8, 16), weights[0, 1])
    with pytest.raises(UserError, match="attends at 7 positions, which is no half, quarter, … of an image of 8 × 16"):
        painting.at(7)


def test_a_mask_of_another_shape_covers_the_whole_picture() -> None:
    """Masks of 80 × 100 for latents of 5 × 18, whose halves are 3 × 9 and 2 × 5."""
    weights = torch.zeros(1, 1, 80, 100)
    weights[..., 50:] = 1
    painting = RegionBias(weights, (5, 18), torch.ones(1))
    for height, width in ((5, 18), (3, 9), (2, 5)):
        small = painting.at(height * width)[0, :, 0].view(height, width)
        assert_close(small[:, -1], torch.ones(height))
        assert_close(small[:, 0], torch.zeros(height))


def test_noise_makes_it_stronger() -> None:
    assert noise_factor(torch.tensor([0.0, 80.0])).tolist() == pytest.approx([0, 4.394], rel=1e-3)


def test_other_weights_or_another_size_are_not_those_that_were_kept() -> None:
    first = RegionBias(torch.rand(B, T, 8, 8, generator=torch.Generator().manual_seed(0)), (8, 8), ONE)
    first.at(16)
    second = replace(first, weights=first.weights.flip(-1))
    assert torch.equal(second.at(16), RegionBias(second.weights, (8, 8), ONE).at(16))
    assert torch.equal(first.at(16), RegionBias(first.weights, (8, 8), ONE).at(16))
    with pytest.raises(UserError, match="attends at 16 positions"):
        replace(first, size=(6, 6)).at(16)
