"""Does a painted phrase's object lie where it was painted? Exact scores on the embedded world (paint-with-words)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.api import TextToImage
from syzygy.diffusion.regions import places
from syzygy.errors import UserError
from syzygy.evals.bootstrap import Interval, difference, interval
from syzygy.pictures import to_tensor
from syzygy.rng import Draw, generator
from syzygy.runs.evaluate import Scoring
from syzygy.types import Region, Sampling
from syzygy.world.description import Mention, judge
from syzygy.world.prompts import Prompt
from syzygy.world.reader import Reading

BATCH, SIDE, MARGIN = 32, 64, 0.06
HALVES = (((0.0, 0.5), (0.0, 1.0)), ((0.5, 1.0), (0.0, 1.0)), ((0.0, 1.0), (0.0, 0.5)), ((0.0, 1.0), (0.5, 1.0)))
"""Left, right, above, below: (from, to) across and down. Neighbours in pairs face each other."""


@dataclass(frozen=True)
class Asked:
    """A prompt, and where each of its objects shall be."""

    prompt: Prompt
    mentions: tuple[Mention, ...]
    regions: tuple[Region, ...]

    def swapped(self) -> "Asked":
        """The same with the masks exchanged."""
        masks = [region.mask for region in reversed(self.regions)]
        moved = tuple(Region(one.phrase, mask) for one, mask in zip(self.regions, masks, strict=True))
        return Asked(self.prompt, self.mentions, moved)


@dataclass(frozen=True)
class Outcome:
    """What became of the pictures painted with one strength, a row a prompt."""

    placed: list[list[float]]
    """Part of the phrases whose object, with all told attributes, has its centre in its mask."""
    agrees: list[list[float]]
    """Whether everything named is right."""


def ask(wanted: Sequence[Prompt], seed: int) -> list[Asked]:
    """Regions for prompts of one or two objects: opposite halves of the picture, drawn for each prompt.

    Prompts whose words for an object do not stand together are left out.
    """
    found = []
    for prompt in wanted:
        mentions = prompt.description.mentions
        phrases = [_phrase(prompt.text, mention) for mention in mentions]
        if len(mentions) > 2 or not all(phrases):
            continue
        draw = Draw(seed, "regions", prompt.text)
        first = draw.pick((0, 1, 2, 3))
        halves = (HALVES[first], HALVES[first ^ 1])
        regions = tuple(Region(str(phrase), _half(*half)) for phrase, half in zip(phrases, halves, strict=False))
        found.append(Asked(prompt, mentions, regions))
    if not found:
        raise UserError("none of these prompts has one or two objects whose words stand together: nothing to paint.")
    return found


def _phrase(text: str, mention: Mention) -> str | None:
    """The words for the object, as they stand in the prompt."""
    attributes = [word for word in (mention.texture, mention.colour) if word]
    for phrase in (" ".join([*attributes, mention.shape]), " ".join([*attributes[1:], mention.shape]), mention.shape):
        try:
            if len(places(text, phrase)) == 1:
                return phrase
        except UserError:
            continue
    return None


def _half(across: tuple[float, float], down: tuple[float, float]) -> Float[Tensor, "H W"]:
    mask = torch.zeros(SIDE, SIDE)
    (left, right), (top, bottom) = ([round(SIDE * (one + way * MARGIN)) for one, way in zip(pair, (1, -1), strict=True)]
                                    for pair in (across, down))  # fmt: skip
    mask[top:bottom, left:right] = 1
    return mask


def measure(
    model: TextToImage,
    asked: Sequence[Asked],
    strengths: Sequence[float],
    scoring: Scoring,
    conditions: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[float, Outcome]:
    """Paint every prompt with each strength from the same noise, and read what came where. 0 is the unpainted control.

    `conditions` are what the decoder reads, "text" among them.
    """
    reader, found = model.reader(), {}
    for strength in strengths:
        outcome = Outcome([], [])
        for start in range(0, len(asked), BATCH):
            some = asked[start : start + BATCH]
            how = Sampling(steps=scoring.steps, guidance_scale=scoring.guidance_scale, painting=strength)
            output = model.pipeline(
                [one.prompt.text for one in some],
                how=how,
                conditions=conditions,
                generator=[generator(scoring.seed, "painting", one.prompt.text) for one in some],
                regions=[list(one.regions) for one in some],
            )
            readings = reader.read(torch.stack([to_tensor(image) for image in output.images]))
            for one, reading in zip(some, readings, strict=True):
                outcome.placed.append([_placed(one, reading)])
                outcome.agrees.append([float(all(atom.holds for atom in judge(one.prompt.description, reading)))])
            progress(len(some))
        found[strength] = outcome
    return found


def _placed(one: Asked, reading: Reading) -> float:
    return sum(map(lambda m, r: _inside(m, r, reading), one.mentions, one.regions)) / len(one.mentions)


def _inside(mention: Mention, region: Region, reading: Reading) -> bool:
    """Whether a thing with all told attributes has its centre in the mask."""
    height, width = region.mask.shape
    return any(
        mention.fits(thing)
        and bool(region.mask[min(int(thing.y * height), height - 1), min(int(thing.x * width), width - 1)])
        for thing in reading.things
    )


def table(outcomes: Mapping[float, Outcome]) -> list[dict[str, float | Interval]]:
    """A row a strength: part of the phrases in place, agreement, and the latter less that of the unpainted (paired)."""
    control = outcomes[0.0]
    return [
        {
            "strength": strength,
            "placed": interval(outcome.placed),
            "agreement": interval(outcome.agrees),
            "agreement_gained": difference(outcome.agrees, control.agrees),
        }
        for strength, outcome in outcomes.items()
    ]
