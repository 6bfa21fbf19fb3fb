"""Phrases of a prompt and their regions, as maps over the prompt's tokens (eDiff-I, section 4.3).

Legend: B prompts, T tokens, H × W the masks' resolution.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
    """Find a phrase in a prompt, as whole words: the characters of each place (from, to), in the prompt as it was given.

    Case does not matter, nor does spelling that looks alike: composed and decomposed letters (Unicode's NFC), any white space for one
    blank, typographic quotation marks, apostrophes and hyphens for those of a keyboard, characters without a width.

    Raises:
        UserError: the prompt does not contain it.
    """
    text, spans = _folded(prompt)
    wanted = _folded(phrase)[0].strip(" ")
    found: list[tuple[int, int]] = []
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        whole = not (_one_word(text[start - 1 : start], wanted[0]) or _one_word(wanted[-1], text[end : end + 1]))
        # Half of a letter that folds to two (ß) is no place.
        if (
            whole
            and spans[start - 1 : start] != spans[start : start + 1]
            and spans[end - 1] not in spans[end : end + 1]
        ):
            found.append((spans[start][0], spans[end - 1][1]))
        start = text.find(wanted, start + 1)
    if not found:
        raise UserError(
            f"the prompt {prompt!r} does not contain the phrase {phrase!r}: a region needs words of the prompt."
        )
    return found


_ALIKE = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"')
    | dict.fromkeys("\u2010\u2011", "-")
)
"""Quotation marks, apostrophes, primes and hyphens that keyboards, phones and text programs put for one another."""


def _folded(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text as phrases are compared, and for each of its characters the ones (from, to) of the given text that it stands for."""
    letters, spans, start = [], [], 0
    for end in range(1, len(text) + 1):
        if end < len(text) and _joins(text[start:end], text[end]):
            continue
        found = _letter(text[start:end])
        if found == " " and letters and letters[-1] == " ":
            spans[-1] = (spans[-1][0], end)
        else:
            letters += found
            spans += [(start, end)] * len(found)
        start = end
    return "".join(letters), spans


def _joins(before: str, character: str) -> bool:
    """Whether a character belongs to the letter before it: a mark on it, or what is composed with it, as the jamo of Korean syllables."""
    if character.isascii():
        return False
    if character in _SELECTORS:
        return True
    if unicodedata.category(character).startswith("M") and unicodedata.category(before[-1])[0] in "LNM":
        return True  # a mark after a blank or an emoji is a letter of its own: the words around it must stay selectable
    return len(unicodedata.normalize("NFC", before + character)) <= len(unicodedata.normalize("NFC", before))


def _letter(text: str) -> str:
    """One letter with its marks, folded: a blank for white space, nothing for what has no width."""
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf" and c not in _SELECTORS)
    if seen.isspace():
        return " "
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", seen).translate(_ALIKE).casefold())


_SELECTORS = "\ufe0e\ufe0f"
"""They choose between a sign as text and as picture, and have no width."""


def _one_word(left: str, right: str) -> bool:
    """Whether these neighbours belong to one word. Chinese and Japanese are written without spaces, so there the answer is no."""
    return _in_word(left) and _in_word(right) and not any("\u3040" <= c <= "\u9fff" for c in left + right)


def _in_word(character: str) -> bool:
    """Whether it is a letter, a digit, or a mark on one."""
    return character.isalnum() or unicodedata.category(character or " ").startswith("M")


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
