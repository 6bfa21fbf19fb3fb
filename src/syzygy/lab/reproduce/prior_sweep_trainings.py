"""The trainings of the sweep of priors: the pairs of each, how it is scored, and how long all of them take."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.contracts import Prior
from syzygy.core.packed_attention import PackedText
from syzygy.core.randomness import seed_of
from syzygy.core.wording import counted, duration
from syzygy.data.store_part import text_hash
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.composition import (
    IDENTITY,
    LINEAR,
    REFERENCE,
    SHIFTED,
    CompositionConfig,
)
from syzygy.lab.reproduce.embedding_scores import EmbeddingScorer, generate_once
from syzygy.lab.reproduce.experiment import ExperimentFolder
from syzygy.lab.reproduce.prior_sweep_points import (
    CONTROLS,
    METHODS,
    RESIDUAL,
    Point,
    PriorSweepRun,
    all_points,
    control_name,
)
from syzygy.lab.starter import prior_training
from syzygy.lab.world import scene_source
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.embedding_pairs import PriorData
from syzygy.prior.linear_prior import LinearPrior
from syzygy.prior.prior_loading import load_prior
from syzygy.prior.residual_prior import ResidualPrior, ResidualPriorConfig
from syzygy.training import checkpoints
from syzygy.training.estimate import Estimated, dry_run
from syzygy.training.run_records import Bar, no_bar, reporter

PART = 10_000
"""Pairs in a file of embeddings."""
CHUNK = 512


@dataclass(frozen=True)
class PairPool:
    """The training pairs of all points, in fp16; captions are packed."""

    images: Float[Tensor, "N D"]
    text: PackedText
    ids: Int[Tensor, "N"]

    @staticmethod
    def prepare(folder: Path, clip: Clip, seed: int, number: int, bar: Bar = no_bar) -> "PairPool":
        """Embed pairs of the world without unseen compositions; files of finished parts are read instead."""
        parts = []
        with bar("embedding", number) as progress:
            for start in range(0, number, PART):
                file, size = folder / f"{start:09d}.safetensors", min(PART, number - start)
                if not file.is_file():
                    artifacts.write_tensors(file, _joined(_embedded(clip, seed, start, size, progress)))
                parts.append(artifacts.read_tensors(file))
        text = [PackedText(part["states"], part["offsets"], part["pooled"]) for part in parts]
        images, ids = (torch.cat([part[name] for part in parts]) for name in ("images", "ids"))
        return PairPool(images, PackedText.cat(text), ids)

    def training(self, pairs: int, seed: int) -> PriorData:
        """The pairs of a training: its own as long as there are enough, otherwise the first ones."""
        first = seed * pairs if (seed + 1) * pairs <= len(self.ids) else 0
        own = slice(first, first + pairs)
        text = self.text if pairs == len(self.ids) else self.text[own]
        return PriorData(self.images[own], text, torch.arange(pairs), self.ids[own])


def _embedded(
    clip: Clip, seed: int, start: int, number: int, progress: Callable[[int], None] = lambda done: None
) -> Iterator[tuple[Tensor, PackedText, Tensor]]:
    """(images, captions, ids) of pairs from `start` on, in chunks."""
    for first in range(start, start + number, CHUNK):
        found = scene_source.pairs(seed, first, min(CHUNK, start + number - first), unseen=False)
        texts = [pair.caption.text for pair in found]
        images = clip.encode_image(scene_source.pictures(found, clip.image_size, clip.device)).cpu()
        text = PackedText.of(clip.encode_text(texts).to("cpu"))
        yield images.half(), text.to(dtype=torch.float16), torch.tensor([text_hash(one) for one in texts])
        progress(len(found))


def _joined(chunks: Iterator[tuple[Tensor, PackedText, Tensor]]) -> dict[str, Tensor]:
    images, texts, ids = zip(*chunks, strict=True)
    text = PackedText.cat(list(texts))
    pairs = {"images": torch.cat(images), "ids": torch.cat(ids)}
    return pairs | {"states": text.states, "offsets": text.offsets, "pooled": text.pooled}


@dataclass(frozen=True)
class SweepContext:
    """What all trainings share."""

    run: PriorSweepRun
    folder: ExperimentFolder
    model: TextToImage
    pool: PairPool
    validation: PriorData
    scorer: EmbeddingScorer

    @staticmethod
    def prepare(run: PriorSweepRun, folder: ExperimentFolder, model: TextToImage, bar: Bar = no_bar) -> "SweepContext":
        """Embed the pairs, train the probe, choose the prompts."""
        pool = PairPool.prepare(folder.path / "pairs", model.clip, seed_of(run.seed, "sweep"), max(run.pairs), bar)
        validation = prior_training.embed(
            model.clip, seed_of(run.seed, "sweep validation"), run.prior.validation_images
        )
        sizes = {"prompts": run.prompts, "pairs": run.unseen_pairs, "probe_scenes": run.probe_scenes}
        return SweepContext(
            run, folder, model, pool, validation, EmbeddingScorer.prepare(model.clip, **sizes, seed=run.seed)
        )

    @cached_property
    def device(self) -> torch.device:
        return self.model.pipeline.device

    def place(self, point: Point, seed: int) -> Path:
        """The folder of a training."""
        return self.folder.path / "priors" / point.name(seed)

    def control(self, name: str, pairs: int, seed: int, ridge: float | None = None) -> Prior:
        """A control on the pairs of a training."""
        data = self.pool.training(pairs, seed)
        if name == LINEAR:
            return LinearPrior.fit(data, self.run.ridge if ridge is None else ridge).to(self.device)
        identity = TextIdentity.of_pairs(data)
        return identity if name == SHIFTED else TextIdentity(identity.mean_norm)


def train_and_score(point: Point, seed: int, context: SweepContext) -> None:
    """Train a prior, or continue its training, and score its embeddings. Of the run, only the prior is kept."""
    where, settings = context.place(point, seed), point.settings(context.run, seed)

    def measure() -> Mapping[str, float]:
        data = context.pool.training(point.pairs, seed), context.validation
        live = reporter(point.name(seed), settings.task.batch_size)
        prior_training.train(settings, context.model.clip, where, context.device, data=data, report=live)
        found = context.scorer.scores(load_prior(where / "prior", context.model.clip, str(context.device)))
        shutil.rmtree(where / checkpoints.FOLDER)
        return found | {"seconds": artifacts.read_json(where / "prior" / artifacts.PROVENANCE_FILE)["seconds"]}

    context.folder.score_once(point.name(seed), measure)


def score_controls(context: SweepContext) -> None:
    """The same scores for the controls on the pairs of every training, and the probe's for the reference."""
    run, folder = context.run, context.folder
    for seed in range(run.seeds):
        for pairs in run.pairs:
            wanted: list[tuple[str, float | None]] = [(IDENTITY, None), (SHIFTED, None)]
            wanted += [(LINEAR, ridge) for ridge in dict.fromkeys((run.ridge, *run.ridges))]
            for name, ridge in wanted:
                folder.score_once(
                    control_name(name, pairs, seed, ridge),
                    lambda name=name, pairs=pairs, seed=seed, ridge=ridge: context.scorer.scores(
                        context.control(name, pairs, seed, ridge)
                    ),
                )

    folder.score_once(REFERENCE, lambda: context.scorer.of_reference(context.model, run.seed))


def image_names(run: PriorSweepRun, pairs: int) -> dict[str, list[str]]:
    """Candidate → the names of its images at this number of pairs, one for each training."""
    seeds = range(min(run.image_seeds, run.seeds))
    found = {REFERENCE: [REFERENCE]}
    found |= {method: [Point.base(run, method, pairs).name(seed) for seed in seeds] for method in METHODS}
    return found | {control: [control_name(control, pairs, seed) for seed in seeds] for control in CONTROLS}


def generate_images(context: SweepContext, bar: Bar = no_bar) -> None:
    """Generate images at the chosen numbers of pairs."""
    run, prompts = context.run, context.scorer.prompts
    config = CompositionConfig(prompts=run.prompts, steps=run.decoder_steps, guidance_scale=1.0, seed=run.seed)

    def prior(candidate: str, pairs: int, seed: int) -> Prior:
        if candidate in CONTROLS:
            return context.control(candidate, pairs, seed)
        folder = context.place(Point.base(run, candidate, pairs), seed) / "prior"
        return load_prior(folder, context.model.clip, str(context.device))

    for pairs in run.images_at:
        for candidate, names in image_names(run, pairs).items():
            for seed, name in enumerate(names):
                load = None if candidate == REFERENCE else lambda c=candidate, p=pairs, s=seed: prior(c, p, s)
                generate_once(context.folder, context.model, prompts, name, load, config, bar)


def estimate(run: PriorSweepRun, folder: ExperimentFolder, model: TextToImage) -> dict[str, float | int]:
    """Time that the embeddings of all pairs and the trainings without scores will take, from a few steps on a few pairs.

    Images and controls are not counted.
    """
    began = time.perf_counter()
    tensors = _joined(_embedded(model.clip, seed_of(run.seed, "sweep"), 0, CHUNK))
    per_pair = (time.perf_counter() - began) / CHUNK
    text = PackedText(tensors["states"], tensors["offsets"], tensors["pooled"])
    data = PriorData(tensors["images"], text, torch.arange(CHUNK), tensors["ids"])
    point = Point.base(run, RESIDUAL, CHUNK)
    with tempfile.TemporaryDirectory(prefix="syzygy-sweep-") as place, dry_run(folder.path):
        try:
            settings = point.settings(run, 0)
            device = model.pipeline.device
            prior_training.train(settings, model.clip, Path(place), device, data=(data, data))
        except Estimated as found:
            measured = found.estimate
        else:
            raise AssertionError("a training without a loop")
    scored = run.unseen_pairs + 9 * run.prompts
    scoring = scored / CHUNK * _prediction_seconds(run, data)
    left = [
        (point, seed)
        for point in all_points(run)
        for seed in range(run.seeds)
        if not folder.has_scores(point.name(seed))
    ]
    steps = sum(point.steps for point, _ in left)
    # the work of a step grows with the square of the width
    work = sum(point.steps * (point.heads / run.prior.num_attention_heads) ** 2 for point, _ in left)
    done = sum(1 for _ in (folder.path / "pairs").glob("*.safetensors")) * PART
    pairs = max(max(run.pairs) - done, 0) + run.prior.validation_images + run.unseen_pairs + run.probe_scenes
    seconds = pairs * per_pair + work * measured.step_seconds + len(left) * (measured.validation_seconds + scoring)
    return {
        "trainings": len(left), "steps": steps, "step_seconds": round(measured.step_seconds, 4),
        "scoring_seconds": round(measured.validation_seconds + scoring, 2), "pairs": pairs,
        "pair_seconds": round(per_pair, 5), "seconds": round(seconds, 1),
    }  # fmt: skip


def _prediction_seconds(run: PriorSweepRun, data: PriorData) -> float:
    """Seconds for one prediction of all captions of `data`."""
    sizes = ("num_layers", "num_attention_heads", "attention_head_dim")
    chosen = {name: getattr(run.prior, name) for name in sizes}
    prior = ResidualPrior(ResidualPriorConfig(embedding_dim=data.width, num_embeddings=data.longest, **chosen))
    prior.set_identity(TextIdentity.of_pairs(data))
    began = time.perf_counter()
    prior.predict(data.text(torch.arange(len(data))).padded(), noise=torch.zeros(len(data), data.width))
    return time.perf_counter() - began


def estimate_line(found: Mapping[str, float | int]) -> str:
    """The estimate as a sentence."""
    return (
        f"About {duration(found['seconds'])} to go: {counted(int(found['trainings']), 'training')} with {found['steps']:,} steps of "
        f"{duration(found['step_seconds'])} and {duration(found['scoring_seconds'])} of scoring each, {found['pairs']:,} pairs to embed."
    )
