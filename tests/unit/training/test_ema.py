import pytest
import torch
from torch import nn

from syzygy.training.ema import Ema, ema_decay
from tests.closeness import assert_close


def test_half_life_halves_the_weight_of_the_past_once_the_ramp_is_over():
    assert ema_decay(8.0, 1000) ** 8 == pytest.approx(0.5)


def test_early_half_life_is_a_twentieth_of_the_steps_done():
    assert ema_decay(1000.0, 40) == pytest.approx(0.5**0.5)
    assert ema_decay(1000.0, 1) < 1e-5  # the initial weights are forgotten at once


def test_average_equals_its_closed_form():
    values = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(values[0].clone())
    ema = Ema({"p": parameter}, half_life=4.0)
    for step in range(1, 200):
        parameter.data.copy_(values[step])
        ema.update(step)
    decays = torch.tensor([0.5 ** (1 / min(4.0, 0.05 * step)) for step in range(1, 200)], dtype=torch.float64)
    kept = decays.flip(0).cumprod(0).flip(0)  # of everything before update k
    weights = torch.cat([kept[:1], (1 - decays) * torch.cat([kept[1:], kept.new_ones(1)])])
    assert weights.sum() == pytest.approx(1.0)
    assert_close(ema.averages["p"], weights @ values)


def test_swapping_in_gives_the_average_and_then_the_same_bits_back_even_after_an_error():
    parameter = nn.Parameter(torch.full((2,), 0.1))
    ema = Ema({"p": parameter}, half_life=4.0)
    ema.averages["p"].fill_(3.0)

    def fail():
        with ema.swapped_in():
            assert parameter.tolist() == [3.0, 3.0]
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(parameter, torch.full((2,), 0.1))
