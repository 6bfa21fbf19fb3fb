"""Text → image embedding → latents → picture. Takes contracts, loads nothing.

Shapes: P prompts, N pictures (prompts × pictures a prompt, those of one prompt together), D joint width of CLIP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from syzygy.diffusion.guidance import Guided
from syzygy.diffusion.noise import KarrasSchedule
from syzygy.diffusion.samplers import Progress, sample
from syzygy.errors import UserError
from syzygy.rng import per_sample_noise
from syzygy.types import (
    Conditioning,
    Denoiser,
    ImageAutoencoder,
    Prior,
    TextEncoder,
    TextFeatures,
    image_condition,
    text_condition,
)

CONDITIONS = ("image", "text")


@dataclass(frozen=True)
class PipelineOutput:
    """Pictures, and the image embeddings that they were decoded from."""

    images: list[Image.Image]
    """N pictures, those of one prompt together."""
    image_embeddings: Float[Tensor, "N D"]
    """What the prior predicted."""


@dataclass(frozen=True)
class Pipeline:
    """The path of a prompt: text encoder, prior, denoiser in a sampler, autoencoder."""

    text_encoder: TextEncoder
    prior: Prior
    denoiser: Denoiser
    autoencoder: ImageAutoencoder
    device: torch.device
    schedule: KarrasSchedule = field(default_factory=KarrasSchedule)

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 25,
        guidance_scale: float = 2.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: str = "dpm++2m",
        conditions: Sequence[str] = CONDITIONS,
        callback: Callable[[Progress], None] | None = None,
    ) -> PipelineOutput:
        """Paint each prompt `num_images_per_prompt` times.

        Args:
            negative_prompt: what to move away from, through the same encoder and prior; needs guidance (a scale not 1).
            guidance_scale: 1 means off.
            generator: one a picture (N), or one from which each picture's own is drawn in turn, so that neither the
                batch nor what follows changes a picture. None draws a fresh seed.
            conditions: what the decoder reads: the predicted image embedding, the text states, or both.
            callback: told after each step.

        Raises:
            UserError: an empty prompt, fewer than one picture or step, an unknown condition or sampler.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        _check(prompts, num_images_per_prompt, conditions)
        number = len(prompts) * num_images_per_prompt
        generators = one_each(generator, number)
        rows = [i for i in range(len(prompts)) for _ in range(num_images_per_prompt)]
        features = self.text_encoder.encode_text(prompts)[rows]
        noise = per_sample_noise((self.text_encoder.width,), generators, self.device)
        embeddings = self.prior.predict(features, noise=noise)
        negative = None
        if negative_prompt is not None:
            away = self.text_encoder.encode_text([negative_prompt])
            zeros = noise.new_zeros(1, noise.shape[1])
            negative = conditioning_of(away, self.prior.predict(away, noise=zeros), conditions)
        pictures = self.decode(
            conditioning_of(features, embeddings, conditions),
            generators,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            negative=negative,
            callback=callback,
        )
        return PipelineOutput(to_pil(pictures), embeddings.cpu())

    @torch.inference_mode()
    def decode(
        self,
        conditioning: Conditioning,
        generators: Sequence[torch.Generator],
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 2.0,
        sampler: str = "dpm++2m",
        negative: Conditioning | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> Float[Tensor, "N 3 H W"]:
        """Pictures in [0, 1] of a conditioning of N samples, each from its own generator's noise."""
        noise = per_sample_noise(self.autoencoder.latent_shape, generators, self.device)
        denoiser = Guided(self.denoiser, guidance_scale, negative)
        sigmas = self.schedule.sigmas(num_inference_steps)
        latents = sample(denoiser, noise, sigmas, conditioning, sampler=sampler, on_step=callback)
        return self.autoencoder.decode(latents)


def _check(prompts: list[str], num_images_per_prompt: int, conditions: Sequence[str]) -> None:
    if not prompts or not all(p.strip() for p in prompts):
        raise UserError("the prompt is empty: write what to paint, such as 'a red circle left of a blue star'.")
    if broken := [p for p in prompts if any("\ud800" <= c <= "\udfff" for c in p)]:
        raise UserError(f"the prompt is not text, it holds broken characters: {broken[0]!r}. Give it in UTF-8.")
    if num_images_per_prompt < 1:
        raise UserError(f"{num_images_per_prompt} pictures a prompt cannot be painted; ask for 1 or more.")
    if not conditions or not set(conditions) <= set(CONDITIONS):
        raise UserError(f"conditions {list(conditions)} must be one or both of {', '.join(CONDITIONS)}.")


def conditioning_of(
    features: TextFeatures, embeddings: Float[Tensor, "N D"], conditions: Sequence[str] = CONDITIONS
) -> Conditioning:
    """The named conditions as a decoder's conditioning; what is not named is absent."""
    all_of_them = {"image": image_condition(embeddings), "text": text_condition(features)}
    return Conditioning({name: all_of_them[name] for name in conditions})


def one_each(generator: torch.Generator | Sequence[torch.Generator] | None, number: int) -> list[torch.Generator]:
    """A generator for each of `number` pictures: those given, or drawn one after the other from a single one."""
    if isinstance(generator, Sequence):
        if len(generator) != number:
            raise UserError(f"{len(generator)} generators for {number} pictures: pass one each, or one for all.")
        return list(generator)
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    seeds = [int(torch.randint(2**62, (), generator=generator, device=generator.device)) for _ in range(number)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def to_uint8(pictures: Float[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N 3 H W"]:
    """Pictures in [0, 1] as whole grey levels, on the CPU."""
    return (pictures * 255).round().to("cpu", torch.uint8)


def to_pil(pictures: Float[Tensor, "N 3 H W"]) -> list[Image.Image]:
    """Pictures in [0, 1] as 8-bit RGB."""
    return [Image.fromarray(one) for one in to_uint8(pictures).permute(0, 2, 3, 1).numpy()]
