"""Does a painted phrase's object lie where it was painted? Exact scores on the embedded world (paint-with-words, eDiff-I section 4.3)."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import Region, Sampling
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator
from syzygy.generation.image_files import card, contact_sheet, to_tensor
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import predictions, report
from syzygy.lab.evaluate.predictions import ALL, SEEN, Sampled, Series, Values
from syzygy.lab.world.description import Mention
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.reader import Prediction
from syzygy.regions.canvas import drawn
from syzygy.regions.phrases import places

CATEGORIES = ("single", "colour")
"""Prompts of one object, and of two in colours."""
SIDE, MARGIN = 64, 0.06
HALVES = (((0.0, 0.5), (0.0, 1.0)), ((0.5, 1.0), (0.0, 1.0)), ((0.0, 1.0), (0.0, 0.5)), ((0.0, 1.0), (0.5, 1.0)))
"""Left, right, above, below: (from, to) across and down. Neighbours in pairs face each other."""
UNPAINTED = "unpainted"
SHOWN = 6
"""Prompts in the grid of pictures."""


class PaintingScoring(Sampled):
    """What is painted and scored."""

    prompts: int = Field(default=100, gt=0)
    """Prompts a category, seen and held-out each, or as many as there are."""
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    """w' of paint-with-words."""
    conditions: tuple[str, ...] | None = None
    """What the decoder reads; null is all that it can."""

    @field_validator("strengths")
    @classmethod
    def _pull(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if not strengths or not all(0 < strength <= 100 for strength in strengths):
            raise ValueError("strengths must be more than 0, at most 100; the unpainted control is always measured")
        return tuple(dict.fromkeys(strengths))


@dataclass(frozen=True)
class Asked:
    """A prompt, and where each of its objects shall be."""

    prompt: Prompt
    mentions: tuple[Mention, ...]
    regions: tuple[Region, ...]

    def exchanged(self) -> "Asked":
        """The same with the masks exchanged."""
        masks = [region.mask for region in reversed(self.regions)]
        moved = tuple(Region(one.phrase, mask) for one, mask in zip(self.regions, masks, strict=True))
        return Asked(self.prompt, self.mentions, moved)


def wanted(scoring: PaintingScoring) -> list[Prompt]:
    """Prompts of one and of two objects, seen and held-out."""
    return [
        prompt
        for category in CATEGORIES
        for held_out in (False, True)
        for prompt in prompts(category, scoring.prompts, scoring.seed, held_out, fewer=True)
    ]


def ask(wanted: Sequence[Prompt], seed: int) -> list[Asked]:
    """Regions for prompts of one or two objects: opposite halves of the picture, drawn for each prompt.

    Prompts are left out whose words for an object stand twice in them: a region is for every place where its phrase stands.
    """
    found = []
    for prompt in wanted:
        mentions = prompt.description.mentions
        phrases = [prompt.text[span.start : span.stop] for span in sorted(prompt.spans, key=lambda span: span.mention)]
        if not 1 <= len(mentions) == len(phrases) <= 2 or any(len(places(prompt.text, one)) > 1 for one in phrases):
            continue
        draw = Draw(seed, "regions", prompt.text)
        first = draw.pick((0, 1, 2, 3))
        halves = (HALVES[first], HALVES[first ^ 1])
        regions = tuple(Region(phrase, _half(*half)) for phrase, half in zip(phrases, halves, strict=False))
        found.append(Asked(prompt, mentions, regions))
    if not found:
        raise UserError("none of these prompts has one or two objects: nothing to paint.")
    return found


def _half(across: tuple[float, float], down: tuple[float, float]) -> Float[Tensor, "H W"]:
    mask = torch.zeros(SIDE, SIDE)
    (left, right), (top, bottom) = ([round(SIDE * (one + way * MARGIN)) for one, way in zip(pair, (1, -1), strict=True)]
                                    for pair in (across, down))  # fmt: skip
    mask[top:bottom, left:right] = 1
    return mask


def check(model: TextToImage, scoring: PaintingScoring) -> None:
    """Fails where a decoder reads no words, or where it is told to read none."""
    reads = model.pipeline.decoder.conditions
    if not {"text", "t5"} & set(scoring.conditions or reads):
        raise UserError(
            f"words are painted where a decoder reads them: --conditions must name text or t5; that of {model.name} reads "
            f"{', '.join(reads)}."
        )


def name_of(strength: float, exchanged: bool = False) -> str:
    """The candidate of a strength."""
    return f"w' {strength:g}" + (", masks exchanged" if exchanged else "")


def series(model: TextToImage, asked: Sequence[Asked], scoring: PaintingScoring) -> list[Series]:
    """All that is painted, a prompt's pictures from the same noise: unpainted, with each strength; of two objects, with masks exchanged."""
    two = pairs(asked)

    def one(strength: float, some: Sequence[Asked]) -> Callable[[Sequence[int]], list[Image.Image]]:
        return lambda rows: paint(model, [some[row] for row in rows], scoring, strength)

    return [
        Series(UNPAINTED, len(asked), one(0.0, asked)),
        *(Series(name_of(strength), len(asked), one(strength, asked)) for strength in scoring.strengths),
        *(Series(name_of(strength, True), len(two), one(strength, two)) for strength in scoring.strengths if two),
    ]


def pairs(asked: Sequence[Asked]) -> list[Asked]:
    """Those of two objects, with their masks exchanged."""
    return [one.exchanged() for one in asked if len(one.regions) == 2]


def paint(model: TextToImage, asked: Sequence[Asked], scoring: PaintingScoring, strength: float) -> list[Image.Image]:
    """A picture of each prompt, its phrases painted where they shall be; strength 0 paints nothing."""
    return model.pipeline(
        [one.prompt.text for one in asked],
        sampling=Sampling(steps=scoring.steps, guidance_scale=scoring.guidance_scale, region_strength=strength),
        conditions=scoring.conditions,
        generator=[generator(scoring.seed, "painting", one.prompt.text) for one in asked],
        regions=[list(one.regions) for one in asked],
    ).images


def placed(one: Asked, reading: Prediction) -> float:
    """Part of the phrases whose object, with all told attributes, has its centre in its mask."""
    return sum(map(lambda m, r: _inside(m, r, reading), one.mentions, one.regions)) / len(one.mentions)


def _inside(mention: Mention, region: Region, reading: Prediction) -> bool:
    """Whether a thing with all told attributes has its centre in the mask."""
    height, width = region.mask.shape
    return any(
        mention.fits(thing)
        and bool(region.mask[min(int(thing.y * height), height - 1), min(int(thing.x * width), width - 1)])
        for thing in reading.things
    )


def table(
    asked: Sequence[Asked], found: Mapping[str, Sequence[Prediction]], scoring: PaintingScoring
) -> list[dict[str, Any]]:
    """A row a candidate, category and side: phrases in place, agreement, and the latter less that of the unpainted."""
    two = pairs(asked)
    whole = [UNPAINTED, *map(name_of, scoring.strengths)]
    rows = predictions.table(
        {name: _scores(asked, found[name]) for name in whole},
        [one.prompt for one in asked],
        {name: {"against_unpainted": UNPAINTED} for name in whole[1:]},
    )
    if two:
        turned = [name_of(strength, True) for strength in scoring.strengths]
        rows += predictions.table({name: _scores(two, found[name]) for name in turned}, [one.prompt for one in two], {})
    return rows


def _scores(asked: Sequence[Asked], read: Sequence[Prediction]) -> dict[str, Values]:
    return {
        "placed": [[placed(one, reading)] for one, reading in zip(asked, read, strict=True)],
        "agreement": [[predictions.agrees(one.prompt, reading)] for one, reading in zip(asked, read, strict=True)],
    }


def chosen(rows: Sequence[Mapping[str, Any]], scoring: PaintingScoring) -> float:
    """The strength with most phrases in place, of seen prompts."""
    by = {row["candidate"]: row for row in rows if (row["category"], row["side"]) == (ALL, SEEN)}
    return max(scoring.strengths, key=lambda strength: by[name_of(strength)]["placed"].mean)


@torch.inference_mode()
def grid(model: TextToImage, asked: Sequence[Asked], scoring: PaintingScoring, strength: float) -> Image.Image:
    """Prompts of two objects (or what there is): unpainted, masks, painted, exchanged masks, painted; with what is in place."""
    reader = model.reader()
    two = [one for one in asked if len(one.regions) == 2]
    lines, labels = [], []
    for one in (two or list(asked))[:SHOWN]:
        turned = one.exchanged()
        images = [
            paint(model, [which], scoring, w)[0] for which, w in ((one, 0.0), (one, strength), (turned, strength))
        ]
        read = reader.read(torch.stack([to_tensor(image) for image in images]).to(model.pipeline.device))
        told = [
            f"{placed(w, r) * len(w.regions):.0f} of {len(w.regions)} in place"
            for w, r in zip((one, one, turned), read, strict=True)
        ]
        lines.append(
            [card(one.prompt.text), images[0], drawn(one.regions), images[1], drawn(turned.regions), images[2]]
        )
        labels.append(["", f"unpainted: {told[0]}", "", f"painted: {told[1]}", "", f"painted: {told[2]}"])
    return contact_sheet(lines, labels, cell=112)


def result(
    model: TextToImage, scoring: PaintingScoring, asked: Sequence[Asked], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All scores as JSON values."""
    return {
        "model": model.name,
        "scoring": scoring.model_dump(mode="json"),
        "conditions": list(scoring.conditions or model.pipeline.decoder.conditions),
        "prompts": len(asked),
        "machine": artifacts.machine(),
        "versions": artifacts.versions(),
        "chosen_strength": chosen(rows, scoring),
        "rows": predictions.plain(rows),
    }


def page(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], sheet: Image.Image) -> str:
    """A self-contained page: pictures, curves over the strength, table."""
    scoring = found["scoring"]
    by = {(row["candidate"], row["category"]): row for row in rows if row["side"] == ALL}
    swept = [(0.0, UNPAINTED), *((w, name_of(w)) for w in scoring["strengths"])]
    lines = {
        f"{what}, {category}": [
            (w, 100 * value.mean, 50 * (value.high - value.low))
            for w, name in swept
            if (value := by[name, category][key])
        ]
        for category in CATEGORIES
        if (UNPAINTED, category) in by
        for what, key in (("in place", "placed"), ("all right", "agreement"))
    }
    body = f"""
<h1>Paint-with-words: {html.escape(found["model"])}</h1>
<p>{found["prompts"]} prompts of one and of two objects, each object painted into a half of the picture; {scoring["steps"]} steps, guidance
{scoring["guidance_scale"]:g}, seed {scoring["seed"]}, on {html.escape(found["machine"])}. A prompt's pictures all start from the same noise.
The decoder reads {", ".join(found["conditions"])}.</p>
{report.picture(sheet, width=sheet.width)}
<p class='note'>The first prompts of two objects, w' {found["chosen_strength"]:g}, the strength with most phrases in place.</p>
{report.curves("per cent, over the strength", lines, x="w'")}
{report.rows(["", "category", "side", "in place", "all right", "less unpainted"], _cells(rows), numbers_from=3)}
<p class='note'><b>In place</b>: painted phrases whose object, with all told attributes, has its centre in its mask. <b>All right</b>:
everything that the prompt names is there, wherever; differences in points, paired. <b>Masks exchanged</b>: prompts of two objects, in place
by the exchanged masks. Brackets: 95 % bootstrap over prompts.</p>
"""
    return report.page(f"Paint-with-words: {found['model']}", body)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            html.escape(row["candidate"]),
            row["category"],
            row["side"],
            str(row["placed"]),
            str(row["agreement"]),
            predictions.points(row["against_unpainted"]) if "against_unpainted" in row else "",
        ]
        for row in rows
    ]
