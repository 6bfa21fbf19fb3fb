"""The variety of the images of one prompt, by hand."""

import math

import pytest
import torch

from syzygy.lab.reproduce.variety import distances


def test_distances_are_means_over_pairs_of_different_rows() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    assert distances(rows) == pytest.approx((5 + 4 + 3) / 3)
    rows = torch.tensor([[1.0, 0.0], [5.0, 0.0], [2.0, 2.0]])
    assert distances(rows, cosine=True) == pytest.approx((0 + 2 * (1 - math.sqrt(0.5))) / 3)


def test_equal_rows_have_no_variety() -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        same = torch.randn(1, 5, generator=random).expand(6, -1)
        assert 0 <= distances(same) < 1e-7
        assert 0 <= distances(same, cosine=True) < 1e-7
