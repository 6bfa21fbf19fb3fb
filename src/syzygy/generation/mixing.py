"""What unCLIP is loved for: variations of a picture, mixtures of pictures and texts, paths between two. And the best of several.

All of them paint from image embeddings: a picture's is CLIP's, a text's is what the prior predicts of it.
Shapes: K sources, N pictures, F frames, D width of CLIP's joint space.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.contracts import ImageEncoder, Progress, Sampling
from syzygy.core.errors import HALF_PRECISION, UserError
from syzygy.core.image_reading import FOREIGN_SUFFIXES, SUFFIXES, as_rgb
from syzygy.generation.image_files import open_picture, to_tensor
from syzygy.generation.pipeline import Pipeline, PipelineOutput, check_number, check_texts, one_each, seeds_of

_PATH = re.compile(r".*[/\\][^/\\\s]*\.[a-z][a-z0-9]{1,4}", re.IGNORECASE | re.DOTALL)
"""A path whose last part is one word with an ending, such as `photos/cat.xyz`."""
OPPOSITE = 1e-6
"""Directions nearer than this to opposite ones have no mean: every way round is as short."""
ROUNDS, SETTLED = 200, 1e-10

Picture = str | Path | Image.Image | Tensor
"""A picture: its file, a Pillow image of any mode, or a tensor [3, H, W] of RGB in [0, 1]."""
KINDS = (str, Path, Image.Image, Tensor)
Source = str | Path | Image.Image | Tensor
"""A picture, or a text: a `str` that neither names a file nor looks like a picture's file name (`read_source`)."""


def read_source(text: str) -> str | Path:
    """Tell pictures from texts: a `Path` if `text` names a file or looks like a picture's file name, otherwise the text.

    It looks like one if it ends as the names of picture files do, readable here or not (`.png`, `.heic`), or if it is a path with an
    ending. The file is not opened, and may be missing: `check_there` says so.
    """
    try:
        there = Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with characters that no name has
        there = False
    named = Path(text.strip()).suffix.lower() in (*SUFFIXES, *FOREIGN_SUFFIXES) or _PATH.fullmatch(text.strip())
    return Path(text) if there or named else text


def check_there(path: Path) -> Path:
    """The path of `read_source`, if a file is there.

    Raises:
        UserError: there is none.
    """
    if re.match(r"https?:/", str(path), re.IGNORECASE):
        raise UserError(f"{path} is an address. Download the picture and name its file.")
    if not path.is_file():
        raise UserError(
            f"there is no file {path}. Check the path; if it is meant as a text, it must not end in {path.suffix}."
        )
    return path


def texts_of(sources: Sequence[Source]) -> list[str]:
    """The texts among them."""
    return [one for one in sources if isinstance(one, str) and isinstance(read_source(one), str)]


def pictures_of(given: Picture | Sequence[Picture]) -> list[Picture]:
    """One picture or several, a tensor [B, 3, H, W] among the latter, as a list.

    Raises:
        UserError: something else.
    """
    if isinstance(given, Tensor):
        return list(given) if given.ndim == 4 else [given]
    found = [given] if isinstance(given, KINDS) else given
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, KINDS) for one in found):
        raise UserError(
            f"a picture must be a file (str or Path), a Pillow image or a tensor, or a list of these; got {given!r:.80}."
        )
    return list(found)


def image_of(given: object) -> Image.Image:
    """A picture's file or a Pillow image of any mode as RGB, as the one reader reads both.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    if isinstance(given, Image.Image):
        return as_rgb(given)
    if isinstance(given, (str, Path)):
        return open_picture(Path(given))
    raise UserError(
        f"a picture is a file's name, a Pillow image or a tensor [3, H, W], not {type(given).__name__}. PIL.Image.fromarray makes an "
        "image of an array."
    )


def weighted(sources: Sequence[tuple[Source, float]]) -> list[tuple[Source, float]]:
    """Sources with their weights, as a list. Whether the weights can be mixed is checked later (`shares`).

    Raises:
        UserError: not a list of pairs; a source that is neither text nor picture; a weight that is not a number.
    """
    if not isinstance(sources, (list, tuple)) or not all(
        isinstance(one, (list, tuple)) and len(one) == 2 for one in sources
    ):
        raise UserError(
            f"sources must be a list of (source, weight), such as [('a star', 0.6), ('a ring', 0.4)]; got {sources!r:.80}."
        )
    for place, (source, weight) in enumerate(sources):
        if not isinstance(source, KINDS):
            raise UserError(
                f"source {place} must be a text, a file (str or Path), a Pillow image or a tensor; got {source!r:.80}."
            )
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise UserError(f"the weight of source {place} must be a number from 0 to 1, got {weight!r:.40}.")
    return [(source, float(weight)) for source, weight in sources]


def shares(weights: Sequence[float]) -> list[float]:
    """Each weight's share of their sum. Weights are from 0 to 1, and only their proportions count.

    More than 1 is refused, as a per cent among fractions would drown the others unseen. Less than 0 is refused, as it leads beyond
    the sources, where no picture's embedding lies and no decoder was trained; a negative prompt moves away from something.

    Raises:
        UserError: no weight, one that is not a number from 0 to 1, or all zero.
    """
    for weight in weights:
        if not math.isfinite(weight):
            raise UserError(f"weight {weight} is not a number to mix with; allowed: 0 to 1.")
        if weight < 0:
            raise UserError(
                f"weight {weight:g} is negative; allowed: 0 to 1. To move away from something, name it in a negative prompt."
            )
        if weight > 1:
            raise UserError(
                f"weight {weight:g} is out of scale; allowed: 0 to 1, such as 0.6 for 60 %. Only proportions count."
            )
    if not weights:
        raise UserError("nothing to mix: give one source or more.")
    if not (total := sum(weights)):
        raise UserError("the weights are all zero: give at least one source a weight above 0, at most 1.")
    return [weight / total for weight in weights]


def mixed(embeddings: Float[Tensor, "K N D"], weights: Sequence[float]) -> Float[Tensor, "N D"]:
    """The weighted mean of K sources, N times: of their directions on the sphere, and of their norms.

    CLIP compares directions, so what lies between two embeddings lies on the arc between them (DALL·E 2, Ramesh et al. 2022, section 3.2:
    spherical interpolation). For more than two it is the point with the least weighted sum of squared angles (Buss and Fillmore 2001), which
    needs no order of the sources and is spherical interpolation for two. A mean of the raw vectors would be too short: shorter
    the less the sources agree; their norms are therefore averaged apart. Computed in fp64; a source alone is returned as it is.

    Args:
        weights: K of them, as `shares` takes them.

    Raises:
        UserError: as `shares`; or sources that point in opposite directions.
    """
    assert len(weights) == len(embeddings), "a weight for each source"
    kept = [(row, share) for row, share in enumerate(shares(weights)) if share > 0]
    if len(kept) == 1:
        return embeddings[kept[0][0]]
    vectors = embeddings[[row for row, _ in kept]].cpu().double()
    share = torch.tensor([share for _, share in kept], dtype=torch.float64).view(-1, 1, 1)
    norms = vectors.norm(dim=-1, keepdim=True)
    mean = _mean_direction(vectors / norms.clamp(min=torch.finfo(norms.dtype).tiny), share)
    return (mean * (share * norms).sum(0)).to(embeddings)


def _mean_direction(points: Float[Tensor, "K N D"], share: Float[Tensor, "K 1 1"]) -> Float[Tensor, "N D"]:
    """The weighted mean on the unit sphere: walk from the chord's direction by the mean of the arcs to the points, until it is zero."""
    chord = (share * points).sum(0)
    length = chord.norm(dim=-1, keepdim=True)
    if (length < OPPOSITE).any():
        raise _opposite()
    mean = chord / length
    for _ in range(ROUNDS):
        along = (points * mean).sum(-1, keepdim=True)
        if (along < OPPOSITE - 1).any():
            raise _opposite()
        across = points - along * mean
        sine = across.norm(dim=-1, keepdim=True)
        arcs = across * torch.where(sine > 0, torch.atan2(sine, along) / sine.clamp(min=1e-300), 1.0)
        step = (share * arcs).sum(0)
        size = step.norm(dim=-1, keepdim=True)
        mean = torch.nn.functional.normalize(mean * size.cos() + step * torch.sinc(size / math.pi), dim=-1)
        if size.max() < SETTLED:
            break
    return mean


def _opposite() -> UserError:
    return UserError(
        "these sources point in opposite directions and cancel each other: nothing lies between them. Change weights or sources."
    )


def path(start: Float[Tensor, "N D"], end: Float[Tensor, "N D"], frames: int) -> Float[Tensor, "F N D"]:
    """`frames` embeddings in equal steps of angle and norm; the first is `start` itself, the last is `end`.

    Raises:
        UserError: fewer than two frames, or ends in opposite directions.
    """
    if frames < 2:
        raise UserError(f"{frames} frames are no path: ask for 2 or more.")
    both = torch.stack([start, end])
    return torch.stack([mixed(both, [1 - i / (frames - 1), i / (frames - 1)]) for i in range(frames)])


@runtime_checkable
class Preparing(Protocol):
    """What a CLIP does to a photograph before its image tower."""

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 S S"]: ...


@runtime_checkable
class PictureEncoder(ImageEncoder, Protocol):
    """An image encoder that also takes photographs, as its CLIP prepares them."""

    @property
    def preparation(self) -> Preparing: ...

    def encode_pixels(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to paint, whatever the pictures are of."""

    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """As of `Pipeline`; with the best of k, one for each of the k candidates, those of one picture together."""
    best_of: int = 1
    negative_prompt: str | Sequence[str] | None = None
    """One for all; in `Blender.vary` also a list with one for each given picture."""
    sampling: Sampling = field(default_factory=Sampling)
    callback: Callable[[Progress], None] | None = None


@dataclass(frozen=True)
class Blender:
    """A pipeline with an eye: paints from pictures as from texts. The decoder reads image embeddings alone, no text."""

    pipeline: Pipeline
    encoder: PictureEncoder

    @torch.inference_mode()
    def vary(self, pictures: Sequence[Picture], num_images: int, request: Request) -> PipelineOutput:
        """Each picture `num_images` times anew, from its embedding and noise of its own (DALL·E 2, section 3.1).

        Raises:
            UserError: no picture, one that cannot be read, fewer than one to paint, a setting out of range.
        """
        if not len(pictures):
            raise UserError("no picture to vary: give one or more.")
        check_number(num_images, "of a picture")
        negatives = arguments.negatives(request.negative_prompt, len(pictures), "picture")
        if isinstance(negatives, list):
            request = replace(request, negative_prompt=[text for text in negatives for _ in range(num_images)])
        embeddings = torch.cat([self.embedded(picture) for picture in pictures]).repeat_interleave(num_images, 0)
        return self._painted(lambda noise: embeddings, len(embeddings), request)

    @torch.inference_mode()
    def mix(self, sources: Sequence[tuple[Source, float]], num_images: int, request: Request) -> PipelineOutput:
        """`num_images` pictures of one mixture (`mixed`); the prior predicts all texts of a picture from one ε.

        Raises:
            UserError: no source, an empty text, a picture that cannot be read, weights as of `shares`, fewer than one picture.
        """
        shares([weight for _, weight in sources])
        check_number(num_images, "of a mixture")
        given = [self._embedding(source) for source, _ in sources]

        def embed(noise: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
            return mixed(torch.stack([one(noise) for one in given]), [weight for _, weight in sources])

        return self._painted(embed, num_images, request)

    @torch.inference_mode()
    def interpolate(self, start: Source, end: Source, frames: int, batch_size: int, request: Request) -> PipelineOutput:
        """`frames` pictures on the way from one source to the other, all from the same noise, `batch_size` at a time.

        Raises:
            UserError: as `mix` and `path`.
        """
        assert request.best_of == 1, "frames share their noise: there is nothing to choose from"
        (generator,) = one_each(request.generator, 1)
        (seed,) = seeds_of([generator])
        noise = self.pipeline.noise([generator])
        first, last = (self._embedding(source)(noise) for source in (start, end))
        embeddings = path(first, last, frames)[:, 0]
        outputs = []
        for some in embeddings.split(batch_size):
            same = [torch.Generator(generator.device).set_state(generator.get_state()) for _ in some]
            outputs.append(self._paint(some, same, [seed] * len(same), request))
        return _joined(outputs)

    def embedded(self, picture: Picture) -> Float[Tensor, "1 D"]:
        """A picture's raw embedding: a file or a Pillow image through the one reader and CLIP's own preparation, a tensor as it is.

        Raises:
            UserError: a file or image that cannot be read, a tensor of another shape or range, a value of another type.
        """
        if isinstance(picture, Tensor):
            found = self.encoder.encode_image(_checked(picture)[None])
        else:
            found = self.encoder.encode_pixels(self.encoder.preparation.prepare(image_of(picture))[None])
        return found.to(self.pipeline.device, torch.float32)

    def _embedding(self, source: Source) -> Callable[[Float[Tensor, "N D"]], Float[Tensor, "N D"]]:
        """What makes N embeddings of the source, of the prior's ε for each."""
        if isinstance(source, str):
            source = read_source(source)
            source = check_there(source) if isinstance(source, Path) else source
        if not isinstance(source, str):
            embedding = self.embedded(source)
            return lambda noise: embedding.expand(len(noise), -1)
        check_texts([source])
        return lambda noise: self.pipeline.predict([source], [0] * len(noise), noise)[1].float()

    def _painted(
        self, embed: Callable[[Float[Tensor, "N D"]], Float[Tensor, "N D"]], number: int, request: Request
    ) -> PipelineOutput:
        def paint(generators: Sequence[torch.Generator]) -> PipelineOutput:
            seeds = seeds_of(generators)
            return self._paint(embed(self.pipeline.noise(generators)), generators, seeds, request)

        def score(output: PipelineOutput) -> Float[Tensor, "N"]:
            return clip_scores(output.images, output.image_embeddings, self.encoder)

        return best(paint, number, request.generator, request.best_of, score)

    def _paint(
        self,
        embeddings: Float[Tensor, "N D"],
        generators: Sequence[torch.Generator],
        seeds: Sequence[int | None],
        request: Request,
    ) -> PipelineOutput:
        return self.pipeline.paint(
            embeddings,
            generators,
            negative_prompt=request.negative_prompt,
            sampling=request.sampling,
            seeds=seeds,
            callback=request.callback,
        )


def _checked(picture: Tensor) -> Float[Tensor, "3 H W"]:
    if picture.ndim != 3 or len(picture) != 3 or not picture.numel() or not picture.is_floating_point():
        raise UserError(
            f"a picture is a tensor [3, H, W] of floating-point numbers, not {list(picture.shape)} of {picture.dtype}."
        )
    low, high = float(picture.min()), float(picture.max())
    if not (low >= 0 and high <= 1):
        raise UserError(f"a picture's numbers are from 0 to 1; this one's are from {low:g} to {high:g}.")
    return picture


def best(
    paint: Callable[[list[torch.Generator]], PipelineOutput],
    number: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    best_of: int,
    score: Callable[[PipelineOutput], Float[Tensor, "N"]],
) -> PipelineOutput:
    """`number` pictures, each the one with the highest score among `best_of`, which only their noise tells apart.

    Candidates are painted `number` at a time. A picture's own seed paints it again without the others.

    Args:
        paint: `number` pictures from as many generators.
        generator: one a candidate (`number` × `best_of`, those of one picture together), or one for all; None is a fresh seed.

    Raises:
        UserError: fewer than one candidate, another number of generators.
    """
    if best_of < 1:
        raise UserError(f"the best of {best_of} pictures cannot be kept; paint 1 or more.")
    generators = one_each(generator, number * best_of)
    if best_of == 1:
        return paint(generators)
    outputs = [paint(generators[candidate::best_of]) for candidate in range(best_of)]
    found = torch.stack([score(output) for output in outputs])
    if not torch.isfinite(found).all():
        raise UserError(
            f"the CLIP scores that choose the best of {best_of} are not finite (NaN or infinity). {HALF_PRECISION}"
        )
    scores, kept = found.max(0)
    chosen = [(outputs[candidate], row) for row, candidate in enumerate(kept.tolist())]
    return PipelineOutput(
        [output.images[row] for output, row in chosen],
        torch.stack([output.image_embeddings[row] for output, row in chosen]),
        [output.seeds[row] for output, row in chosen],
        scores,
    )


def clip_scores(
    images: Sequence[Image.Image], embeddings: Float[Tensor, "N D"], encoder: ImageEncoder
) -> Float[Tensor, "N"]:
    """Cosine of each picture's own embedding with a text's or an image's (Hessel et al. 2021, unscaled), on the CPU."""
    seen = encoder.encode_image(torch.stack([to_tensor(image) for image in images])).cpu()
    return torch.nn.functional.cosine_similarity(seen, embeddings.cpu())


def _joined(outputs: Sequence[PipelineOutput]) -> PipelineOutput:
    first = outputs[0]
    return replace(
        first,
        images=[image for output in outputs for image in output.images],
        image_embeddings=torch.cat([output.image_embeddings for output in outputs]),
        seeds=[seed for output in outputs for seed in output.seeds],
    )
