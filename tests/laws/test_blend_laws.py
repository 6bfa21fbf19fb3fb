"""Laws of mixing image embeddings: what any decoder may trust, whatever the sources."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.generation.mixing import mixed, path, shares
from tests.closeness import NETWORK, assert_close

WIDTH = 16
seeds = st.integers(0, 2**31)
weights = st.lists(st.floats(0.01, 1), min_size=2, max_size=5)


def sources(seed: int, number: int, rows: int = 2, agreement: float = 1.0) -> Tensor:
    """Embeddings of different norms, in a cone as those of a CLIP are."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(WIDTH, generator=generator)
    own = torch.randn(number, rows, WIDTH, generator=generator)
    lengths = 0.5 + 10 * torch.rand(number, rows, 1, generator=generator)
    return lengths * F.normalize(agreement * common + own, dim=-1)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Shoemake 1985 on directions, and the norm in between: the formula for two, written out."""
    u, v = F.normalize(a.double(), dim=-1), F.normalize(b.double(), dim=-1)
    angle = (u * v).sum(-1, keepdim=True).clamp(-1, 1).acos()
    direction = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / angle.sin()
    return (direction * ((1 - t) * a.norm(dim=-1, keepdim=True) + t * b.norm(dim=-1, keepdim=True))).float()


@given(seed=seeds, row=st.integers(0, 2), weight=st.floats(1e-3, 1))
def test_a_source_alone_is_itself_bit_for_bit(seed: int, row: int, weight: float) -> None:
    x = sources(seed, 3).double()
    assert torch.equal(mixed(x, [weight if i == row else 0.0 for i in range(3)]), x[row])
    assert torch.equal(mixed(x[row : row + 1], [weight]), x[row])


@given(seed=seeds, weight=weights, order=st.randoms(use_true_random=False))
def test_the_order_of_the_sources_does_not_matter(seed: int, weight: list[float], order) -> None:
    x = sources(seed, len(weight))
    rows = list(range(len(weight)))
    order.shuffle(rows)
    assert_close(mixed(x[rows], [weight[i] for i in rows]), mixed(x, weight), depth=NETWORK)


@given(seed=seeds, weight=weights, factor=st.floats(0.05, 1))
def test_only_proportions_of_the_weights_count(seed: int, weight: list[float], factor: float) -> None:
    x = sources(seed, len(weight))
    assert_close(mixed(x, [factor * w for w in weight]), mixed(x, weight), depth=NETWORK)
    assert sum(shares(weight)) == pytest.approx(1)


@given(seed=seeds, t=st.floats(0.01, 0.99))
def test_two_sources_are_spherical_interpolation(seed: int, t: float) -> None:
    a, b = sources(seed, 2, agreement=0.0)
    assert_close(mixed(torch.stack([a, b]), [1 - t, t]), slerp(a, b, t), depth=NETWORK)


@given(seed=seeds, weight=weights)
def test_the_norm_is_the_weighted_mean_of_norms(seed: int, weight: list[float]) -> None:
    x = sources(seed, len(weight))
    expected = sum(s * one.norm(dim=-1) for s, one in zip(shares(weight), x, strict=True))
    assert_close(mixed(x, weight).norm(dim=-1), expected, depth=NETWORK)


@given(seed=seeds, weight=weights)
def test_the_arcs_to_the_sources_balance(seed: int, weight: list[float]) -> None:
    """What makes it the mean on the sphere: no direction in which the weighted angles would shrink."""
    x = sources(seed, len(weight)).double()
    points, mean = F.normalize(x, dim=-1), F.normalize(mixed(x, weight), dim=-1)
    along = (points * mean).sum(-1, keepdim=True)
    arcs = F.normalize(points - along * mean, dim=-1) * along.clamp(-1, 1).acos()
    pull = sum(s * arc for s, arc in zip(shares(weight), arcs, strict=True))
    assert pull.norm(dim=-1).max() < 1e-6


@given(seed=seeds, weight=weights)
def test_a_source_given_twice_is_one_with_both_weights(seed: int, weight: list[float]) -> None:
    x = sources(seed, len(weight))
    weight = [w / 2 for w in weight]
    twice = mixed(torch.cat([x, x[:1]]), [*weight, weight[0]])
    assert_close(twice, mixed(x, [2 * weight[0], *weight[1:]]), depth=NETWORK)
    assert_close(mixed(x[[0, 0]], [0.3, 0.4]), x[0], depth=NETWORK)


@given(seed=seeds, weight=weights)
def test_the_others_of_a_batch_do_not_matter(seed: int, weight: list[float]) -> None:
    x = sources(seed, len(weight), rows=3)
    assert_close(mixed(x[:, 1:2], weight), mixed(x, weight)[1:2], depth=NETWORK)


@given(seed=seeds, frames=st.integers(2, 7))
def test_a_path_leads_from_one_end_to_the_other_in_equal_steps(seed: int, frames: int) -> None:
    a, b = sources(seed, 2)
    way = path(a, b, frames)
    assert way.shape == (frames, *a.shape)
    assert torch.equal(way[0], a)
    assert torch.equal(way[-1], b)
    assert_close(path(b, a, frames).flip(0), way, depth=NETWORK)
    directions = F.normalize(way.double(), dim=-1)
    angles = (directions[1:] * directions[:-1]).sum(-1).clamp(-1, 1).acos()
    assert_close(angles, angles[:1].expand_as(angles), depth=NETWORK, largest=1.0, dtype=torch.float32)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([], "nothing to mix"),
        ([0.0, 0.0], "the weights are all zero"),
        ([float("nan"), 1.0], "weight nan is not a number to mix with"),
        ([1.0, float("inf")], "weight inf is not a number to mix with"),
        ([1.0, -0.5], "weight -0.5 is negative.*negative prompt"),
        ([60.0, 0.4], "weight 60 is out of scale; allowed: 0 to 1, such as 0.6 for 60 %"),
    ],
)
def test_weights_that_say_nothing_clear_are_refused(weight: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shares(weight)


def test_opposite_sources_have_nothing_between_them() -> None:
    x = sources(0, 1)
    for weight in ([0.5, 0.5], [0.3, 0.7]):
        with pytest.raises(UserError, match="opposite directions"):
            mixed(torch.cat([x, -2 * x]), weight)
    with pytest.raises(UserError, match="1 frames are no path"):
        path(x[0], x[0], 1)
