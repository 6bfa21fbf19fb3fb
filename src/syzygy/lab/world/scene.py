"""Scenes: the contents of an image as values. Lengths are fractions of the image's side; y points down."""

from dataclasses import dataclass
from typing import Literal

Shape = Literal["circle", "square", "triangle", "star", "heart", "cross", "ring", "moon"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Texture = Literal["plain", "striped", "dotted"]
Style = Literal["flat", "outline", "pastel", "night"]
Relation = Literal["left of", "right of", "above", "below"]

SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
COLOURS: tuple[Colour, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES: tuple[Texture, ...] = ("plain", "striped", "dotted")
STYLES: tuple[Style, ...] = ("flat", "outline", "pastel", "night")
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")
INVERSE: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
MAX_OBJECTS = 4

RELATION_MARGIN = 0.1
"""Two centres closer than this along both axes are in no relation that a caption may name."""


@dataclass(frozen=True)
class Thing:
    """One object: what it is, its centre, and the radius of the circle that it fills."""

    shape: Shape
    colour: Colour
    texture: Texture
    x: float
    y: float
    radius: float

    @property
    def appearance(self) -> tuple[Shape, Colour, Texture]:
        return self.shape, self.colour, self.texture


@dataclass(frozen=True)
class Background:
    """A gradient between two tints (hues in [0, 1]) of one strength in [0, 1], along an angle in radians."""

    hue_from: float
    hue_to: float
    strength: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """One to four things, later ones in front, in a global style before a background."""

    things: tuple[Thing, ...]
    style: Style
    background: Background

    def __post_init__(self) -> None:
        assert 1 <= len(self.things) <= MAX_OBJECTS, f"a scene has 1 to {MAX_OBJECTS} objects, got {len(self.things)}"


def relation_between(a: Thing, b: Thing) -> Relation | None:
    """How `a` lies to `b`, along the axis in which they are further apart; None when too close to say."""
    dx, dy = b.x - a.x, b.y - a.y
    if max(abs(dx), abs(dy)) < RELATION_MARGIN:
        return None
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


UNSEEN_COLOURS: frozenset[tuple[Shape, Colour]] = frozenset(
    {
        ("circle", "purple"),
        ("square", "orange"),
        ("triangle", "cyan"),
        ("star", "blue"),
        ("heart", "green"),
        ("cross", "pink"),
        ("ring", "red"),
        ("moon", "yellow"),
    }
)
"""Shape × colour pairs that only the trainings of CLIP and of the decoder see: one for each shape, one for each colour."""

UNSEEN_TEXTURES: frozenset[tuple[Shape, Texture]] = frozenset(
    {("square", "dotted"), ("star", "striped"), ("moon", "dotted"), ("circle", "striped")}
)
"""Shape × texture pairs that trainings do not see."""

UNSEEN_RELATIONS: frozenset[tuple[Shape, Relation, Shape]] = frozenset(
    {
        ("circle", "left of", "star"),
        ("heart", "left of", "square"),
        ("triangle", "left of", "ring"),
        ("moon", "above", "cross"),
        ("square", "above", "triangle"),
        ("ring", "above", "heart"),
    }
)
"""Ordered relations of pairs that trainings do not see; each stands for its inverse too (star right of circle)."""


def relation_is_unseen(subject: Shape, relation: Relation, target: Shape) -> bool:
    """Whether "subject relation target" is on the list, read from either side."""
    return (subject, relation, target) in UNSEEN_RELATIONS or (
        target,
        INVERSE[relation],
        subject,
    ) in UNSEEN_RELATIONS


def shows_unseen_composition(scene: Scene) -> bool:
    """Whether the scene shows a composition that trainings do not see, whether a caption names it or not."""
    if any((t.shape, t.colour) in UNSEEN_COLOURS or (t.shape, t.texture) in UNSEEN_TEXTURES for t in scene.things):
        return True
    pairs = ((a, b) for i, a in enumerate(scene.things) for b in scene.things[i + 1 :])
    return any((r := relation_between(a, b)) and relation_is_unseen(a.shape, r, b.shape) for a, b in pairs)
