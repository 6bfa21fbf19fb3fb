"""The demo: train priors from scratch on a frozen CLIP, and compare their embeddings and images with those of controls."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import Prior
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator, seed_of
from syzygy.core.wording import counted
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.demo_report import COSINE, Comparison, report
from syzygy.lab.evaluate import composition, harness
from syzygy.lab.evaluate.bootstrap import Interval, difference, interval
from syzygy.lab.evaluate.composition import (
    IDENTITY,
    SHIFTED,
    CompositionConfig,
    ScoredImage,
    candidate_embeddings,
    control_priors,
    generate_and_score,
)
from syzygy.lab.evaluate.harness import Row, SamplingConfig, Values, evaluation_prompts
from syzygy.lab.evaluate.judging import judge_record
from syzygy.lab.report import PAGE, RESULTS, require_lab
from syzygy.lab.starter import prior_training
from syzygy.lab.world.prompts import Prompt
from syzygy.prior.eclipse import EclipseTaskConfig
from syzygy.prior.presets import prior_eclipse
from syzygy.prior.prior_loading import load_prior
from syzygy.prior.residual_prior import ResidualTaskConfig
from syzygy.prior.training import PriorRun
from syzygy.training.run_records import Bar, RunResult, no_bar, reporter

ECLIPSE, PROJECTION, RESIDUAL = "ECLIPSE", "projection only", "residual"
SHOWN_CATEGORIES = ("single", "colour", "texture", "spatial", "numeracy", "complex")
SCORED_CATEGORIES = ("single", "colour")
"""One object, and two objects with their colours: what the decoder generates reliably enough to compare priors by."""
COMPARED = ((ECLIPSE, IDENTITY), (ECLIPSE, SHIFTED), (ECLIPSE, PROJECTION), (RESIDUAL, ECLIPSE))


class DemoScoring(SamplingConfig):
    """How the images are generated that are scored."""

    prompts: int = Field(default=40, gt=0)
    """Prompts of each category, seen and unseen each."""


class DemoRun(Config):
    """Settings of the demo."""

    prior: PriorRun
    """The ECLIPSE prior; projection-only is the same run with λ = 0."""
    residual: ResidualTaskConfig
    """The residual prior, with the size, pairs, steps and learning rate of the ECLIPSE prior."""
    pairs: int = Field(default=2000, ge=2)
    """Unseen pairs on which predicted embeddings are compared."""
    scoring: DemoScoring = DemoScoring()
    """The images that are scored; `prompts` counts those of one object and of two, with seen and unseen compositions each."""
    shown_steps: int = Field(default=25, gt=0)
    """Sampling steps of the images on the page."""

    def task(self, name: str) -> EclipseTaskConfig:
        """The loss of a prior.

        Raises:
            UserError: the prior is no ECLIPSE prior.
        """
        own = self.prior.task
        if not isinstance(own, EclipseTaskConfig) or isinstance(own, ResidualTaskConfig):
            raise UserError("the demo trains an ECLIPSE prior; these are the settings of another one.")
        if name == RESIDUAL:
            return self.residual.changed(batch_size=own.batch_size)
        return own if name == ECLIPSE else own.changed(lambda_contrastive=0.0)


def demo_full() -> DemoRun:
    """The demo, in at most three minutes on two CPU cores. The validation of such small priors does not improve after 150 steps."""
    task = EclipseTaskConfig(batch_size=256, lambda_contrastive=0.8)
    loop = {"steps": 150, "warmup": 20, "validate_every": 25}
    return DemoRun(prior=prior_eclipse().changed(scenes=10_000, task=task, loop=loop), residual=ResidualTaskConfig())


def demo_quick() -> DemoRun:
    """A shortened demo that tests that everything works: its priors learn next to nothing."""
    loop = {"steps": 20, "warmup": 5, "validate_every": 10, "checkpoint_every": 10}
    small = demo_full().prior.changed(scenes=1000, validation_images=128, loop=loop)
    return demo_full().changed(prior=small, pairs=200, scoring={"prompts": 2, "steps": 5}, shown_steps=5)


PRESETS = {"full": demo_full, "quick": demo_quick}


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    page: Path
    rows: list[Row]
    cosines: dict[str, Interval]
    """Of each prior's and control's predictions to the true embeddings of the unseen pairs."""
    comparisons: list[Comparison]
    seconds: float


def run(
    demo: DemoRun, out: Path, *, device: str, say: Callable[[str], None], model: str = "starter", bar: Bar = no_bar
) -> DemoResult:
    """Train, compare embeddings, generate, score, and write the page and the results. The trained priors stay in `out/eclipse`,
    `out/projection` and `out/residual`.

    Raises:
        UserError: the prior is no ECLIPSE prior, or the extra "lab" is missing.
    """
    require_lab()
    began, scoring = time.perf_counter(), demo.scoring
    tasks = {name: demo.task(name) for name in (ECLIPSE, PROJECTION, RESIDUAL)}
    loaded = TextToImage.from_pretrained(model, device=device)
    trained = _train(demo, tasks, loaded, out, say, bar)
    priors: dict[str, Prior] = {
        name: load_prior(result.folder, loaded.clip, device) for name, result in trained.items()
    }
    priors |= control_priors(loaded, scoring.seed)

    say(f"3/5  comparing predicted embeddings on {demo.pairs:,} unseen pairs")
    similar = _cosines(demo, loaded, priors)

    def images(prompts: list[Prompt], own: DemoScoring) -> list[ScoredImage]:
        config = CompositionConfig(**own.model_dump())
        with bar("generating", len(prompts) * (len(priors) + 1)) as progress:
            embeddings = candidate_embeddings(loaded, priors, prompts, config.seed)
            return generate_and_score(loaded, embeddings, prompts, config, progress)

    say("4/5  generating images of twelve prompts, half of them compositions that no prior saw")
    twelve = evaluation_prompts(SHOWN_CATEGORIES, 1, seed_of(scoring.seed, "shown"))
    examples = images(twelve, scoring.changed(steps=demo.shown_steps))
    sample = evaluation_prompts(SCORED_CATEGORIES, scoring.prompts, scoring.seed)
    say(f"5/5  scoring {counted(len(sample), 'prompt')} with each prior")
    scenes = composition.scenes_of(images(sample, scoring))
    rows = composition.table(sample, scenes)
    cosines = {name: interval(values) for name, values in similar.items()}
    accuracy = {name: harness.accuracies(sample, found)["prompt_accuracy"] for name, found in scenes.items()}
    comparisons = _compare(sample, similar, accuracy)
    result = DemoResult(out / PAGE, rows, cosines, comparisons, time.perf_counter() - began)
    _write(demo, trained, examples, result, out)
    return result


def _train(
    demo: DemoRun,
    tasks: Mapping[str, EclipseTaskConfig],
    model: TextToImage,
    out: Path,
    say: Callable[[str], None],
    bar: Bar,
) -> dict[str, RunResult]:
    say(f"1/5  embedding {counted(demo.prior.scenes or 0, 'image')} and captions with the frozen CLIP")
    data = prior_training.embedded(demo.prior, model.clip, bar)
    say(f"2/5  training {counted(len(tasks), 'prior')} with the same budget: {', '.join(tasks)}")
    trained, places = {}, {name: out / name.split()[0].lower() for name in tasks}
    if all(
        (where / "prior").is_dir() for where in places.values()
    ):  # a finished demo trains again, an interrupted one resumes
        for where in places.values():
            shutil.rmtree(where)
    for name, task in tasks.items():
        where, settings = places[name], demo.prior.changed(task=task)
        live = reporter(name, task.batch_size)
        device = model.pipeline.device
        trained[name] = prior_training.train(settings, model.clip, where, device, data=data, report=live)
    return trained


def _cosines(demo: DemoRun, model: TextToImage, priors: Mapping[str, Prior]) -> dict[str, Values]:
    """The cosine of each prior's prediction to the true embedding, for each pair that no training saw."""
    seed = demo.scoring.seed
    pairs = prior_training.embed(model.clip, seed_of(seed, "demo pairs"), demo.pairs)
    true = pairs.image_embeddings.cpu()
    noise = torch.randn(true.shape, generator=generator(seed, "demo pairs", "noise"))
    predicted = {name: composition.predict_all(prior, pairs.captions, noise) for name, prior in priors.items()}
    return {
        name: F.cosine_similarity(found.float(), true.float(), dim=1)[:, None].tolist()
        for name, found in predicted.items()
    }


def _compare(
    prompts: Sequence[Prompt], cosines: Mapping[str, Values], accuracy: Mapping[str, Values]
) -> list[Comparison]:
    """Paired differences of the compared priors: cosine, and prompt accuracy on both sides."""
    sides = {side: rows for (category, side), rows in harness.groups(prompts).items() if category == harness.ALL}
    found = []
    for first, second in COMPARED:
        differences = {COSINE: difference(cosines[first], cosines[second])}
        for side in (harness.SEEN, harness.UNSEEN):
            ours, theirs = ([accuracy[name][row] for row in sides[side]] for name in (first, second))
            differences[side] = difference(ours, theirs)
        found.append(Comparison(first, second, differences))
    return found


def _write(
    demo: DemoRun,
    trained: Mapping[str, RunResult],
    examples: Sequence[ScoredImage],
    result: DemoResult,
    out: Path,
) -> None:
    results = {
        "run": demo.model_dump(mode="json"),
        "judge": judge_record(),
        "rows": harness.plain(result.rows),
        "cosine": harness.plain(result.cosines),
        "comparisons": [
            {"first": one.first, "second": one.second} | harness.plain(one.differences) for one in result.comparisons
        ],
        "priors": {name: found.metrics for name, found in trained.items()},
        "seconds": round(result.seconds, 1),
        "machine": artifacts.machine(),
    }
    artifacts.write_json(out / RESULTS, results)
    histories = {name: found.history for name, found in trained.items()}
    report(results, histories, examples, result.rows, result.comparisons).write_page(result.page)
