"""Karlo's decoder: an image embedding and a prompt → 64 × 64 pixels, and those → 256 × 256.

The arithmetic is that of diffusers' `UnCLIPPipeline`, whose class cannot load its own repository any more; parts are loaded one
by one and the loop is ours. Both stages work on pixels; there is no autoencoder.

Shapes: N images, M rows that the U-Net sees at once (2 N with guidance), T tokens, D width of the embeddings (768).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Guide, Progress, Sampling, TextFeatures
from syzygy.core.diffusers_weights import SCHEDULER_FILE, check_parts
from syzygy.core.errors import UserError
from syzygy.core.options import SUPER_RES_STEPS
from syzygy.core.pixels import to_unit
from syzygy.pretrained.decoder_validation import DecoderRequest, checked_request, which_clip
from syzygy.pretrained.diffusers_decoder import UNetInputs, sample_positions
from syzygy.pretrained.families import LoadContext, PretrainedDecoder, register_decoder
from syzygy.pretrained.karlo_text import PART as TEXT_PROJECTION
from syzygy.pretrained.karlo_text import TextProjection, load_text_projection, read_config
from syzygy.pretrained.visiting import visiting
from syzygy.prior.unclip_sampling import Ancestral, sample_unclip, sigma_of, visited
from syzygy.regions.attention_processors import add_region_processors, region_bias_of, region_kwargs
from syzygy.regions.region_bias import RegionBias

BASE, FINE_FIRST, FINE_LAST = "decoder", "super_res_first", "super_res_last"
BASE_SIDE, FINE_SIDE = 64, 256
"""Sides in pixels of what both stages make, where their configurations do not say it: those of the published model."""
BASE_STEPS, FINE_STEPS = "decoder_scheduler", "super_res_scheduler"
PARTS = (BASE, TEXT_PROJECTION, FINE_FIRST, FINE_LAST, BASE_STEPS, FINE_STEPS)
DEFAULTS = Sampling(steps=25, guidance_scale=8.0, options={SUPER_RES_STEPS.name: 7})
StageNoise = tuple[Tensor | None, Tensor | None]
"""Of the first and of the second stage; None is drawn."""
POSITIONS = 77
"""Prompts are padded to as many tokens, and the padding is hidden. It has no influence, but diffusers' attention takes a mask as long
as the image has places for one that is complete already, and this length never is."""


@register_decoder(
    "karlo",
    hub_id="kakaobrain/karlo-v1-alpha",
    pipeline_class=("UnCLIPPipeline", "UnCLIPImageVariationPipeline", "KarloPipeline"),
    parts=PARTS,
    # Karlo's own text encoder is the text tower of this CLIP, whose image tower it does not publish.
    clip="openai/clip-vit-large-patch14",
    prior="ECLIPSE-Community/ECLIPSE_Karlo_Prior",
    options=(SUPER_RES_STEPS,),
)
@dataclass(frozen=True, kw_only=True)
class KarloDecoder(PretrainedDecoder):
    """A decoder that reads image embeddings, and prompts as CLIP ViT-L/14 reads them.

    Without a prompt it reads the empty one. The negative conditioning is the prior's prediction for a negative prompt together
    with that prompt's features; what is missing is what it was trained to take for nothing: a learned embedding, and the empty text.
    """

    projection: TextProjection
    unet: Any
    """Of the first stage."""
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
    defaults: Sampling = field(init=False, default=DEFAULTS)

    reads_text = takes_regions = True

    def __post_init__(self) -> None:
        add_region_processors(self.unet)

    @classmethod
    def load(cls, context: LoadContext) -> "KarloDecoder":
        """See `PretrainedDecoder`; layout of kakaobrain/karlo-v1-alpha, whose prior and text encoder are not read."""
        if context.tiling:
            raise UserError(
                "Karlo generates pixels, without an autoencoder: there is nothing to tile. Leave tiling out."
            )
        cls.embedding_width(context.folder)
        assert context.clip is not None
        return cls.with_text(context, context.clip.encode_text([""]))

    @classmethod
    def with_text(cls, context: LoadContext, empty: TextFeatures) -> "KarloDecoder":
        """As `load`, for a text encoder that reads the empty prompt like this.

        Raises:
            UserError: a part is missing, truncated, pickle or another kind; parts do not fit together.
        """
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        folder = context.folder
        decoder = cls(
            base_steps=Ancestral.from_config(folder / BASE_STEPS / SCHEDULER_FILE),
            fine_steps=Ancestral.from_config(folder / FINE_STEPS / SCHEDULER_FILE),
            projection=context.placed(load_text_projection(folder, context.dtype)),
            unet=context.model(UNet2DConditionModel, BASE),
            fine_first=context.model(UNet2DModel, FINE_FIRST),
            fine_last=context.model(UNet2DModel, FINE_LAST),
            empty=empty,
            device=context.device,
            offload=context.offload,
        )
        decoder._check(folder)
        return decoder

    @classmethod
    def embedding_width(cls, folder: Path) -> int:
        """D of the decoder in a folder, without its weights.

        Raises:
            UserError: a part is missing, or is another kind of model.
        """
        check_parts(folder, PARTS, "Karlo's decoder")
        return read_config(folder).clip_embeddings_dim

    @property
    def width(self) -> int:
        """D."""
        return self.projection.config.clip_embeddings_dim

    @property
    def fixed_size(self) -> tuple[int, int]:
        """The second stage's."""
        side = sample_positions(self.fine_first.config, FINE_SIDE)[0]
        return side, side

    def with_empty_text(self, features: TextFeatures) -> "KarloDecoder":
        return replace(self, empty=features)

    @torch.inference_mode()
    def generate(
        self,
        positive: Guide,
        generators: Sequence[torch.Generator],
        *,
        negative: Guide | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        on_step: Callable[[Progress], None] | None = None,
        latents: StageNoise = (None, None),
    ) -> Float[Tensor, "N 3 H W"]:
        """See `ImageDecoder`. Progress counts the steps of both stages, which are ancestral.

        Args:
            latents: the noise that the stages start from, [N, 3, h, w] and [N, 3, H, W], instead of the generators'.
        """
        request = checked_request(self, positive, negative, generators, sampling)
        base_times = visited(request.steps)
        fine_times = visited(request.options[SUPER_RES_STEPS.name], f" ({SUPER_RES_STEPS.name})")
        taken, total = count(1), len(base_times) + len(fine_times)

        def report(sigma: float, clean: Tensor) -> None:
            if on_step is not None:
                on_step(Progress(next(taken), total, sigma, clean))

        side = sample_positions(self.unet.config, BASE_SIDE)[0]
        with visiting(self.device, self.projection, offload=self.offload):
            inputs = self._read(request, side)
        with visiting(self.device, self.unet, offload=self.offload):
            predict, shape = self._base_predictor(inputs, request.guidance_scale), (3, side, side)
            small = sample_unclip(
                self.base_steps, predict, shape, base_times, generators, self.device, report, latents[0]
            )
        return to_unit(self._upscaled(small.clamp(-1, 1), fine_times, generators, report, latents[1]))

    def _read(self, request: DecoderRequest, side: int) -> UNetInputs:
        """What the first stage reads; the second one reads images alone."""
        positive, negative = request.positive, request.negative
        embeddings = request.embeddings(positive, self.width, self.device)
        features = self._features(positive, request.number)
        if request.guided:
            if negative is None or negative.embeddings is None:
                nothing = self.projection.nothing.to(self.device).float().expand(request.number, -1)
            else:
                nothing = request.embeddings(negative, self.width, self.device)
            embeddings = torch.cat([nothing, embeddings])
            features = TextFeatures.cat([self._features(negative, request.number), features])
        dtype = self.unet.dtype
        # What padding holds must not matter, and 0 × infinity would.
        states = features.states.masked_fill(~features.mask[..., None], 0.0)
        context, time = self.projection(embeddings.to(dtype), features.pooled.to(dtype), states.to(dtype))
        mask = F.pad(features.mask, (self.projection.config.clip_extra_context_tokens, 0), value=True)
        more = {"class_labels": time, "attention_mask": mask}
        return UNetInputs(states=context, arguments=more, regions=self._regions(request, side))

    def _features(self, guide: Guide | None, number: int) -> TextFeatures:
        """The prompt of each image (the empty one, where there is none), padded to `POSITIONS`."""
        found = self.empty if guide is None or guide.features is None else guide.features
        if found.pooled.shape[1] != self.width:
            raise UserError(
                f"Karlo reads prompts as a CLIP does whose embeddings are {which_clip(self.width)}; these features are "
                f"{which_clip(found.pooled.shape[1])}."
            )
        if len(found) not in (1, number):
            raise UserError(f"{len(found)} prompts for {number} images: give one for all, or one each.")
        if len(found) != number:
            found = found[[0] * number]
        length = found.states.shape[1]
        if length > POSITIONS:
            raise UserError(f"a prompt has {length} tokens; Karlo reads at most {POSITIONS}. Shorten the prompt.")
        found = found.to(self.device)
        states, mask = F.pad(found.states, (0, 0, 0, POSITIONS - length)), F.pad(found.mask, (0, POSITIONS - length))
        return TextFeatures(states, mask, found.pooled)

    def _regions(self, request: DecoderRequest, side: int) -> RegionBias | None:
        features = request.positive.features
        found = None if features is None else features.spans
        spans = None if found is None else F.pad(found, (0, 0, 0, POSITIONS - found.shape[1]))
        # Tokens of the image come before those of the text.
        start = self.projection.config.clip_extra_context_tokens
        return region_bias_of(
            request.positive,
            request.sampling,
            [spans],
            (side, side),
            self.device,
            start=start,
            negatives=request.negative_rows,
        )

    def _base_predictor(self, inputs: UNetInputs, scale: float) -> Callable[[Tensor, int, bool], Tensor]:
        def predict(x: Tensor, t: int, last: bool) -> Tensor:
            both = x if scale == 1 else torch.cat([x, x])
            found = self.unet(
                both.to(self.unet.dtype),
                t,
                encoder_hidden_states=inputs.states,
                cross_attention_kwargs=region_kwargs(inputs.regions, sigma_of(t)),
                return_dict=False,
                **inputs.arguments,
            )[0].float()
            if scale == 1:
                return found
            negative, positive = found.chunk(2)
            # Guidance moves the noise alone; where its variance lies is the positive half's to say.
            eps = negative[:, :3] + scale * (positive[:, :3] - negative[:, :3])
            return torch.cat([eps, positive[:, 3:]], 1)

        return predict

    def _upscaled(
        self,
        small: Float[Tensor, "N 3 h w"],
        times: Sequence[int],
        generators: Sequence[torch.Generator],
        report: Callable[[float, Tensor], None],
        start: Tensor | None,
    ) -> Float[Tensor, "N 3 H W"]:
        """The second stage, without guidance or prompt: it reads the first stage's images next to its own noisy ones."""
        side = self.fixed_size[0]
        below = F.interpolate(small, (side, side), mode="bicubic", align_corners=False, antialias=True)

        with ExitStack() as here:
            here.enter_context(visiting(self.device, self.fine_first, offload=self.offload))

            def predict(x: Tensor, t: int, last: bool) -> Tensor:
                unet = self.fine_last if last else self.fine_first
                if last:
                    here.close()
                    here.enter_context(visiting(self.device, unet, offload=self.offload))
                return unet(torch.cat([x, below], 1).to(unet.dtype), t, return_dict=False)[0]

            shape = (3, side, side)
            return sample_unclip(self.fine_steps, predict, shape, times, generators, self.device, report, start)

    def _check(self, folder: Path) -> None:
        """Whether the parts belong together."""
        made, read = self.projection.config.cross_attention_dim, self.unet.config.cross_attention_dim
        if made != read:
            raise UserError(
                f"{folder}: {TEXT_PROJECTION} makes a context {made} wide, {BASE} reads {read}: not one model's."
            )
        if self.fine_first.config.sample_size != self.fine_last.config.sample_size:
            raise UserError(
                f"{folder}: {FINE_FIRST} and {FINE_LAST} work on images of different sizes: not one model's."
            )
        for name, unet, steps, inputs in (
            (BASE, self.unet, self.base_steps, 3),
            (FINE_FIRST, self.fine_first, self.fine_steps, 6),
            (FINE_LAST, self.fine_last, self.fine_steps, 6),
        ):
            found, needed = (unet.config.in_channels, unet.config.out_channels), (inputs, 6 if steps.learned else 3)
            if found != needed:
                raise UserError(
                    f"{folder}: {name} reads and makes {found[0]} and {found[1]} channels; with its scheduler {needed[0]} and "
                    f"{needed[1]} are needed."
                )
