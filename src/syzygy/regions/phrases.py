"""Phrases of a prompt and their regions, as maps over the prompt's tokens (eDiff-I, section 4.3).

Legend: B prompts, T tokens, H × W the masks' resolution.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from syzygy.core import phrase_places
from syzygy.core.contracts import Region
from syzygy.core.errors import UserError


def blurred(region: Region, radius: float) -> Region:
    """The region with soft borders: a Gaussian of standard deviation `radius`, as a fraction of the mask's longer side."""
    if not 0 <= radius < 1:
        raise UserError(f"the blur is a fraction of the image's side and must be from 0 to below 1; got {radius}.")
    sigma = radius * max(region.mask.shape)
    if round(3 * sigma) == 0:  # less than a pixel
        return region
    reach = torch.arange(-round(3 * sigma), round(3 * sigma) + 1, dtype=region.mask.dtype)
    kernel = torch.exp(-((reach / sigma) ** 2) / 2)
    mask = region.mask
    for _ in range(2):  # along the rows, then along the columns
        padded = torch.nn.functional.pad(mask[None], (len(reach) // 2,) * 2, mode="replicate")
        mask = torch.nn.functional.conv1d(padded[0][:, None], (kernel / kernel.sum())[None, None])[:, 0].T
    return replace(region, mask=mask.clamp(0, 1))


def resized(region: Region, size: tuple[int, int]) -> Region:
    """The region with a mask of this height and width: bilinear, so that small regions stay, with lower values."""
    mask = torch.nn.functional.interpolate(region.mask[None, None].float(), size, mode="bilinear", antialias=True)
    return replace(region, mask=mask[0, 0].clamp(0, 1))


def for_each(regions: Sequence[Region] | Sequence[Sequence[Region]], number: int) -> list[list[Region]]:
    """A list of regions for each of `number` prompts: the same regions for all, or the given lists.

    Raises:
        UserError: lists for another number of prompts; no region at all.
    """
    for_all = [one for one in regions if isinstance(one, Region)]
    own = [for_all] * number if for_all else [list(one) for one in regions if not isinstance(one, Region)]
    if not own or not any(own):
        raise UserError("the list of regions is empty: give at least one region, or leave regions out.")
    if len(own) != number:
        raise UserError(
            f"regions are given for {len(own)} prompts, but there are {number} prompts: give one list for each."
        )
    return own


def places(prompt: str, phrase: str) -> list[tuple[int, int]]:
    """Find a phrase in a prompt; see `phrase_places.places`.

    Raises:
        UserError: the prompt does not contain it.
    """
    found = phrase_places.places(prompt, phrase)
    if not found:
        raise UserError(
            f"the prompt {prompt!r} does not contain the phrase {phrase!r}: a region needs words of the prompt."
        )
    return found


def region_maps(
    prompts: Sequence[str],
    spans: Int[Tensor, "B T 2"],
    regions: Sequence[Sequence[Region]],
    strength: float,
) -> Float[Tensor, "B T H W"]:
    """w'·A: each region's mask in the columns of its phrase's tokens, times its weight and `strength` (w'); overlaps add.

    Args:
        spans: the characters of its prompt that each token stands for.
        regions: those of each prompt; at least one in all.

    Raises:
        UserError: a phrase that its prompt does not contain; masks of different sizes. One whose tokens were truncated gets no map: another
            encoder may read it (`check_read`).
    """
    sizes = {tuple(region.mask.shape) for own in regions for region in own}
    if len(sizes) != 1:
        raise UserError(f"masks must have one size, got {' and '.join(f'{w} × {h}' for h, w in sorted(sizes))}.")
    if not 0 <= strength < float("inf"):
        raise UserError(f"the region strength must be a finite number of at least 0, got {strength}.")
    maps = torch.zeros(len(prompts), spans.shape[1], *sizes.pop())
    for row, (prompt, own) in enumerate(zip(prompts, regions, strict=True)):
        for region in own:
            for tokens in _columns(prompt, spans[row], region.phrase):
                maps[row, tokens] += strength * region.weight * region.mask.to(maps)
    return maps


def check_read(
    prompts: Sequence[str], spans: Sequence[Int[Tensor, "B _ 2"]], regions: Sequence[Sequence[Region]]
) -> None:
    """Check that at least one text encoder reads the tokens of each phrase.

    Args:
        spans: of each encoder.
    """
    for row, (prompt, own) in enumerate(zip(prompts, regions, strict=True)):
        for region in own:
            read = [all(map(torch.any, _columns(prompt, one[row], region.phrase))) for one in spans]
            if not any(read):
                raise UserError(
                    f"the words {region.phrase!r} come after the last token that the text encoder reads: shorten the prompt."
                )


def _columns(prompt: str, spans: Int[Tensor, "T 2"], phrase: str) -> list[Bool[Tensor, "T"]]:
    """The tokens of each place where the phrase stands."""
    low, high = spans.unbind(1)
    return [(low < end) & (high > start) & (high > low) for start, end in places(prompt, phrase)]
