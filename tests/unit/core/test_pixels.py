"""Floats become 8-bit images in one place, where what is not finite is refused."""

import pytest
import torch

from syzygy.core.errors import NonFiniteError
from syzygy.core.pixels import check_finite, to_uint8, to_unit


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("convert", [to_unit, to_uint8])
def test_rows_that_are_not_finite_are_named(convert, value: float) -> None:
    images = torch.zeros(3, 3, 2, 2)
    images[0, 2, 1, 1] = images[2, 0, 0, 0] = value
    with pytest.raises(NonFiniteError, match=r"images hold .*number 1 of 3, number 3 of 3") as error:
        convert(images)
    assert error.value.rows == (0, 2)
    assert "'a', 'c'" in str(error.value.named(["'a'", "'b'", "'c'"]))


def test_finite_values_pass() -> None:
    assert to_unit(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).expand(1, 3, 1, 5))[0, 0, 0].tolist() == [0, 0, 0.5, 1, 1]
    assert to_uint8(torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 1, 3))[0, 0, 0].tolist() == [0, 128, 255]


def test_many_names_are_counted() -> None:
    with pytest.raises(NonFiniteError, match=r"latents hold .*number 3 of 9 and 6 more"):
        check_finite(torch.full((9, 2), torch.inf), "latents")
