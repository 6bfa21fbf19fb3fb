"""Parallel captions: the same description in several languages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, FactRates, describe
from syzygy.lab.world.language import LANGUAGES, Caption, language
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.scene_sampling import sample_scene

PIVOT = "en"
"""Every line has it: an adapter learns what the others mean from its embedding."""
Lengths = Literal[Length, "mixed"]


@dataclass(frozen=True)
class Parallel:
    """One description, and a caption of it in each language."""

    index: int
    description: Description
    captions: dict[str, Caption]
    """By the language's code."""
    length: Length


def checked_languages(codes: Sequence[str]) -> tuple[str, ...]:
    """The codes, if they make a parallel corpus.

    Raises:
        UserError: an unknown language, one named twice, or English missing.
    """
    for code in codes:
        language(code)
        if codes.count(code) > 1:
            raise UserError(f"language {code!r} is named twice. Name each once.")
    if PIVOT not in codes:
        raise UserError(
            f"English is missing among the languages ({', '.join(codes) or 'none'}): the other languages are learned from it. "
            f"Add {PIVOT!r}. Known: {', '.join(LANGUAGES)}."
        )
    return tuple(codes)


def parallel(
    seed: int,
    index: int,
    languages: Sequence[str],
    *,
    facts: FactRates | None = None,
    unseen: bool = True,
    length: Lengths = "short",
) -> Parallel:
    """Line number `index` of this seed: in each language the caption of `source.pair` with the same settings.

    `unseen=False` leaves out scenes that show an unseen composition; "mixed" draws a length for each line.
    """
    one: Length = Draw(seed, "length", index).pick(get_args(Length)) if length == "mixed" else length
    draw = Draw(seed, "pair", index)
    description = describe(sample_scene(draw, unseen=unseen), draw, facts or FactRates())
    state = draw.getstate()
    captions = {}
    for code in languages:
        draw.setstate(state)
        captions[code] = language(code).caption(description, draw, one)
    return Parallel(index, description, captions, one)
