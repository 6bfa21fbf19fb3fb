"""Distances where they are known in closed form."""

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.lab.evaluate.distance import frechet_distance, mean_cosine, recall_at_1


def normal(rows: int, width: int, key: str) -> torch.Tensor:
    return torch.randn(rows, width, generator=generator(0, key), dtype=torch.float64)


def test_frechet_of_gaussians_in_closed_form() -> None:
    """Independent axes: Σ (μ₁ − μ₂)² + (σ₁ − σ₂)². The sets are standardised, so no sampling error is left."""

    def exact(key: str) -> torch.Tensor:
        x = normal(500, 3, key)
        x = x - x.mean(0)
        return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T

    mean, std = torch.tensor([1.0, 0.0, -2.0]).double(), torch.tensor([3.0, 1.0, 0.5]).double()
    found = frechet_distance(exact("a"), exact("b") * std + mean)
    assert found == pytest.approx(5 + 4 + 0 + 0.25, abs=1e-8)
    assert frechet_distance(exact("a"), exact("b")) == pytest.approx(0, abs=1e-8)


def test_frechet_does_not_care_for_rotations_and_sees_correlation() -> None:
    a, b = normal(400, 4, "a"), normal(300, 4, "b") * 2
    turn = torch.linalg.qr(normal(4, 4, "q")).Q
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    correlated = a.clone()
    correlated[:, 1] = a[:, 0]
    assert frechet_distance(a, correlated) > 0.3


def test_pairs() -> None:
    x = torch.eye(4)
    assert mean_cosine(x, 5 * x) == pytest.approx(1)
    assert mean_cosine(x, x.roll(1, 0)) == pytest.approx(0)
    assert recall_at_1(3 * x, x) == 1
    assert recall_at_1(x[[1, 0, 2, 3]], x) == 0.5


def test_too_few_or_broken_rows() -> None:
    with pytest.raises(UserError, match="4 embeddings of width 4"):
        frechet_distance(normal(4, 4, "a"), normal(9, 4, "b"))
    broken = normal(9, 4, "a")
    broken[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        frechet_distance(broken, normal(9, 4, "b"))
