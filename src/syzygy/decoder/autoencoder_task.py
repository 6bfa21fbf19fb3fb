"""Training task of the autoencoder: images through a narrow, noisy bottleneck (Kingma & Welling 2013)."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from syzygy.core.config import Config
from syzygy.core.randomness import generator
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.training.precision import autocast


class AutoencoderTaskConfig(Config):
    """The data and the loss of a step."""

    batch_size: int = Field(default=64, ge=1)
    """Images in each step."""
    kl_weight: float = Field(default=5e-3, ge=0)
    """Weight of the divergence; 2 s² for images that may be off by Gaussian noise of standard deviation s (here 0.05)."""


def autoencoder_loss(
    images: Float[Tensor, "B 3 H W"],
    reconstructed: Float[Tensor, "B 3 H W"],
    divergence: Float[Tensor, "B"],
    kl_weight: float,
) -> Float[Tensor, ""]:
    """Mean squared error + kl_weight × divergence a pixel value: a scaled negative evidence lower bound (eq. 10)."""
    error = (reconstructed - images).square().mean()
    return error + kl_weight * divergence.mean() / images[0].numel()


class AutoencoderTask:
    """The autoencoder's training as a task of the loop. `batches(step)` gives pictures in [0, 1]."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        batches: Callable[[int], Float[Tensor, "B 3 H W"]],
        validation: Float[Tensor, "V 3 H W"],
        config: AutoencoderTaskConfig,
        seed: int,
        *,
        precision: torch.dtype | None = None,
    ) -> None:
        self.autoencoder, self.batches, self.validation = autoencoder, batches, validation
        self.config, self.seed, self.precision = config, seed, precision

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"autoencoder": self.autoencoder}

    def loss(self, step: int) -> dict[str, Tensor]:
        """Loss of one batch, and the divergence in nats a picture."""
        images = self.batches(step)
        return self._loss(images, generator(self.seed, "autoencoder", step, device=images.device))

    def validate(self) -> dict[str, float]:
        """The same on unseen pictures, with the peak signal-to-noise ratio of their reconstructions."""
        random = generator(self.seed, "autoencoder validation", device=self.validation.device)
        found = {name: float(value) for name, value in self._loss(self.validation, random).items()}
        return found | {"psnr": -10 * math.log10(found.pop("error") / 4)}

    def _loss(self, images: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        shape = (len(images), *self.autoencoder.latent_shape)
        noise = torch.randn(shape, generator=random, device=images.device)
        with autocast(images.device, self.precision):
            reconstructed, divergence = self.autoencoder(images, noise)
        reconstructed, divergence = reconstructed.float(), divergence.float()
        loss = autoencoder_loss(2 * images - 1, reconstructed, divergence, self.config.kl_weight)
        error = (reconstructed - (2 * images - 1)).square().mean()
        return {"loss": loss, "error": error.detach(), "nats": divergence.mean().detach()}
