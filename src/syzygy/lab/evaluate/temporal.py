"""When in sampling is the prompt read? It is swapped after a part of the steps (eDiff-I, figure 3). Exact scores on the embedded world."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from syzygy.core.contracts import Sampling
from syzygy.core.errors import UserError
from syzygy.core.pixels import to_uint8
from syzygy.core.randomness import generator, seed_of
from syzygy.core.wording import counted
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.decoder.prompt_swap import Swapped, level_after
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab import plots
from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.bootstrap import Interval, difference
from syzygy.lab.evaluate.harness import ALL, BATCH, Candidate, EvaluationContext, Outcome, Row, Values, tensors
from syzygy.lab.report import Figure, Gallery, GalleryRow, Note, Report, Section, generated
from syzygy.lab.world.prompts import Prompt, prompts
from syzygy.lab.world.scene_classifier import Prediction

CATEGORIES = ("single", "colour")
"""With more objects, two prompts that differ in everything are rare, and images show neither."""
LATE, EARLY = 93.0, 40.0
"""The paper's statements: a swap in the last 7 % of the steps changes nothing; one in the first 40 % changes everything."""
NEVER, ALWAYS = 100.0, 0.0
MARGIN = 0.05
"""A statement holds if the whole interval is this near to no difference."""
FEW = "cannot be decided: with so few steps, none lies in that part"
SHOWN = 4
"""Pairs of prompts whose images are on the page."""


class TemporalConfig(harness.SamplingConfig):
    """What is generated and scored."""

    prompts: int = Field(default=50, ge=2)
    """Prompts of each category, seen and unseen each, or as many as find a partner; half of them are the other half's second prompt."""
    swaps: tuple[float, ...] = (20.0, 60.0, 80.0)
    """Per cent of the steps after which the prompt is swapped, in addition to 0, 40, 93 and 100, which are always measured."""
    steps: int = Field(default=25, gt=0)
    """Sampling steps."""
    conditions: tuple[str, ...] | None = None
    """What the decoder reads; null is the model's own choice. All of it is swapped."""

    @field_validator("swaps")
    @classmethod
    def _are_shares(cls, swaps: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= swap <= 100 for swap in swaps):
            raise ValueError("swaps are per cent of the steps, from 0 to 100")
        return swaps

    @property
    def steps_before(self) -> dict[int, float]:
        """Steps taken with the first prompt → the per cent that they stand for, rising; whole steps, so two may coincide."""
        found: dict[int, float] = {}
        for share in sorted({ALWAYS, EARLY, LATE, NEVER, *self.swaps}):
            found.setdefault(steps_of(share, self.steps), share)
        return found


def steps_of(share: float, steps: int) -> int:
    """The number of steps nearest to so many per cent of them."""
    return int(share / 100 * steps + 0.5)


def paired_prompts(config: TemporalConfig) -> list[Prompt]:
    """Prompts in pairs of neighbours that share no shape and no named colour, of one category and side each."""
    found: list[Prompt] = []
    for category in CATEGORIES:
        for unseen in (False, True):
            seed = seed_of(config.seed, "prompts", category)
            pool = prompts(category, 2 * config.prompts, seed, unseen, fewer=True)
            found += _paired(pool)[: config.prompts // 2 * 2]
    return found


def _paired(pool: Sequence[Prompt]) -> list[Prompt]:
    """Each with the first of those after it that differs in everything; those that find none are omitted."""
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
            f"{model.name} is a published model: prompts can be swapped only in Syzygy's own decoders, such as the starter's."
        )
    return decoder


def name_of(before: int) -> str:
    """The candidate that reads the first prompt in so many steps."""
    return f"swapped after {before}"


def candidates(model: TextToImage, wanted: Sequence[Prompt], config: TemporalConfig) -> list[Candidate]:
    """For each swap an image of each prompt, which begins with it and ends with its neighbour."""
    return [
        Candidate(
            name_of(before),
            len(wanted),
            lambda rows, before=before: generate(model, [wanted[row] for row in rows], config, before),
        )
        for before in config.steps_before
    ]


def generate(
    model: TextToImage, some: Sequence[Prompt], config: TemporalConfig, before: int
) -> Float[Tensor, "B 3 H W"]:
    """Images of prompts that change to their neighbours after `before` steps, through the model's own pipeline."""
    decoder = check(model)
    below = level_after(decoder.schedule.sigmas(config.steps), before)
    pipeline = replace(model.pipeline, decoder=replace(decoder, denoiser=Swapped(decoder.denoiser, below)))
    return tensors(
        pipeline(
            GenerationRequest(
                [prompt.text for prompt in some],
                sampling=Sampling(steps=config.steps, guidance_scale=config.guidance_scale),
                conditions=config.conditions,
                generator=[generator(config.seed, "temporal", prompt.text) for prompt in some],
            )
        ).images
    )


def scores(
    wanted: Sequence[Prompt], found: Mapping[str, Sequence[Prediction]], steps: int
) -> dict[str, dict[str, Values]]:
    """Candidate → measure → values, a row for each prompt.

    `first`, `second`: prompt accuracy for the prompt (its partner); `first_facts`, `second_facts`: fact accuracy. `unchanged`: the scene
    judge sees the same objects and style as in the image whose prompt was never swapped.
    """
    never = found[name_of(steps)]
    partners = [wanted[row ^ 1] for row in range(len(wanted))]
    tables = {}
    for candidate, scenes in found.items():
        measures: dict[str, Values] = {}
        for name, some in (("first", wanted), ("second", partners)):
            accuracies = harness.accuracies(some, scenes)
            measures |= {name: accuracies["prompt_accuracy"], f"{name}_facts": accuracies["fact_accuracy"]}
        same = [[float(_looks(one) == _looks(other))] for one, other in zip(scenes, never, strict=True)]
        tables[candidate] = measures | {"unchanged": same}
    return tables


def _looks(scene: Prediction) -> tuple[object, ...]:
    return scene.style, sorted(thing.appearance for thing in scene.things)


def table(
    wanted: Sequence[Prompt],
    measured: Mapping[str, Mapping[str, Values]],
    config: TemporalConfig,
    sigmas: Sequence[float],
) -> list[Row]:
    """The harness's rows, with the steps before the swap and σ after it, and paired differences to no swap and to a swap before all steps."""
    rows = harness.table(measured, wanted, {})
    swaps = {name_of(before): (before, share) for before, share in config.steps_before.items()}
    groups = harness.groups(wanted)
    for row in rows:
        before, share = swaps[row["candidate"]]
        row |= {"asked": share, "steps": before, "share": 100 * before / config.steps, "sigma": sigmas[before]}
        for name, measure, other in (
            ("first_less_never_swapped", "first", config.steps),
            ("second_less_from_the_start", "second", 0),
        ):
            own, theirs = (
                [measured[one][measure][i] for i in groups[row["category"], row["side"]]]
                for one in (row["candidate"], name_of(other))
            )
            row[name] = difference(own, theirs)
    return rows


def statements(measured: Mapping[str, Mapping[str, Values]], config: TemporalConfig) -> list[Row]:
    """The paper's two statements, each with its paired interval and a verdict, by prompt accuracy and by fact accuracy."""
    late, early = (name_of(steps_of(share, config.steps)) for share in (LATE, EARLY))
    never, always = name_of(config.steps), name_of(0)
    found = []
    for unit, suffix in (("prompt accuracy", ""), ("fact accuracy", "_facts")):
        follows = difference(measured[never][f"first{suffix}"], measured[never][f"second{suffix}"])
        for text, one, other, measure in (
            (f"a swap in the last {100 - LATE:g} % of the steps changes nothing", late, never, f"first{suffix}"),
            (f"after a swap in the first {EARLY:g} % the image follows the new prompt fully", early, always, f"second{suffix}"),
        ):  # fmt: skip
            value = difference(measured[one][measure], measured[other][measure])
            row = {"statement": text, "measure": unit, "difference": value, "follows_its_prompt": follows}
            found.append(row | {"verdict": FEW if one == other else verdict(value, follows)})
    return found


def verdict(value: Interval, follows: Interval) -> str:
    """For a difference that should be none; `follows` is the accuracy for the own prompt minus that for a prompt that was never read."""
    if follows.low <= 0:
        return "cannot be decided: images without a swap show no more of their own prompt than of another"
    if abs(value.low) <= MARGIN and abs(value.high) <= MARGIN:
        return "confirmed"
    if value.high < -MARGIN or value.low > MARGIN:
        return "refuted"
    return "undecided: use more prompts"


@torch.inference_mode()
def gallery(model: TextToImage, wanted: Sequence[Prompt], config: TemporalConfig) -> Gallery:
    """Images of the first pair of each category and side, a row for each pair, a column for each swap."""
    kinds = harness.groups(wanted)
    firsts = [rows[0] for (category, side), rows in kinds.items() if ALL not in (category, side)][:SHOWN]
    shown = [wanted[row + turn] for row in firsts for turn in (0, 1)]
    assert len(shown) <= BATCH
    columns = [to_uint8(generate(model, shown, config, before)[::2]) for before in config.steps_before]
    lines = [
        GalleryRow(first.text, f"then: {second.text}", [generated(image, first.text) for image in images])
        for first, second, images in zip(shown[::2], shown[1::2], zip(*columns, strict=True), strict=True)
    ]
    return Gallery([f"{100 * before / config.steps:.0f} %" for before in config.steps_before], lines)


def plot(rows: Sequence[Row], suffix: str, title: str, file: str = "") -> Figure:
    """The accuracies for both prompts over the swap."""
    measures = {"first prompt": f"first{suffix}", "second prompt": f"second{suffix}"}
    curves = harness.sweep([(row["share"], row) for row in harness.overall(rows)], measures)
    return plots.line_plot(f"{title} in per cent, by the steps before the swap", curves, x="% of steps", file=file)


COLUMNS: harness.Columns = {
    "swap after": lambda row: f"{row['share']:.0f} %",
    "steps": "steps",
    "σ next": lambda row: f"{row['sigma']:.3g}",
    "prompts": "side",
    "first": "first",
    "second": "second",
    "facts of first": "first_facts",
    "facts of second": "second_facts",
    "unchanged": "unchanged",
    "first, minus never swapped": "first_less_never_swapped",
    "second, minus from the start": "second_less_from_the_start",
}
STATEMENTS: harness.Columns = {
    "statement": "statement",
    "measure": "measure",
    "difference in points": "difference",
    "verdict": "verdict",
}
LEGEND = (
    "**First**, **second**: prompt accuracy for both prompts; differences in points, paired. **Unchanged**: the judge sees the same "
    "objects and style as without a swap. **σ next**: the noise level of the first evaluation that reads the second prompt. Brackets: 95 % "
    "bootstrap over prompts."
)
VERDICTS = (
    f"Confirmed: the whole interval (95 % bootstrap over prompts, paired) is within {100 * MARGIN:g} points of no difference; refuted: all of "
    "it is outside."
)


def evaluate(context: EvaluationContext[TemporalConfig]) -> Outcome:
    """Swap the prompt after each part of the steps."""
    model, config, decoder = context.model, context.config, check(context.model)
    wanted = paired_prompts(config)
    measured = scores(wanted, context.scenes(candidates(model, wanted, config)), config.steps)
    sigmas = decoder.schedule.sigmas(config.steps).tolist()
    rows, said = table(wanted, measured, config, sigmas), statements(measured, config)
    reads = list(config.conditions or model.pipeline.conditions)
    result = context.header(
        conditions=reads,
        prompts=len(wanted),
        sigmas=[round(sigma, 4) for sigma in sigmas],
        rows=harness.plain(rows),
        statements=harness.plain(said),
    )
    numbers, verdicts = (
        harness.as_table(harness.overall(rows, None), COLUMNS, first_number=4),
        harness.as_table(said, STATEMENTS),
    )

    def report(_sheet: Any) -> Report:
        return Report(
            f"When is the prompt read? {model.name}",
            context.lead(
                f"{counted(len(wanted), 'prompt')} in pairs that share no shape and no colour; each image begins with one prompt and ends with "
                f"the other. The decoder reads {', '.join(reads)}, all of which is swapped."
            ),
            [
                Section(
                    "",
                    [
                        plot(rows, "", "prompt accuracy", "prompt_accuracy.svg"),
                        plot(rows, "_facts", "fact accuracy"),
                    ],
                ),
                Section("The paper's statements", [verdicts, Note(VERDICTS)]),
                Section("Images", [gallery(model, wanted, config)]),
                Section("Numbers", [numbers, Note(LEGEND)]),
            ],
            limits=(
                "One decoder of a small world is measured with one schedule: steps are spaced by it, and with another one the same part of the "
                "steps is another noise level."
            ),
        )

    return Outcome(result, [numbers, LEGEND, verdicts, VERDICTS], report)
