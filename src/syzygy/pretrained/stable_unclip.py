"""Stable unCLIP (Stable Diffusion 2.1): an image embedding, with a noise level, and a text → a picture.

The arithmetic is that of diffusers' `StableUnCLIPPipeline` after its prior, and of `StableUnCLIPImg2ImgPipeline` after its image
encoder: neither is needed here. The U-Net adds the noised embedding to its time embedding, and attends to the states of its *own*
text encoder (OpenCLIP ViT-H/14, 1024 wide), which is not the prior's CLIP.

Shapes: N pictures, D width of the embeddings (768), H × W pixels, h × w latent positions (an eighth of them), T tokens, C text width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip import clip_loading
from syzygy.clip.tokenization import Tokenized, around_ids, check_vocabulary
from syzygy.core import arguments, artifacts, diffusers_schedulers
from syzygy.core.contracts import Guide, Progress, Sampling
from syzygy.core.diffusers_timesteps import HostTimesteps, noise_of
from syzygy.core.diffusers_weights import check_parts, load_model, read_settings
from syzygy.core.errors import UserError
from syzygy.core.randomness import per_sample_noise
from syzygy.pretrained import decoder_validation
from syzygy.pretrained.latent_diffusion import decoded, guided, pixels_a_position, sample_positions
from syzygy.pretrained.visiting import visiting
from syzygy.regions.attention_processors import add_region_processors, padded_tokens, region_bias_of, region_kwargs
from syzygy.regions.region_bias import RegionBias

TEXT_ENCODER, NORMALIZER, NOISING = "text_encoder", "image_normalizer", "image_noising_scheduler"
PARTS = ("unet", "vae", "scheduler", TEXT_ENCODER, "tokenizer", NORMALIZER, NOISING)
NOISE_LEVEL = "noise_level"
"""Option: how much the embedding is noised before the U-Net reads it, 0 to 999; higher makes pictures less like it."""
PREFIX = "text_model."
"""Of the text encoder's weights before transformers 5."""


@dataclass(frozen=True)
class OwnText:
    """The U-Net's own text encoder: states of all positions, padding included, as it was trained with."""

    model: Any
    tokenizer: Any
    device: torch.device
    offload: bool

    def tokens(self, texts: Sequence[str]) -> Tokenized:
        return padded_tokens(self.tokenizer, texts, most=self.model.config.max_position_embeddings)

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "N T C"]:
        tokens = self.tokens(texts)
        heeds = getattr(self.model.config, "use_attention_mask", False)
        mask = tokens.mask.to(self.device, torch.long) if heeds else None
        with visiting(self.device, self.model, offload=self.offload):
            return self.model(tokens.ids.to(self.device), attention_mask=mask)[0]


@dataclass(frozen=True)
class StableUnclipDecoder:
    """A `ImageDecoder` that reads image embeddings and texts; without a text it reads the empty one.

    Away from: the embedding of zeros and a negative text (the empty one by default), as it was trained; where only
    embeddings are told, away from those.
    """

    unet: Any
    vae: Any
    text: OwnText
    normalizer: Any
    noising: Any
    """Scheduler of the embedding's noise."""
    scheduler: Any
    """The repository's own; others take its noise schedule."""
    device: torch.device
    offload: bool = False
    """Text encoder, U-Net and autoencoder are on the device only while they compute."""
    defaults: Sampling = field(init=False)

    def __post_init__(self) -> None:
        height, width = (positions * self.scale for positions in sample_positions(self.unet.config))
        name = diffusers_schedulers.name_of(self.scheduler)
        own = Sampling(steps=20, guidance_scale=10.0, sampler=name, size=(height, width), options={NOISE_LEVEL: 0})
        object.__setattr__(self, "defaults", own)
        add_region_processors(self.unet)

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("image", "text")

    @property
    def width(self) -> int:
        """D."""
        return self.normalizer.config.embedding_dim

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
        """See `ImageDecoder`. Height and width are multiples of 8 (pixels a latent position); option `noise_level`, 0 to 999."""
        steps, scale = decoder_validation.settings(
            positive, sampling, self.defaults, negative, [NOISE_LEVEL], paints=True
        )
        height, width = decoder_validation.size_of(sampling, self.defaults, self.scale)
        level = self._level(sampling)
        scheduler = diffusers_schedulers.fresh(self.scheduler, sampling.sampler)
        if diffusers_schedulers.learns_variance(scheduler):
            raise UserError("this U-Net learned no variance, but its scheduler wants one: choose another sampler.")
        number = len(generators)
        # The embedding's noise comes before the latents', as in diffusers.
        noise = per_sample_noise((self.width,), generators, self.device)
        labels = self._noised(decoder_validation.embeddings_of(positive, number, self.width, self.device), noise, level)
        texts, size = decoder_validation.texts_of(positive, number), (height // self.scale, width // self.scale)
        bias = self._region_bias(positive, sampling, texts, size, 0 if scale == 1 else number)
        if scale != 1:
            from_labels, from_texts = self._away(negative, number, noise, level)
            labels, texts = torch.cat([from_labels, labels]), from_texts + texts
        states = self._states(texts).to(self.unet.dtype)
        start = per_sample_noise((self.unet.config.in_channels, *size), generators, self.device)
        predict = self._predictor(states, labels.to(self.unet.dtype), scale, scheduler, bias)
        with visiting(self.device, self.unet, offload=self.offload):
            latents = diffusers_schedulers.walk(scheduler, predict, start, steps, generators, on_step)
        with visiting(self.device, self.vae, offload=self.offload):
            return decoded(self.vae, latents, singly=self.offload)

    def _level(self, sampling: Sampling) -> int:
        level = sampling.options.get(NOISE_LEVEL, self.defaults.options[NOISE_LEVEL])
        most = self.noising.config.num_train_timesteps - 1
        return arguments.whole(level, NOISE_LEVEL, 0, most)

    def _noised(
        self, embeddings: Float[Tensor, "N D"], noise: Float[Tensor, "N D"], level: int
    ) -> Float[Tensor, "N twoD"]:
        """Embeddings noised to `level` where their statistics are those of the schedule, beside the sinusoids of the level."""
        from diffusers.models.embeddings import get_timestep_embedding

        levels = torch.full((len(embeddings),), level, device=embeddings.device)
        scaled = self.normalizer.scale(embeddings)
        noised = self.normalizer.unscale(self.noising.add_noise(scaled, timesteps=levels, noise=noise))
        sinusoids = get_timestep_embedding(levels, self.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        return torch.cat([noised, sinusoids], dim=1)

    def _away(
        self, negative: Guide | None, number: int, noise: Float[Tensor, "N D"], level: int
    ) -> tuple[Float[Tensor, "N twoD"], list[str]]:
        if negative is not None and negative.texts is None:
            return self._noised(
                decoder_validation.embeddings_of(negative, number, self.width, self.device), noise, level
            ), [""] * number
        texts = decoder_validation.texts_of(negative, number)
        return noise.new_zeros(number, 2 * self.width), texts

    def _region_bias(
        self, positive: Guide, sampling: Sampling, texts: list[str], size: tuple[int, int], negatives: int
    ) -> RegionBias | None:
        if not positive.regions:
            return None
        spans = self.text.tokens(texts).spans
        return region_bias_of(positive, sampling, [spans], size, self.device, negatives=negatives)

    def _states(self, texts: list[str]) -> Float[Tensor, "M T C"]:
        """Each text is read once."""
        known = list(dict.fromkeys(texts))
        return self.text(known)[[known.index(text) for text in texts]]

    def _predictor(
        self,
        states: Float[Tensor, "M T C"],
        labels: Float[Tensor, "M twoD"],
        scale: float,
        scheduler: Any,
        bias: RegionBias | None,
    ) -> diffusers_schedulers.Predict:
        """What a scheduler steps with; M is N, or 2 N with guidance (what to move away from comes first)."""
        noise, host = noise_of(scheduler), HostTimesteps()

        def predict(x: Tensor, t: Tensor) -> Tensor:
            both = (x if scale == 1 else torch.cat([x, x])).to(self.unet.dtype)
            painted = region_kwargs(bias, noise(host.value(t)))
            found = self.unet(both, t, states, class_labels=labels, cross_attention_kwargs=painted, return_dict=False)
            return guided(found[0].float(), scale)

        return predict


def embedding_width(folder: Path) -> int:
    """D of the decoder in a folder, without its weights.

    Raises:
        UserError: a part is missing, or the parts do not belong together.
    """
    check_parts(folder, PARTS, "Stable unCLIP")
    width = read_settings(folder, NORMALIZER, "StableUnCLIPImageNormalizer").get("embedding_dim")
    unet = read_settings(folder, "unet", "UNet2DConditionModel")
    if unet.get("projection_class_embeddings_input_dim") != 2 * (width or 0):
        raise UserError(
            f"{folder}: the U-Net reads embeddings with noise levels {unet.get('projection_class_embeddings_input_dim')} wide, "
            f"which must be twice the image normaliser's {width}: they belong to different models."
        )
    assert isinstance(width, int)
    return width


def load_stable_unclip(
    folder: Path, *, dtype: torch.dtype, device: torch.device, offload: bool, tiling: bool
) -> StableUnclipDecoder:
    """The decoder in a folder with the layout of stabilityai/stable-diffusion-2-1-unclip-small; its image encoder is not read.

    Args:
        tiling: decode tile by tile and picture by picture: big pictures in little memory, seams blended.

    Raises:
        UserError: a part is missing, truncated, pickle or another kind.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    embedding_width(folder)
    scheduler, noising = (
        diffusers_schedulers.load_scheduler(folder),
        diffusers_schedulers.load_scheduler(folder, NOISING),
    )
    # Statistics are few and exact: in fp32, whatever the networks compute in.
    normalizer = load_model(StableUnCLIPImageNormalizer, folder, NORMALIZER, torch.float32).to(device)
    unet = load_model(UNet2DConditionModel, folder, "unet", dtype)
    vae = load_model(AutoencoderKL, folder, "vae", dtype)
    text = text_model(folder, dtype)
    states = text.config.hidden_size
    if unet.config["cross_attention_dim"] != states:
        raise UserError(
            f"{folder}: the U-Net reads text states {unet.config['cross_attention_dim']} wide, its text encoder makes {states}."
        )
    if tiling:
        vae.enable_tiling()
        vae.enable_slicing()
    if not offload:
        unet, vae, text = unet.to(device), vae.to(device), text.to(device)
    tokenizer = clip_loading.read_tokenizer(folder / "tokenizer")
    check_vocabulary(tokenizer, text.config.vocab_size, str(folder), around_ids(tokenizer))
    own_text = OwnText(text, tokenizer, device, offload)
    return StableUnclipDecoder(unet, vae, own_text, normalizer, noising, scheduler, device, offload)


def text_model(folder: Path, dtype: torch.dtype) -> Any:
    """The U-Net's own text encoder in a folder of diffusers' layout, frozen, on the CPU."""
    from transformers import CLIPTextConfig, CLIPTextModel

    path = folder / TEXT_ENCODER
    part = clip_loading.Part(CLIPTextModel, CLIPTextConfig, path, artifacts.read_json(path / artifacts.CONFIG_FILE))
    stored = {name.removeprefix(PREFIX): value for name, value in part.stored().items()}
    return clip_loading.filled(part, stored, dtype).eval().requires_grad_(False)
