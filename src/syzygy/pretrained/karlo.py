"""Karlo's decoder: an image embedding and a prompt → 64 × 64 pixels, and those → 256 × 256.

The arithmetic is that of diffusers' `UnCLIPPipeline`, whose class cannot load its own repository any more; parts are loaded one
by one and the loop is ours. Both stages work on pixels; there is no autoencoder.

Shapes: N pictures, M rows that the U-Net sees at once (2 N with guidance), T tokens, D width of the embeddings (768).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.contracts import Guide, Progress, Sampling, TextFeatures
from syzygy.core.diffusers_weights import SCHEDULER_FILE, check_parts, load_model
from syzygy.core.errors import UserError
from syzygy.core.pixels import to_unit
from syzygy.pretrained import decoder_validation
from syzygy.pretrained.karlo_text import PART as TEXT_PROJECTION
from syzygy.pretrained.karlo_text import TextProjection, load_text_projection, read_config
from syzygy.pretrained.latent_diffusion import sample_positions
from syzygy.pretrained.visiting import visiting
from syzygy.prior.unclip_sampling import Ancestral, sigma_of, visited, walk
from syzygy.regions.attention_processors import add_region_processors, region_bias_of, region_kwargs
from syzygy.regions.region_bias import RegionBias

BASE, FINE_FIRST, FINE_LAST = "decoder", "super_res_first", "super_res_last"
BASE_SIDE, FINE_SIDE = 64, 256
"""Pixels along each side of what both stages make, where their configurations do not say it: those of the published model."""
BASE_STEPS, FINE_STEPS = "decoder_scheduler", "super_res_scheduler"
PARTS = (BASE, TEXT_PROJECTION, FINE_FIRST, FINE_LAST, BASE_STEPS, FINE_STEPS)
SUPER_RES_STEPS = "super_res_steps"
"""The option of `Sampling` that Karlo knows: steps of the second stage, 7 by default."""
POSITIONS = 77
"""Prompts are padded to as many tokens, and the pads hidden. They have no influence, but diffusers' attention takes a mask as long
as the picture has places for one that is complete already, and this length never is."""


class _Read(NamedTuple):
    """A guide as the U-Net reads it."""

    context: Float[Tensor, "M K_plus_T C"]
    real: Bool[Tensor, "M K_plus_T"]
    time: Float[Tensor, "M E"]


@dataclass(frozen=True)
class KarloDecoder:
    """A `ImageDecoder` that reads image embeddings, and prompts as CLIP ViT-L/14 reads them.

    Without a prompt it reads the empty one. To move away from, it takes the prior's prediction for a negative prompt together with
    that prompt's features; what is not told is what it was trained to take for nothing: a learned embedding, and the empty text.
    """

    projection: TextProjection
    base: Any
    """U-Net of the first stage."""
    fine_first: Any
    """U-Net of all steps of the second stage but the last."""
    fine_last: Any
    base_steps: Ancestral
    fine_steps: Ancestral
    empty: TextFeatures
    """Features of the empty prompt, one row."""
    device: torch.device
    offload: bool = False
    """Each part is on the device only while it computes."""
    defaults: Sampling = field(
        default_factory=lambda: Sampling(steps=25, guidance_scale=8.0, options={SUPER_RES_STEPS: 7})
    )

    def __post_init__(self) -> None:
        add_region_processors(self.base)

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("image", "text")

    @property
    def width(self) -> int:
        """D."""
        return self.projection.config.clip_embeddings_dim

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
        """See `ImageDecoder`. Pictures have the second stage's size; progress counts the steps of both stages."""
        steps, scale = decoder_validation.settings(
            positive, sampling, self.defaults, negative, [SUPER_RES_STEPS], paints=True
        )
        base_times, fine_times = visited(steps), visited(self._fine_steps(sampling), f" ({SUPER_RES_STEPS})")
        number, taken, total = len(generators), count(1), len(base_times) + len(fine_times)

        def told(sigma: float, clean: Tensor) -> None:
            if on_step is not None:
                on_step(Progress(next(taken), total, sigma, clean))

        with visiting(self.device, self.projection, offload=self.offload):
            read = self._read(positive, negative, number, scale)
        side = sample_positions(self.base.config, BASE_SIDE)[0]
        bias = self._region_bias(positive, sampling, side, 0 if scale == 1 else number)
        with visiting(self.device, self.base, offload=self.offload):
            predict, shape = self._base_predictor(read, scale, bias), (3, side, side)
            small = walk(self.base_steps, predict, shape, base_times, generators, self.device, told)
        large = self._upscaled(small.clamp(-1, 1), fine_times, generators, told)
        return to_unit(large)

    def _fine_steps(self, sampling: Sampling) -> int:
        if sampling.size is not None or sampling.sampler is not None:
            side = sample_positions(self.fine_first.config, FINE_SIDE)[0]
            raise UserError(
                f"Karlo paints pictures of {side} × {side} pixels in ancestral steps: leave size and sampler out."
            )
        steps = sampling.options.get(SUPER_RES_STEPS, self.defaults.options[SUPER_RES_STEPS])
        return arguments.whole(steps, SUPER_RES_STEPS)

    def _read(self, positive: Guide, negative: Guide | None, number: int, scale: float) -> _Read:
        """What to move away from first, where guidance is on."""
        embeddings = decoder_validation.embeddings_of(positive, number, self.width, self.device)
        features = self._features(positive, number)
        if scale != 1:
            if negative is None or negative.embeddings is None:
                nothing = self.projection.nothing.float().expand(number, -1)
            else:
                nothing = decoder_validation.embeddings_of(negative, number, self.width, self.device)
            embeddings = torch.cat([nothing, embeddings])
            features = TextFeatures.cat([self._features(negative, number), features])
        dtype = self.base.dtype
        # What a pad holds must not matter, and 0 × infinity would.
        states = features.states.masked_fill(~features.mask[..., None], 0.0)
        context, time = self.projection(embeddings.to(dtype), features.pooled.to(dtype), states.to(dtype))
        real = F.pad(features.mask, (self.projection.config.clip_extra_context_tokens, 0), value=True)
        return _Read(context, real, time)

    def _features(self, guide: Guide | None, number: int) -> TextFeatures:
        """The prompt of each picture (the empty one, where none is told), padded to `POSITIONS`."""
        found = self.empty if guide is None or guide.features is None else guide.features
        if found.pooled.shape[1] != self.width:
            raise UserError(
                f"Karlo reads prompts as a CLIP does whose embeddings are {decoder_validation.which_clip(self.width)}; these features are "
                f"{decoder_validation.which_clip(found.pooled.shape[1])}."
            )
        if len(found) not in (1, number):
            raise UserError(f"{len(found)} prompts for {number} pictures: give one for all, or one each.")
        if len(found) != number:
            found = found[[0] * number]
        length = found.states.shape[1]
        if length > POSITIONS:
            raise UserError(f"a prompt has {length} tokens; Karlo reads at most {POSITIONS}. Shorten the prompt.")
        found = found.to(self.device)
        states, mask = F.pad(found.states, (0, 0, 0, POSITIONS - length)), F.pad(found.mask, (0, POSITIONS - length))
        return TextFeatures(states, mask, found.pooled)

    def _region_bias(self, positive: Guide, sampling: Sampling, side: int, negatives: int) -> RegionBias | None:
        """Of the first stage alone: the second sees pictures, no words."""
        found = None if positive.features is None else positive.features.spans
        # Tokens of the image come before those of the text.
        start, room = (
            self.projection.config.clip_extra_context_tokens,
            0 if found is None else POSITIONS - found.shape[1],
        )
        spans = [None if found is None else F.pad(found, (0, 0, 0, room))]
        return region_bias_of(positive, sampling, spans, (side, side), self.device, start=start, negatives=negatives)

    def _base_predictor(
        self, read: _Read, scale: float, bias: RegionBias | None
    ) -> Callable[[Tensor, int, bool], Tensor]:
        def predict(x: Tensor, t: int, last: bool) -> Tensor:
            both = x if scale == 1 else torch.cat([x, x])
            found = self.base(
                both.to(self.base.dtype),
                t,
                encoder_hidden_states=read.context,
                class_labels=read.time,
                attention_mask=read.real,
                cross_attention_kwargs=region_kwargs(bias, sigma_of(t)),
                return_dict=False,
            )[0].float()
            if scale == 1:
                return found
            from_, positive = found.chunk(2)
            # Guidance moves the noise alone; where its variance lies is the guided half's to say.
            eps = from_[:, :3] + scale * (positive[:, :3] - from_[:, :3])
            return torch.cat([eps, positive[:, 3:]], 1)

        return predict

    def _upscaled(
        self,
        small: Float[Tensor, "N 3 h w"],
        times: Sequence[int],
        generators: Sequence[torch.Generator],
        told: Callable[[float, Tensor], None],
    ) -> Float[Tensor, "N 3 H W"]:
        """The second stage: no guidance, no prompt; it sees the first stage's pictures beside its own noisy ones."""
        side = sample_positions(self.fine_first.config, FINE_SIDE)[0]
        below = F.interpolate(small, (side, side), mode="bicubic", align_corners=False, antialias=True)

        with ExitStack() as here:
            here.enter_context(visiting(self.device, self.fine_first, offload=self.offload))

            def predict(x: Tensor, t: int, last: bool) -> Tensor:
                unet = self.fine_last if last else self.fine_first
                if last:
                    here.close()
                    here.enter_context(visiting(self.device, unet, offload=self.offload))
                return unet(torch.cat([x, below], 1).to(unet.dtype), t, return_dict=False)[0]

            return walk(self.fine_steps, predict, (3, side, side), times, generators, self.device, told)


def embedding_width(folder: Path) -> int:
    """D of the decoder in a folder, without its weights.

    Raises:
        UserError: a part is missing, or is another kind of model.
    """
    check_parts(folder, PARTS, "Karlo's decoder")
    return read_config(folder).clip_embeddings_dim


def load_karlo(
    folder: Path, *, empty: TextFeatures, dtype: torch.dtype, device: torch.device, offload: bool = False
) -> KarloDecoder:
    """The decoder in a folder with the layout of kakaobrain/karlo-v1-alpha; its prior and text encoder are not looked at.

    Args:
        folder: with a folder each for `PARTS`.
        empty: features of the empty prompt, one row, as the CLIP reads it that reads prompts.
        dtype: what the networks compute in; each step is taken in fp32.
        device: where they compute.
        offload: bring each there only while it does.

    Raises:
        UserError: a part is missing, truncated, pickle or another kind; parts do not fit together.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    embedding_width(folder)
    base_steps, fine_steps = (
        Ancestral.from_config(folder / name / SCHEDULER_FILE) for name in (BASE_STEPS, FINE_STEPS)
    )
    projection = load_text_projection(folder, dtype)
    base: Any = load_model(UNet2DConditionModel, folder, BASE, dtype)
    first, last = (load_model(UNet2DModel, folder, name, dtype) for name in (FINE_FIRST, FINE_LAST))
    _check(folder, projection, base, first, last, base_steps, fine_steps)
    if not offload:
        parts: tuple[Any, ...] = (projection, base, first, last)
        for part in parts:
            part.to(device)
    return KarloDecoder(projection, base, first, last, base_steps, fine_steps, empty, device, offload)


def _check(
    folder: Path,
    projection: TextProjection,
    base: Any,
    first: Any,
    last: Any,
    base_steps: Ancestral,
    fine_steps: Ancestral,
) -> None:
    """Whether the parts belong together."""
    made, read = projection.config.cross_attention_dim, base.config.cross_attention_dim
    if made != read:
        raise UserError(
            f"{folder}: {TEXT_PROJECTION} makes a context {made} wide, {BASE} reads {read}: not one model's."
        )
    if first.config.sample_size != last.config.sample_size:
        raise UserError(f"{folder}: {FINE_FIRST} and {FINE_LAST} work on pictures of different sizes: not one model's.")
    for name, unet, steps, inputs in (
        (BASE, base, base_steps, 3),
        (FINE_FIRST, first, fine_steps, 6),
        (FINE_LAST, last, fine_steps, 6),
    ):
        found, needed = (unet.config.in_channels, unet.config.out_channels), (inputs, 6 if steps.learned else 3)
        if found != needed:
            raise UserError(
                f"{folder}: {name} reads and makes {found[0]} and {found[1]} channels; with its scheduler {needed[0]} and "
                f"{needed[1]} are needed."
            )
