"""Laws of the training distribution of noise levels."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syzygy.decoder.noise_levels import LogNormal

few = settings(max_examples=40)
levels = torch.linspace(0.001, 0.999, 97, dtype=torch.float64)


@st.composite
def borders(draw: st.DrawFn) -> list[float]:
    inner = draw(st.lists(st.integers(1, 63), min_size=1, max_size=6, unique=True))
    return [0.0, *(place / 64 for place in sorted(inner)), 1.0]


@few
@given(borders(), st.floats(0.1, 50))
def test_a_mixture_weighted_by_the_widths_is_the_distribution(cut: list[float], unit: float) -> None:
    shares = tuple(pairwise(cut))
    weights = tuple(unit * (high - low) for low, high in shares)
    mixed, plain = LogNormal(shares=shares, weights=weights), LogNormal()
    torch.testing.assert_close(mixed.spread(levels), plain.spread(levels), rtol=1e-9, atol=0)


@few
@given(borders(), st.data())
def test_any_mixture_rises_and_stays_in_its_parts(cut: list[float], data: st.DataObject) -> None:
    shares = tuple(pairwise(cut))[::2]
    weights = tuple(data.draw(st.floats(0.01, 100)) for _ in shares)
    noise = LogNormal(shares=shares, weights=weights)
    sigma = noise.spread(levels)
    assert (sigma.diff() > 0).all()
    ends = noise.quantile(torch.tensor(shares, dtype=torch.float64).clamp(1e-6, 1 - 1e-6))
    inside = ((sigma[:, None] >= ends[:, 0] * (1 - 1e-9)) & (sigma[:, None] <= ends[:, 1] * (1 + 1e-9))).any(1)
    assert inside.all()
    # The part of the levels that lies in each share is its weight.
    parts = [((sigma > low) & (sigma < high)).double().mean().item() for low, high in ends]
    wanted = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    assert max(abs(a - b) for a, b in zip(parts, wanted.tolist(), strict=True)) < 0.02
