"""Does a picture take the style of a reference picture, and nothing else of it? Exact scores on the embedded world (eDiff-I, section 4.3)."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import Sampling
from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw, generator, seed_of
from syzygy.core.wording import counted
from syzygy.generation.image_files import card, contact_sheet, to_tensor
from syzygy.generation.pipeline import to_pil
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import predictions, report
from syzygy.lab.evaluate.predictions import ALL, SEEN, Sampled, Series, Values
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import CATEGORIES, Prompt, prompts
from syzygy.lab.world.reader import Prediction
from syzygy.lab.world.render import render
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, TEXTURES, Colour, Scene, Shape
from syzygy.lab.world.scene_sampling import scene_for

WITHOUT, TEXT, WORDS, PICTURE = "no style", "text alone", "style in words", "style picture"
TARGET = 0.9
POOL = 6
"""So many times the prompts wanted are drawn, as some of them name a style."""
SHOWN = 6
"""Prompts in the grid of pictures."""


class StyleScoring(Sampled):
    """What is painted and scored."""

    prompts: int = Field(default=16, gt=0)
    """Prompts a category, seen and held-out each, or as many as there are; none of them names a style."""
    references: int = Field(default=1, gt=0, le=len(STYLES))
    """Reference pictures a prompt, each in another style; with 1, prompts take the styles in turn."""
    weights: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Guidance of the style, beside the text's; the joint guidance of both is always measured."""

    @field_validator("weights")
    @classmethod
    def _are_scales(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError("guidance of the style must be finite numbers of at least 0")
        return weights


@dataclass(frozen=True)
class Asked:
    """A prompt that names no style, and reference pictures with nothing of what it names."""

    prompt: Prompt
    references: tuple[Scene, ...]
    words: tuple[str, ...]
    """The prompt with each reference's style in its words."""


def ask(scoring: StyleScoring) -> list[Asked]:
    """Prompts of every category, seen and held-out, with their references; the styles take turns."""
    wanted = [
        prompt
        for category in CATEGORIES
        for held_out in (False, True)
        for prompt in _unstyled(category, scoring.prompts, scoring.seed, held_out)
    ]
    found = []
    for row, prompt in enumerate(wanted):
        styles = [STYLES[(row + turn) % len(STYLES)] for turn in range(scoring.references)]
        scenes = tuple(replace(other_content([prompt], Draw(scoring.seed, "style reference", prompt.text)), style=s)
                       for s in styles)  # fmt: skip
        words = tuple(
            language("en")
            .caption(replace(prompt.description, style=style), Draw(scoring.seed, "style in words", prompt.text))
            .text
            for style in styles
        )
        found.append(Asked(prompt, scenes, words))
    return found


def _unstyled(category: str, number: int, seed: int, held_out: bool) -> list[Prompt]:
    pool = prompts(category, POOL * number, seed_of(seed, "prompts", category), held_out, fewer=True)
    return [prompt for prompt in pool if prompt.description.style is None][:number]


def other_content(wanted: Sequence[Prompt], draw: Draw) -> Scene:
    """A scene of one or two objects with no shape and no colour that these prompts name."""
    named = [mention for prompt in wanted for mention in prompt.description.mentions]
    shapes: list[Shape] = draw.order([shape for shape in SHAPES if shape not in {m.shape for m in named}])
    colours: list[Colour] = draw.order([colour for colour in COLOURS if colour not in {m.colour for m in named}])
    looks = zip(shapes[: draw.pick((1, 2))], colours, strict=False)
    return scene_for(Description(tuple(Mention(s, c, draw.pick(TEXTURES)) for s, c in looks)), draw)


def check(model: TextToImage) -> None:
    """Fails where a decoder does not read a style beside a text."""
    reads = model.pipeline.decoder.conditions
    if not {"image", "text"} <= set(reads):
        raise UserError(
            f"a style picture goes in beside the text: this needs a decoder that reads image and text; that of {model.name} reads "
            f"{', '.join(reads)}."
        )


def name_of(weight: float | None) -> str:
    """The candidate of a style guidance, None being the joint one."""
    return PICTURE if weight is None else f"{PICTURE}, W {weight:g}"


def series(model: TextToImage, asked: Sequence[Asked], scoring: StyleScoring) -> list[Series]:
    """All that is painted: a picture a prompt without style, a picture a prompt and reference with one. Same noise for a prompt everywhere."""
    each = [(one, turn) for one in asked for turn in range(scoring.references)]
    pictures = render([one.references[turn] for one, turn in each], model.clip.image_size)
    styles = torch.cat([model.blender.embedded(picture) for picture in pictures])
    text = [name for name in model.pipeline.decoder.conditions if name != "image"]

    def painted(texts: Sequence[str], prompts: Sequence[Prompt], **more: Any) -> list[Image.Image]:
        how = Sampling(steps=scoring.steps, guidance_scale=scoring.guidance_scale, style_guidance=more.pop("w", None))
        noise = [generator(scoring.seed, "style", prompt.text) for prompt in prompts]
        return model.pipeline(texts, sampling=how, generator=noise, **more).images

    def alone(rows: Sequence[int], **more: Any) -> list[Image.Image]:
        some = [asked[row].prompt for row in rows]
        return painted([prompt.text for prompt in some], some, **more)

    def styled(rows: Sequence[int], weight: float | None) -> list[Image.Image]:
        some = [each[row][0].prompt for row in rows]
        return painted([prompt.text for prompt in some], some, style=styles[list(rows)], w=_told(weight, scoring))

    def in_words(rows: Sequence[int]) -> list[Image.Image]:
        some = [each[row] for row in rows]
        return painted([one.words[turn] for one, turn in some], [one.prompt for one, _ in some])

    def with_weight(weight: float | None) -> Callable[[Sequence[int]], list[Image.Image]]:
        return lambda rows: styled(rows, weight)

    return [
        Series(WITHOUT, len(asked), alone),
        Series(TEXT, len(asked), lambda rows: alone(rows, conditions=text)),
        Series(WORDS, len(each), in_words),
        *(Series(name_of(weight), len(each), with_weight(weight)) for weight in (None, *scoring.weights)),
    ]


def scores(asked: Sequence[Asked], found: Mapping[str, Sequence[Prediction]]) -> dict[str, dict[str, Values]]:
    """Candidate → measure → values, a row a prompt, a column a reference.

    `style`: the reader's style is the reference's (without a style picture: chance). `leaked`: an object with shape and colour of one of the
    reference's is there; `leaked_shape`, `leaked_colour`: one of its shapes, one of its colours.
    """
    tables: dict[str, dict[str, Values]] = {}
    for candidate, read in found.items():
        per = len(read) // len(asked)
        measures: dict[str, Values] = {name: [] for name in MEASURES}
        for row, one in enumerate(asked):
            # A control's picture, which has no reference, stands beside each.
            own = [*read[row * per : (row + 1) * per]] * (len(one.references) // per)
            for name, measure in MEASURES.items():
                measures[name].append(
                    [measure(one.prompt, scene, x) for scene, x in zip(one.references, own, strict=True)]
                )
        tables[candidate] = measures
    return tables


def _style(prompt: Prompt, reference: Scene, reading: Prediction) -> float:
    return float(reading.style == reference.style)


def _leaked(kind: Callable[[Any], object]) -> Callable[[Prompt, Scene, Prediction], float]:
    def leaked(prompt: Prompt, reference: Scene, reading: Prediction) -> float:
        return float(bool({kind(thing) for thing in reference.things} & {kind(thing) for thing in reading.things}))

    return leaked


MEASURES: dict[str, Callable[[Prompt, Scene, Prediction], float]] = {
    "style": _style,
    "agreement": lambda prompt, reference, reading: predictions.agrees(prompt, reading),
    "facts": lambda prompt, reference, reading: predictions.facts(prompt, reading),
    "leaked": _leaked(lambda thing: (thing.shape, thing.colour)),
    "leaked_shape": _leaked(lambda thing: thing.shape),
    "leaked_colour": _leaked(lambda thing: thing.colour),
}


def table(asked: Sequence[Asked], found: Mapping[str, Sequence[Prediction]]) -> list[dict[str, Any]]:
    """A row a candidate, category and side; agreement less that without style picture, with the prior's embedding and with text alone."""
    controls = {"against_no_style": WITHOUT, "against_text_alone": TEXT}
    return predictions.table(
        scores(asked, found),
        [one.prompt for one in asked],
        {name: controls for name in found if name not in (WITHOUT, TEXT)},
    )


def chosen(rows: Sequence[Mapping[str, Any]], scoring: StyleScoring) -> float | None:
    """The style guidance with most agreement of those that reach the target on seen prompts, or else with most of style and agreement
    together, as a strong style that drowns the prompt is of no use; None is the joint one."""
    by = {row["candidate"]: row for row in rows if (row["category"], row["side"]) == (ALL, SEEN)}

    def merit(weight: float | None) -> tuple[bool, float]:
        row = by[name_of(weight)]
        reached = row["style"].mean >= TARGET
        return reached, row["agreement"].mean + (0.0 if reached else row["style"].mean)

    return max((None, *scoring.weights), key=merit)


def _told(weight: float | None, scoring: StyleScoring) -> float:
    """Joint guidance is that of the style like that of the text (`StyleGuided`); where nothing is said a model's own comes instead."""
    return scoring.guidance_scale if weight is None else weight


@torch.inference_mode()
def grid(model: TextToImage, asked: Sequence[Asked], scoring: StyleScoring, weight: float | None) -> Image.Image:
    """Prompts down, the styles of one reference scene across: pictures, each with what the reader read."""
    reader = model.reader()
    scene = other_content([], Draw(scoring.seed, "style grid"))
    shown = [one.prompt for one in _in_turn(asked) if not _shares(one.prompt, scene)][:SHOWN]
    shown = shown or [one.prompt for one in asked[:SHOWN]]
    references = render([replace(scene, style=style) for style in STYLES], model.clip.image_size)
    styles: Float[Tensor, "S D"] = torch.cat([model.blender.embedded(picture) for picture in references])
    plain = Sampling(steps=scoring.steps, guidance_scale=scoring.guidance_scale)
    how = replace(plain, style_guidance=_told(weight, scoring))
    lines = [[card("reference picture"), card("none"), *to_pil(references)]]
    labels = [["", "", *STYLES]]
    for prompt in shown:
        first, *noise = (generator(scoring.seed, "style", prompt.text) for _ in (WITHOUT, *STYLES))
        line = model.pipeline(prompt.text, sampling=plain, generator=first).images
        line += model.pipeline([prompt.text] * len(STYLES), sampling=how, generator=noise, style=styles).images
        read = reader.read(torch.stack([to_tensor(image) for image in line]).to(model.pipeline.device))
        lines.append([card(prompt.text), *line])
        labels.append(["", *(_label(prompt, one) for one in read)])
    return contact_sheet(lines, labels, cell=112)


def _label(prompt: Prompt, reading: Prediction) -> str:
    return f"read: {reading.style}" + (", all right" if predictions.agrees(prompt, reading) else "")


def _in_turn(asked: Sequence[Asked]) -> list[Asked]:
    """The first of each category and side, then the second of each, and so on."""
    kinds = predictions.groups([one.prompt for one in asked])
    apart = [rows for (category, side), rows in kinds.items() if ALL not in (category, side)]
    return [asked[row] for row in chain.from_iterable(zip_longest(*apart)) if row is not None]


def _shares(prompt: Prompt, scene: Scene) -> bool:
    return any(
        thing.shape == mention.shape or thing.colour == mention.colour
        for thing in scene.things
        for mention in prompt.description.mentions
    )


def result(
    model: TextToImage, scoring: StyleScoring, rows: Sequence[Mapping[str, Any]], prompts: int
) -> dict[str, Any]:
    """All scores as JSON values."""
    return {
        "model": model.name,
        "scoring": scoring.model_dump(mode="json"),
        "conditions": list(model.pipeline.decoder.conditions),
        "prompts": prompts,
        "machine": artifacts.machine(),
        "versions": artifacts.versions(),
        "chosen_style_guidance": chosen(rows, scoring),
        "rows": predictions.plain(rows),
    }


def page(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], sheet: Image.Image) -> str:
    """A self-contained page: pictures, curves over the style's guidance, table."""
    scoring = found["scoring"]
    whole = {row["candidate"]: row for row in rows if (row["category"], row["side"]) == (ALL, ALL)}
    swept = sorted([(scoring["guidance_scale"], name_of(None)), *((w, name_of(w)) for w in scoring["weights"])])
    lines = {
        label: [
            (w, 100 * whole[name][key].mean, 50 * (whole[name][key].high - whole[name][key].low)) for w, name in swept
        ]
        for label, key in (("style", "style"), ("agreement", "agreement"), ("leaked objects", "leaked"))
    }
    weight = found["chosen_style_guidance"]
    how = "guidance of style and text joint" if weight is None else f"style guidance {weight:g}"
    header = [
        "",
        "prompts",
        "style",
        "agreement",
        "less no style",
        "less text alone",
        "leaked objects",
        "shapes",
        "colours",
    ]
    body = f"""
<h1>Style of a reference picture: {html.escape(found["model"])}</h1>
<p>{counted(found["prompts"], "prompt")} without a style,
{counted(scoring["references"], "reference picture")} each, whose objects have other shapes and
colours; {scoring["steps"]} steps, guidance {scoring["guidance_scale"]:g}, seed {scoring["seed"]}, on {html.escape(found["machine"])}.
A prompt's pictures all start from the same noise. The decoder reads {", ".join(found["conditions"])}; a style picture's embedding stands in
the place of the prior's.</p>
{report.picture(sheet, width=sheet.width)}
<p class='note'>One scene in four styles (top) as reference, {how}; the prompts, first of each category, share no shape and no colour with
it.</p>
{report.curves("per cent, over the style's guidance", lines, x="W")}
{report.rows(header, _cells(rows), numbers_from=2)}
<p class='note'><b>Style</b>: the reader's style is the reference's (without a style picture: chance, 25 %). <b>Agreement</b>: every named
thing is right; differences in points, paired. <b>Leaked</b>: something of the reference's shape and colour (its shape, its colour) is in the
picture; the rows without style picture show how often by chance. Brackets: 95 % bootstrap over prompts and their pictures.</p>
"""
    return report.page(f"Style: {found['model']}", body)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            html.escape(row["candidate"]),
            row["side"],
            str(row["style"]),
            str(row["agreement"]),
            *(predictions.points(row[key]) if key in row else "" for key in ("against_no_style", "against_text_alone")),
            *(str(row[key]) for key in ("leaked", "leaked_shape", "leaked_colour")),
        ]
        for row in rows
        if row["category"] == ALL
    ]
