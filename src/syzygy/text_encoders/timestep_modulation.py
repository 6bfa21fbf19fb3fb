"""Timestep-aware queries (ELLA, arXiv 2403.05135): an adapter whose states depend on the denoising step that reads them.

Legend: B texts, C inner width of the adapter.
"""

from jaxtyping import Float, Real
from torch import Tensor, nn

from syzygy.prior.diffusion_prior import time_features

CHANNELS = 320
"""Cosines and sines of a timestep, as many as in ELLA and in Stable Diffusion's U-Nets."""


class TimestepModulation(nn.Module):
    """A timestep → what is added to the queries, and shift and scale after each normalisation of each block (AdaLN).

    As in ELLA's released code: cosines and sines, two linear layers with SiLU between them, and one linear layer for each use. Those last
    layers begin as zeros, so that an adapter gives the same before and after it becomes timestep-aware. ELLA's queries and text have separate
    normalisations with a modulation each; in our blocks they share one, and so its modulation.
    """

    def __init__(self, layers: int, width: int) -> None:
        """
        Args:
            layers: blocks of the adapter.
            width: C.
        """
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(CHANNELS, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.queries = nn.Linear(width, width)
        self.blocks = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        for layer in (self.queries, *self.blocks):
            nn.init.zeros_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, timesteps: Real[Tensor, "B"]) -> tuple[Float[Tensor, "B C"], list[Float[Tensor, "B 4*C"]]]:
        """What is added to every query, and the `modulation` of each block (`transformer_layers.Block`).

        Args:
            timesteps: those of the U-Net, from 0 (no noise) to 999; samplers also use numbers between them.
        """
        embedded = self.embed(time_features(timesteps, CHANNELS).to(self.queries.weight.dtype))
        return self.queries(embedded), [block(embedded) for block in self.blocks]
