"""When in sampling is the prompt read? It is swapped after a part of the steps (eDiff-I, figure 3); exact scores on the embedded world."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from pydantic import Field, field_validator

from syzygy.core import artifacts
from syzygy.core.contracts import Sampling
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator, seed_of
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.decoder.noise_levels import KarrasSchedule
from syzygy.decoder.prompt_swap import Swapped, level_after
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import predictions, report
from syzygy.lab.evaluate.bootstrap import Interval, difference, interval
from syzygy.lab.evaluate.predictions import BATCH, Sampled, Series, Values
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.reader import Prediction

CATEGORIES = ("single", "colour")
"""Prompts of these: with more objects, two that differ in everything are rare, and pictures agree with neither."""
LATE, EARLY = 93.0, 40.0
"""The paper's statements: a swap in the last 7 % of the steps changes nothing; one in the first 40 % changes everything."""
NEVER, ALWAYS = 100.0, 0.0
MARGIN = 0.05
"""A statement holds where the whole interval lies this near to no difference."""
FEW = "cannot be told: with so few steps none lies in that part"
SHOWN = 4
"""Pairs of prompts whose pictures are on the page."""


class TemporalScoring(Sampled):
    """What is painted and scored."""

    prompts: int = Field(default=50, ge=2)
    """Prompts a category, seen and held-out each, or as many as find a partner; half of them are the other half's second prompt."""
    swaps: tuple[float, ...] = (20.0, 60.0, 80.0)
    """Per cent of the steps after which the prompt is swapped, beside 0, 40, 93 and 100, which are always measured."""
    steps: int = Field(default=25, gt=0)
    """Sampling steps."""
    conditions: tuple[str, ...] | None = None
    """What the decoder reads; null is all that it can. All of it is swapped."""

    @field_validator("swaps")
    @classmethod
    def _are_shares(cls, swaps: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= swap <= 100 for swap in swaps):
            raise ValueError("swaps are per cent of the steps, from 0 to 100")
        return swaps

    @property
    def steps_before(self) -> dict[int, float]:
        """Steps taken with the first prompt → the per cent that asked for them, rising; whole steps, so two may fall together."""
        asked = sorted({ALWAYS, EARLY, LATE, NEVER, *self.swaps})
        found: dict[int, float] = {}
        for share in asked:
            found.setdefault(steps_of(share, self.steps), share)
        return found


def steps_of(share: float, steps: int) -> int:
    """The number of steps nearest to so many per cent of them."""
    return int(share / 100 * steps + 0.5)


def ask(scoring: TemporalScoring) -> list[Prompt]:
    """Prompts in pairs of neighbours that share no shape and no told colour, of one category and side each."""
    found: list[Prompt] = []
    for category in CATEGORIES:
        for held_out in (False, True):
            pool = prompts(
                category, 2 * scoring.prompts, seed_of(scoring.seed, "prompts", category), held_out, fewer=True
            )
            found += _paired(pool)[: scoring.prompts // 2 * 2]
    return found


def _paired(pool: Sequence[Prompt]) -> list[Prompt]:
    """Each with the first of those after it that differs in everything; those that find none are left out."""
    left, found = list(pool), []
    while left:
        first = left.pop(0)
        partner = next((one for one in left if _differ(first, one)), None)
        if partner is not None:
            left.remove(partner)
            found += [first, partner]
    return found


def _differ(one: Prompt, other: Prompt) -> bool:
    looks = [
        ({m.shape for m in p.description.mentions}, {m.colour for m in p.description.mentions}) for p in (one, other)
    ]
    return not looks[0][0] & looks[1][0] and not (looks[0][1] & looks[1][1]) - {None}


def check(model: TextToImage) -> LatentDecoder:
    """The model's decoder, if prompts can be swapped in it."""
    decoder = model.pipeline.decoder
    if not isinstance(decoder, LatentDecoder):
        raise UserError(
            f"{model.name} is a published model: prompts are swapped in decoders of ours only, such as the starter's."
        )
    return decoder


def sigmas(decoder: LatentDecoder, steps: int) -> list[float]:
    """σ of each step's evaluation, and 0."""
    schedule: KarrasSchedule = decoder.schedule
    return schedule.sigmas(steps).tolist()


def name_of(before: int) -> str:
    """The candidate that reads the first prompt in so many steps."""
    return f"swapped after {before}"


def series(model: TextToImage, asked: Sequence[Prompt], scoring: TemporalScoring) -> list[Series]:
    """For each swap a picture a prompt, all of one prompt from the same noise: begun with it, ended with its neighbour."""
    return [
        Series(
            name_of(before),
            len(asked),
            lambda rows, before=before: paint(model, [asked[row] for row in rows], scoring, before),
        )
        for before in scoring.steps_before
    ]


def paint(model: TextToImage, some: Sequence[Prompt], scoring: TemporalScoring, before: int) -> list[Image.Image]:
    """Pictures of prompts that change with their neighbours after `before` steps, through the model's own pipeline."""
    decoder = check(model)
    below = level_after(decoder.schedule.sigmas(scoring.steps), before)
    pipeline = replace(model.pipeline, decoder=replace(decoder, denoiser=Swapped(decoder.denoiser, below)))
    return pipeline(
        [prompt.text for prompt in some],
        sampling=Sampling(steps=scoring.steps, guidance_scale=scoring.guidance_scale),
        conditions=scoring.conditions,
        generator=[generator(scoring.seed, "temporal", prompt.text) for prompt in some],
    ).images


def scores(
    asked: Sequence[Prompt], found: Mapping[str, Sequence[Prediction]], steps: int
) -> dict[str, dict[str, Values]]:
    """Candidate → measure → values, a row a prompt.

    `first`, `second`: all that the prompt (its partner) names is right; `first_facts`, `second_facts`: how much of it. `unchanged`: the reader
    sees the same objects and style as in the picture whose prompt was never swapped.
    """
    never = found[name_of(steps)]
    partner = [asked[row ^ 1] for row in range(len(asked))]
    return {
        candidate: {
            "first": [[predictions.agrees(prompt, one)] for prompt, one in zip(asked, read, strict=True)],
            "second": [[predictions.agrees(prompt, one)] for prompt, one in zip(partner, read, strict=True)],
            "first_facts": [[predictions.facts(prompt, one)] for prompt, one in zip(asked, read, strict=True)],
            "second_facts": [[predictions.facts(prompt, one)] for prompt, one in zip(partner, read, strict=True)],
            "unchanged": [[float(_looks(one) == _looks(other))] for one, other in zip(read, never, strict=True)],
        }
        for candidate, read in found.items()
    }


def _looks(reading: Prediction) -> tuple[object, ...]:
    return reading.style, sorted(thing.appearance for thing in reading.things)


def table(
    asked: Sequence[Prompt],
    measured: Mapping[str, Mapping[str, Values]],
    scoring: TemporalScoring,
    decoder: LatentDecoder,
) -> list[dict[str, Any]]:
    """A row a swap, category and side: steps before it, σ, all measures, and paired differences to no swap and to the new prompt alone."""
    levels, found = sigmas(decoder, scoring.steps), []
    never, always = name_of(scoring.steps), name_of(0)
    for before, share in scoring.steps_before.items():
        measures = measured[name_of(before)]
        for (category, side), rows in predictions.groups(asked).items():

            def some(name: str, measure: str, rows: list[int] = rows) -> Values:
                return [measured[name][measure][row] for row in rows]

            row: dict[str, Any] = {"asked": share, "steps": before, "share": 100 * before / scoring.steps}
            row |= {"sigma": levels[before], "category": category, "side": side}
            row |= {name: interval(some(name_of(before), name)) for name in measures}
            row["first_less_never_swapped"] = difference(some(name_of(before), "first"), some(never, "first"))
            row["second_less_from_the_start"] = difference(some(name_of(before), "second"), some(always, "second"))
            found.append(row)
    return found


def statements(
    asked: Sequence[Prompt], measured: Mapping[str, Mapping[str, Values]], scoring: TemporalScoring
) -> list[dict[str, Any]]:
    """The paper's two statements, each with its paired interval and what it says of it, by agreement and by named facts."""
    late, early = (name_of(steps_of(share, scoring.steps)) for share in (LATE, EARLY))
    never, always = name_of(scoring.steps), name_of(0)
    found = []
    for unit, suffix in (("agreement", ""), ("facts", "_facts")):
        told = difference(measured[never][f"first{suffix}"], measured[never][f"second{suffix}"])
        for text, one, other, measure in (
            (f"a swap in the last {100 - LATE:g} % of the steps changes nothing", late, never, f"first{suffix}"),
            (
                f"a swap in the first {EARLY:g} % lets the picture follow the new prompt wholly",
                early,
                always,
                f"second{suffix}",
            ),
        ):
            value = difference(measured[one][measure], measured[other][measure])
            row = {"statement": text, "measure": unit, "difference": value, "follows_its_prompt": told}
            found.append(row | {"verdict": FEW if one == other else verdict(value, told)})
    return found


def verdict(value: Interval, told: Interval) -> str:
    """Of a difference that should be none; `told` is how much more the pictures agree with their own prompt than with one never read."""
    if told.low <= 0:
        return "cannot be told: unswapped pictures agree no more with their prompt than with another"
    if abs(value.low) <= MARGIN and abs(value.high) <= MARGIN:
        return "confirmed"
    if value.high < -MARGIN or value.low > MARGIN:
        return "refuted"
    return "undecided: ask for more prompts"


def result(
    model: TextToImage, scoring: TemporalScoring, asked: Sequence[Prompt], found: Mapping[str, Sequence[Prediction]]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """All scores as JSON values; and the rows and statements they are of."""
    decoder = check(model)
    measured = scores(asked, found, scoring.steps)
    rows, said = table(asked, measured, scoring, decoder), statements(asked, measured, scoring)
    json = {
        "model": model.name,
        "scoring": scoring.model_dump(mode="json"),
        "conditions": list(scoring.conditions or decoder.conditions),
        "prompts": len(asked),
        "sigmas": [round(sigma, 4) for sigma in sigmas(decoder, scoring.steps)],
        "machine": artifacts.machine(),
        "versions": artifacts.versions(),
        "rows": predictions.plain(rows),
        "statements": predictions.plain(said),
    }
    return json, rows, said


def plot(
    rows: Sequence[Mapping[str, Any]],
    suffix: str = "",
    title: str = "agreement in per cent, over the part of the steps before the swap",
) -> str:
    """Both agreements over the swap, as HTML with an SVG."""
    whole = [row for row in rows if (row["category"], row["side"]) == (predictions.ALL, predictions.ALL)]
    lines = {
        label: [
            (row["share"], 100 * row[key + suffix].mean, 50 * (row[key + suffix].high - row[key + suffix].low))
            for row in whole
        ]
        for label, key in (("first prompt", "first"), ("second prompt", "second"))
    }
    return report.curves(title, lines, x="% of steps", size=(520, 280))


@torch.inference_mode()
def strips(model: TextToImage, asked: Sequence[Prompt], scoring: TemporalScoring) -> list[list[str]]:
    """Some pairs' pictures, a line a pair, a cell a swap: HTML."""
    kinds = predictions.groups(asked)
    firsts = [rows[0] for (category, side), rows in kinds.items() if predictions.ALL not in (category, side)][:SHOWN]
    shown = [asked[row + turn] for row in firsts for turn in (0, 1)]
    assert len(shown) <= BATCH
    columns = [paint(model, shown, scoring, before)[::2] for before in scoring.steps_before]
    return [
        [f"{html.escape(first.text)}<br><small>then: {html.escape(second.text)}</small>", *map(report.picture, line)]
        for first, second, line in zip(shown[::2], shown[1::2], zip(*columns, strict=True), strict=True)
    ]


def page(
    found: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    said: Sequence[Mapping[str, Any]],
    pictures: list[list[str]],
) -> str:
    """A self-contained page: the paper's statements, curves, pictures, table."""
    scoring = found["scoring"]
    verdicts = [
        [
            html.escape(one["statement"]),
            one["measure"],
            predictions.points(one["difference"]),
            html.escape(one["verdict"]),
        ]
        for one in said
    ]
    whole = [row for row in rows if row["category"] == predictions.ALL]
    lines = [
        [f"{row['share']:.0f} %", f"{row['steps']}", f"{row['sigma']:.3g}", row["side"],
         *(str(row[key]) for key in ("first", "second", "first_facts", "second_facts", "unchanged")),
         predictions.points(row["first_less_never_swapped"]), predictions.points(row["second_less_from_the_start"])]
        for row in whole
    ]  # fmt: skip
    header = ["swap after", "steps", "σ next", "prompts", "first", "second", "facts of first", "of second", "unchanged",
              "first, less never swapped", "second, less from the start"]  # fmt: skip
    shares = [f"{row['share']:.0f} %" for row in whole if row["side"] == predictions.ALL]
    body = f"""
<h1>When is the prompt read? {html.escape(found["model"])}</h1>
<p>{found["prompts"]} prompts in pairs that share no shape and no colour; each picture begins with one and ends with the other.
{scoring["steps"]} steps, guidance {scoring["guidance_scale"]:g}, seed {scoring["seed"]}, on {html.escape(found["machine"])}.
The decoder reads {", ".join(found["conditions"])}, all of it swapped. A prompt's pictures all start from the same noise.</p>
{plot(rows)}{plot(rows, "_facts", "named facts that hold, in per cent")}
<h2>The paper's statements</h2>
{report.rows(["", "measured by", "difference in points", ""], verdicts)}
<p class='note'>Confirmed: the whole interval (95 % bootstrap over prompts, paired) lies within {100 * MARGIN:g} points of no difference;
refuted: all of it lies outside.</p>
<h2>Pictures</h2>
{report.rows(["prompt", *shares], pictures)}
<h2>Numbers</h2>
{report.rows(header, lines, numbers_from=4)}
<p class='note'><b>Unchanged</b>: the reader sees the same objects and style as without a swap. <b>σ next</b>: the noise level of the first
evaluation that reads the second prompt; steps are spaced by the schedule: with another one, the same part of the steps is another σ.</p>
"""
    return report.page(f"Temporal analysis: {found['model']}", body)
