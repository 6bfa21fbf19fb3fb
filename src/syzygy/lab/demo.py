"""The demo: train an ECLIPSE prior from scratch on a frozen CLIP, and compare its images with those of its controls."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import Prior
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.core.wording import counted
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import composition, harness
from syzygy.lab.evaluate.composition import (
    CompositionConfig,
    ScoredImage,
    candidate_embeddings,
    control_priors,
    generate_and_score,
)
from syzygy.lab.evaluate.harness import Row, evaluation_prompts
from syzygy.lab.evaluate.judging import judge_note, judge_record
from syzygy.lab.plots import Point, line_plot
from syzygy.lab.report import PAGE, RESULTS, Figure, Gallery, GalleryRow, Report, Section, Table, generated, require_lab
from syzygy.lab.starter import prior_training
from syzygy.lab.world.prompts import CATEGORIES, Prompt
from syzygy.prior.eclipse import EclipseTaskConfig
from syzygy.prior.presets import prior_starter
from syzygy.prior.prior_loading import load_prior
from syzygy.prior.training import PriorRun
from syzygy.training.run_records import Bar, RunResult, no_bar, reporter

ECLIPSE, PROJECTION = "ECLIPSE", "projection only"
EXAMPLE_CATEGORIES = ("single", "colour", "texture", "spatial", "numeracy", "complex")
KINDS = ("shape", "colour", "texture", "relation")
"""Facts that have a column of their own."""


class DemoRun(Config):
    """Settings of the demo."""

    prior: PriorRun
    """The ECLIPSE prior; projection-only is the same run with λ = 0."""
    scoring: CompositionConfig = CompositionConfig(prompts=6, steps=12)
    """The images that are scored."""
    shown_steps: int = Field(default=25, gt=0)
    """Sampling steps of the images on the page."""

    @property
    def contrast(self) -> float:
        """The λ of the ECLIPSE prior.

        Raises:
            UserError: the prior is a diffusion prior.
        """
        if not isinstance(self.prior.task, EclipseTaskConfig):
            raise UserError("the demo trains an ECLIPSE prior; these are the settings of a diffusion prior.")
        return self.prior.task.lambda_contrastive


def demo_full() -> DemoRun:
    """The demo, in at most five minutes on two CPU cores. The validation of such a small prior does not improve after 150 steps."""
    loop = {"steps": 250, "warmup": 30, "validate_every": 25}
    return DemoRun(prior=prior_starter().changed(scenes=20_000, loop=loop))


def demo_quick() -> DemoRun:
    """A shortened demo that tests that everything works: its prior learns next to nothing."""
    loop = {"steps": 40, "warmup": 5, "validate_every": 20, "checkpoint_every": 20}
    small = prior_starter().changed(scenes=1000, validation_images=128, loop=loop)
    return DemoRun(prior=small, scoring=CompositionConfig(prompts=1, steps=6), shown_steps=8)


PRESETS = {"full": demo_full, "quick": demo_quick}


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    page: Path
    rows: list[Row]
    seconds: float


def run(
    demo: DemoRun, out: Path, *, device: str, say: Callable[[str], None], model: str = "starter", bar: Bar = no_bar
) -> DemoResult:
    """Train, generate, score, and write the page and the results. The trained priors stay in `out/eclipse` and `out/projection`.

    Raises:
        UserError: the prior is a diffusion prior, or the extra "lab" is missing.
    """
    require_lab()
    began, scoring, contrast = time.perf_counter(), demo.scoring, demo.contrast
    loaded = TextToImage.from_pretrained(model, device=device)
    say(f"1/4  embedding {counted(demo.prior.scenes or 0, 'image')} and captions with the frozen CLIP")
    data = prior_training.embedded(demo.prior, loaded.clip, bar)
    say("2/4  training the ECLIPSE prior, then projection-only with the same budget")
    trained: dict[str, RunResult] = {}
    for name, place, value in ((ECLIPSE, "eclipse", contrast), (PROJECTION, "projection", 0.0)):
        where, settings = out / place, demo.prior.changed(task={"lambda_contrastive": value})
        if (where / "prior").is_dir():  # a finished demo trains again, an interrupted one resumes
            shutil.rmtree(where)
        live = reporter(name, settings.task.batch_size)
        trained[name] = prior_training.train(settings, loaded.clip, where, torch.device(device), data=data, report=live)
    priors: dict[str, Prior] = {
        name: load_prior(result.folder, loaded.clip, device) for name, result in trained.items()
    }
    priors |= control_priors(loaded, scoring.seed)

    def images(prompts: list[Prompt], config: CompositionConfig) -> list[ScoredImage]:
        with bar("generating", len(prompts) * (len(priors) + 1)) as progress:
            embeddings = candidate_embeddings(loaded, priors, prompts, config.seed)
            return generate_and_score(loaded, embeddings, prompts, config, progress)

    say("3/4  generating images of twelve prompts, half of them compositions that no prior saw")
    twelve = evaluation_prompts(EXAMPLE_CATEGORIES, 1, seed_of(scoring.seed, "shown"))
    examples = images(twelve, scoring.changed(steps=demo.shown_steps))
    sample = evaluation_prompts(CATEGORIES, scoring.prompts, scoring.seed)
    say(f"4/4  scoring {counted(len(sample), 'prompt')} with each prior")
    rows = composition.table(sample, composition.scenes_of(images(sample, scoring)))
    seconds = time.perf_counter() - began
    results = {
        "run": demo.model_dump(mode="json"),
        "judge": judge_record(),
        "rows": harness.plain(rows),
        "priors": {name: result.metrics for name, result in trained.items()},
        "seconds": round(seconds, 1),
        "machine": artifacts.machine(),
    }
    artifacts.write_json(out / RESULTS, results)
    report(demo, trained, examples, rows, len(sample), seconds).write_page(out / PAGE)
    return DemoResult(out / PAGE, rows, seconds)


def report(
    demo: DemoRun,
    trained: Mapping[str, RunResult],
    examples: Sequence[ScoredImage],
    rows: list[Row],
    number: int,
    seconds: float,
) -> Report:
    """The page of a demo that scored a number of prompts."""
    prior = demo.prior
    sides = {side: harness.overall(rows, side) for side in (harness.SEEN, harness.UNSEEN)}
    plots = [harness.accuracy_plot(rows, f"prompt accuracy, {side} compositions", side=side) for side in sides]
    lines = [[side, *_score_line(row)] for side, some in sides.items() for row in some]
    return Report(
        "From a caption to an image: a prior trained in minutes",
        [
            f"A small ECLIPSE prior was just trained from scratch: {prior.scenes:,} pairs of the embedded world, {prior.loop.steps} steps of "
            f"{prior.task.batch_size}, with a frozen CLIP. A frozen decoder turns its predictions into images. The demo took {seconds:.0f} s "
            f"on {artifacts.machine()}.",
            judge_note(judge_record()),
        ],
        [
            Section(
                "Training",
                [
                    f"Projection-only is the same prior without the contrastive term (λ = 0 instead of {demo.contrast:g}), trained on the same "
                    "pairs for as many steps with the same noise.",
                    *_training_plots(trained),
                ],
            ),
            Section(
                "Twelve prompts",
                [
                    "All images start from the same noise, and the decoder reads only the image embedding. A green frame: the judge "
                    "found everything that the prompt names. **Reference** decodes the true embedding of a scene that shows exactly what the "
                    "prompt names.",
                    _gallery(examples),
                ],
            ),
            Section(
                f"Scored on {number} prompts, one image each",
                [
                    *plots,
                    Table(["compositions", "prior", "prompts", "prompt accuracy", *KINDS], lines, first_number=2),
                    "An image counts if every shape, colour, texture, relation, count and style that the prompt names is right and belongs to "
                    "the right object. Brackets: 95 % bootstrap over prompts.",
                ],
            ),
        ],
        limits=(
            f"This is one training of each prior, in one small world, with a tiny CLIP and {number} prompts in all. Differences within the "
            "intervals are no findings. `syzygy evaluate composition` scores more prompts."
        ),
    )


def _training_plots(trained: Mapping[str, RunResult]) -> list[Figure]:
    def lines(key: str) -> dict[str, list[Point]]:
        histories = {name: [row for row in result.history if key in row] for name, result in trained.items()}
        return {name: [(float(row["step"]), float(row[key])) for row in rows] for name, rows in histories.items()}

    titles = {
        "projection": "training loss: projection part",
        "validation/cosine": "validation: cosine to the true image embedding",
        "validation/recall_at_1": "validation: R@1 of the true image",
    }
    return [line_plot(title, lines(key), x="steps") for key, title in titles.items()]


def _gallery(examples: Sequence[ScoredImage]) -> Gallery:
    rows = []
    for prompt in dict.fromkeys(one.prompt for one in examples):
        images = [generated(one.image, prompt.text, one.correct) for one in examples if one.prompt == prompt]
        rows.append(GalleryRow(prompt.text, f"{prompt.category}, {harness.side_of(prompt)}", images))
    return Gallery(list(dict.fromkeys(one.candidate for one in examples)), rows)


def _score_line(row: Row) -> list[str]:
    accuracy, facts = row["prompt_accuracy"], row["atoms"]
    shares = (f"{100 * facts[kind]:.0f} %" if kind in facts else "" for kind in KINDS)
    return [row["candidate"], str(accuracy.number), str(accuracy), *shares]
