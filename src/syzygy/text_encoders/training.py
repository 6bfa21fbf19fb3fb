"""The three stages of an adapter between a language model and a CLIP: align on texts, learn from pictures, polish on chosen ones."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.model_parts import part_folder, part_or_id
from syzygy.core.randomness import seed_of
from syzygy.data.store import EmbeddingStore
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.parallel_corpus import checked_languages
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.embedding_pairs import split, split_digest
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.prior.prior_loading import check_trained_with
from syzygy.prior.prior_network import STATISTICS_MEASURED
from syzygy.prior.training import PUBLISHED_SCALE
from syzygy.text_encoders.adapter import AdapterConfig, AdapterSizes, TextAdapter, TextStatistics
from syzygy.text_encoders.adapter_folders import PART, identity_of, place_of, recipe_of
from syzygy.text_encoders.adapter_task import AdapterTask
from syzygy.text_encoders.align_stage import AlignStage, AlignTaskConfig
from syzygy.text_encoders.caption_sources import AlignSource, ImageSource, pictures_of_a_store, pictures_of_the_world
from syzygy.text_encoders.image_stage import ImageStage, ImageTaskConfig
from syzygy.text_encoders.llm import Llm, LlmRecipe, check_same
from syzygy.text_encoders.parallel_captions import Captions, CorpusCaptions, WorldCaptions, number_of_lines
from syzygy.text_encoders.store_features import COMPUTE, load_llm, open_features
from syzygy.training.estimate import preparing, rehearsed
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.loop import FitResult, fit
from syzygy.training.parallel import World
from syzygy.training.progress import Reporter
from syzygy.training.run_records import Bar, RunResult, no_bar, provenance, reporter
from syzygy.training.schedule import LoopConfig

FORMER: dict[str, tuple[str, ...]] = {"image": ("align", "image"), "quality": ("image", "quality")}
"""Which stages' artefacts a stage goes on from."""
STATISTICS_CAPTIONS = 1024
"""CLIP's features of so many English captions tell where the adapter's outputs shall lie."""


class AlignRun(Config):
    """Everything that makes an aligned adapter, but the models and the corpus."""

    adapter: AdapterSizes
    """Its sizes."""
    recipe: LlmRecipe = LlmRecipe()
    """How the language model's states become features."""
    compute: Literal["fp32", "bf16"] = "fp32"
    """What the language model computes in, in training and ever after."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Codes of the languages that are learned, English among them; null is all that the corpus's first line or the world has."""
    lengths: tuple[Literal["short", "medium"], ...] | None = Field(default=None, min_length=1)
    """Captions of the embedded world, each length as often as it stands here, one a step (long ones are more than CLIP reads); null with a
    corpus."""
    validation_lines: int = Field(default=64, gt=1)
    """Unseen lines that each language is validated on; of a corpus, its first ones."""
    task: AlignTaskConfig
    """Losses and batch."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Weights, order and noise follow from it."""


class ImageRun(Config):
    """Everything that makes an adapter that has seen pictures, but the models and the store."""

    scenes: int | None = Field(default=None, gt=0)
    """Scenes of the embedded world to train on, embedded once, or to choose from with a filter; null where a store is trained on."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Codes of the languages of the world's captions; null is those of the stage before, and a store's captions are as they are."""
    lengths: tuple[Length, ...] | None = Field(default=None, min_length=1)
    """Lengths of the world's captions, each as often as it stands here, one a step; null with a store."""
    validation_images: int = Field(default=512, gt=0)
    """Images for validation, with their captions: unseen ones of the world, or some of the store, which training then leaves out."""
    filter: str | None = None
    """Which pictures are seen: of a store by its columns, such as "width >= 512 and aesthetic > 5.5"; of the embedded world by objects,
    unnamed, smallest, style, such as "unnamed == 0 and objects <= 2"; null is all."""
    task: ImageTaskConfig
    """Loss and batch, and what is frozen."""
    loop: LoopConfig
    """Length and learning rate."""
    seed: int = 0
    """Scenes, order and noise follow from it."""


@dataclass(frozen=True)
class PreviousStage:
    """The artefact that a stage goes on from."""

    run: Path
    adapter: TextAdapter
    record: dict[str, Any]
    """Its provenance."""
    llm: dict[str, Any]
    """The identity of its language model."""

    @staticmethod
    def load(source: str | Path, stage: str) -> "PreviousStage":
        """
        Raises:
            UserError: there is no finished adapter, or it is of a stage that this one does not go on from.
        """
        folder = part_folder(source, PART)
        adapter, record = TextAdapter.from_pretrained(folder), artifacts.read_json(folder / artifacts.PROVENANCE_FILE)
        if (found := record.get("stage")) not in FORMER[stage]:
            raise UserError(
                f"the adapter in {folder} is of stage {found!r}; stage {stage!r} goes on from {' or '.join(FORMER[stage])}. "
                "The order is align, image, quality."
            )
        return PreviousStage(folder.parent, adapter, record, identity_of(folder))

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """What came before, this one included: the oldest first."""
        kept = ("stage", "clip", "prior", "data", "decoder", "steps", "samples")
        own = {name: self.record[name] for name in kept if name in self.record}
        return [*self.record.get("lineage", []), own | {"adapter": artifacts.fingerprint(self.adapter.state_dict())}]

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of those that it was taught; all of the world's where its record does not tell."""
        return tuple(self.record.get("languages") or LANGUAGES)

    @property
    def of_the_world(self) -> tuple[str, ...]:
        """Those of them that the embedded world has captions in."""
        return tuple(code for code in self.languages if code in LANGUAGES)

    def taught(self, languages: Sequence[str]) -> "PreviousStage":
        """The same with further languages in its record."""
        return replace(self, record=self.record | {"languages": list(dict.fromkeys([*self.languages, *languages]))})

    def language_model(self, llm: str | None, *, local_files_only: bool = True) -> Llm:
        """Its language model, read as it was in training; `llm` is where that lies now, None where it lay.

        Raises:
            UserError: it is not found, or another one.
        """
        place, revision = (llm, None) if llm else place_of(self.llm, self.run / PART)
        recipe, dtype = recipe_of(self.llm), getattr(torch, self.llm["dtype"])
        found = load_llm(place, recipe=recipe, revision=revision, dtype=dtype, local_files_only=local_files_only)
        check_same(self.llm, found.identity().to_config(), f"the adapter of {self.run}")
        return found


def frozen_prior(source: str | Path, clip: str, *, local_files_only: bool = True) -> EclipsePrior:
    """The ECLIPSE prior of a model, a run, a folder or a hub id, in fp32; `clip` is the CLIP's fingerprint.

    Raises:
        UserError: it is not found, no ECLIPSE prior, or belongs to another CLIP.
    """
    place = part_or_id(source, "prior")
    prior = EclipsePrior.from_pretrained(place, local_files_only=local_files_only)
    if isinstance(place, Path):
        check_trained_with(place, "clip", clip)
    return prior


def captions_of(run: AlignRun, corpus: Path | None, clip: Clip) -> Captions:
    """What the run aligns on.

    Raises:
        UserError: as `CorpusCaptions`; a setting would have no effect.
    """
    if corpus is None:
        if run.lengths is None:
            raise UserError(
                'this preset aligns on a corpus: give --corpus FILE, or set lengths=["short"] for the embedded world.'
            )
        return WorldCaptions(seed_of(run.seed, "align"), run.languages or tuple(LANGUAGES), run.lengths)
    if run.lengths is not None:
        raise UserError(f"lengths={list(run.lengths)} has no effect on a corpus: leave it out, or set lengths=null.")
    return CorpusCaptions(corpus, clip, run.seed, run.languages, run.validation_lines)


def align(
    run: AlignRun,
    llm: Llm,
    clip: Clip,
    prior: EclipsePrior | None,
    out: Path,
    world: World,
    *,
    corpus: Path | None = None,
    report: Reporter | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Stage 1: train (or resume) in `out`, beside frozen models; the finished one is `out/adapter`, fp16.

    Args:
        prior: frozen, of this CLIP; None where its weight is 0.
        corpus: parallel captions in JSON Lines; None is the embedded world.

    Raises:
        UserError: as `captions_of` and `AlignStage`; tokens to distil, but another number of queries than CLIP has positions.
    """
    if run.task.tokens and run.adapter.queries != clip.positions:
        raise UserError(
            f"task.tokens distils CLIP's {clip.positions} states, adapter.queries is {run.adapter.queries}: set it to {clip.positions}."
        )
    if corpus is not None:
        run = fitting.lines(run, number_of_lines(corpus), str(corpus))
    captions = captions_of(run, corpus, clip)
    llm, clip = llm.to(world.device), clip.to(world.device).requires_grad_(False)
    identity = llm.identity().to_config()
    beside = {"stage": "align", "llm": identity, "clip": clip.fingerprint(), "prior": None, "data": captions.record}
    if prior is not None:
        prior = prior.to(world.device).requires_grad_(False).eval()
        beside["prior"] = artifacts.fingerprint(prior.state_dict())
    adapter = fresh(run, llm.width, clip, captions).to(world.device)
    needs_scale = run.task.contrastive > 0 and run.task.temperature == "clip"
    stage = AlignStage(adapter, prior, run.task, logit_scale=clip.logit_scale if needs_scale else 1.0)
    source = AlignSource(
        captions, llm, clip, run.task.batch_size, run.task.empty, run.seed,
        padded=run.task.tokens > 0, validation=run.validation_lines,
    )  # fmt: skip
    result = _fit(run, AdapterTask(stage, source, **_how(run, world)), beside, out, world, report, "align")
    record = provenance("adapter", run, result, result.steps * run.task.batch_size, result.metrics) | beside
    if world.first:
        record |= {"languages": list(captions.languages)}
        if isinstance(captions, CorpusCaptions):
            record |= {"left_out": captions.left_out, "not_learned": dict(captions.not_learned)}
        adapter.save_pretrained(out / PART, record, torch.float16)
    world.wait()
    return RunResult(out / PART, result.metrics, result.history)


def fresh(run: AlignRun, width: int, clip: Clip, captions: Captions) -> TextAdapter:
    """An untrained adapter of the run, with CLIP's statistics on captions that training sees."""
    sizes = run.adapter.model_dump()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "adapter weights"))
        adapter = TextAdapter(AdapterConfig(**sizes, llm_width=width, clip_width=clip.width))
    english = list(dict.fromkeys(captions.line("en", place, place).english for place in range(STATISTICS_CAPTIONS)))
    found = [clip.encode_text(english[i : i + 128]).to("cpu") for i in range(0, len(english), 128)]
    adapter.set_statistics(TextStatistics.of(type(found[0]).cat(found)))
    return adapter


def image(
    run: ImageRun,
    former: PreviousStage,
    llm: Llm,
    clip: Clip,
    prior: EclipsePrior,
    out: Path,
    world: World,
    *,
    stage: str = "image",
    bar: Bar = no_bar,
    report: Reporter | None = None,
) -> RunResult:
    """Stages 2 and 3 on the embedded world: train (or resume) adapter and prior in `out`; they are `out/adapter` and `out/prior`, fp16.

    Raises:
        UserError: the run is made for a store; the filter cannot be read or leaves nothing, or stage quality has none; the models are not
            those that the adapter was aligned with.
    """
    if run.scenes is None or run.lengths is None:
        raise UserError(
            'this preset trains on an embedding store: give --data STORE, or set scenes=20000 lengths=["short"].'
        )
    _check_filter(run, stage)
    check_clip(former, clip.fingerprint())
    clip, llm = clip.to(world.device).requires_grad_(False), llm.to(world.device)
    by_text = run.task.contrast == "text"
    languages = checked_languages(run.languages or former.of_the_world)
    sizes = rehearsed(run.scenes, run.task.batch_size), run.validation_images
    with preparing(run.scenes + run.validation_images, sum(sizes)):
        data = pictures_of_the_world(
            clip, llm, languages, run.lengths, seed=run.seed, sizes=sizes, by_text=by_text, bar=bar, condition=run.filter
        )  # fmt: skip
    source = ImageSource(*data, world.device, run.task.batch_size, run.task.empty, run.seed)
    record = {"clip": clip.fingerprint(), "data": "world", "captions": len(data[0])}
    former = former.taught(languages)
    material = _Material(source, clip.logit_scale, record, lambda: EmbeddingStatistics.of(data[0].embeddings))
    return _fit_image(run, former, material, prior, out, world, stage, report)


def image_on_store(
    run: ImageRun,
    former: PreviousStage,
    store: Path,
    features: str,
    prior: EclipsePrior,
    out: Path,
    world: World,
    *,
    stage: str = "image",
    report: Reporter | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Stages 2 and 3 on an embedding store whose set `features` are the language model's (`syzygy store add --llm`); otherwise as `image`.

    Raises:
        UserError: the store has no such set, or of another model; it was embedded with another CLIP; the filter cannot be read or leaves
            nothing; a setting would have no effect.
    """
    for name in ("scenes", "languages", "lengths"):
        if (value := getattr(run, name)) is not None:
            raise UserError(f"{name}={value} has no effect on a store: leave it out, or set {name}=null.")
    _check_filter(run, stage)
    opened = EmbeddingStore.open(store)
    encoder = opened.encoder
    check_clip(former, encoder["fingerprint"])
    read = open_features(store, former.llm, features)
    by_text = run.task.contrast == "text"
    run = fitting.validation(run, "validation_images", opened.different_images, str(store))
    data = pictures_of_a_store(opened, read, run.validation_images, run.filter, by_text=by_text)
    training, validation = data
    run = fitting.batch(run, len(training), world.size)
    fitting.passes(len(training), len(validation), run.loop.steps * run.task.batch_size)
    source = ImageSource(*data, world.device, run.task.batch_size, run.task.empty, run.seed)
    digest = split_digest(split(opened, run.validation_images)[1])  # of the whole store: a filter leaves out more
    record = {"clip": encoder["fingerprint"], "data": opened.digest, "validation": digest, "captions": len(training)}
    scale = encoder.get("logit_scale") or PUBLISHED_SCALE
    material = _Material(source, scale, record, lambda: training.pairs.statistics)
    return _fit_image(run, former, material, prior, out, world, stage, report)


def _check_filter(run: ImageRun, stage: str) -> None:
    if stage == "quality" and run.filter is None:
        raise UserError("stage quality trains on chosen pictures: say which with --filter, such as 'width >= 512'.")


@dataclass(frozen=True)
class _Material:
    """What is trained on, and the statistics of its images' embeddings."""

    source: ImageSource
    logit_scale: float
    record: Mapping[str, Any]
    statistics: Callable[[], EmbeddingStatistics]


def _fit_image(
    run: ImageRun,
    former: PreviousStage,
    material: _Material,
    prior: EclipsePrior,
    out: Path,
    world: World,
    name: str,
    report: Reporter | None,
) -> RunResult:
    began = artifacts.fingerprint(prior.state_dict())
    aligned = former.record.get("prior")
    if aligned not in (None, began):
        raise UserError(
            f"the adapter of {former.run} was trained with another prior ({aligned}, here {began}). Take that one, or begin with stage align."
        )
    if not prior.has_statistics:
        prior.set_statistics(material.statistics())
        if world.first:
            warnings.warn(STATISTICS_MEASURED, stacklevel=2)
    adapter, prior = former.adapter.to(world.device), prior.to(world.device)
    stage = ImageStage(adapter, prior, run.task, logit_scale=material.logit_scale)
    beside = {"stage": name, "llm": former.llm, **material.record, "lineage": former.lineage, "prior_before": began}
    result = _fit(run, AdapterTask(stage, material.source, **_how(run, world)), beside, out, world, report, name)
    record = provenance("adapter", run, result, result.steps * run.task.batch_size, result.metrics) | beside
    record["languages"] = list(former.languages)
    if world.first:
        prior.save_pretrained(out / "prior", record | {"kind": "prior"}, torch.float16)
        # As whoever loads it will find it, rounded to fp16.
        record["prior"] = artifacts.fingerprint(EclipsePrior.from_pretrained(out / "prior").state_dict())
        adapter.save_pretrained(out / PART, record, torch.float16)
    world.wait()
    return RunResult(out / PART, result.metrics, result.history)


def check_clip(former: PreviousStage, fingerprint: str) -> None:
    """Refuse a CLIP that an adapter was not aligned with."""
    if former.record.get("clip") != fingerprint:
        raise UserError(
            f"the adapter of {former.run} was aligned with another CLIP ({former.record.get('clip')}, here {fingerprint}): "
            "its space is different."
        )


def _fit(
    run: AlignRun | ImageRun,
    task: AdapterTask[Any],
    beside: Mapping[str, Any],
    out: Path,
    world: World,
    report: Reporter | None,
    name: str,
) -> FitResult:
    # Where a language model lies, and under which versions, may change between two sittings.
    settings = run.model_dump(mode="json") | dict(beside) | {"llm": beside["llm"]["fingerprint"]}
    report = report or reporter(f"adapter, {name}", run.task.batch_size)
    return fit(task, run.loop, out, reporter=report, run=settings, world=world)


def _how(run: AlignRun | ImageRun, world: World) -> dict[str, Any]:
    task = run.task
    fast = task.precision == "bf16" or (task.precision == "auto" and world.device.type == "cuda")
    precision = torch.bfloat16 if fast else None
    return {"batch_size": task.batch_size, "micro_batch": task.micro_batch, "precision": precision, "world": world}


def language_model(run: AlignRun, source: str, *, local_files_only: bool = True) -> Llm:
    """The language model of stage 1, read by the run's recipe."""
    return load_llm(source, recipe=run.recipe, dtype=COMPUTE[run.compute], local_files_only=local_files_only)
