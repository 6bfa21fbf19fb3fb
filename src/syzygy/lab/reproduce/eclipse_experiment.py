"""ECLIPSE's comparison in small (arXiv 2312.04655, tables 1–2, figures 2 and 5): equal budgets, several seeds, the controls it lacks.

Every step leaves a file, so an interrupted run goes on where it stopped.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.contracts import Prior, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator, seed_of
from syzygy.core.wording import counted
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import distance, probe
from syzygy.lab.evaluate.composition import (
    REFERENCE,
    CompositionConfig,
    candidate_embeddings,
    control_priors,
    generate_and_score,
    predict_all,
)
from syzygy.lab.evaluate.harness import evaluation_prompts
from syzygy.lab.evaluate.probe import Probe, fit_probe
from syzygy.lab.reproduce import score_files
from syzygy.lab.reproduce.score_files import CATEGORIES
from syzygy.lab.starter import prior_training as prior_run
from syzygy.lab.world import scene_source
from syzygy.lab.world.prompts import Prompt
from syzygy.prior.diffusion_prior import DiffusionTaskConfig, SampledPrior
from syzygy.prior.eclipse import PriorTaskConfig
from syzygy.prior.embedding_pairs import PriorData
from syzygy.prior.prior_loading import load_prior
from syzygy.prior.training import PriorRun
from syzygy.training.run_records import Bar, no_bar, reporter

PROJECTION, DIFFUSION, ECLIPSE = "projection", "diffusion", "ECLIPSE"
METHODS = (PROJECTION, DIFFUSION, ECLIPSE)
CHUNK = 512


class ReproduceRun(Config):
    """Everything that the comparison does."""

    prior: PriorRun
    """The ECLIPSE prior; the others have its size, pairs, steps, batch and learning rate."""
    diffusion: DiffusionTaskConfig
    """The diffusion baseline's dropout and sampling."""
    seeds: int = Field(default=5, ge=2)
    """Trainings of each method, scored on embeddings."""
    painted_seeds: int = Field(default=3, ge=1)
    """How many of them are decoded."""
    prompts: int = Field(default=200, gt=0)
    """Prompts a category, seen and held-out each, or as many as there are."""
    steps: int = Field(default=10, gt=0)
    """Decoder's sampling steps, unguided."""
    pairs: int = Field(default=5000, gt=0)
    """Unseen pairs on which predicted embeddings are compared with true ones."""
    probe_scenes: int = Field(default=20_000, gt=0)
    """Scenes that the probe learns on."""
    lambdas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
    """Sweep of λ; 0 is projection."""
    fractions: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Sweep of the training pairs' share, all methods."""
    sampling_steps: tuple[int, ...] = (2, 5, 10, 25, 50)
    """Sweep of the baseline's steps."""
    etas: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Sweep of the noise that the baseline adds a step."""
    sweep_seeds: int = Field(default=2, ge=1)
    """Trainings a point of a sweep."""
    seed: int = 0
    """Prompts, scenes and noise follow from it."""


@dataclass(frozen=True)
class Job:
    """One training."""

    method: str
    seed: int
    contrast: float = 0.2
    fraction: float = 1.0

    @property
    def name(self) -> str:
        extra = "" if self.method != ECLIPSE else f"-lambda{self.contrast:g}"
        return f"{self.method}{extra}-data{self.fraction:g}-seed{self.seed}"

    def settings(self, run: ReproduceRun) -> PriorRun:
        """The run with this job's seed and objective, everything else as in all others."""
        task = run.prior.task
        assert isinstance(task, PriorTaskConfig)
        contrast = 0.0 if self.method == PROJECTION else self.contrast
        chosen = task.model_copy(update={"lambda_contrastive": contrast}) if self.method != DIFFUSION else run.diffusion
        return run.prior.model_copy(update={"task": chosen, "seed": self.seed})


def jobs(run: ReproduceRun) -> list[Job]:
    """Every training that the comparison and its sweeps need, each once, the comparison's first."""
    task = run.prior.task
    if not isinstance(task, PriorTaskConfig) or task.batch_size != run.diffusion.batch_size:
        raise UserError(
            "the comparison needs an ECLIPSE prior and a diffusion baseline of one batch size: equal budgets."
        )
    contrast = task.lambda_contrastive
    found = [Job(method, seed, contrast) for seed in range(run.seeds) for method in METHODS]
    for seed in range(run.sweep_seeds):
        found += [Job(ECLIPSE, seed, value) for value in run.lambdas if value > 0]
        found += [Job(method, seed, contrast, fraction) for fraction in run.fractions for method in METHODS]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Bench:
    """What all methods share."""

    model: TextToImage
    data: PriorData
    validation: PriorData
    pairs: PriorData
    probe: Probe
    wanted: list[Prompt]
    features: TextFeatures


def prepare(run: ReproduceRun, model: TextToImage, bar: Bar = no_bar) -> Bench:
    """Embed the pairs, train the probe, choose the prompts."""
    data, validation = prior_run.embedded(run.prior, model.clip, bar)
    pairs = prior_run.embed(model.clip, seed_of(run.seed, "pairs"), run.pairs)
    wanted = evaluation_prompts(CATEGORIES, run.prompts, run.seed)
    features = model.clip.encode_text([p.text for p in wanted])
    return Bench(model, data, validation, pairs, _probe(run, model), wanted, features)


def _probe(run: ReproduceRun, model: TextToImage) -> Probe:
    scenes, parts = [], []
    for start in range(0, run.probe_scenes, CHUNK):
        found = scene_source.pairs(seed_of(run.seed, "probe"), start, min(CHUNK, run.probe_scenes - start))
        scenes += [p.scene for p in found]
        parts.append(
            model.clip.encode_image(scene_source.pictures(found, model.clip.image_size, model.clip.device)).cpu()
        )
    return fit_probe(torch.cat(parts), scenes, run.seed)


def train_and_score(job: Job, run: ReproduceRun, bench: Bench, out: Path) -> Path:
    """Train the job's prior (or resume) and score its embeddings; returns the prior's folder."""
    where, scores = out / "priors" / job.name, out / "scores" / f"{job.name}.json"
    folder, clip = where / "prior", bench.model.clip
    if not (scores.is_file() and folder.is_dir()):
        number = max(round(job.fraction * len(bench.data)), 2)
        live = reporter(job.name, run.prior.task.batch_size)
        data = (bench.data.first(number), bench.validation)
        device = bench.model.pipeline.device
        prior_run.train(job.settings(run), clip, where, device, data=data, report=live)
        prior = load_prior(folder, clip, str(device))
        network = prior.network if isinstance(prior, SampledPrior) else prior
        found = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "samples": run.prior.loop.steps * run.prior.task.batch_size,
            "pairs": number,
            "seconds": artifacts.read_json(folder / artifacts.PROVENANCE_FILE)["seconds"],
            "evaluations": prior.evaluations if isinstance(prior, SampledPrior) else 1,
        }
        artifacts.write_json(scores, found | score_embeddings(prior, bench, run.seed))
    return folder


def score_embeddings(prior: Prior, bench: Bench, seed: int) -> dict[str, float]:
    """Cosine, R@1 and Fréchet distance on unseen pairs; the probe's share of named combinations, seen and held out."""
    predicted = _predict(prior, bench.pairs.captions, seed)
    asked_for = _predict(prior, bench.features, seed)
    return distance.embedding_scores(predicted, bench.pairs.image_embeddings) | probed(asked_for, bench)


def probed(embeddings: Tensor, bench: Bench) -> dict[str, float]:
    """Mean share of the named combinations that the probe finds, for seen and held-out prompts."""
    shares = probe.found(bench.probe, embeddings.cpu(), bench.wanted)
    scores = {}
    for name, held_out in (("probe_seen", False), ("probe_held_out", True)):
        some = [s for s, p in zip(shares, bench.wanted, strict=True) if s is not None and p.unseen == held_out]
        scores[name] = sum(some) / len(some)
    return scores


def _predict(prior: Prior, features: TextFeatures, seed: int) -> Tensor:
    """Predictions for all rows, from noise that is the same for every prior."""
    noise = torch.randn(features.pooled.shape, generator=generator(seed, "reproduce", len(features)))
    return predict_all(prior, features, noise)


def sweep_sampling(run: ReproduceRun, bench: Bench, out: Path) -> None:
    """Score the trained baselines with other numbers of steps and other amounts of added noise."""
    assert isinstance(run.prior.task, PriorTaskConfig)
    for seed in range(run.sweep_seeds):
        job = Job(DIFFUSION, seed, run.prior.task.lambda_contrastive)
        prior = load_prior(out / "priors" / job.name / "prior", bench.model.clip)
        assert isinstance(prior, SampledPrior)
        changes = [{"steps": steps} for steps in run.sampling_steps] + [{"eta": eta} for eta in run.etas]
        for change in changes:
            key, value = next(iter(change.items()))
            file = out / "scores" / f"sampling-{key}{value:g}-seed{seed}.json"
            if not file.is_file():
                sampling = prior.sampling.model_copy(update=change)
                artifacts.write_json(file, score_embeddings(replace(prior, sampling=sampling), bench, run.seed))


def score_controls(run: ReproduceRun, bench: Bench, out: Path) -> None:
    """The same scores for text-identity, and the probe's for the reference."""
    for name, prior in control_priors(bench.model, run.seed).items():
        file = out / "scores" / f"{name}.json"
        if not file.is_file():
            artifacts.write_json(file, score_embeddings(prior, bench, run.seed))
    file = out / "scores" / f"{REFERENCE}.json"
    if not file.is_file():
        artifacts.write_json(
            file, probed(candidate_embeddings(bench.model, {}, bench.wanted, run.seed)[REFERENCE], bench)
        )


def paint_all(run: ReproduceRun, bench: Bench, out: Path, bar: Bar = no_bar) -> None:
    """Decode the comparison's first trainings and the controls, a file of judgements and one of pictures each."""
    scoring = CompositionConfig(prompts=run.prompts, steps=run.steps, guidance_scale=1.0, seed=run.seed)
    for name, prior in _to_paint(run, bench, out):
        if score_files.painted_file(out, name).is_file():
            continue
        found = candidate_embeddings(bench.model, {} if prior is None else {name: prior()}, bench.wanted, run.seed)
        only = {name: found[name]}
        with bar(f"painting {name}", len(bench.wanted)) as progress:
            painted = generate_and_score(bench.model, only, bench.wanted, scoring, progress)
        score_files.keep(out, name, painted, bench.wanted)


def _to_paint(run: ReproduceRun, bench: Bench, out: Path) -> Iterator[tuple[str, Callable[[], Prior] | None]]:
    """Candidates with what makes their prior (none for the reference)."""
    assert isinstance(run.prior.task, PriorTaskConfig)
    yield REFERENCE, None
    for name, prior in control_priors(bench.model, run.seed).items():
        yield name, lambda prior=prior: prior
    for seed in range(min(run.painted_seeds, run.seeds)):
        for method in METHODS:
            folder = out / "priors" / Job(method, seed, run.prior.task.lambda_contrastive).name / "prior"
            yield f"{method}-seed{seed}", lambda folder=folder: load_prior(folder, bench.model.clip)


def reproduce(
    run: ReproduceRun, out: Path, *, model: str, device: str, say: Callable[[str], None], bar: Bar = no_bar
) -> Bench:
    """Everything but the report: train, score, sweep, paint. What is in `out` already is not done again.

    Raises:
        UserError: `out` holds a comparison with other settings.
    """
    began = time.perf_counter()
    settings = run.model_dump(mode="json") | {"model": model}
    if (out / "run.json").is_file() and artifacts.read_json(out / "run.json") != settings:
        raise UserError(f"{out} holds a comparison with other settings. Choose another --out, or the settings it has.")
    loaded = TextToImage.from_pretrained(model, device=device)
    artifacts.write_json(out / "run.json", settings)
    say(f"1/4  embedding pairs and training the probe on {counted(run.probe_scenes, 'scene')}")
    bench = prepare(run, loaded, bar)
    todo = jobs(run)
    say(f"2/4  {counted(len(todo), 'training')}")
    for job in todo:
        train_and_score(job, run, bench, out)
    say("3/4  controls and the baseline's sampling")
    score_controls(run, bench, out)
    sweep_sampling(run, bench, out)
    say(f"4/4  painting {counted(len(bench.wanted), 'prompt')} with each candidate")
    paint_all(run, bench, out, bar)
    _add_time(out, time.perf_counter() - began)
    return bench


def _add_time(out: Path, seconds: float) -> None:
    """Time over all sittings."""
    file = out / "time.json"
    before = artifacts.read_json(file)["seconds"] if file.is_file() else 0.0
    artifacts.write_json(file, {"seconds": round(before + seconds, 1), "machine": artifacts.machine()})
