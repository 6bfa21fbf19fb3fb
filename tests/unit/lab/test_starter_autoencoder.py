"""The starter's autoencoder on renders that it has not seen: quality, latents, robustness, size."""

import math

import pytest
import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.model_parts import part_folder
from syzygy.core.randomness import generator, seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.lab.starter.presets import autoencoder_starter
from syzygy.lab.world import scene_source

FOLDER = part_folder("starter", "autoencoder")


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return Autoencoder.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return scene_source.pictures(scene_source.pairs(seed_of(0, "autoencoder test"), 0, 64))


def psnr(decoded: Tensor, images: Tensor) -> float:
    return -10 * math.log10((decoded - images).square().mean())


def test_unseen_renders_are_reconstructed(autoencoder: Autoencoder, images: Tensor) -> None:
    latents = autoencoder.encode(images)
    quality = psnr(autoencoder.decode(latents), images)
    print(f"{quality:.2f} dB on {len(images)} unseen renders")
    assert quality >= 34
    noise = torch.randn(latents.shape, generator=generator(0, "autoencoder test"))
    assert psnr(autoencoder.decode(latents + 0.1 * noise), images) >= 32, "a decoder errs by as much"


def test_latents_have_unit_variance_and_three_channels_are_smooth(autoencoder: Autoencoder, images: Tensor) -> None:
    """The fourth channel holds detail at edges: it is nearly constant elsewhere, and noise on it hardly shows."""
    latents = autoencoder.encode(images)
    assert latents.shape == (64, 4, 16, 16)
    assert latents.mean((0, 2, 3)).abs().max() < 0.1
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.1
    neighbours = (latents[..., 1:] * latents[..., :-1]).mean((0, 2, 3)).sort()
    assert neighbours.values[1] > 0.3
    rough = int(neighbours.indices[0])
    noisy = latents.clone()
    noisy[:, rough] += 0.2 * torch.randn(64, 16, 16, generator=generator(0, "autoencoder test", rough))
    assert psnr(autoencoder.decode(noisy), autoencoder.decode(latents)) > 50


def test_the_weights_are_small_and_of_the_preset() -> None:
    assert (FOLDER / artifacts.WEIGHTS_FILE).stat().st_size < 2e6
    provenance = artifacts.read_json(FOLDER / artifacts.PROVENANCE_FILE)
    assert provenance["recipe"] == autoencoder_starter().model_dump(mode="json")
    assert provenance["metrics"]["psnr"] >= 34
