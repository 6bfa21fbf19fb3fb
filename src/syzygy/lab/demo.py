"""The demo: train an ECLIPSE prior from scratch on a frozen CLIP, and see what it and its controls paint."""

import html
import shutil
import time
from collections.abc import Callable
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
from syzygy.lab.evaluate import composition, harness, report
from syzygy.lab.evaluate.composition import (
    CompositionConfig,
    ScoredImage,
    candidate_embeddings,
    control_priors,
    generate_and_score,
)
from syzygy.lab.evaluate.harness import Row, evaluation_prompts
from syzygy.lab.starter import prior_training as prior_run
from syzygy.lab.world.prompts import CATEGORIES
from syzygy.prior.eclipse import PriorTaskConfig
from syzygy.prior.presets import prior_starter
from syzygy.prior.prior_loading import load_prior
from syzygy.prior.training import PriorRun
from syzygy.training.run_records import Bar, RunResult, no_bar, reporter

ECLIPSE, PROJECTION = "ECLIPSE", "projection only"
SHOWN_CATEGORIES = ("single", "colour", "texture", "spatial", "numeracy", "complex")


class DemoRun(Config):
    """Everything that the demo does."""

    prior: PriorRun
    """The ECLIPSE prior; projection-only is the same run with λ = 0."""
    scoring: CompositionConfig = CompositionConfig(prompts=6, steps=12)
    """The sample that is scored."""
    shown_steps: int = Field(default=25, gt=0)
    """Sampling steps of the pictures shown."""


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
    """Train, paint, score; write `out/index.html` and `out/results.json`. Trained priors stay in `out/eclipse`, `out/projection`."""
    began = time.perf_counter()
    loaded = TextToImage.from_pretrained(model, device=device)
    say(f"1/4  embedding {counted(demo.prior.scenes or 0, 'captioned picture')} with the frozen CLIP")
    data = prior_run.embedded(demo.prior, loaded.clip, bar)
    say("2/4  training the ECLIPSE prior, then projection-only with the same budget")
    trained: dict[str, RunResult] = {}
    for name, place, settings in (
        (ECLIPSE, "eclipse", demo.prior),
        (PROJECTION, "projection", _without_contrast(demo.prior)),
    ):
        where = out / place
        if (where / "prior").is_dir():  # a finished demo trains anew, an interrupted one resumes
            shutil.rmtree(where)
        live = reporter(name, settings.task.batch_size)
        trained[name] = prior_run.train(settings, loaded.clip, where, torch.device(device), data=data, report=live)
    priors: dict[str, Prior] = {
        name: load_prior(result.folder, loaded.clip, device) for name, result in trained.items()
    }
    priors |= control_priors(loaded, demo.scoring.seed)
    say("3/4  painting twelve prompts, half of them compositions that no prior saw")
    scoring = demo.scoring
    twelve = evaluation_prompts(SHOWN_CATEGORIES, 1, seed_of(scoring.seed, "shown"))
    with bar("painting", len(twelve) * (len(priors) + 1)) as progress:
        embeddings = candidate_embeddings(loaded, priors, twelve, scoring.seed)
        shown = generate_and_score(
            loaded, embeddings, twelve, scoring.model_copy(update={"steps": demo.shown_steps}), progress
        )
    sample = evaluation_prompts(CATEGORIES, scoring.prompts, scoring.seed)
    say(f"4/4  scoring {counted(len(sample), 'prompt')} with each prior, read from the pictures")
    with bar("painting", len(sample) * (len(priors) + 1)) as progress:
        scored = generate_and_score(
            loaded, candidate_embeddings(loaded, priors, sample, scoring.seed), sample, scoring, progress
        )
    seconds = time.perf_counter() - began
    rows = composition.table(sample, composition.scenes_of(scored))
    artifacts.write_json(
        out / "results.json",
        {
            "run": demo.model_dump(mode="json"),
            "rows": harness.plain(rows),
            "priors": {name: result.metrics for name, result in trained.items()},
            "seconds": round(seconds, 1),
            "machine": artifacts.machine(),
        },
    )
    page = out / "index.html"
    artifacts.write_bytes(
        page, report.page("Syzygy: the demo", _body(demo, trained, shown, rows, len(sample), seconds)).encode()
    )
    return DemoResult(page, rows, seconds)


def _eclipse(run: PriorRun) -> PriorTaskConfig:
    if not isinstance(run.task, PriorTaskConfig):
        raise UserError("the demo trains an ECLIPSE prior; these settings are a diffusion prior's.")
    return run.task


def _without_contrast(run: PriorRun) -> PriorRun:
    return run.model_copy(update={"task": _eclipse(run).model_copy(update={"lambda_contrastive": 0.0})})


def _body(
    demo: DemoRun,
    trained: dict[str, RunResult],
    shown: list[ScoredImage],
    rows: list[Row],
    number: int,
    seconds: float,
) -> str:
    contrast = _eclipse(demo.prior).lambda_contrastive
    return f"""
<h1>From a caption to a picture, trained before your eyes</h1>
<p>A small ECLIPSE prior was just trained from scratch: {demo.prior.scenes:,} pairs of the embedded world,
{demo.prior.loop.steps} steps of {demo.prior.task.batch_size}, against a frozen CLIP. A frozen decoder paints what it predicts. All of it took
{seconds:.0f} s on {html.escape(artifacts.machine())}.</p>
<h2>Training</h2>
<p>Projection-only is the same prior without the contrastive term (λ = 0 in place of {contrast:g}); same pairs, steps and noise.</p>
{_training_plots(trained)}
<h2>Twelve prompts</h2>
<p>All from the same noise, the decoder reading the image embedding alone. A green frame: the reader found every thing that the prompt names.
<b>Reference</b> decodes the true embedding of a scene that shows just what the prompt says.</p>
{_pictures(shown)}
<h2>Scored on {number} prompts, one picture each</h2>
{_scores(rows)}
<p class='note'>A picture counts when every named shape, colour, texture, relation, count and style is right, bound to the
right object. Intervals: 95 % bootstrap over prompts. What this does not show: one training seed, one small world, a tiny CLIP
and {number} prompts in all; differences within the intervals are no findings.
<code>syzygy evaluate composition</code> asks more prompts.</p>
"""


def _training_plots(trained: dict[str, RunResult]) -> str:
    def series(key: str) -> dict[str, list[tuple[float, float]]]:
        return {
            name: [(float(row["step"]), float(row[key])) for row in result.history if key in row]
            for name, result in trained.items()
        }

    return (
        report.curves("training loss: projection part", series("projection"), x="steps")
        + report.curves("validation: cosine to the true image embedding", series("validation/cosine"), x="steps")
        + report.curves("validation: R@1 of the true image", series("validation/recall_at_1"), x="steps")
    )


def _pictures(shown: list[ScoredImage]) -> str:
    candidates = list(dict.fromkeys(p.candidate for p in shown))
    lines = []
    for prompt in dict.fromkeys(p.prompt for p in shown):
        cells = {p.candidate: report.picture(p.image, agrees=p.correct) for p in shown if p.prompt == prompt}
        kind = harness.side_of(prompt)
        lines.append(
            [f"{html.escape(prompt.text)}<br><small>{prompt.category}, {kind}</small>", *(cells[c] for c in candidates)]
        )
    return report.rows(["prompt", *candidates], lines)


def _scores(rows: list[Row]) -> str:
    plots, lines = "", []
    for side in (harness.SEEN, harness.UNSEEN):
        some = harness.overall(rows, side)
        accuracy = {row["candidate"]: row["prompt_accuracy"] for row in some}
        plots += report.bars(
            f"prompt accuracy, {side} compositions", {c: (one.mean, one.low, one.high) for c, one in accuracy.items()}
        )
        for row in some:
            kinds = (row["atoms"].get(kind) for kind in ("shape", "colour", "texture", "relation"))
            parts = ("" if share is None else f"{100 * share:.0f} %" for share in kinds)
            one = accuracy[row["candidate"]]
            lines.append([f"{side} compositions", html.escape(row["candidate"]), str(one.number), str(one), *parts])
    header = ["compositions", "prior", "prompts", "prompt accuracy", "shape", "colour", "texture", "relation"]
    return plots + report.rows(header, lines, numbers_from=2)
