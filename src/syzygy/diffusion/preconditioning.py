"""EDM preconditioning: a network of unit-variance inputs and targets becomes a denoiser (Karras et al. 2022).

σ_data is the standard deviation of the clean pictures (0.5 for pictures in [-1, 1]).
"""

from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from syzygy.types import Conditioning


@runtime_checkable
class Network(Protocol):
    """EDM's F: (x of unit variance, c_noise = ¼ ln σ, conditioning) → mix of picture and noise, of unit variance."""

    def __call__(
        self, x: Float[Tensor, "B C H W"], c_noise: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]: ...


Prediction = Literal["edm", "clean"]
"""What a network predicts: EDM's mix of picture and noise, or the clean picture alone.

Noise fills all dimensions of its input, pictures few: a network whose first layer is hardly wider than a patch of pixels cannot
carry the noise through, but can paint the picture ("Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720).
"""


class Preconditioned(nn.Module):
    """`Denoiser` from a network: D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise) (EDM eq. 7, coefficients of table 1).

    With prediction "clean", c_skip = 0 and c_out = σ_data; c_in and c_noise stay EDM's.
    """

    def __init__(self, network: nn.Module, sigma_data: float, prediction: Prediction = "edm") -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.prediction: Prediction = prediction

    def forward(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """Denoised x in x's dtype; σ > 0. The network may run in lower precision, the mixing does not."""
        sigma_B111 = sigma.to(x.dtype)[:, None, None, None]
        total = (sigma_B111**2 + self.sigma_data**2).sqrt()
        predicted = self.network(x / total, sigma.to(x.dtype).log() / 4, conditioning).to(x.dtype)
        if self.prediction == "clean":
            return self.sigma_data * predicted
        c_skip = (self.sigma_data / total) ** 2
        c_out = sigma_B111 * self.sigma_data / total
        return c_skip * x + c_out * predicted


CLEAN_SIGMA_FLOOR = 0.3
"""Below this σ the weight of a clean prediction stays what it is here: its error does not vanish with σ, 1/σ² would drown the rest."""


def loss_weight(sigma: Float[Tensor, "B"], sigma_data: float, prediction: Prediction = "edm") -> Float[Tensor, "B"]:
    """λ(σ) = (σ² + σ_data²) / (σ·σ_data)²: every noise level starts with loss 1 (EDM, table 1).

    For a clean prediction σ is bounded below by `CLEAN_SIGMA_FLOOR`, as min-SNR weighting does (arXiv 2303.09556).
    """
    if prediction == "clean":
        sigma = sigma.clamp_min(CLEAN_SIGMA_FLOOR)
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
    return loss_weight(sigma, denoiser.sigma_data, denoiser.prediction) * error
