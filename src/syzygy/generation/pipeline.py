"""Text → image embedding → picture. Takes contracts, loads nothing.

Shapes: P prompts, N pictures (prompts × pictures a prompt, those of one prompt together), D joint width of CLIP.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.contracts import Guide, ImageDecoder, Prior, Progress, Region, Sampling, TextEncoder, TextFeatures
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.core.pixels import check_finite, to_uint8
from syzygy.core.randomness import per_sample_noise


@dataclass(frozen=True)
class PipelineOutput:
    """Pictures, and the image embeddings that they were decoded from."""

    images: list[Image.Image]
    """N pictures, those of one prompt together."""
    image_embeddings: Float[Tensor, "N D"]
    """What the prior predicted; or those of pictures, or mixtures, where they were painted from such. D is 0 where there is no prior."""
    seeds: list[int | None]
    """For each image the seed of its generator: a fresh generator with that seed makes the image again, alone. None where there is no such
    seed, because the generator had been drawn from before the call, or was given for several images."""
    scores: Float[Tensor, "N"] | None = None
    """Where the best of several was kept: its cosine with what was asked for."""


@dataclass(frozen=True)
class Pipeline:
    """The path of a prompt: text encoder, prior, decoder; or a decoder that reads texts with an encoder of its own, alone."""

    text_encoder: TextEncoder | None
    prior: Prior | None
    """None with a decoder that reads no image embedding, and then there is no text encoder either."""
    decoder: ImageDecoder
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
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        conditions: Sequence[str] | None = None,
        regions: Sequence[Sequence[Region]] | None = None,
        style: Float[Tensor, "S D"] | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> PipelineOutput:
        """Paint each prompt `num_images_per_prompt` times.

        Args:
            negative_prompt: what the images should avoid: one text for all prompts, or a list with one for each (P). It goes through the
                same encoder and prior, and needs guidance (a scale other than 1).
            sampling: steps, guidance and so on; by default what suits the decoder.
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
            NonFiniteError: the model computes NaN or infinity; the message names the images.
        """
        prompts = arguments.texts(prompt)
        conditions = self.chosen(conditions)
        check_texts(prompts)
        check_number(num_images_per_prompt)
        negatives = arguments.negatives(negative_prompt, len(prompts))
        number = len(prompts) * num_images_per_prompt
        generators = one_each(generator, number)
        seeds = seeds_of(generators)
        rows = [i for i in range(len(prompts)) for _ in range(num_images_per_prompt)]
        positive, embeddings = self._guide(prompts, rows, self.noise(generators), conditions)
        if style is not None:
            if not {"image", "text"} <= set(conditions):
                raise UserError(
                    "a style goes in beside the text: this needs a decoder that reads both, and conditions image,text."
                )
            assert len(style) in (1, number), f"{len(style)} styles for {number} pictures"
            embeddings = style.to(embeddings).expand(number, -1)
            positive = replace(positive, embeddings=embeddings)
            if sampling.style_guidance is None:
                sampling = replace(sampling, style_guidance=self.decoder.defaults.style_guidance)
        if regions is not None:
            check_regions(regions, len(prompts))
            positive = replace(positive, regions=[regions[row] for row in rows])
        negative = self._negative(
            negatives if isinstance(negatives, str | None) else [negatives[row] for row in rows], conditions
        )
        with _naming(
            [
                f"image {i % num_images_per_prompt + 1} of {prompts[row][:60]!r}{_seed(seeds[i])}"
                for i, row in enumerate(rows)
            ]
        ):
            _check_guide(positive)
            pictures = self.decoder.generate(
                positive, generators, negative=negative, sampling=sampling, on_step=callback
            )
            return PipelineOutput(to_pil(pictures), embeddings.cpu(), seeds)

    @torch.inference_mode()
    def paint(
        self,
        embeddings: Float[Tensor, "N D"],
        generators: Sequence[torch.Generator],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        seeds: Sequence[int | None] | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> PipelineOutput:
        """A picture of each image embedding, wherever it is from, and of nothing else: no text is told.

        The generators have drawn their ε already (`noise`), so that a seed's picture starts from the same noise as that of a prompt.

        Args:
            negative_prompt: one text for all, or one for each embedding (N).
            seeds: of the generators before they drew ε (`seeds_of`); by default as they are now, which is None for those that did.

        Raises:
            UserError: the decoder does not read image embeddings; and as `ImageDecoder.generate`.
            NonFiniteError: an embedding holds NaN or infinity, or the model computes some.
        """
        conditions = self.chosen(["image"])
        negatives = arguments.negatives(negative_prompt, len(embeddings), "image")
        seeds = seeds_of(generators) if seeds is None else list(seeds)
        negative = self._negative(negatives, conditions)
        with _naming([f"image {i + 1} of {len(seeds)}{_seed(seed)}" for i, seed in enumerate(seeds)]):
            _check_guide(Guide(embeddings))
            pictures = self.decoder.generate(
                Guide(embeddings), generators, negative=negative, sampling=sampling, on_step=callback
            )
            return PipelineOutput(to_pil(pictures), embeddings.cpu(), seeds)

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
        features = self.text_encoder.encode_text(prompts)
        with _naming([repr(prompt[:60]) for prompt in prompts]):
            check_finite(features.pooled, "text features")
            check_finite(features.states.masked_fill(~features.mask[..., None], 0.0), "text features")
        features = features[rows]
        return features, self.prior.predict(features, noise=noise)

    def _negative(self, negatives: str | Sequence[str] | None, conditions: Sequence[str]) -> Guide | None:
        """The negative conditioning: of one text for all images, or of one for each (N)."""
        if negatives is None:
            return None
        texts = [negatives] if isinstance(negatives, str) else list(negatives)
        check_characters(texts, "negative prompt")
        unique = list(dict.fromkeys(texts))
        width = 0 if self.text_encoder is None else self.text_encoder.width
        noise = torch.zeros(len(texts), width, device=self.device)
        guide = self._guide(unique, [unique.index(text) for text in texts], noise, conditions)[0]
        with _naming([f"negative prompt {text[:60]!r}" for text in texts]):
            _check_guide(guide)
        return guide

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
    check_characters(prompts)


def check_characters(texts: Sequence[str], what: str = "prompt") -> None:
    """Texts are made of characters, not of halves of them; else a UserError."""
    if broken := [text for text in texts if any("\ud800" <= c <= "\udfff" for c in text)]:
        raise UserError(f"the {what} is not text, it holds broken characters: {broken[0]!r}. Give it in UTF-8.")


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


def seeds_of(generators: Sequence[torch.Generator]) -> list[int | None]:
    """The seed of each generator that is as fresh as `manual_seed` left it; None for others, and for those that are given several times."""
    given = Counter(map(id, generators))

    def fresh(one: torch.Generator) -> bool:
        again = torch.Generator(one.device).manual_seed(one.initial_seed())
        return given[id(one)] == 1 and torch.equal(again.get_state(), one.get_state())

    return [one.initial_seed() if fresh(one) else None for one in generators]


def _seed(seed: int | None) -> str:
    return "" if seed is None else f" (seed {seed})"


@contextmanager
def _naming(names: Sequence[str]) -> Iterator[None]:
    """Errors about rows of a batch name them so."""
    try:
        yield
    except NonFiniteError as error:
        raise error.named(names) from None


def _check_guide(guide: Guide) -> None:
    """Embeddings that are not finite already are reported as such, before anything is computed from them."""
    if guide.embeddings is not None:
        check_finite(guide.embeddings, "image embeddings")


def to_pil(pictures: Float[Tensor, "N 3 H W"]) -> list[Image.Image]:
    """Images in [0, 1] as 8-bit RGB.

    Raises:
        NonFiniteError: an image holds NaN or infinity.
    """
    return [Image.fromarray(one) for one in to_uint8(pictures).permute(0, 2, 3, 1).numpy()]
