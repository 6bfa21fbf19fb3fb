"""Do objects appear inside their regions? Exact scores on the embedded world (paint-with-words, eDiff-I section 4.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from syzygy.core.contracts import Region, Sampling
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator
from syzygy.core.wording import counted
from syzygy.generation.image_files import card, contact_sheet
from syzygy.generation.pipeline import to_pil
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab import plots
from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.harness import ALL, SEEN, Candidate, EvaluationContext, Outcome, Row, SamplingConfig, tensors
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.evaluate.selection import agreement_with_judge, by_reader, read_scenes
from syzygy.lab.report import Note, Picture, Report, Section
from syzygy.lab.world.description import Mention
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.scene_classifier import Prediction
from syzygy.regions.canvas import drawn
from syzygy.regions.phrases import places

CATEGORIES = ("single", "colour")
"""Prompts that name one object, and two coloured objects."""
SIDE, MARGIN = 64, 0.06
HALVES = (((0.0, 0.5), (0.0, 1.0)), ((0.5, 1.0), (0.0, 1.0)), ((0.0, 1.0), (0.0, 0.5)), ((0.0, 1.0), (0.5, 1.0)))
"""Left, right, above, below: (from, to) across and down. Neighbours in pairs face each other."""
WITHOUT = "no regions"
SHOWN = 6
"""Prompts in the grid of images."""


class RegionsConfig(SamplingConfig):
    """What is generated and scored."""

    prompts: int = Field(default=100, gt=0)
    """Prompts of each category, seen and unseen each, or as many as exist."""
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Region strengths, w' of paint-with-words."""
    conditions: tuple[str, ...] | None = None
    """What the decoder reads; null is the model's own choice."""

    @field_validator("strengths")
    @classmethod
    def _are_strengths(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if not strengths or not all(0 < strength <= 100 for strength in strengths):
            raise ValueError(
                "strengths must be more than 0, at most 100; the control without regions is always measured"
            )
        return tuple(dict.fromkeys(strengths))


@dataclass(frozen=True)
class RegionCase:
    """A prompt, and a region for each of its objects."""

    prompt: Prompt
    mentions: tuple[Mention, ...]
    regions: tuple[Region, ...]

    def exchanged(self) -> "RegionCase":
        """The same with the masks exchanged."""
        masks = [region.mask for region in reversed(self.regions)]
        moved = tuple(Region(one.phrase, mask) for one, mask in zip(self.regions, masks, strict=True))
        return RegionCase(self.prompt, self.mentions, moved)


def region_prompts(config: RegionsConfig) -> list[Prompt]:
    """Prompts that name one and two objects, seen and unseen."""
    return [
        prompt
        for category in CATEGORIES
        for unseen in (False, True)
        for prompt in prompts(category, config.prompts, config.seed, unseen, fewer=True)
    ]


def region_cases(wanted: Sequence[Prompt], seed: int) -> list[RegionCase]:
    """Regions for prompts that name one or two objects: opposite halves of the image, drawn for each prompt.

    Prompts in which the words of an object occur twice are omitted: a region applies to every occurrence of its phrase.

    Raises:
        UserError: no prompt names one or two objects.
    """
    found = []
    for prompt in wanted:
        mentions = prompt.description.mentions
        phrases = [prompt.text[span.start : span.stop] for span in sorted(prompt.spans, key=lambda span: span.mention)]
        if not 1 <= len(mentions) == len(phrases) <= 2 or any(len(places(prompt.text, one)) > 1 for one in phrases):
            continue
        first = Draw(seed, "regions", prompt.text).pick((0, 1, 2, 3))
        halves = (HALVES[first], HALVES[first ^ 1])
        regions = tuple(Region(phrase, _half(*half)) for phrase, half in zip(phrases, halves, strict=False))
        found.append(RegionCase(prompt, mentions, regions))
    if not found:
        raise UserError("none of these prompts names one or two objects, so there are no regions to evaluate.")
    return found


def _half(across: tuple[float, float], down: tuple[float, float]) -> Float[Tensor, "H W"]:
    mask = torch.zeros(SIDE, SIDE)
    (left, right), (top, bottom) = ([round(SIDE * (one + way * MARGIN)) for one, way in zip(pair, (1, -1), strict=True)]
                                    for pair in (across, down))  # fmt: skip
    mask[top:bottom, left:right] = 1
    return mask


def check(model: TextToImage, config: RegionsConfig) -> None:
    """Fail if the decoder reads no token states, or the settings leave them out."""
    reads = model.pipeline.decoder.conditions
    if not {"text", "t5"} & set(config.conditions or reads):
        raise UserError(
            f"regions need a decoder that reads token states: --conditions must name text or t5; the decoder of {model.name} reads "
            f"{', '.join(reads)}."
        )


def name_of(strength: float, exchanged: bool = False) -> str:
    """The candidate with a region strength."""
    return f"w' {strength:g}" + (", exchanged" if exchanged else "")


def with_two(cases: Sequence[RegionCase]) -> list[RegionCase]:
    """The cases of two objects, with their masks exchanged."""
    return [one.exchanged() for one in cases if len(one.regions) == 2]


def candidates(model: TextToImage, cases: Sequence[RegionCase], config: RegionsConfig) -> list[Candidate]:
    """Without regions, with each strength, and (two objects) with each strength and exchanged masks."""
    two = with_two(cases)

    def one(name: str, some: Sequence[RegionCase], strength: float) -> Candidate:
        return Candidate(name, len(some), lambda rows: generate(model, [some[row] for row in rows], config, strength))

    return [
        one(WITHOUT, cases, 0.0),
        *(one(name_of(strength), cases, strength) for strength in config.strengths),
        *(one(name_of(strength, True), two, strength) for strength in config.strengths if two),
    ]


def generate(
    model: TextToImage, cases: Sequence[RegionCase], config: RegionsConfig, strength: float
) -> Float[Tensor, "B 3 H W"]:
    """An image for each case; strength 0 ignores the regions."""
    return tensors(
        model.pipeline(
            GenerationRequest(
                [one.prompt.text for one in cases],
                sampling=Sampling(steps=config.steps, guidance_scale=config.guidance_scale, region_strength=strength),
                conditions=config.conditions,
                generator=[generator(config.seed, "painting", one.prompt.text) for one in cases],
                regions=[list(one.regions) for one in cases],
            )
        ).images
    )


def in_place(case: RegionCase, scene: Prediction) -> float:
    """The part of the objects that appear, with all named attributes, with their centre inside their region."""
    inside = map(lambda mention, region: _inside(mention, region, scene), case.mentions, case.regions)
    return sum(inside) / len(case.mentions)


def _inside(mention: Mention, region: Region, scene: Prediction) -> bool:
    height, width = region.mask.shape
    return any(
        mention.fits(thing)
        and bool(region.mask[min(int(thing.y * height), height - 1), min(int(thing.x * width), width - 1)])
        for thing in scene.things
    )


def table(cases: Sequence[RegionCase], scenes: Mapping[str, Sequence[Prediction]], config: RegionsConfig) -> list[Row]:
    """The harness's rows: `in_place`, prompt and fact accuracy; prompt accuracy minus that without regions."""

    def rows(some: Sequence[RegionCase], names: Sequence[str], against: Mapping[str, Mapping[str, str]]) -> list[Row]:
        wanted = [one.prompt for one in some]
        scores = {
            name: {"in_place": [[in_place(one, scene)] for one, scene in zip(some, scenes[name], strict=True)]}
            | harness.accuracies(wanted, scenes[name])
            for name in names
        }
        return harness.table(scores, wanted, against)

    whole = [WITHOUT, *map(name_of, config.strengths)]
    found = rows(cases, whole, {name: {"against_no_regions": WITHOUT} for name in whole[1:]})
    two = with_two(cases)
    return found + (rows(two, [name_of(strength, True) for strength in config.strengths], {}) if two else [])


def chosen(rows: Sequence[Row], config: RegionsConfig) -> float:
    """The strength with most objects in place, on seen prompts. The rows are of the reader's predictions."""
    by = {row["candidate"]: row for row in harness.overall(rows, SEEN)}
    return max(config.strengths, key=lambda strength: by[name_of(strength)]["in_place"].mean)


@torch.inference_mode()
def grid(model: TextToImage, cases: Sequence[RegionCase], config: RegionsConfig, strength: float) -> Image.Image:
    """Prompts that name two objects (or any): without regions; masks, image; exchanged masks, image. Labels count objects in place."""
    judge = judge_of(model)
    two = [one for one in cases if len(one.regions) == 2]
    lines, labels = [], []
    for one in (two or list(cases))[:SHOWN]:
        other = one.exchanged()
        drawings = ((one, 0.0), (one, strength), (other, strength))
        images = torch.cat([generate(model, [which], config, w) for which, w in drawings])
        scenes = judge.read(images.to(model.pipeline.device))
        number = len(one.regions)
        counts = [f"{in_place(w, scene) * number:.0f} of {number} in place"
                  for (w, _), scene in zip(drawings, scenes, strict=True)]  # fmt: skip
        without, first, second = to_pil(images)
        lines.append([card(one.prompt.text), without, drawn(one.regions), first, drawn(other.regions), second])
        labels.append(["", f"no regions: {counts[0]}", "regions", counts[1], "exchanged", counts[2]])
    return contact_sheet(lines, labels, cell=112)


COLUMNS: harness.Columns = {
    "candidate": "candidate",
    "category": "category",
    "prompts": "side",
    "in place": "in_place",
    "prompt accuracy": "prompt_accuracy",
    "minus no regions": "against_no_regions",
}
LEGEND = (
    "**In place**: the object of a region appears, with all named attributes, with its centre in the region's mask. **Prompt accuracy**: every "
    "fact that the prompt names is right, wherever it is; differences in points, paired. **Exchanged**: two objects, in place by the exchanged "
    "masks. Brackets: 95 % bootstrap over prompts."
)


def evaluate(context: EvaluationContext[RegionsConfig]) -> Outcome:
    """Generate with each region strength and the controls."""
    model, config = context.model, context.config
    check(model, config)
    cases = region_cases(region_prompts(config), config.seed)
    found = context.predict(candidates(model, cases, config), also=by_reader(model))
    rows = table(cases, {name: one.scenes for name, one in found.items()}, config)
    best, reads = (
        chosen(table(cases, read_scenes(found), config), config),
        list(config.conditions or model.pipeline.conditions),
    )
    result = context.header(
        conditions=reads,
        prompts=len(cases),
        chosen_strength=best,
        agreement=agreement_with_judge(found),
        rows=harness.plain(rows),
    )
    printed = harness.as_table([row for row in rows if row["category"] != ALL], COLUMNS, first_number=3)
    said = f"Strength with most objects in place on seen prompts, by the reader: w' {best:g}."

    def report(sheet: Image.Image | None) -> Report:
        curves = {}
        for category in CATEGORIES:
            of = {row["candidate"]: row for row in rows if (row["category"], row["side"]) == (category, ALL)}
            swept = [(0.0, WITHOUT), *((w, name_of(w)) for w in config.strengths)]
            titles = {f"in place, {category}": "in_place", f"prompt accuracy, {category}": "prompt_accuracy"}
            curves |= harness.sweep([(w, of[name]) for w, name in swept], titles) if of else {}
        shown = f"The first prompts that name two objects, with w' {best:g}, the strength with most objects in place by the reader."
        return Report(
            f"Regions: {model.name}",
            context.lead(
                f"{counted(len(cases), 'prompt')} that name one or two objects, each with a region in one half of the image. The decoder "
                f"reads {', '.join(reads)}."
            ),
            [
                Section("Examples", [Picture(sheet, "Images without and with regions", shown)] if sheet else []),
                Section("By strength", [plots.line_plot("per cent, by region strength", curves, x="w'")]),
                Section("Numbers", [harness.as_table(rows, COLUMNS, first_number=3), Note(LEGEND)]),
            ],
            limits=(
                "Regions are halves of the image and prompts name at most two objects of the embedded world: other shapes of masks, more "
                "regions and photographs are not measured. Only one decoder is."
            ),
        )

    return Outcome(result, [printed, said, LEGEND], report, partial(grid, model, cases, config, best))
