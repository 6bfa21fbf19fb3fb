"""Text → image embedding → image: text encoder, prior and decoder in a row. Takes contracts, loads nothing.

Shapes: P prompts, N images (prompts × images for each, those of one prompt together), D width of CLIP's joint space.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core.contracts import Guide, ImageDecoder, Prior, TextEncoder, TextFeatures
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.core.pixels import check_finite, to_uint8
from syzygy.core.randomness import per_sample_noise
from syzygy.generation.mixing import mixed
from syzygy.generation.pixel_guides import pixel_guide
from syzygy.generation.request import GenerationRequest, one_each, seeds_of
from syzygy.generation.subjects import Subject, references_of, subject_prior


@dataclass(frozen=True)
class PipelineOutput:
    """Images, and the image embeddings that they were decoded from."""

    images: list[Image.Image]
    """N images, those of one prompt together."""
    image_embeddings: Float[Tensor, "N D"]
    """What the prior predicted, or the embeddings of pictures, styles or mixtures. D is 0 where there is no prior."""
    seeds: list[int | None]
    """For each image the seed of its generator: a fresh generator with that seed makes the image again, alone. None where there is no such
    seed, because the generator had been drawn from before the call, or was given for several images."""
    scores: Float[Tensor, "N"] | None = None
    """For the best of several candidates: the cosine of its CLIP embedding with that of its prompt, picture or mixture."""


@dataclass(frozen=True)
class Pipeline:
    """Text encoder, prior and decoder; or a decoder alone that reads texts with an encoder of its own."""

    text_encoder: TextEncoder | None
    prior: Prior | None
    """None with a decoder that reads no image embedding, and then there is no text encoder either."""
    decoder: ImageDecoder
    device: torch.device
    """The device of text encoder and prior."""
    reads: Sequence[str] | None = None
    """What the decoder reads where a request does not name its conditions; None is all that it can. A style is read in any case."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the decoder reads where a request does not name its conditions."""
        return self.decoder.conditions if self.reads is None else tuple(self.reads)

    @torch.inference_mode()
    def __call__(self, request: GenerationRequest) -> PipelineOutput:
        """Generate all images of a request at once. Its pictures (of mixtures, style, subjects and layout) are image embeddings here.

        The prior's ε of an image comes before its decoder's noise, from the same generator. So a seed's image starts from the same noise
        whatever it is of.

        Raises:
            UserError: the decoder does not read a condition, or refuses a setting; see `ImageDecoder.generate`.
            NonFiniteError: the model computes NaN or infinity; the message names the images.
        """
        assert (request.best_of, request.batch_size) == (1, None), (
            "TextToImage.generate chooses the best and makes batches"
        )
        rows, sampling = request.rows, request.sampling
        pixels = pixel_guide(self.decoder, request)
        generators = one_each(request.generator, len(rows))
        seeds, noise = seeds_of(generators), self.noise(generators)
        if request.mixtures:
            conditions = self.chosen(["image"])
            embeddings = self._mixed(request, noise)
            positive = Guide(embeddings)
        else:
            conditions = self.chosen(request.conditions)
            references = request.subjects, request.layout
            positive, embeddings = self._guide([*request.prompts], rows, noise, conditions, *references)
        if request.style is not None:
            if "text" not in conditions or "image" not in self.decoder.conditions:
                raise UserError(
                    "a style is read with the text: this needs a decoder that reads both, and conditions with text."
                )
            assert isinstance(request.style, Tensor), "the style is an embedding"
            style = request.style.to(embeddings).expand(len(rows), -1)
            # The style's objects would appear too: without them, it is a difference from what is predicted of the prompt (ours).
            embeddings = style if request.style_content is None else embeddings + style - self._content(request, noise)
            read = ("image", *(name for name in conditions if name != "image"))
            positive = replace(positive, embeddings=embeddings, conditions=read)
            if sampling.style_guidance is None:
                sampling = replace(sampling, style_guidance=self.decoder.defaults.style_guidance)
        if request.regions is not None:
            positive = replace(positive, regions=[request.regions[row] for row in rows])
        positive, negative = replace(positive, pixels=pixels), self._negative(request, conditions)
        with _naming(
            [_name(request, i) + ("" if seeds[i] is None else f" (seed {seeds[i]})") for i in range(len(rows))]
        ):
            _check_guide(positive)
            images = self.decoder.generate(
                positive, generators, negative=negative, sampling=sampling, on_step=request.callback
            )
            return PipelineOutput(to_pil(images), embeddings.cpu(), seeds)

    def noise(self, generators: Sequence[torch.Generator]) -> Float[Tensor, "N D"]:
        """The prior's ε of each image. Without a prior none is drawn."""
        if self.text_encoder is None:
            return torch.zeros(len(generators), 0, device=self.device)
        return per_sample_noise((self.text_encoder.width,), generators, self.device)

    def predict(
        self,
        prompts: list[str],
        rows: list[int],
        noise: Float[Tensor, "N D"],
        subjects: Sequence[Subject] = (),
        layout: object = None,
    ) -> tuple[TextFeatures, Float[Tensor, "N D"]]:
        """Features of the prompts at `rows`, and the image embeddings that the prior predicts from them.

        The prior alone reads embedded subjects in place of words, and the embedding [1, D] of a layout; the features are those of the words.

        Raises:
            UserError: there is no prior, or it reads no subjects and layout.
        """
        if self.text_encoder is None or self.prior is None:
            raise UserError("this model reads texts alone: it has no prior that predicts image embeddings.")
        features = self.text_encoder.encode_text(prompts)
        with _naming([repr(prompt[:60]) for prompt in prompts]):
            check_finite(features.pooled, "text features")
            check_finite(features.states.masked_fill(~features.mask[..., None], 0.0), "text features")
        features = features[rows]
        if not subjects and layout is None:
            return features, self.prior.predict(features, noise=noise)
        assert layout is None or isinstance(layout, Tensor), "pictures are embedded before"
        references = references_of([prompts[row] for row in rows], subjects, layout, features.pooled.shape[1])
        return features, subject_prior(self.prior, subjects).predict(features, noise=noise, references=references)

    def embedding_of(self, source: object, noise: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """N embeddings of a source: of a text those that the prior predicts, each from its ε; an embedding [1, D] as it is."""
        if isinstance(source, str):
            return self.predict([source], [0] * len(noise), noise)[1].float()
        assert isinstance(source, Tensor), "pictures are embedded before"
        return source.expand(len(noise), -1)

    def _content(self, request: GenerationRequest, noise: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What is predicted of the style references' content."""
        given, rows = request.style_content, request.rows
        texts = [given] * len(rows) if isinstance(given, str) else [(given or [])[row] for row in rows]
        unique = list(dict.fromkeys(texts))
        return self.predict(unique, [unique.index(text) for text in texts], noise)[1]

    def _mixed(self, request: GenerationRequest, noise: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The embedding of each image's mixture. Images of one mixture are computed together."""
        images: dict[int, list[int]] = {}
        for i, row in enumerate(request.rows):
            images.setdefault(id(request.mixtures[row]), []).append(i)
        found = torch.empty_like(noise, dtype=torch.float32)
        for own in images.values():
            mixture = request.mixtures[request.rows[own[0]]]
            embeddings = torch.stack([self.embedding_of(source, noise[own]) for source, _ in mixture])
            found[own] = mixed(embeddings, [weight for _, weight in mixture])
        return found

    def _negative(self, request: GenerationRequest, conditions: Sequence[str]) -> Guide | None:
        """The negative conditioning: of one text for all images, or of one for each (N)."""
        if request.negative_prompt is None:
            return None
        given = request.negative_prompt
        texts = [given] if isinstance(given, str) else [given[row] for row in request.rows]
        unique = list(dict.fromkeys(texts))
        width = 0 if self.text_encoder is None else self.text_encoder.width
        noise = torch.zeros(len(texts), width, device=self.device)
        guide = self._guide(unique, [unique.index(text) for text in texts], noise, conditions)[0]
        with _naming([f"negative prompt {text[:60]!r}" for text in texts]):
            _check_guide(guide)
        return guide

    def chosen(self, conditions: Sequence[str] | None) -> Sequence[str]:
        """These conditions, or for None those that the decoder reads where a request names none.

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
        self,
        prompts: list[str],
        rows: list[int],
        noise: Float[Tensor, "N D"],
        conditions: Sequence[str],
        subjects: Sequence[Subject] = (),
        layout: object = None,
    ) -> tuple[Guide, Float[Tensor, "N D"]]:
        """What a decoder may read of the prompts at `rows`; and the predicted embeddings, whether it reads them or not."""
        if self.prior is None:
            return Guide(texts=[prompts[row] for row in rows], conditions=conditions), noise
        features, embeddings = self.predict(prompts, rows, noise, subjects, layout)
        guide = Guide(
            embeddings if "image" in conditions else None,
            features if "text" in conditions else None,
            [prompts[row] for row in rows] if set(conditions) - {"image"} else None,
            conditions=conditions,
        )
        return guide, embeddings


def _name(request: GenerationRequest, i: int) -> str:
    """What errors call image `i`."""
    if request.mixtures:
        return f"image {i + 1} of {len(request.rows)}"
    prompt = request.prompts[request.rows[i]]
    return f"image {i % request.num_images + 1} of {prompt[:60]!r}"


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


def to_pil(images: Float[Tensor, "N 3 H W"]) -> list[Image.Image]:
    """Images in [0, 1] as 8-bit RGB.

    Raises:
        NonFiniteError: an image holds NaN or infinity.
    """
    return [Image.fromarray(one) for one in to_uint8(images).permute(0, 2, 3, 1).numpy()]
