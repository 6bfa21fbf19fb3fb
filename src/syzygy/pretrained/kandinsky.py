"""Kandinsky 2.2's decoder: an image embedding → a picture, through a latent U-Net and a MOVQ autoencoder. It reads no text.

The arithmetic is that of diffusers' `KandinskyV22Pipeline`; the loop is ours, for parts that leave the device, a preview after
each step, one generator a picture, and schedulers that scale their input.

Shapes: N pictures, D width of the embeddings (1280), H × W pixels, h × w latent positions (an eighth of them).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Guide, Progress, Sampling
from syzygy.core.diffusers_weights import check_parts, load_model, read_settings
from syzygy.core.errors import UserError
from syzygy.core.pixels import to_unit
from syzygy.core.randomness import per_sample_noise
from syzygy.pretrained import decoder_validation
from syzygy.pretrained.latent_diffusion import sample_positions
from syzygy.pretrained.visiting import visiting

PARTS = ("unet", "movq", "scheduler")
UNET = "UNet2DConditionModel"
Unconditional = Callable[[], Float[Tensor, "1 D"]]
"""Gives the image encoder's output for an all-zero normalised picture."""


@dataclass(frozen=True)
class KandinskyDecoder:
    """A `ImageDecoder` that reads image embeddings alone.

    To move away from, it takes the prior's prediction for a negative prompt, or the embedding of a picture of zeros.
    """

    unet: Any
    movq: Any
    scheduler: Any
    """The repository's own; others take its noise schedule."""
    device: torch.device
    unconditional: Unconditional
    """Asked for at most when guidance needs it."""
    offload: bool = False
    """U-Net and MOVQ are on the device only while they compute; MOVQ then decodes picture by picture."""
    defaults: Sampling = field(init=False)

    def __post_init__(self) -> None:
        height, width = (positions * self.scale for positions in sample_positions(self.unet.config))
        own = Sampling(
            steps=50, guidance_scale=4.0, sampler=diffusers_schedulers.name_of(self.scheduler), size=(height, width)
        )
        object.__setattr__(self, "defaults", own)

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def width(self) -> int:
        """D."""
        return self.unet.config.encoder_hid_dim

    @property
    def scale(self) -> int:
        """Pixels a latent position, along each side."""
        return 2 ** (len(self.movq.config.block_out_channels) - 1)

    @torch.inference_mode()
    def generate(
        self,
        positive: Guide,
        generators: Sequence[torch.Generator],
        *,
        negative: Guide | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        on_step: Callable[[Progress], None] | None = None,
    ) -> Float[Tensor, "N 3 H W"]:
        """See `ImageDecoder`. Height and width are multiples of 64 (of the pixels a latent position, squared)."""
        steps, scale = decoder_validation.settings(positive, sampling, self.defaults, negative)
        height, width = decoder_validation.size_of(sampling, self.defaults, self.scale**2)
        scheduler = diffusers_schedulers.fresh(self.scheduler, sampling.sampler)
        number = len(generators)
        embeddings = decoder_validation.embeddings_of(positive, number, self.width, self.device)
        if scale != 1:
            from_ = Guide(self.unconditional()) if negative is None else negative
            embeddings = torch.cat(
                [decoder_validation.embeddings_of(from_, number, self.width, self.device), embeddings]
            )
        shape = (self.unet.config.in_channels, height // self.scale, width // self.scale)
        noise = per_sample_noise(shape, generators, self.device)
        predict = self._predictor(embeddings, scale, diffusers_schedulers.learns_variance(scheduler))
        with visiting(self.device, self.unet, offload=self.offload):
            latents = diffusers_schedulers.walk(scheduler, predict, noise, steps, generators, on_step)
        with visiting(self.device, self.movq, offload=self.offload):
            return to_unit(torch.cat([self._decoded(part) for part in latents.split(1 if self.offload else number)]))

    def _predictor(
        self, embeddings: Float[Tensor, "M D"], scale: float, variance: bool
    ) -> diffusers_schedulers.Predict:
        """What a scheduler steps with; M is N, or 2 N with guidance (what to move away from comes first)."""
        conditions = {"image_embeds": embeddings.to(self.unet.dtype)}

        def predict(x: Tensor, t: Tensor) -> Tensor:
            both = x if scale == 1 else torch.cat([x, x])
            found = self.unet(both.to(self.unet.dtype), t, None, added_cond_kwargs=conditions, return_dict=False)[0]
            noise, spread = found.float().split(x.shape[1], dim=1)
            if scale != 1:
                (from_, positive), spread = noise.chunk(2), spread.chunk(2)[1]
                noise = from_ + scale * (positive - from_)
            return torch.cat([noise, spread], dim=1) if variance else noise

        return predict

    def _decoded(self, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        """Around [-1, 1]."""
        return self.movq.decode(latents.to(self.movq.dtype), force_not_quantize=True, return_dict=False)[0].float()


def embedding_width(folder: Path) -> int:
    """D of the decoder in a folder, without its weights.

    Raises:
        UserError: a part is missing, or is another kind of model.
    """
    check_parts(folder, PARTS, "Kandinsky 2.2's decoder")
    values = read_settings(folder, "unet", UNET)
    if values.get("encoder_hid_dim_type") != "image_proj" or not isinstance(values.get("encoder_hid_dim"), int):
        raise UserError(
            f"the U-Net in {folder} is not Kandinsky 2.2's: it reads no image embedding through image_proj. Kandinsky 2.1 "
            "and the ControlNet variant are not supported."
        )
    return values["encoder_hid_dim"]


def load_kandinsky(
    folder: Path, *, unconditional: Unconditional, dtype: torch.dtype, device: torch.device, offload: bool, tiling: bool
) -> KandinskyDecoder:
    """The decoder in a folder with the layout of kandinsky-community/kandinsky-2-2-decoder.

    Raises:
        UserError: a part is missing, truncated, pickle or another kind; tiling, which diffusers has not for MOVQ.
    """
    from diffusers.models.autoencoders.vq_model import VQModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if tiling:
        raise UserError("diffusers has no tiling for Kandinsky's autoencoder (MOVQ): leave it out, or offload.")
    embedding_width(folder)
    scheduler = diffusers_schedulers.load_scheduler(folder)
    unet = load_model(UNet2DConditionModel, folder, "unet", dtype)
    movq = load_model(VQModel, folder, "movq", dtype)
    if not offload:
        unet, movq = unet.to(device), movq.to(device)
    return KandinskyDecoder(unet, movq, scheduler, device, unconditional, offload)
