"""Images with captions, generated on the fly: pair number i of a seed is the same on every machine and in every batch."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from syzygy.core.config import Config
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, FactRates, Mention, Placed, check_facts, describe
from syzygy.lab.world.language import Caption, language
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.render import render
from syzygy.lab.world.scene import COLOURS, MAX_OBJECTS, SHAPES, TEXTURES, Scene, relation_between
from syzygy.lab.world.scene_sampling import sample_scene, scene_for


@dataclass(frozen=True)
class Pair:
    """A scene and one caption of it."""

    scene: Scene
    caption: Caption


def pair(
    seed: int,
    index: int,
    *,
    facts: FactRates | None = None,
    unseen: bool = True,
    length: Length = "short",
    lang: str = "en",
) -> Pair:
    """Pair number `index` of this seed. `unseen=False` leaves out scenes that show an unseen composition."""
    draw = Draw(seed, "pair", index)
    scene = sample_scene(draw, unseen=unseen)
    description = describe(scene, draw, facts or FactRates())
    return Pair(scene, language(lang).caption(description, draw, length))


class FullDescriptions(Config):
    """What scenes with full descriptions hold, as probabilities."""

    alike: float = Field(default=0.0, ge=0, le=1)
    """Two to four alike things ("three red circles"); half of them with another thing."""
    alone: float = Field(default=0.55, ge=0, le=1)
    """Of the other scenes, those with one thing; the rest has two."""
    relation: float = Field(default=0.3, ge=0, le=1)
    """Of those with two things, how many captions say where one is from the other."""


def fully_described(seed: int, index: int, rates: FullDescriptions | None = None, *, lang: str = "en") -> Pair:
    """Pair number `index` of this seed whose caption describes its scene fully: one thing, two of different shapes and colours, or alike ones.

    Models learn words sooner from these than from `pair`, whose captions omit facts.
    """
    rates = rates or FullDescriptions()
    draw, number = Draw(seed, "just told", index), Draw(seed, "alike", index)
    alike = number.chance(rates.alike)
    several = 2 if number.chance(0.5) else 1  # kinds of things where some are alike
    count = 2 + int(number.random() * (MAX_OBJECTS - several)) if alike else 1
    shapes, alone = draw.order(SHAPES), draw.chance(rates.alone)
    kinds = several if alike else 1 if alone else 2
    appearances = zip(shapes[:kinds], draw.order(COLOURS), strict=False)
    mentions = [Mention(*appearance, draw.pick(TEXTURES) if draw.chance(0.5) else None) for appearance in appearances]
    if alike:
        mentions = draw.order([replace(mentions[0], count=count), *mentions[1:]])
    mentions = tuple(mentions)
    scene = scene_for(Description(mentions), draw)
    relations: tuple[Placed, ...] = ()
    if (
        not alike
        and len(mentions) == 2
        and draw.chance(rates.relation)
        and (relation := relation_between(*scene.things))
    ):
        relations = (Placed(0, relation, 1),)
    said = Description(mentions, relations, scene.style if draw.chance(0.2) else None)
    return Pair(scene, language(lang).caption(said, draw))


def pairs(seed: int, start: int, number: int, **settings) -> list[Pair]:
    """Pairs start … start + number − 1; settings as of `pair`."""
    return [pair(seed, index, **settings) for index in range(start, start + number)]


def pictures(
    found: list[Pair], size: int = 64, device: torch.device | str = "cpu", chunk: int = 32
) -> Float[Tensor, "B 3 H W"]:
    """The images of the pairs in [0, 1]. Small chunks stay in the processor's cache: on a CPU, 1.7 times as fast as one batch."""
    if torch.device(device).type != "cpu":
        chunk = max(len(found), 1)
    scenes = [p.scene for p in found]
    return torch.cat([render(scenes[i : i + chunk], size, device) for i in range(0, len(scenes), chunk)])


def swapped(found: Pair, draw: Draw, lang: str = "en") -> str | None:
    """A caption like the pair's with attributes bound to the wrong object, or one wrong attribute.

    None where the change happens to make a true caption.
    An extra negative for CLIP: random captions of a batch seldom test binding.
    """
    described = found.caption.description
    wrong = _exchanged(described, draw) if len(described.mentions) > 1 else _altered(described, draw)
    if wrong is None or all(fact.holds for fact in check_facts(wrong, found.scene)):
        return None
    return language(lang).caption(wrong, draw).text


def _exchanged(described: Description, draw: Draw) -> Description | None:
    first, second, *rest = described.mentions
    kind = draw.pick(("colour", "texture", "shape"))
    a, b = getattr(first, kind), getattr(second, kind)
    if a is None or b is None or a == b:
        return _altered(described, draw)
    return replace(described, mentions=(replace(first, **{kind: b}), replace(second, **{kind: a}), *rest))


def _altered(described: Description, draw: Draw) -> Description | None:
    which = int(draw.random() * len(described.mentions))
    mention = described.mentions[which]
    provided = [kind for kind in ("shape", "colour", "texture") if getattr(mention, kind)]
    kind = draw.pick(provided)
    values = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES}[kind]
    other = draw.pick([v for v in values if v != getattr(mention, kind)])
    mentions = list(described.mentions)
    mentions[which] = replace(mention, **{kind: other})
    return replace(described, mentions=tuple(mentions))
