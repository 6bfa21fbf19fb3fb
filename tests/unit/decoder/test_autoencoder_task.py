"""The autoencoder's training: its loss by hand, that it learns, that a step owes to seed and number alone."""

import pytest
import torch
from torch import Tensor

from syzygy.core.randomness import generator
from syzygy.decoder.autoencoder import AutoencoderConfig, build_autoencoder
from syzygy.decoder.autoencoder_task import AutoencoderTask, AutoencoderTaskConfig, autoencoder_loss
from syzygy.training.precision import autocast, precision_on

CONFIG = AutoencoderConfig(image_size=8, channels=16, fine_channels=8)


def pictures(step: int) -> Tensor:
    """Plain colours."""
    return torch.rand(8, 3, 1, 1, generator=generator(0, "colour", step)).expand(-1, -1, 8, 8).contiguous()


def task(seed: int = 0, precision: torch.dtype | None = None) -> AutoencoderTask:
    made = build_autoencoder(CONFIG, seed=1)
    config = AutoencoderTaskConfig(batch_size=8)
    return AutoencoderTask(made, pictures, pictures(-1), config, seed, precision=precision)


def test_the_loss_by_hand() -> None:
    images, reconstructed = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 0.5)
    loss = autoencoder_loss(images, reconstructed, torch.tensor([12.0, 36.0]), 0.1)
    assert float(loss) == pytest.approx(0.25 + 0.1 * 24 / 12)


def test_a_step_depends_on_seed_and_step_alone() -> None:
    losses = [task(seed).loss(step)["loss"].item() for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3))]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_it_learns_to_reconstruct() -> None:
    learning = task()
    optimizer = torch.optim.AdamW(learning.modules["autoencoder"].parameters(), lr=3e-3)
    with torch.no_grad():
        before = learning.validate()
    for step in range(60):
        optimizer.zero_grad()
        learning.loss(step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = learning.validate()
    assert set(after) == {"loss", "nats", "psnr"}
    assert after["psnr"] > before["psnr"] + 5
    assert after["loss"] < before["loss"]


def test_half_precision_changes_rounding_only() -> None:
    exact, half = (task(precision=precision).loss(0)["loss"].item() for precision in (None, torch.bfloat16))
    assert half == pytest.approx(exact, rel=0.02)
    assert half != exact


def test_autocast_on_a_cpu_leaves_fused_attention_alone() -> None:
    with autocast(torch.device("cpu"), None):
        assert not torch.is_autocast_enabled("cpu")
        assert torch.backends.cuda.flash_sdp_enabled()
    with autocast(torch.device("cpu"), torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert precision_on(torch.device("cuda")) is torch.bfloat16
    assert precision_on(torch.device("cpu")) in (None, torch.bfloat16)
    assert precision_on(torch.device("meta")) is None
