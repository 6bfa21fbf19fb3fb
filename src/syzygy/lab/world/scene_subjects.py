"""Subjects of the embedded world: captions in which "thing" stands for an object, and the object's cut-out on white."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.randomness import Draw
from syzygy.lab.world.language.base import Length, Span
from syzygy.lab.world.render import masks, render
from syzygy.lab.world.scene import Background, Scene, Style, Thing, shows_unseen_composition
from syzygy.lab.world.scene_source import Pair, fully_described, pair

WORD = "thing"
"""The word that stands for a subject: it says nothing of the subject's shape, colour or texture."""
SUBJECT_RATE = 0.9
"""Fraction of the captions with an object that a subject can stand for in which one does."""
FILLED = 0.42
"""Radius of the object in its cut-out, as a part of the side: a cut-out shows the object at one size, wherever it was."""
TURNS = 64
"""Scenes that may be drawn for one full description; three of five show no unseen composition."""
_NOTHING = Background(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SubjectPair:
    """A scene, and a caption in which `WORD` stands for one of its things."""

    scene: Scene
    text: str
    thing: Thing | None
    """What `WORD` stands for; None in a caption without a subject."""


def described_pairs(
    seed: int, start: int, number: int, *, unseen: bool = False, length: Length = "short"
) -> list[Pair]:
    """Pairs to put subjects into: of short captions, every second one describes its scene fully.

    Captions that leave things out, as most do, teach what images look like. Full ones teach to show what is named and nothing else.
    """
    return [
        _full(seed, index, unseen)
        if length == "short" and index % 2 == 0
        else pair(seed, index, unseen=unseen, length=length)
        for index in range(start, start + number)
    ]


def _full(seed: int, index: int, unseen: bool) -> Pair:
    """A fully described pair; without `unseen`, the first of `TURNS` that shows no unseen composition."""
    found = (fully_described(seed, index * TURNS + turn) for turn in range(TURNS))
    return next(one for one in found if unseen or not shows_unseen_composition(one.scene))


def subject_pair(of: Pair, draw: Draw) -> SubjectPair:
    """The pair with a subject in place of one of the mentions, chosen at random among those that mean a single thing of the scene."""
    mentions = of.caption.description.mentions
    usable = []
    for span in of.caption.spans:
        mention = mentions[span.mention]
        fitting = [thing for thing in of.scene.things if mention.fits(thing)]
        if mention.count == 1 and len(fitting) == 1:
            usable.append((span, fitting[0]))
    if not usable or not draw.chance(SUBJECT_RATE):
        return SubjectPair(of.scene, of.caption.text, None)
    span, thing = draw.pick(usable)
    return SubjectPair(of.scene, with_word(of.caption.text, span), thing)


def with_word(text: str, span: Span) -> str:
    """The English text with "a thing" (or "thing", where there is no article) in place of a mention's words."""
    words = text[span.start : span.stop]
    article = "a " if words.startswith(("a ", "an ")) else ""
    return f"{text[: span.start]}{article}{WORD}{text[span.stop :]}"


def cut_outs(
    things: Sequence[tuple[Thing, Style]], size: int = 64, device: torch.device | str = "cpu"
) -> Float[Tensor, "B 3 H W"]:
    """Each thing alone on white, in the middle, `FILLED` of the side in radius, as a scene of this style shows it."""
    found = []
    for thing, style in things:
        alone = replace(thing, x=0.5, y=0.5, radius=FILLED)
        scene = Scene((alone,), style, _NOTHING)
        mask = masks(scene, size, device)[0]
        found.append(render([scene], size, device)[0] * mask + (1 - mask))
    return torch.stack(found) if found else torch.zeros(0, 3, size, size)
