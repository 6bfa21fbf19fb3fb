"""Mixing of image embeddings on the sphere, and the sources of a mixture: how texts and pictures are distinguished and read.

A picture's embedding is CLIP's; a text's is what the prior predicts from it.
Shapes: K sources, N images, F frames, D width of CLIP's joint space.
"""

import math
import re
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.core.image_reading import FOREIGN_SUFFIXES, SUFFIXES, as_rgb
from syzygy.generation.image_files import open_picture

_PATH = re.compile(r".*[/\\][^/\\\s]*\.[a-z][a-z0-9]{1,4}", re.IGNORECASE | re.DOTALL)
"""A path whose last part is one word with an ending, such as `photos/cat.xyz`."""
OPPOSITE = 1e-6
"""Directions nearer than this to opposite ones have no mean: every way round is as short."""
ROUNDS, SETTLED = 200, 1e-10

Picture = str | Path | Image.Image | Tensor
"""A picture: its file, a Pillow image of any mode, a tensor [3, H, W] of RGB in [0, 1], or its image embedding as a tensor [1, D]."""
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


def checked(picture: Tensor) -> Float[Tensor, "3 H W"]:
    """A picture as a tensor.

    Raises:
        UserError: it has another shape, type or range.
    """
    if picture.ndim != 3 or len(picture) != 3 or not picture.numel() or not picture.is_floating_point():
        raise UserError(
            f"a picture is a tensor [3, H, W] of floating-point numbers, not {list(picture.shape)} of {picture.dtype}."
        )
    low, high = float(picture.min()), float(picture.max())
    if not (low >= 0 and high <= 1):
        raise UserError(f"a picture's numbers are from 0 to 1; this one's are from {low:g} to {high:g}.")
    return picture


def weighted(sources: Sequence[tuple[Source, float]]) -> list[tuple[Source, float]]:
    """Sources with their weights, where a `str` that means a file has become a path. Whether weights can be mixed says `shares`.

    Raises:
        UserError: not a list of pairs; a source that is neither text nor picture, or a file that is missing; a weight that is no number.
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
    return [(_read(source), float(weight)) for source, weight in sources]


def _read(source: Source) -> Source:
    found = read_source(source) if isinstance(source, str) else source
    return check_there(found) if isinstance(found, Path) and isinstance(source, str) else found


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
