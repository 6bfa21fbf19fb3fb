"""The autoencoder's convolutions: sizes at every patch, locality, a start near the identity, and what Muon trains."""

import pytest
import torch
from torch import Tensor

from syzygy.core.randomness import generator
from syzygy.decoder.autoencoder import AutoencoderConfig, build_autoencoder
from syzygy.decoder.autoencoder_network import LOG_VARIANCES, Decoder, Encoder, ResidualBlock
from syzygy.training.optimizers import hidden_matrices


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "network"))


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_sizes_follow_the_patch(patch: int) -> None:
    mean, log_variance = Encoder(patch, 3, 8, 1)(normal(2, 3, 16, 24))
    assert mean.shape == log_variance.shape == (2, 3, 16 // patch, 24 // patch)
    decoded = Decoder(patch, 3, 8, 1, 4, 1)(mean)
    assert decoded.shape == (2, 3, 16, 24)
    assert decoded.is_contiguous()


def test_log_variances_stay_where_their_exponential_is_finite() -> None:
    encoder = Encoder(2, 1, 8, 1)
    with torch.no_grad():
        assert encoder.last.bias is not None
        encoder.last.bias.copy_(torch.tensor([0.0, 1e4]))
        mean, high = encoder(normal(1, 3, 4, 4))
        encoder.last.bias.copy_(torch.tensor([0.0, -1e4]))
        _, low = encoder(normal(1, 3, 4, 4))
    assert (low == LOG_VARIANCES[0]).all()
    assert (high == LOG_VARIANCES[1]).all()
    assert mean.isfinite().all()


def test_a_fresh_block_nearly_copies_its_input() -> None:
    x = normal(2, 16, 6, 6)
    with torch.no_grad():
        change = ResidualBlock(16)(x) - x
    assert 0 < change.std() < 0.05 * x.std()


def test_the_decoder_is_local() -> None:
    """A pixel far away changes nothing: there are no statistics over the image."""
    decoder, latents = Decoder(4, 4, 8, 1, 4, 1), normal(1, 4, 16, 16)
    other = latents.clone()
    other[..., -1, -1] += 5
    with torch.no_grad():
        before, after = decoder(latents), decoder(other)
    assert torch.equal(before[..., :32, :32], after[..., :32, :32])
    assert not torch.equal(before[..., -4:, -4:], after[..., -4:, -4:])


def test_muon_trains_the_residual_blocks_and_adamw_the_layers_around_them() -> None:
    autoencoder = build_autoencoder(
        AutoencoderConfig(channels=16, fine_channels=8, encoder_blocks=1, decoder_blocks=1, fine_blocks=1)
    )
    assert hidden_matrices({"autoencoder": autoencoder}) == {
        f"autoencoder.{blocks}.0.{layer}.weight"
        for blocks in ("encoder.blocks", "decoder.blocks", "decoder.fine_blocks")
        for layer in ("inner", "outer")
    }
