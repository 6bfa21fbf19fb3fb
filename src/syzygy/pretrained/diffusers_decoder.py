"""The base of decoders that denoise latents with a U-Net of diffusers: one class for what all of them do alike.

The arithmetic is that of diffusers' pipelines. The loop is ours, for parts that leave the device, a preview after each step, one
generator for each image, and regions.

Shapes: N images, M rows that the U-Net sees at once (2 N with guidance, the negative ones first), T tokens, C latent channels,
h × w latent positions, H × W pixels.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Real
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Guide, Progress, Sampling
from syzygy.core.diffusers_timesteps import HostTimesteps, noise_of
from syzygy.core.errors import UserError
from syzygy.core.known_latents import KnownLatents
from syzygy.core.pixels import to_unit
from syzygy.core.randomness import per_sample_noise
from syzygy.pretrained.decoder_validation import DecoderRequest, checked_request
from syzygy.pretrained.families import PretrainedDecoder
from syzygy.pretrained.visiting import visiting
from syzygy.regions.attention_processors import add_region_processors, region_bias_of, region_kwargs
from syzygy.regions.region_bias import RegionBias


@dataclass(frozen=True, kw_only=True)
class UNetInputs:
    """What a U-Net reads besides noisy latents and a timestep, for M rows."""

    states: Float[Tensor, "M T K"] | None = None
    """Text states for its cross-attention."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments, such as `class_labels`."""
    regions: RegionBias | None = None
    channels: Float[Tensor, "1 K h w"] | None = None
    """Further channels of its input, after the noisy latents and the same in all rows."""
    known: KnownLatents | None = None
    """The latents of a picture that sampling starts from, or keeps in part."""
    timed: Callable[[Real[Tensor, ""]], "UNetInputs"] | None = None
    """Timestep → inputs whose `states` and `arguments` are read there instead of these; None if they are the same at every timestep."""


@dataclass(frozen=True, kw_only=True)
class DiffusersDecoder(PretrainedDecoder):
    """U-Net, autoencoder and scheduler of a diffusers pipeline. A family says what its U-Net reads (`read`)."""

    unet: Any
    autoencoder: Any
    scheduler: Any
    """The repository's own; other samplers take its noise schedule."""
    device: torch.device
    offload: bool = False
    """Parts are on the device only while they compute; the autoencoder then decodes image by image."""
    defaults: Sampling = field(init=False)

    default_steps: ClassVar[int] = 50
    default_guidance_scale: ClassVar[float]
    default_strength: ClassVar[float | None] = None
    default_options: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        height, width = (positions * self.scale for positions in sample_positions(self.unet.config))
        own = Sampling(
            steps=self.default_steps,
            guidance_scale=self.default_guidance_scale,
            sampler=diffusers_schedulers.name_of(self.scheduler),
            size=(height, width),
            strength=self.default_strength,
            options=self.default_options,
        )
        object.__setattr__(self, "defaults", own)
        if self.takes_regions:
            add_region_processors(self.unet)

    @property
    def samplers(self) -> tuple[str, ...]:
        return tuple(diffusers_schedulers.SCHEDULERS)

    @property
    def scale(self) -> int:
        """Pixels for each latent position, along each side."""
        return pixels_a_position(self.autoencoder)

    @property
    def size_multiple(self) -> int:
        """What height and width in pixels must be multiples of."""
        return self.scale

    @abstractmethod
    def read(self, request: DecoderRequest, size: tuple[int, int]) -> UNetInputs:
        """What the U-Net reads for a request. Noise that this needs is drawn before that of the latents.

        Args:
            size: h, w.
        """

    @abstractmethod
    def decode(self, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        """Images around [-1, 1]."""

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
        """See `ImageDecoder`. Height and width are multiples of `size_multiple`."""
        request = checked_request(self, positive, negative, generators, sampling)
        height, width = request.size(self.defaults.size, self.size_multiple)
        size, channels = (height // self.scale, width // self.scale), self.autoencoder.config.latent_channels
        scheduler = diffusers_schedulers.fresh(self.scheduler, sampling.sampler)
        if diffusers_schedulers.learns_variance(scheduler) and self.unet.config.out_channels != 2 * channels:
            raise UserError("this U-Net learned no variance, but its scheduler wants one: choose another sampler.")
        inputs = self.read(request, size)
        noise = per_sample_noise((channels, *size), generators, self.device)
        predict = self._predictor(inputs, request.guidance_scale, scheduler)
        with visiting(self.device, self.unet, offload=self.offload):
            latents = diffusers_schedulers.sample_with_scheduler(
                scheduler, predict, noise, request.steps, generators, on_step, inputs.known
            )
        with visiting(self.device, self.autoencoder, offload=self.offload):
            parts = latents.split(1 if self.offload else request.number)
            return to_unit(torch.cat([self.decode(part).float() for part in parts]))

    def _predictor(self, inputs: UNetInputs, scale: float, scheduler: Any) -> diffusers_schedulers.Predict:
        """What the scheduler steps with: the U-Net's prediction with classifier-free guidance (Ho and Salimans 2022)."""
        variance = diffusers_schedulers.learns_variance(scheduler)
        sigma_of, timesteps = noise_of(scheduler), HostTimesteps()

        def predict(x: Tensor, t: Tensor) -> Tensor:
            both = (x if scale == 1 else torch.cat([x, x])).to(self.unet.dtype)
            if inputs.channels is not None:
                both = torch.cat([both, inputs.channels.to(both).expand(len(both), -1, -1, -1)], 1)
            sigma = 0.0 if inputs.regions is None else sigma_of(timesteps.value(t))
            now = inputs if inputs.timed is None else inputs.timed(t)
            output = self.unet(
                both,
                t,
                now.states,
                cross_attention_kwargs=region_kwargs(inputs.regions, sigma),
                return_dict=False,
                **now.arguments,
            )[0].float()
            found, spread = output[:, : x.shape[1]], output[:, x.shape[1] :]
            if scale != 1:
                negative, positive = found.chunk(2)
                found, spread = negative + scale * (positive - negative), spread.chunk(2)[1]
            return torch.cat([found, spread], 1) if variance else found

        return predict

    def regions_of(self, request: DecoderRequest, spans: Sequence[Any], size: tuple[int, int]) -> RegionBias | None:
        """The request's regions for the U-Net's attention; `spans` as of `region_bias_of`."""
        return region_bias_of(
            request.positive, request.sampling, spans, size, self.device, negatives=request.negative_rows
        )


def decode_kl(autoencoder: Any, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
    """Images around [-1, 1] by an `AutoencoderKL`, whose latents are scaled."""
    scaled = (latents / autoencoder.config.scaling_factor).to(autoencoder.dtype)
    return autoencoder.decode(scaled, return_dict=False)[0]


def tiled(autoencoder: Any) -> None:
    """Let an `AutoencoderKL` work tile by tile and image by image."""
    autoencoder.enable_tiling()
    autoencoder.enable_slicing()


def pixels_a_position(autoencoder: Any) -> int:
    """Pixels for each latent position, along each side."""
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)


def sample_positions(config: Mapping[str, Any], otherwise: int | None = None) -> tuple[int, int]:
    """Height and width, in positions, of the samples that a U-Net was made for.

    Where its configuration does not say it (`sample_size` is null, as in some converted repositories), it is that of the published
    models: 128 for Stable Diffusion XL (1024 pixels) and 64 for the others (512 pixels).

    Args:
        config: the U-Net's.
        otherwise: instead of 128 or 64.
    """
    found = config.get("sample_size")
    if found is None:
        found = otherwise or (128 if config.get("addition_embed_type") == "text_time" else 64)
    height, width = (found, found) if isinstance(found, int) else found
    return height, width
