"""Stable Diffusion 1.x, 2.x and XL as decoders: a text → a picture. No prior, no image embedding.

The arithmetic is that of diffusers' `StableDiffusionPipeline` and `StableDiffusionXLPipeline`, without their filter of pictures
(`safety_checker`) and their watermark; the loop is ours.

Shapes: N pictures, M rows that the U-Net sees at once (2 N with guidance), T tokens, C text width, E width of XL's pooled text, H × W
pixels, h × w latent positions (an eighth of them).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip import clip_loading
from syzygy.clip.tokenization import Tokenized, around_ids, check_vocabulary
from syzygy.core import artifacts, diffusers_schedulers
from syzygy.core.contracts import Guide, Progress, Sampling
from syzygy.core.diffusers_timesteps import HostTimesteps, noise_of
from syzygy.core.diffusers_weights import check_parts, load_model, read_settings
from syzygy.core.errors import UserError
from syzygy.core.randomness import per_sample_noise
from syzygy.pretrained import decoder_validation
from syzygy.pretrained.latent_diffusion import decoded, guided, pixels_a_position, sample_positions
from syzygy.pretrained.stable_unclip import text_model
from syzygy.pretrained.visiting import visiting
from syzygy.regions.attention_processors import add_region_processors, padded_tokens, region_bias_of, region_kwargs
from syzygy.regions.region_bias import RegionBias

SECOND = "text_encoder_2"
PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
XL_PARTS = (*PARTS, SECOND, "tokenizer_2")
ZEROS = "force_zeros_for_empty_prompt"
"""Of XL's index: without a negative prompt guidance moves away from zeros, not from the empty text."""


@dataclass(frozen=True)
class Read:
    """Texts as a U-Net reads them."""

    states: Float[Tensor, "M T C"]
    pooled: Float[Tensor, "M E"] | None
    """XL's alone."""

    def __getitem__(self, rows: list[int]) -> "Read":
        return Read(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def zeros(self) -> "Read":
        """Nothing, instead of these texts."""
        return Read(torch.zeros_like(self.states), None if self.pooled is None else torch.zeros_like(self.pooled))

    def after(self, first: "Read") -> "Read":
        """Both, joined along the batch."""
        if self.pooled is None or first.pooled is None:
            return Read(torch.cat([first.states, self.states]), None)
        return Read(torch.cat([first.states, self.states]), torch.cat([first.pooled, self.pooled]))


@dataclass(frozen=True)
class TextReader:
    """The U-Net's own text encoder; or XL's two, whose states are side by side in the channels of each token.

    They read pads as other tokens, as they were trained to. Texts past the last position are cut with a warning.
    """

    encoders: Sequence[Any]
    tokenizers: Sequence[Any]
    device: torch.device
    offload: bool

    def tokens(self, texts: Sequence[str]) -> list[Tokenized]:
        """By each tokenizer."""
        return [padded_tokens(tokenizer, texts) for tokenizer in self.tokenizers]

    def __call__(self, tokens: Sequence[Tokenized]) -> Read:
        if len(tokens) == 1:
            (found,) = self._outputs(tokens)
            return Read(found[0], None)
        first, second = self._outputs(tokens, output_hidden_states=True)
        # XL was trained on the last layer's input; its pooled text is the second encoder's.
        return Read(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds)

    def _outputs(self, tokens: Sequence[Tokenized], **more: Any) -> list[Any]:
        found = []
        for encoder, own in zip(self.encoders, tokens, strict=True):
            heeds = getattr(encoder.config, "use_attention_mask", False)
            mask = own.mask.to(self.device, torch.long) if heeds else None
            with visiting(self.device, encoder, offload=self.offload):
                found.append(encoder(own.ids.to(self.device), attention_mask=mask, **more))
        return found


@dataclass(frozen=True)
class StableDiffusionDecoder:
    """A `ImageDecoder` that reads texts alone, token by token, so that their words can be painted.

    To move away from: a negative text, by default the empty one, or what stands for none (XL).
    """

    unet: Any
    vae: Any
    reader: TextReader
    scheduler: Any
    """The repository's own; others take its noise schedule."""
    zeros: bool
    """Whether zeros stand for no text to move away from."""
    device: torch.device
    offload: bool = False
    """Text encoders, U-Net and autoencoder are on the device only while they compute."""
    defaults: Sampling = field(init=False)

    def __post_init__(self) -> None:
        height, width = (positions * self.scale for positions in sample_positions(self.unet.config))
        scale = 5.0 if self.is_xl else 7.5
        name = diffusers_schedulers.name_of(self.scheduler)
        object.__setattr__(
            self, "defaults", Sampling(steps=50, guidance_scale=scale, sampler=name, size=(height, width))
        )
        add_region_processors(self.unet)

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("text",)

    @property
    def is_xl(self) -> bool:
        return len(self.reader.encoders) == 2

    @property
    def scale(self) -> int:
        """Pixels a latent position, along each side."""
        return pixels_a_position(self.vae)

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
        """See `ImageDecoder`. Height and width are multiples of 8 (pixels a latent position)."""
        steps, scale = decoder_validation.settings(positive, sampling, self.defaults, negative, paints=True)
        height, width = decoder_validation.size_of(sampling, self.defaults, self.scale)
        scheduler = diffusers_schedulers.fresh(self.scheduler, sampling.sampler)
        if diffusers_schedulers.learns_variance(scheduler):
            raise UserError("this U-Net learned no variance, but its scheduler wants one: choose another sampler.")
        if positive.texts is None:
            raise UserError("this decoder paints from texts: tell it one.")
        number, (h, w) = len(generators), (height // self.scale, width // self.scale)
        tokens, read = self._read(decoder_validation.texts_of(positive, number))
        spans = [own.spans for own in tokens]
        negatives = 0 if scale == 1 else number
        bias = region_bias_of(positive, sampling, spans, (h, w), self.device, negatives=negatives)
        if scale != 1:
            nothing = negative is None and self.zeros
            read = read.after(read.zeros() if nothing else self._read(decoder_validation.texts_of(negative, number))[1])
        noise = per_sample_noise((self.unet.config.in_channels, h, w), generators, self.device)
        predict = self._predictor(read, scale, scheduler, bias, (height, width))
        with visiting(self.device, self.unet, offload=self.offload):
            latents = diffusers_schedulers.walk(scheduler, predict, noise, steps, generators, on_step)
        with visiting(self.device, self.vae, offload=self.offload):
            return decoded(self.vae, latents, singly=self.offload)

    def _read(self, texts: list[str]) -> tuple[list[Tokenized], Read]:
        """Tokens of each picture's text, and what is read of them; each text is read once."""
        known = list(dict.fromkeys(texts))
        rows, tokens = [known.index(text) for text in texts], self.reader.tokens(known)
        found = self.reader(tokens)[rows]
        return [Tokenized(own.ids[rows], own.mask[rows], own.spans[rows]) for own in tokens], found

    def _predictor(
        self, read: Read, scale: float, scheduler: Any, bias: RegionBias | None, size: tuple[int, int]
    ) -> diffusers_schedulers.Predict:
        """What a scheduler steps with; what to move away from comes first."""
        states = read.states.to(self.unet.dtype)
        more = None
        if read.pooled is not None:
            # XL was told each picture's size before it was cut, where it was cut, and its size then.
            told = torch.tensor([[*size, 0, 0, *size]], dtype=states.dtype, device=self.device)
            more = {"text_embeds": read.pooled.to(self.unet.dtype), "time_ids": told.expand(len(states), -1)}
        noise, host = noise_of(scheduler), HostTimesteps()

        def predict(x: Tensor, t: Tensor) -> Tensor:
            both = (x if scale == 1 else torch.cat([x, x])).to(self.unet.dtype)
            found = self.unet(
                both,
                t,
                states,
                cross_attention_kwargs=region_kwargs(bias, noise(host.value(t))),
                added_cond_kwargs=more,
                return_dict=False,
            )[0].float()
            return guided(found, scale)

        return predict


def load_stable_diffusion(
    folder: Path, *, dtype: torch.dtype, device: torch.device, offload: bool, tiling: bool
) -> StableDiffusionDecoder:
    """The decoder in a folder with the layout of stable-diffusion-v1-5/stable-diffusion-v1-5, or of XL's if it has a second text encoder.

    Args:
        tiling: decode tile by tile and picture by picture: big pictures in little memory, seams blended.

    Raises:
        UserError: a part is missing, truncated, pickle or another kind; parts do not fit together.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    xl = check_folder(folder)
    heavy = read_settings(folder, "vae", "AutoencoderKL").get("force_upcast", True)
    unet: Any = load_model(UNet2DConditionModel, folder, "unet", dtype)
    # XL's autoencoder overflows in half precision, unless it says otherwise.
    vae: Any = load_model(
        AutoencoderKL, folder, "vae", torch.float32 if xl and heavy and dtype == torch.float16 else dtype
    )
    reader = load_reader(folder, dtype, device, offload)
    check_fit(folder, unet.config, vae.config, reader)
    if tiling:
        vae.enable_tiling()
        vae.enable_slicing()
    if not offload:
        unet, vae = unet.to(device), vae.to(device)
    zeros = moves_from_zeros(folder)
    return StableDiffusionDecoder(unet, vae, reader, _scheduler(folder, xl), zeros, device, offload)


def check_folder(folder: Path) -> bool:
    """Whether it is XL's, by its second text encoder.

    Raises:
        UserError: a part is missing.
    """
    xl = (folder / SECOND).is_dir()
    check_parts(folder, XL_PARTS if xl else PARTS, "Stable Diffusion XL" if xl else "Stable Diffusion")
    return xl


def moves_from_zeros(folder: Path) -> bool:
    """Whether zeros, not the empty text, stand for no text."""
    return (folder / SECOND).is_dir() and bool(artifacts.read_json(folder / "model_index.json").get(ZEROS, True))


def load_reader(folder: Path, dtype: torch.dtype, device: torch.device, offload: bool) -> TextReader:
    """The text encoder in a folder, or both of XL, on the device unless they are offloaded."""
    encoders, tokenizers = [text_model(folder, dtype)], [clip_loading.read_tokenizer(folder / "tokenizer")]
    if (folder / SECOND).is_dir():
        encoders.append(_second_text_model(folder, dtype))
        tokenizers.append(clip_loading.read_tokenizer(folder / "tokenizer_2"))
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        check_vocabulary(tokenizer, encoder.config.vocab_size, str(folder), around_ids(tokenizer))
    if not offload:
        encoders = [encoder.to(device) for encoder in encoders]
    return TextReader(encoders, tokenizers, device, offload)


def _second_text_model(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    path = folder / SECOND
    values = artifacts.read_json(path / artifacts.CONFIG_FILE)
    part = clip_loading.Part(CLIPTextModelWithProjection, CLIPTextConfig, path, values)
    return clip_loading.filled(part, part.stored(), dtype).eval().requires_grad_(False)


def _scheduler(folder: Path, xl: bool) -> Any:
    """The repository's own, with what diffusers mends in old ones."""
    found = diffusers_schedulers.load_scheduler(folder)
    mended: dict[str, Any] = {"steps_offset": 1, "clip_sample": False}
    mended = {name: value for name, value in mended.items() if name in found.config}
    # As arguments: in the configuration itself they would be overlooked where the file does not name them.
    return found if xl else type(found).from_config(found.config, **mended)


def check_fit(folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any], reader: TextReader) -> None:
    """Whether the parts, by their configurations, belong together, and are those of Stable Diffusion or XL.

    Raises:
        UserError: they are not.
    """
    encoders = [encoder.config for encoder in reader.encoders]
    width = sum(encoder.hidden_size for encoder in encoders)
    if unet["cross_attention_dim"] != width:
        raise UserError(
            f"{folder}: the U-Net reads text states {unet['cross_attention_dim']} wide, its text encoder makes {width}."
        )
    adds = "text_time" if len(encoders) == 2 else None
    odd = [name for name in ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim") if unet.get(name)]
    if unet.get("addition_embed_type") != adds or odd:
        raise UserError(
            f"the U-Net in {folder} reads more than Stable Diffusion's do ({', '.join(odd) or 'addition_embed_type'}): "
            "unCLIP and distilled models that read their guidance (LCM) are other kinds."
        )
    if adds and unet["projection_class_embeddings_input_dim"] != (
        wanted := 6 * unet["addition_time_embed_dim"] + encoders[1].projection_dim
    ):
        raise UserError(
            f"{folder}: the U-Net reads pooled texts and sizes {unet['projection_class_embeddings_input_dim']} wide together, its "
            f"second text encoder would make them {wanted}."
        )
    if unet["in_channels"] != vae["latent_channels"] or vae.get("latents_mean"):
        raise UserError(
            f"{folder}: the U-Net reads {unet['in_channels']} channels, the autoencoder makes {vae['latent_channels']}"
            f"{', moved' if vae.get('latents_mean') else ''}: inpainting models and those with shifted latents are other kinds."
        )
