"""The tests' own rule for equal tensors: it forgives rounding and nothing else."""

import pytest
import torch

from tests.closeness import NETWORK, assert_close

X = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_another_order_of_the_same_terms_is_the_same(scale: float) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    wanted = scale * X @ X
    assert_close(scale * X[:, order] @ X[order], wanted)
    assert_close((scale * X.double() @ X.double()).float(), wanted)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("depth", [1, NETWORK])
def test_one_wrong_value_is_a_fault(scale: float, depth: float) -> None:
    wrong = scale * X
    wrong[3, 5] += 2e-5 * depth * wrong.abs().max()
    with pytest.raises(AssertionError, match="not close"):
        assert_close(wrong, scale * X, depth=depth)
    assert_close(wrong, scale * X, depth=3 * depth)


def test_zeros_and_what_is_not_finite_are_exact() -> None:
    zeros = torch.zeros(3)
    assert_close(zeros, zeros)
    assert_close(zeros + 1e-6, zeros, largest=1.0)
    for other in (
        zeros + 1e-9,
        zeros + float("nan"),
        torch.tensor([0, 0, float("inf")]),
        torch.zeros(1),
        zeros.double(),
    ):
        with pytest.raises(AssertionError):
            assert_close(other, zeros)


def test_the_coarsest_precision_decides() -> None:
    coarse = X.bfloat16().float()
    with pytest.raises(AssertionError):
        assert_close(coarse, X)
    assert_close(coarse, X, dtype=torch.bfloat16)
    assert_close(X.bfloat16(), X.bfloat16())
