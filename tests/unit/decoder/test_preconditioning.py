import pytest
import torch
from torch import Tensor, nn

from syzygy.core.contracts import Conditioning
from syzygy.core.randomness import generator
from syzygy.decoder.preconditioning import Preconditioned, denoising_loss, loss_weight
from tests.closeness import assert_close

NOTHING = Conditioning({})
SIGMA_DATA = 0.5


class Recorder(nn.Module):
    """A network that answers `output` and remembers what it was asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        self.x, self.c_noise = x, c_noise
        return self.output


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, generator=generator(0, key), dtype=torch.float64)


def test_network_sees_unit_variance_and_a_quarter_of_the_log() -> None:
    network = Recorder(torch.zeros(3, 3, 64, 64))
    sigma = torch.tensor([0.01, 1.0, 80.0])
    noisy = SIGMA_DATA * normal(3, 3, 64, 64, key="x") + sigma[:, None, None, None] * normal(3, 3, 64, 64, key="n")
    Preconditioned(network, SIGMA_DATA)(noisy.float(), sigma, NOTHING)
    assert network.x.std((1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.03)
    assert network.c_noise.tolist() == pytest.approx([-1.1513, 0, 1.0955], abs=1e-4)


def test_an_untrained_network_has_loss_one_at_every_noise_level() -> None:
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)
    images = SIGMA_DATA * normal(5, 3, 64, 64, key="x")
    denoiser = Preconditioned(Recorder(torch.zeros_like(images)), SIGMA_DATA)
    losses = denoising_loss(denoiser, images, sigma, normal(5, 3, 64, 64, key="n"), NOTHING)
    assert losses.tolist() == pytest.approx([1] * 5, abs=0.05)


def test_loss_is_the_plain_error_of_the_network() -> None:
    """EDM eq. 8: λ·c_out² = 1, so the loss is ‖F − (y − c_skip·(y + n)) / c_out‖² with nothing in front."""
    images, unit, output = (normal(4, 3, 8, 8, key=key) for key in ("y", "n", "f"))
    sigma = torch.tensor([0.05, 0.4, 2.0, 20.0], dtype=torch.float64)
    found = denoising_loss(Preconditioned(Recorder(output), SIGMA_DATA), images, sigma, unit, NOTHING)
    s = sigma[:, None, None, None]
    c_skip, c_out = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2), s * SIGMA_DATA / (s**2 + SIGMA_DATA**2).sqrt()
    target = (images - c_skip * (images + s * unit)) / c_out
    assert_close(found, (output - target).square().mean((1, 2, 3)))


def test_loss_weight_is_lowest_for_pure_noise() -> None:
    weights = loss_weight(torch.tensor([0.1, 0.5, 1e6], dtype=torch.float64), SIGMA_DATA)
    assert weights.tolist() == pytest.approx([104, 8, 4])


def test_mixing_keeps_the_precision_of_x() -> None:
    denoiser = Preconditioned(Recorder(torch.ones(1, 3, 4, 4, dtype=torch.bfloat16)), SIGMA_DATA)
    assert denoiser(torch.zeros(1, 3, 4, 4), torch.ones(1), NOTHING).dtype == torch.float32
