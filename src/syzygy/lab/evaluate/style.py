"""Does an image take the style of a reference image, and nothing else of it? Exact scores on the embedded world (eDiff-I, section 4.3)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from syzygy.core.contracts import Sampling
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.core.wording import counted
from syzygy.generation.image_files import card, contact_sheet
from syzygy.generation.pipeline import to_pil
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab import plots
from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.harness import ALL, SEEN, Candidate, EvaluationContext, Outcome, Row, Values, tensors
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.evaluate.selection import agreement_with_judge, by_reader, read_scenes
from syzygy.lab.report import Note, Picture, Report, Section
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import CATEGORIES, Prompt, prompts
from syzygy.lab.world.render import render
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, TEXTURES, Colour, Scene, Shape
from syzygy.lab.world.scene_classifier import Prediction
from syzygy.lab.world.scene_sampling import scene_for

TEXT, PRIOR, WORDS = "text alone", "prior's embedding", "style in words"
REFERENCE, WITHOUT_CONTENT = "reference", "reference without its content"
TARGET = 0.9
POOL = 6
"""So many times the wanted prompts are drawn, as some of them name a style."""
SHOWN = 6
"""Prompts in the grid of images."""


class StyleConfig(harness.SamplingConfig):
    """What is generated and scored."""

    prompts: int = Field(default=16, gt=0)
    """Prompts of each category, seen and unseen each, or as many as exist; none of them names a style."""
    references: int = Field(default=1, gt=0, le=len(STYLES))
    """Style references for each prompt, each in another style; with 1, prompts take the styles in turn."""
    weights: tuple[float, ...] = (1.0, 2.0)
    """Guidance of the style, apart from the text's; the joint guidance of both is always measured."""

    @field_validator("weights")
    @classmethod
    def _are_scales(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError("guidance of the style must be finite numbers of at least 0")
        return tuple(dict.fromkeys(weights))


@dataclass(frozen=True)
class StyleCase:
    """A prompt that names no style, and style references that show nothing of what it names."""

    prompt: Prompt
    references: tuple[Scene, ...]
    words: tuple[str, ...]
    """The prompt with each reference's style in its words."""
    contents: tuple[str, ...]
    """What each reference shows, in words that do not tell its style."""


def style_cases(config: StyleConfig) -> list[StyleCase]:
    """Prompts of every category, seen and unseen, with their references; the styles take turns."""
    wanted = [
        prompt
        for category in CATEGORIES
        for unseen in (False, True)
        for prompt in _without_style(category, config.prompts, config.seed, unseen)
    ]
    found = []
    for row, prompt in enumerate(wanted):
        styles = [STYLES[(row + turn) % len(STYLES)] for turn in range(config.references)]
        scenes = tuple(replace(other_content([prompt], Draw(config.seed, "style reference", prompt.text)), style=s)
                       for s in styles)  # fmt: skip

        def words(description: Description, what: str, prompt: Prompt = prompt) -> str:
            return language("en").caption(description, Draw(config.seed, what, prompt.text)).text

        in_words = tuple(words(replace(prompt.description, style=style), "style in words") for style in styles)
        found.append(StyleCase(prompt, scenes, in_words, tuple(words(_content(s), "style content") for s in scenes)))
    return found


def _content(scene: Scene) -> Description:
    return Description(tuple(Mention(thing.shape, thing.colour, thing.texture) for thing in scene.things))


def _without_style(category: str, number: int, seed: int, unseen: bool) -> list[Prompt]:
    pool = prompts(category, POOL * number, seed_of(seed, "prompts", category), unseen, fewer=True)
    return [prompt for prompt in pool if prompt.description.style is None][:number]


def other_content(wanted: Sequence[Prompt], draw: Draw) -> Scene:
    """A scene of one or two objects with no shape and no colour that these prompts name."""
    named = [mention for prompt in wanted for mention in prompt.description.mentions]
    shapes: list[Shape] = draw.order([shape for shape in SHAPES if shape not in {m.shape for m in named}])
    colours: list[Colour] = draw.order([colour for colour in COLOURS if colour not in {m.colour for m in named}])
    looks = zip(shapes[: draw.pick((1, 2))], colours, strict=False)
    return scene_for(Description(tuple(Mention(s, c, draw.pick(TEXTURES)) for s, c in looks)), draw)


def check(model: TextToImage) -> None:
    """Fail if the decoder does not read a style together with a text, or there is no prior."""
    reads = model.pipeline.decoder.conditions
    if not {"image", "text"} <= set(reads) or model.pipeline.prior is None:
        raise UserError(
            f"a style reference is read together with the text: this needs a prior, and a decoder that reads image and text; the decoder "
            f"of {model.name} reads {', '.join(reads)}."
        )


class Use(NamedTuple):
    """How a style reference is used."""

    weight: float
    """Guidance of the style."""
    without_content: bool
    """Whether it comes with words for what it shows."""

    @property
    def name(self) -> str:
        return f"{WITHOUT_CONTENT if self.without_content else REFERENCE}, W {self.weight:g}"


def uses(config: StyleConfig) -> list[Use]:
    """Every style guidance, the largest being that of the text (`StyleGuided` is then joint guidance), with and without the content."""
    weights = sorted({*config.weights, config.guidance_scale})
    return [Use(weight, without_content) for without_content in (False, True) for weight in weights]


def candidates(model: TextToImage, cases: Sequence[StyleCase], config: StyleConfig) -> list[Candidate]:
    """An image of each prompt by each control, and one of each prompt and reference for each use. The noise of a prompt is always the same."""
    each = [(one, turn) for one in cases for turn in range(config.references)]
    images = render([one.references[turn] for one, turn in each], model.clip.image_size)
    styles = torch.cat([model.embed_image(image) for image in images])
    every = list(model.pipeline.decoder.conditions)
    text = [name for name in every if name != "image"]

    def generate(texts: Sequence[str], prompts: Sequence[Prompt], weight: float | None = None, **more: Any) -> Tensor:
        how = Sampling(steps=config.steps, guidance_scale=config.guidance_scale, style_guidance=weight)
        noise = [generator(config.seed, "style", prompt.text) for prompt in prompts]
        return tensors(model.pipeline(GenerationRequest(texts, sampling=how, generator=noise, **more)).images)

    def without(rows: Sequence[int], **more: Any) -> Tensor:
        some = [cases[row].prompt for row in rows]
        return generate([prompt.text for prompt in some], some, **more)

    def in_words(rows: Sequence[int]) -> Tensor:
        some = [each[row] for row in rows]
        return generate([one.words[turn] for one, turn in some], [one.prompt for one, _ in some])

    def with_reference(use: Use, rows: Sequence[int]) -> Tensor:
        some = [each[row][0].prompt for row in rows]
        content = [each[row][0].contents[each[row][1]] for row in rows] if use.without_content else None
        texts = [prompt.text for prompt in some]
        return generate(texts, some, use.weight, style=styles[list(rows)], style_content=content)

    return [
        Candidate(TEXT, len(cases), partial(without, conditions=text)),
        Candidate(PRIOR, len(cases), partial(without, conditions=every)),
        Candidate(WORDS, len(each), in_words),
        *(Candidate(use.name, len(each), partial(with_reference, use)) for use in uses(config)),
    ]


def scores(cases: Sequence[StyleCase], found: Mapping[str, Sequence[Prediction]]) -> dict[str, dict[str, Values]]:
    """Candidate → measure of `MEASURES` → values, a row for each prompt, a column for each reference."""
    tables: dict[str, dict[str, Values]] = {}
    for candidate, scenes in found.items():
        per = len(scenes) // len(cases)
        measures: dict[str, Values] = {name: [] for name in MEASURES}
        for row, one in enumerate(cases):
            # The image of a control without reference is compared with each reference.
            own = [*scenes[row * per : (row + 1) * per]] * (len(one.references) // per)
            for name, measure in MEASURES.items():
                measures[name].append([measure(one.prompt, ref, x) for ref, x in zip(one.references, own, strict=True)])
        tables[candidate] = measures
    return tables


def _leaked(kind: Callable[[Any], object]) -> Callable[[Prompt, Scene, Prediction], float]:
    def leaked(prompt: Prompt, reference: Scene, scene: Prediction) -> float:
        return float(bool({kind(thing) for thing in reference.things} & {kind(thing) for thing in scene.things}))

    return leaked


MEASURES: dict[str, Callable[[Prompt, Scene, Prediction], float]] = {
    "style": lambda prompt, reference, scene: float(scene.style == reference.style),
    "prompt_accuracy": lambda prompt, reference, scene: harness.prompt_accuracy(prompt, scene),
    "fact_accuracy": lambda prompt, reference, scene: harness.fact_accuracy(prompt, scene),
    "leaked": _leaked(lambda thing: (thing.shape, thing.colour)),
    "leaked_shape": _leaked(lambda thing: thing.shape),
    "leaked_colour": _leaked(lambda thing: thing.colour),
}
"""`style`: the image has the reference's style. `leaked…`: it shows an object (a shape, a colour) of the reference."""


def table(cases: Sequence[StyleCase], found: Mapping[str, Sequence[Prediction]]) -> list[Row]:
    """The harness's rows; prompt accuracy minus that of the text alone, and of the text with the prior's embedding."""
    controls = {"against_text_alone": TEXT, "against_prior": PRIOR}
    against = {name: controls for name in found if name not in (TEXT, PRIOR)}
    return harness.table(scores(cases, found), [one.prompt for one in cases], against)


def chosen(rows: Sequence[Row], config: StyleConfig) -> Use:
    """The use with the best prompt accuracy of those that reach the target style on seen prompts, or else with the best sum of both, as a
    strong style that hides the prompt is of no use. The rows are of the reader's predictions.
    """
    by = {row["candidate"]: row for row in harness.overall(rows, SEEN)}

    def merit(use: Use) -> tuple[bool, float]:
        row = by[use.name]
        reached = row["style"].mean >= TARGET
        return reached, row["prompt_accuracy"].mean + (0.0 if reached else row["style"].mean)

    return max(uses(config), key=merit)


@torch.inference_mode()
def grid(model: TextToImage, cases: Sequence[StyleCase], config: StyleConfig, use: Use) -> Image.Image:
    """Prompts down, the styles of one reference scene across: images, labelled with the style and whether all facts are right."""
    judge = judge_of(model)
    scene = other_content([], Draw(config.seed, "style grid"))
    shown = [one.prompt for one in _in_turn(cases) if not _shares(one.prompt, scene)][:SHOWN]
    shown = shown or [one.prompt for one in cases[:SHOWN]]
    references = render([replace(scene, style=style) for style in STYLES], model.clip.image_size)
    styles: Float[Tensor, "S D"] = torch.cat([model.embed_image(image) for image in references])
    plain = Sampling(steps=config.steps, guidance_scale=config.guidance_scale)
    how = replace(plain, style_guidance=use.weight)
    drawn = Draw(config.seed, "style content")
    content = language("en").caption(_content(scene), drawn).text if use.without_content else None
    lines = [[card("style reference"), card("none"), *to_pil(references)]]
    labels = [["", "", *STYLES]]
    for prompt in shown:
        first, *noise = (generator(config.seed, "style", prompt.text) for _ in (TEXT, *STYLES))
        line = model.pipeline(GenerationRequest([prompt.text], sampling=plain, generator=first)).images
        texts = [prompt.text] * len(STYLES)
        styled = GenerationRequest(texts, sampling=how, generator=noise, style=styles, style_content=content)
        line += model.pipeline(styled).images
        scenes = judge.read(tensors(line).to(model.pipeline.device))
        lines.append([card(prompt.text), *line])
        right = ["all right" if harness.prompt_accuracy(prompt, one) == 1 else "not all right" for one in scenes]
        labels.append(["", *(f"{one.style}, {verdict}" for one, verdict in zip(scenes, right, strict=True))])
    return contact_sheet(lines, labels, cell=112)


def _in_turn(cases: Sequence[StyleCase]) -> list[StyleCase]:
    """The first of each category and side, then the second of each, and so on."""
    kinds = harness.groups([one.prompt for one in cases])
    apart = [rows for (category, side), rows in kinds.items() if ALL not in (category, side)]
    return [cases[row] for row in chain.from_iterable(zip_longest(*apart)) if row is not None]


def _shares(prompt: Prompt, scene: Scene) -> bool:
    return any(
        thing.shape == mention.shape or thing.colour == mention.colour
        for thing in scene.things
        for mention in prompt.description.mentions
    )


COLUMNS: harness.Columns = {
    "candidate": "candidate",
    "prompts": "side",
    "style": "style",
    "prompt accuracy": "prompt_accuracy",
    "minus text alone": "against_text_alone",
    "minus prior's embedding": "against_prior",
    "leaked objects": "leaked",
    "leaked shapes": "leaked_shape",
    "leaked colours": "leaked_colour",
}
LEGEND = (
    "**Style**: the judge sees the style of the reference (without a reference: chance, 25 %). **Prompt accuracy**: every fact "
    "that the prompt names is right; differences in points, paired. **Leaked**: an object with the shape and colour (the shape, the colour) of "
    "one of the reference's is in the image; the rows without a reference show how often this happens by chance. Brackets: 95 % bootstrap over "
    "prompts and their images."
)


def evaluate(context: EvaluationContext[StyleConfig]) -> Outcome:
    """Generate with each style guidance and the controls."""
    model, config = context.model, context.config
    check(model)
    cases = style_cases(config)
    found = context.predict(candidates(model, cases, config), also=by_reader(model))
    rows = table(cases, {name: one.scenes for name, one in found.items()})
    best, reads = chosen(table(cases, read_scenes(found)), config), list(model.pipeline.decoder.conditions)
    result = context.header(
        conditions=reads,
        prompts=len(cases),
        chosen_style_guidance=best.weight,
        chosen_without_content=best.without_content,
        agreement=agreement_with_judge(found),
        rows=harness.plain(rows),
    )
    how = f"style guidance {best.weight:g}{', with words for its content' if best.without_content else ''}"
    numbers = harness.as_table(harness.overall(rows, None), COLUMNS)

    def report(sheet: Image.Image | None) -> Report:
        of = {row["candidate"]: row for row in harness.overall(rows)}
        swept = [use for use in uses(config) if use.without_content == best.without_content]
        measures = {"style": "style", "prompt accuracy": "prompt_accuracy", "leaked objects": "leaked"}
        curves = harness.sweep([(use.weight, of[use.name]) for use in swept], measures)
        reference = f"One scene in four styles (top) as reference, {how}."
        shown = f"{reference} The prompts, the first of each category, share no shape and no colour with it."
        return Report(
            f"Style references: {model.name}",
            context.lead(
                f"{counted(len(cases), 'prompt')} that name no style, with {counted(config.references, 'style reference')} each, whose objects "
                f"have other shapes and colours. The decoder reads {', '.join(reads)}; a reference's embedding replaces the prior's. "
                "Without its content, it is added to what the prior predicts of the prompt, and what the prior predicts of words for the "
                "reference's content is subtracted."
            ),
            [
                Section("Examples", [Picture(sheet, "Images without and with a style", shown)] if sheet else []),
                Section("By style guidance", [plots.line_plot("per cent, by style guidance", curves, x="W")]),
                Section("Numbers", [numbers, Note(LEGEND)]),
            ],
            limits=(
                "The embedded world has four styles, which its CLIP was trained on and its scene classifiers name: styles of photographs and "
                "paintings are not measured. Only one decoder is."
            ),
        )

    said = f"Best on seen prompts: {how}."
    return Outcome(result, [numbers, said, LEGEND], report, partial(grid, model, cases, config, best))
