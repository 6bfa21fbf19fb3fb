"""EDM preconditioning: a network of unit-variance inputs and targets becomes a denoiser (Karras et al. 2022).

σ_data is the standard deviation of the clean data (1 for an autoencoder's latents, 0.5 for images in [-1, 1]).
"""

from jaxtyping import Float
from torch import Tensor, nn

from syzygy.core.contracts import Conditioning


class Preconditioned(nn.Module):
    """A `Denoiser` from a network F: D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise) (EDM eq. 7, coefficients of table 1).

    F takes x of unit variance [B C H W], c_noise = ¼ ln σ [B] and the conditioning, and returns a mix of image and noise of unit variance.
    """

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """Denoised x in x's dtype; σ > 0. The network may run in lower precision, the mixing does not."""
        sigma_B111 = sigma.to(x.dtype)[:, None, None, None]
        total = (sigma_B111**2 + self.sigma_data**2).sqrt()
        predicted = self.network(x / total, sigma.to(x.dtype).log() / 4, conditioning).to(x.dtype)
        c_skip = (self.sigma_data / total) ** 2
        c_out = sigma_B111 * self.sigma_data / total
        return c_skip * x + c_out * predicted


def loss_weight(sigma: Float[Tensor, "B"], sigma_data: float) -> Float[Tensor, "B"]:
    """λ(σ) = (σ² + σ_data²) / (σ·σ_data)²: every noise level starts with loss 1 (EDM, table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_loss(
    denoiser: Preconditioned,
    images: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, "B"],
    noise: Float[Tensor, "B C H W"],
    conditioning: Conditioning,
) -> Float[Tensor, "B"]:
    """Per sample λ(σ)·mean‖D(images + σ·noise; σ) − images‖², the mean over pixels and channels (EDM eq. 2 and 8)."""
    noisy = images + sigma[:, None, None, None] * noise
    error = (denoiser(noisy, sigma, conditioning) - images).square().flatten(1).mean(1)
    return loss_weight(sigma, denoiser.sigma_data) * error
