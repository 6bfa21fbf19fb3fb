"""Text → image embedding → picture. Takes contracts, loads nothing.

Shapes: P prompts, N pictures (prompts × pictures a prompt, those of one prompt together), D joint width of CLIP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from syzygy.errors import UserError
from syzygy.rng import per_sample_noise
from syzygy.types import Guide, PictureDecoder, Prior, Progress, Region, Sampling, TextEncoder, TextFeatures


@dataclass(frozen=True)
class PipelineOutput:
    """Pictures, and the image embeddings that they were decoded from."""

    images: list[Image.Image]
    """N pictures, those of one prompt together."""
    image_embeddings: Float[Tensor, "N D"]
    """What the prior predicted; or those of pictures, or mixtures, where they were painted from such. D is 0 where there is no prior."""
    seeds: list[int]
    """What each picture's generator was last seeded with: a fresh generator with that seed paints the picture again, alone."""
    scores: Float[Tensor, "N"] | None = None
    """Where the best of several was kept: its cosine with what was asked for."""


@dataclass(frozen=True)
class Pipeline:
    """The path of a prompt: text encoder, prior, decoder; or a decoder that reads texts with an encoder of its own, alone."""

    text_encoder: TextEncoder | None
    prior: Prior | None
    """None with a decoder that reads no image embedding, and then there is no text encoder either."""
    decoder: PictureDecoder
    device: torch.device
    """Of text encoder and prior."""
    reads: Sequence[str] | None = None
    """What the decoder reads unless a call says it; None is all that it can."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the decoder reads where a call does not say it."""
        return self.decoder.conditions if self.reads is None else tuple(self.reads)

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        how: Sampling = Sampling(),  # noqa: B008 (frozen)
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        conditions: Sequence[str] | None = None,
        regions: Sequence[Sequence[Region]] | None = None,
        style: Float[Tensor, "S D"] | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> PipelineOutput:
        """Paint each prompt `num_images_per_prompt` times.

        Args:
            negative_prompt: what to move away from, through the same encoder and prior; needs guidance (a scale not 1).
            how: steps, guidance and so on; by default what suits the decoder.
            generator: one a picture (N), or one from which each picture's own is drawn in turn, so that neither the
                batch nor what follows changes a picture. None draws a fresh seed.
            conditions: what the decoder reads: "image" (the predicted embedding), "text", or both; by default all that
                it can, or `reads`.
            regions: of each prompt (P), where phrases of it shall be; for decoders that read text token by token.
            style: a reference picture's embedding in place of the prior's (eDiff-I's style transfer), one for all or one each (N); for
                decoders that read text beside.
            callback: told after each step.

        Raises:
            UserError: an empty prompt, fewer than one picture or step, a condition that the decoder does not read, an
                unknown sampler, regions for phrases that are not in the prompt or for a decoder that cannot be painted.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        conditions = self.chosen(conditions)
        check_texts(prompts)
        check_number(num_images_per_prompt)
        number = len(prompts) * num_images_per_prompt
        generators = one_each(generator, number)
        rows = [i for i in range(len(prompts)) for _ in range(num_images_per_prompt)]
        towards, embeddings = self._guide(prompts, rows, self.noise(generators), conditions)
        if style is not None:
            if not {"image", "text"} <= set(conditions):
                raise UserError(
                    "a style goes in beside the text: this needs a decoder that reads both, and conditions image,text."
                )
            assert len(style) in (1, number), f"{len(style)} styles for {number} pictures"
            embeddings = style.to(embeddings).expand(number, -1)
            towards = replace(towards, embeddings=embeddings)
            if how.style_guidance is None:
                how = replace(how, style_guidance=self.decoder.defaults.style_guidance)
        if regions is not None:
            check_regions(regions, len(prompts))
            towards = replace(towards, regions=[regions[row] for row in rows])
        away = self._away(negative_prompt, conditions)
        pictures = self.decoder.paint(towards, generators, away=away, how=how, on_step=callback)
        return PipelineOutput(to_pil(pictures), embeddings.cpu(), [one.initial_seed() for one in generators])

    @torch.inference_mode()
    def paint(
        self,
        embeddings: Float[Tensor, "N D"],
        generators: Sequence[torch.Generator],
        *,
        negative_prompt: str | None = None,
        how: Sampling = Sampling(),  # noqa: B008 (frozen)
        callback: Callable[[Progress], None] | None = None,
    ) -> PipelineOutput:
        """A picture of each image embedding, wherever it is from, and of nothing else: no text is told.

        The generators have drawn their ε already (`noise`), so that a seed's picture starts from the same noise as that of a prompt.

        Raises:
            UserError: the decoder does not read image embeddings; and as `PictureDecoder.paint`.
        """
        conditions = self.chosen(["image"])
        away = self._away(negative_prompt, conditions)
        pictures = self.decoder.paint(Guide(embeddings), generators, away=away, how=how, on_step=callback)
        return PipelineOutput(to_pil(pictures), embeddings.cpu(), [one.initial_seed() for one in generators])

    def noise(self, generators: Sequence[torch.Generator]) -> Float[Tensor, "N D"]:
        """The prior's ε of each picture: it comes before its decoder's noise, from the same generator. Without a prior none is drawn."""
        if self.text_encoder is None:
            return torch.zeros(len(generators), 0, device=self.device)
        return per_sample_noise((self.text_encoder.width,), generators, self.device)

    def predict(
        self, prompts: list[str], rows: list[int], noise: Float[Tensor, "N D"]
    ) -> tuple[TextFeatures, Float[Tensor, "N D"]]:
        """Features of the prompts at `rows`, and the image embeddings that the prior predicts of them.

        Raises:
            UserError: there is no prior.
        """
        if self.text_encoder is None or self.prior is None:
            raise UserError("this model paints from texts alone: it has no prior that would predict image embeddings.")
        features = self.text_encoder.encode_text(prompts)[rows]
        return features, self.prior.predict(features, noise=noise)

    def _away(self, negative_prompt: str | None, conditions: Sequence[str]) -> Guide | None:
        if negative_prompt is None:
            return None
        width = 0 if self.text_encoder is None else self.text_encoder.width
        return self._guide([negative_prompt], [0], torch.zeros(1, width, device=self.device), conditions)[0]

    def chosen(self, conditions: Sequence[str] | None) -> Sequence[str]:
        """What the decoder shall read: these, or for None what it reads where nothing is said.

        Raises:
            UserError: none, or one that it cannot read.
        """
        known = self.decoder.conditions
        if conditions is None:
            return self.conditions
        if not conditions or not set(conditions) <= set(known):
            raise UserError(
                f"conditions {list(conditions)} must be one or more of what the decoder reads: {', '.join(known)}."
            )
        return conditions

    def _guide(
        self, prompts: list[str], rows: list[int], noise: Float[Tensor, "N D"], conditions: Sequence[str]
    ) -> tuple[Guide, Float[Tensor, "N D"]]:
        """What a decoder may read of the prompts at `rows`; and the predicted embeddings, whether it reads them or not."""
        if self.prior is None:
            return Guide(texts=[prompts[row] for row in rows], conditions=conditions), noise
        features, embeddings = self.predict(prompts, rows, noise)
        guide = Guide(
            embeddings if "image" in conditions else None,
            features if "text" in conditions else None,
            [prompts[row] for row in rows] if set(conditions) - {"image"} else None,
            conditions=conditions,
        )
        return guide, embeddings


def check_regions(regions: Sequence[Sequence[Region]], number: int) -> None:
    """There are some for each prompt, none for a prompt being an empty list; else a UserError."""
    if len(regions) != number:
        raise UserError(f"regions are told for {len(regions)} prompts, but there are {number}: give a list for each.")
    if not any(regions):
        raise UserError("there is no region among the regions: give one, or leave them out.")


def check_texts(prompts: Sequence[str]) -> None:
    """Prompts are there, and are text; else a UserError."""
    if not prompts or not all(p.strip() for p in prompts):
        raise UserError("the prompt is empty: write what to paint, such as 'a red circle left of a blue star'.")
    if broken := [p for p in prompts if any("\ud800" <= c <= "\udfff" for c in p)]:
        raise UserError(f"the prompt is not text, it holds broken characters: {broken[0]!r}. Give it in UTF-8.")


def check_number(pictures: int, of: str = "a prompt") -> None:
    """One picture at least `of` what is painted; else a UserError."""
    if pictures < 1:
        raise UserError(f"{pictures} pictures {of} cannot be painted; ask for 1 or more.")


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
