"""A prior with its CLIP, called as diffusers' `KandinskyV22PriorPipeline` is, with the same output.

Shapes: P prompts, N pictures (prompts × pictures a prompt, those of one prompt together), R rows that the prior predicts (N, or 2 N
with negative prompts, whose rows come last), D width of the embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.clip.zero_image import ZeroImage
from syzygy.core import arguments, artifacts, hub_files
from syzygy.core.config import parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.core.pixels import check_finite
from syzygy.core.randomness import per_sample_noise
from syzygy.generation.replaced_text_encoder import adapter_folder, llm_beside
from syzygy.generation.request import check_generator
from syzygy.pretrained.repositories import identity
from syzygy.prior.diffusion_prior import PriorSampling, SampledPrior
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.prior_loading import OnePassPrior, load_prior
from syzygy.prior.prior_network import EXAMPLE, find_prior, holds_diffusion
from syzygy.prior.unclip_sampling import TIMESTEPS
from syzygy.text_encoders.adapter import AdaptedText
from syzygy.text_encoders.adapter_folders import load_adapted

if TYPE_CHECKING:
    from diffusers.pipelines.kandinsky.pipeline_kandinsky_prior import KandinskyPriorPipelineOutput

CLIPS = {1280: "kandinsky-community/kandinsky-2-2-prior", 768: "openai/clip-vit-large-patch14"}
"""Whose embeddings published priors predict, by their width."""


@dataclass
class PriorPipeline:
    """Prompts → `image_embeds, negative_image_embeds`, for every decoder of diffusers that takes these, such as Kandinsky 2.2's.

    Make it with `from_pretrained`, and call it as diffusers' pipeline.
    """

    clip: Clip
    prior: OnePassPrior | SampledPrior
    zero_image: ZeroImage
    """The image encoder's output for a picture of zeros: the negative conditioning where there is no negative prompt."""
    dtype: torch.dtype
    """The precision of the returned embeddings."""
    text_encoder: Clip | AdaptedText
    """What reads prompts: the CLIP, or a language model with its adapter."""

    @classmethod
    def from_pretrained(
        cls,
        prior: str | Path,
        *,
        clip: str | Path | None = None,
        text_encoder: str | Path | None = None,
        llm: str | Path | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        local_files_only: bool = False,
    ) -> "PriorPipeline":
        """Load a prior, on the CPU, with the text encoder that belongs to it; the image encoder is loaded when first needed.

        Args:
            prior: ECLIPSE, residual, linear or a stock prior: hub id (`@` and a revision may follow), folder, or finished training run.
            clip: folder or hub id of the CLIP that the prior was trained with. By default the prior's own repository, where it
                holds one; else, by the width of its embeddings, Kandinsky 2.2's or OpenAI's ViT-L/14.
            text_encoder: a language model's adapter that reads prompts, negative ones too, instead of CLIP: its folder, or the run that
                trained it.
            llm: the adapter's language model (folder or hub id), if it has moved since the training.
            dtype: what text encoder and stock prior compute in, and of the embeddings; fp32 by default. The others are small and
                compute in fp32 always.
            torch_dtype: the same, by the name that it had before diffusers 0.42.
            local_files_only: search the local cache only. By default, as in diffusers, what is missing is downloaded.

        Raises:
            UserError: a part is not found, broken, or does not fit the other.
        """
        if dtype is not None and torch_dtype is not None:
            raise UserError("dtype and torch_dtype are one setting: give one of them.")
        if text_encoder is None and llm is not None:
            raise UserError("a language model has no effect without its adapter: name a text encoder, or leave it out.")
        dtype = dtype or torch_dtype or torch.float32
        folder = find_prior(prior, local_files_only=local_files_only)
        source = _clip_of(prior, folder) if clip is None else clip
        # One after the other, so that what has been downloaded is found by everything below.
        text_first = Clip.from_pretrained(
            source, dtype=dtype, text_first=True, local_files_only=local_files_only
        ).requires_grad_(False)
        own = dtype if holds_diffusion(folder) else torch.float32
        loaded = load_prior(folder, text_first, dtype=own)
        at = hub_files.locate(source, None, local_files_only=True)
        zero_image = ZeroImage(text_first, identity(at))
        if isinstance(loaded, LambdaEclipsePrior):
            loaded.zero_image = zero_image
        if text_encoder is None:
            return cls(text_first, loaded, zero_image, dtype, text_first)
        reads = load_adapted(
            found := adapter_folder(text_encoder, folder.parent),
            text_first,
            llm=llm or llm_beside(found),
            local_files_only=local_files_only,
        )
        if isinstance(loaded, SampledPrior):
            loaded = replace(loaded, unconditional=reads.encode_text([""]))
        return cls(text_first, loaded, zero_image, dtype, reads)

    def to(self, device: torch.device | str) -> "PriorPipeline":
        """Move text encoder and prior; itself, for chaining."""
        self.clip.to(device)
        self.text_encoder.to(device)
        network = self.prior.network if isinstance(self.prior, SampledPrior) else self.prior
        network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.clip.device

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "R D"] | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> "KandinskyPriorPipelineOutput | tuple[Any, Any]":
        """Image embeddings of prompts, and their negative conditioning.

        Args:
            prompt: one, or P.
            negative_prompt: one for all, or one each, through the prior as the prompts are. None: the embedding of a picture of
                zeros.
            num_images_per_prompt: embeddings a prompt, each from its own noise.
            num_inference_steps: of a stock prior, 25 by default. Others answer in one pass and take none.
            generator: one for all noise, or one for each of the N; without it torch's own.
            latents: the noise itself: ECLIPSE's ε, or where a stock prior starts.
            guidance_scale: of a stock prior, 4 by default; not the decoder's.
            output_type: tensors on the device, or numpy arrays.
            return_dict: diffusers' output class, or a tuple.

        Raises:
            UserError: arguments of another type, numbers that do not fit, steps or guidance of a prior that answers in one pass.
            NonFiniteError: noise (`latents`) or an embedding holds NaN or infinity.
        """
        prompts = arguments.texts(prompt)
        num_images_per_prompt = arguments.whole(num_images_per_prompt, "num_images_per_prompt")
        generator = check_generator(generator)
        prior = self._sampled(num_inference_steps, guidance_scale)
        rows = [i for i in range(len(prompts)) for _ in range(num_images_per_prompt)]
        if not rows:
            raise UserError(
                f"{len(prompts)} prompts, {num_images_per_prompt} pictures a prompt: give 1 or more of both."
            )
        negatives = (
            None
            if negative_prompt is None
            else _one_each(arguments.texts(negative_prompt, "negative_prompt"), len(prompts))
        )
        noise = self._noise(len(rows), 1 if negatives is None else 2, generator, latents)
        features = self.text_encoder.encode_text(prompts)
        if negatives is None:
            found = prior.predict(features[rows], noise=noise)
            away = self.zero_image().to(found).expand(len(rows), -1)
        else:
            unique = list(dict.fromkeys(negatives))
            theirs, which = self.text_encoder.encode_text(unique), [unique.index(negatives[row]) for row in rows]
            both = TextFeatures.cat([features[rows], theirs[which]])
            found, away = _predicted(prior, both, theirs, which * 2, noise).chunk(2)
        found, away = found.to(self.dtype), away.to(self.dtype)
        for embeddings, texts in ((found, prompts), (away, negatives or [])):
            try:
                check_finite(embeddings, "image embeddings")
            except NonFiniteError as error:
                raise error.named(
                    [repr(texts[row][:60]) if texts else "of an image of zeros" for row in rows]
                ) from None
        return _output(found, away, output_type, return_dict)

    def _sampled(self, steps: int | None, scale: float | None) -> OnePassPrior | SampledPrior:
        """The prior with the given settings."""
        asked: dict[str, Any] = {}
        if steps is not None:
            asked["steps"] = arguments.whole(steps, "num_inference_steps", 1, TIMESTEPS)
        if scale is not None:
            asked["guidance_scale"] = arguments.number(scale, "guidance_scale", 0)
        if not asked:
            return self.prior
        if not isinstance(self.prior, SampledPrior):
            raise UserError(
                "num_inference_steps and guidance_scale have no effect on this prior, which answers in one pass. Leave them "
                "out here; the decoder takes its own."
            )
        changed = parse(PriorSampling, self.prior.sampling.model_dump() | asked, "the call")
        return replace(self.prior, sampling=changed)

    def _noise(
        self,
        pictures: int,
        parts: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Float[Tensor, "R D"]:
        """Where the prior starts, as diffusers draws it."""
        shape, width = (pictures * parts, self.clip.width), self.clip.width
        if latents is not None:
            if not isinstance(latents, Tensor):
                raise UserError(f"latents must be a tensor of shape {shape}, got {type(latents).__name__}.")
            if tuple(latents.shape) != shape:
                raise UserError(f"latents have shape {tuple(latents.shape)}; {shape} is needed.")
            check_finite(latents, "latents")
            return latents.to(self.device)
        if isinstance(generator, Sequence):
            if len(generator) != pictures:
                raise UserError(f"{len(generator)} generators for {pictures} pictures: pass one each, or one for all.")
            return torch.cat([per_sample_noise((width,), generator, self.device) for _ in range(parts)])
        device = self.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(self.device)


def _clip_of(source: str | Path, folder: Path) -> str | Path:
    """The CLIP of a prior: of the pipeline that it lies in, or the published one of its width."""
    pipeline = folder.parent
    if all((pipeline / part).is_dir() for part in (hub_files.TEXT, hub_files.IMAGE)):
        return pipeline if Path(source).is_dir() else source
    width = artifacts.read_json(folder / artifacts.CONFIG_FILE).get("embedding_dim")
    if width not in CLIPS:
        raise UserError(
            f"the prior {source} predicts embeddings {width} wide, of no published CLIP known here: give the folder or hub id of "
            f"the CLIP that it was trained with (clip=…). A published prior is {EXAMPLE}."
        )
    return CLIPS[width]


def _one_each(negatives: list[str], prompts: int) -> list[str]:
    if len(negatives) not in (1, prompts):
        raise UserError(f"{len(negatives)} negative prompts for {prompts} prompts: give one for all, or one each.")
    return negatives if len(negatives) == prompts else negatives * prompts


def _predicted(
    prior: OnePassPrior | SampledPrior, features: TextFeatures, away: TextFeatures, rows: list[int], noise: Tensor
) -> Float[Tensor, "R D"]:
    """As a stock pipeline does, whose prior too is guided away from the negative prompt (row of `away`) instead of the empty one."""
    if not isinstance(prior, SampledPrior):
        return prior.predict(features, noise=noise)
    found = torch.empty_like(noise, dtype=prior.network.proj_in.weight.dtype)
    for row in sorted(set(rows)):
        chosen = [i for i, one in enumerate(rows) if one == row]
        found[chosen] = replace(prior, unconditional=away[[row]]).predict(features[chosen], noise=noise[chosen])
    return found


def _output(found: Tensor, away: Tensor, output_type: str, return_dict: bool) -> Any:
    from diffusers.pipelines.kandinsky.pipeline_kandinsky_prior import KandinskyPriorPipelineOutput

    if output_type not in ("pt", "np"):
        raise UserError(f"output_type {output_type!r} is unknown. Known: pt, np.")
    embeddings = (found, away) if output_type == "pt" else (found.float().cpu().numpy(), away.float().cpu().numpy())
    return KandinskyPriorPipelineOutput(*embeddings) if return_dict else embeddings
