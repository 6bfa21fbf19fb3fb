"""The convolutions of the autoencoder: an encoder at latent resolution, and a decoder that ends at half the images' resolution.

Both are residual networks without normalisation and with sub-pixel convolutions, as EDSR (Lim et al. 2017, "Enhanced Deep Residual Networks
for Single Image Super-Resolution") and ESPCN (Shi et al. 2016). Group normalisation over a whole image, as in diffusers' `AutoencoderKL`,
removes the exact brightness and contrast that a reconstruction needs.

Shapes: B images, H × W pixels, C latent channels, h × w latent positions (H / patch × W / patch).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

BRANCH_SCALE = 0.1
"""Factor on the initial weights at the end of a residual branch: at first a block nearly copies its input."""
LOG_VARIANCES = (-30.0, 20.0)
"""Range of the posterior's logarithmic variances, as in diffusers."""


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def _channels_last(x: Tensor) -> Tensor:
    """The same values in the order in memory with which convolutions train about a tenth faster on a CPU."""
    return x.contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """x + convolution(relu(convolution(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = _convolution(width, width), _convolution(width, width)
        with torch.no_grad():
            self.outer.weight.mul_(BRANCH_SCALE)
            self.outer.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        return x + self.outer(F.relu(self.inner(x)))


def _blocks(width: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(number)))


class Encoder(nn.Module):
    """Images in [-1, 1] → mean and logarithmic variance of the posterior (a diagonal Gaussian)."""

    def __init__(self, patch: int, latent_channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.patch = patch
        self.first = _convolution(3 * patch**2, width)
        self.blocks = _blocks(width, blocks)
        self.last = _convolution(width, 2 * latent_channels)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]:
        planes = _channels_last(F.pixel_unshuffle(images, self.patch))
        mean, log_variance = self.last(self.blocks(self.first(planes))).float().contiguous().chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCES)


class Decoder(nn.Module):
    """Latents → images around [-1, 1], not clamped."""

    def __init__(
        self, patch: int, latent_channels: int, width: int, blocks: int, fine_width: int, fine_blocks: int
    ) -> None:
        super().__init__()
        self.coarse = patch // 2
        self.first = _convolution(latent_channels, width)
        self.blocks = _blocks(width, blocks)
        self.refine = _convolution(width, fine_width * self.coarse**2)
        self.fine_blocks = _blocks(fine_width, fine_blocks)
        self.last = _convolution(fine_width, 3 * 2**2)

    def forward(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        fine = F.pixel_shuffle(self.refine(self.blocks(self.first(_channels_last(latents)))), self.coarse)
        return F.pixel_shuffle(self.last(self.fine_blocks(_channels_last(fine))), 2).contiguous()
