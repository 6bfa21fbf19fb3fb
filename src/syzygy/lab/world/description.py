"""What a caption says about a scene, in any language, and which of its facts a scene shows."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Literal, Protocol, runtime_checkable

from syzygy.core.randomness import Draw
from syzygy.lab.world.scene import (
    INVERSE,
    UNSEEN_COLOURS,
    UNSEEN_TEXTURES,
    Colour,
    Relation,
    Scene,
    Shape,
    Style,
    Texture,
    Thing,
    relation_between,
    relation_is_unseen,
)


@dataclass(frozen=True)
class Mention:
    """One named object, or `count` alike ones. An attribute that is None is omitted."""

    shape: Shape
    colour: Colour | None = None
    texture: Texture | None = None
    count: int = 1

    def fits(self, thing: Thing) -> bool:
        """Whether the thing has every attribute that is provided."""
        return (
            thing.shape == self.shape and self.colour in (None, thing.colour) and self.texture in (None, thing.texture)
        )


@dataclass(frozen=True)
class Placed:
    """Mention number `subject` stands in `relation` to mention number `target`."""

    subject: int
    relation: Relation
    target: int


@dataclass(frozen=True)
class Description:
    """Mentions in their order, relations between them, and the style if it is named."""

    mentions: tuple[Mention, ...]
    relations: tuple[Placed, ...] = ()
    style: Style | None = None

    @property
    def unseen(self) -> bool:
        """Whether it names a composition that trainings do not see."""
        named = any(
            (m.shape, m.colour) in UNSEEN_COLOURS or (m.shape, m.texture) in UNSEEN_TEXTURES for m in self.mentions
        )
        return named or any(
            relation_is_unseen(self.mentions[p.subject].shape, p.relation, self.mentions[p.target].shape)
            for p in self.relations
        )

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for descriptions that say the same in another order, or a relation from its other side."""
        return tuple(sorted(map(repr, self.mentions))), tuple(sorted(map(self._sides, self.relations))), self.style

    def _sides(self, placed: Placed) -> tuple[str, str, str]:
        subject, target = repr(self.mentions[placed.subject]), repr(self.mentions[placed.target])
        return min((subject, placed.relation, target), (target, INVERSE[placed.relation], subject))


@dataclass(frozen=True)
class FactRates:
    """How often a caption provides each kind of fact, as probabilities. It never provides backgrounds, places or sizes."""

    thing: float = 0.8
    colour: float = 0.75
    texture: float = 0.5
    style: float = 0.2
    relation: float = 0.5


ALL_FACTS = FactRates(1.0, 1.0, 1.0, 1.0, 1.0)


def describe(scene: Scene, draw: Draw, facts: FactRates) -> Description:
    """A true description of the scene, leaving things out with the given probabilities; names one object at least."""
    groups = list(Counter(t.appearance for t in scene.things).items())
    named = [g for g in groups if draw.chance(facts.thing)] or [draw.pick(groups)]
    mentions = []
    for (shape, colour, texture), count in draw.order(named):
        mention = Mention(
            shape,
            colour if draw.chance(facts.colour) else None,
            texture if draw.chance(facts.texture) else None,
            count,
        )
        if count > 1 and sum(map(mention.fits, scene.things)) != count:
            # without its attributes "two circles" would be false if there are more circles
            mention = Mention(shape, colour, texture, count)
        mentions.append(mention)
    style = scene.style if draw.chance(facts.style) else None
    described = Description(tuple(mentions), (), style)
    single = [i for i, m in enumerate(mentions) if m.count == 1]
    if len(single) >= 2 and draw.chance(facts.relation):
        first, second = single[0], single[1]
        a, b = (_thing_of(mentions[i], scene) for i in (first, second))
        relation = relation_between(a, b) if a and b and a is not b else None
        if relation:
            described = replace(described, relations=(Placed(first, relation, second),))
    return described


def _thing_of(mention: Mention, scene: Scene) -> Thing | None:
    """The one thing a mention can mean; None when several fit, so that a relation is never ambiguous."""
    fitting = [t for t in scene.things if mention.fits(t)]
    return fitting[0] if len(fitting) == 1 else None


@runtime_checkable
class SceneLike(Protocol):
    """A scene, or what a reader predicts of an image. A protocol, so that this module need not import the reader's network."""

    @property
    def things(self) -> tuple[Thing, ...]: ...

    @property
    def style(self) -> Style: ...


FactKind = Literal["shape", "colour", "texture", "relation", "count", "style"]


@dataclass(frozen=True)
class Fact:
    """One named fact, and whether the scene shows it."""

    kind: FactKind
    text: str
    holds: bool


def check_facts(description: Description, scene: SceneLike, *, exact_counts: bool = False) -> tuple[Fact, ...]:
    """Check every named atom of the description against the scene.

    Mentions are matched to different things in the way that makes most facts hold, so attributes count only when bound
    to the right object. A relation of several alike things must hold of each. Extra things do not count as errors
    unless `exact_counts`: then a mention's number must be the number of things that fit.
    """
    wanted = [i for i, m in enumerate(description.mentions) for _ in range(m.count)]
    slots = list(range(len(scene.things))) + [-1] * len(wanted)
    best: tuple[Fact, ...] = ()
    for chosen in dict.fromkeys(permutations(slots, len(wanted))):  # ordered, so that ties fall alike everywhere
        match: dict[int, list[Thing | None]] = {}
        for i, slot in zip(wanted, chosen, strict=True):
            match.setdefault(i, []).append(scene.things[slot] if slot >= 0 else None)
        found = _facts(description, match)
        if not best or sum(a.holds for a in found) > sum(a.holds for a in best):
            best = found
        if all(a.holds for a in best):
            break
    if exact_counts:
        best += tuple(
            Fact("count", f"exactly {m.count} {m.shape}", sum(map(m.fits, scene.things)) == m.count)
            for m in description.mentions
        )
    if description.style:
        best += (Fact("style", description.style, scene.style == description.style),)
    return best


def extra_things(description: Description, scene: SceneLike) -> int:
    """How many more things there are than the description names: reported apart from the facts, never counted as errors."""
    return max(len(scene.things) - sum(m.count for m in description.mentions), 0)


def _facts(description: Description, match: dict[int, list[Thing | None]]) -> tuple[Fact, ...]:
    facts = []
    for i, mention in enumerate(description.mentions):
        for thing in match[i]:
            right = thing is not None and thing.shape == mention.shape
            facts.append(Fact("shape", mention.shape, right))
            if mention.colour:
                holds = right and thing is not None and thing.colour == mention.colour
                facts.append(Fact("colour", f"{mention.colour} {mention.shape}", holds))
            if mention.texture:
                holds = right and thing is not None and thing.texture == mention.texture
                facts.append(Fact("texture", f"{mention.texture} {mention.shape}", holds))
    for placed in description.relations:
        names = description.mentions[placed.subject].shape, description.mentions[placed.target].shape
        holds = all(
            a is not None
            and b is not None
            and (a.shape, b.shape) == names
            and relation_between(a, b) == placed.relation
            for a, b in product(match[placed.subject], match[placed.target])
        )
        facts.append(Fact("relation", f"{names[0]} {placed.relation} {names[1]}", holds))
    return tuple(facts)
