"""Training of an adapter between a language model and a CLIP: align on texts, learn from images, refine on selected images."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.contracts import TextStates
from syzygy.core.errors import UserError
from syzygy.core.model_parts import part_or_id
from syzygy.core.randomness import seed_of
from syzygy.core.registry import imported
from syzygy.core.wording import counted
from syzygy.data.store import EmbeddingStore
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.embedding_pairs import split, split_digest
from syzygy.prior.prior_loading import check_trained_with, load_network
from syzygy.prior.prior_network import STATISTICS_MEASURED
from syzygy.prior.training import PUBLISHED_SCALE
from syzygy.text_encoders.adapter import AdapterConfig, TextAdapter, TextStatistics
from syzygy.text_encoders.adapter_folders import PART, PreviousStage
from syzygy.text_encoders.adapter_task import AdapterTask, Source, Stage
from syzygy.text_encoders.align_stage import AlignRun, AlignSource, AlignStage, CaptionsRun, padded_states
from syzygy.text_encoders.feature_cache import CachedCaptions, CachedEncoder, CacheFolder, FeatureSet, cached
from syzygy.text_encoders.image_stage import ImageData, ImageRun, ImageSource, ImageStage, split_images
from syzygy.text_encoders.llm import COMPUTE, Llm, load_llm
from syzygy.text_encoders.parallel_captions import Captions, CorpusCaptions, number_of_lines
from syzygy.text_encoders.prompt_stage import Teacher
from syzygy.text_encoders.store_features import open_features
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.parallel import Ranks
from syzygy.training.precision import chosen_precision
from syzygy.training.progress import Reporter
from syzygy.training.run_records import RunResult, train_part

WORLD_CAPTIONS = "syzygy.lab.starter.world_captions:WorldCaptions"
"""What an adapter is aligned on without a corpus."""
STATISTICS_CAPTIONS = 1024
"""English captions on which the statistics of CLIP's text features are measured."""


def frozen_prior(source: str | Path, clip: str, *, local_files_only: bool = True) -> EclipsePrior:
    """The ECLIPSE or residual prior of a model, a run, a folder or a hub id, in fp32; `clip` is the CLIP's fingerprint.

    Raises:
        UserError: it is not found, is a prior of another kind, or belongs to another CLIP.
    """
    place = part_or_id(source, "prior")
    prior = load_network(place, local_files_only=local_files_only)
    if isinstance(place, Path):
        check_trained_with(place, "clip", clip)
    return prior


def language_model(run: CaptionsRun, source: str, *, local_files_only: bool = True) -> Llm:
    """The language model to align, read by the run's recipe."""
    how: dict[str, Any] = {"dtype": COMPUTE[run.compute], "bits": run.bits, "local_files_only": local_files_only}
    return load_llm(source, recipe=run.recipe, **how)


def captions_of(run: CaptionsRun, corpus: Path | None, clip: Clip | Teacher) -> Captions:
    """The captions to align on: a corpus in JSON Lines, or None for the embedded world's. `clip` reads the English.

    Raises:
        UserError: the corpus is wrong (`CorpusCaptions`), or a setting would have no effect.
    """
    if corpus is None:
        if run.lengths is None:
            raise UserError(
                'this preset aligns on a corpus: give --corpus FILE, or set lengths=["short"] for the embedded world.'
            )
        return imported(WORLD_CAPTIONS)(seed_of(run.seed, "align"), run.languages, run.lengths)
    if run.lengths is not None:
        raise UserError(f"lengths={list(run.lengths)} has no effect on a corpus: leave it out, or set lengths=null.")
    return CorpusCaptions(corpus, clip, run.seed, run.languages, run.validation_lines)


def align(
    run: AlignRun,
    llm: Llm,
    clip: Clip,
    prior: EclipsePrior | None,
    out: Path,
    world: Ranks,
    *,
    corpus: Path | None = None,
    cache: CacheFolder | None = None,
    report: Reporter | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Stage 1: train the adapter (or resume) in `out`, with frozen models; the finished one is `out/adapter`, fp16.

    Args:
        prior: a frozen prior of this CLIP; None if its weight is 0.
        corpus: parallel captions in JSON Lines; None is the embedded world.
        cache: folder for the features of the corpus, which are then computed once, before the first step; None computes them at each step.

    Raises:
        UserError: the captions are wrong (`captions_of`); the prior does not fit; tokens are distilled, and the number of queries is not
            CLIP's number of positions; the cache cannot be used (`cached`), or has no effect.
    """
    if run.task.tokens and run.adapter.queries != clip.positions:
        raise UserError(
            f"task.tokens distils CLIP's {clip.positions} states, adapter.queries is {run.adapter.queries}: set it to {clip.positions}."
        )
    if corpus is not None:
        run = fitting.lines(run, number_of_lines(corpus), str(corpus))
    captions = captions_of(run, corpus, clip)
    llm, clip = llm.to(world.device), clip.to(world.device).requires_grad_(False)
    record: dict[str, Any] = {
        "stage": "align",
        "llm": llm.identity().to_config(),
        "clip": clip.fingerprint(),
        "prior": None,
        "data": captions.record,
    }
    if prior is not None:
        prior = prior.to(world.device).requires_grad_(False).eval()
        record["prior"] = artifacts.fingerprint(prior.state_dict())
    adapter = untrained(run, llm.width, clip, captions).to(world.device)
    needs_scale = run.task.contrastive > 0 and run.task.temperature == "clip"
    stage = AlignStage(adapter, prior, run.task, logit_scale=clip.logit_scale if needs_scale else 1.0)

    def save(folder: Path, provenance: dict[str, Any]) -> None:
        adapter.save_pretrained(folder, provenance | about(captions), torch.float16)

    features = (
        None if cache is None else cached_captions(cache, captions, llm, record["llm"], clip, run, world, fitting.say)
    )
    if features is not None:
        put_away(llm)
        record["cached"] = {"llm": precision_of(llm), "clip": "fp16"}  # a run is continued with the same rounding
    return train_stage(run, stage, AlignSource(captions, llm, clip, run, features), record, out, world, report, save)


def cached_captions(
    cache: CacheFolder,
    captions: Captions,
    llm: Llm,
    identity: Mapping[str, Any],
    clip: Clip,
    run: AlignRun,
    world: Ranks,
    say: Callable[[str], None],
) -> CachedCaptions:
    """The features of a corpus, from the cache; what is not there is computed."""
    of_llm = llm_features(captions, llm, identity)
    assert isinstance(captions, CorpusCaptions)

    def english() -> Iterator[str]:
        yield ""
        yield from (line.english for line in captions.every())

    def padded(some: list[str]) -> TextStates:
        states = padded_states(clip, some)
        return TextStates(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))

    same = {"fingerprint": clip.fingerprint(), "dtype": str(clip.dtype), "versions": artifacts.versions()}
    encoders = [
        of_llm,
        CachedEncoder("clip", same, clip.encode_text, "fp16", english),
    ]
    if run.task.tokens:
        encoders.append(CachedEncoder("clip-padded", same, padded, "fp16", english))
    found = cached(cache, encoders, world, say)
    note_cut(found[0], llm, say)
    return CachedCaptions(found[0], found[1], found[2] if run.task.tokens else None)


def llm_features(captions: Captions, llm: Llm, identity: Mapping[str, Any]) -> CachedEncoder:
    """A language model's features of a corpus, for a cache.

    Raises:
        UserError: the captions are not those of a corpus.
    """
    if not isinstance(captions, CorpusCaptions):
        raise UserError("a cache has no effect without --corpus: no caption of the embedded world comes twice.")

    return features_of(lambda: (line.text for line in captions.every()), llm, identity)


def features_of(captions: Callable[[], Iterable[str]], llm: Llm, identity: Mapping[str, Any]) -> CachedEncoder:
    """A language model's features of captions, which each call of `captions` gives anew, for a cache."""

    def texts() -> Iterator[str]:
        yield ""  # in place of captions that are dropped
        yield from captions()

    return CachedEncoder("llm", identity, llm.encode_states, precision_of(llm), texts)


def note_cut(features: FeatureSet, llm: Llm, say: Callable[[str], None]) -> None:
    """Say how many captions may have been cut."""
    if cut := features.at_least(llm.positions):
        say(f"{counted(cut, 'caption')} may be longer than {llm.positions} tokens and cut; see recipe.max_tokens.")


def put_away(llm: Llm) -> None:
    """Free the memory of a language model that encodes nothing from here on."""
    if llm.bits is None:  # quantised weights belong to their GPU
        llm.to("cpu")


def precision_of(llm: Llm) -> Literal["fp16", "bf16"]:
    """How a language model's features are kept: fp16 is finer, but holds large numbers only after normalisation."""
    return "fp16" if llm.recipe.normalise else "bf16"


def untrained(run: AlignRun, width: int, clip: Clip, captions: Captions) -> TextAdapter:
    """An untrained adapter for a language model of this width, with CLIP's statistics on captions of the training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "adapter weights"))
        sizes = run.adapter.model_dump()
        adapter = TextAdapter(AdapterConfig(**sizes, llm_width=width, clip_width=clip.width))
    english = some_english(captions, STATISTICS_CAPTIONS)
    found = [clip.encode_text(english[i : i + 128]).to("cpu") for i in range(0, len(english), 128)]
    adapter.set_statistics(TextStatistics.of(type(found[0]).cat(found)))
    return adapter


def some_english(captions: Captions, number: int) -> list[str]:
    """At most this many different English captions of the training."""
    return list(dict.fromkeys(captions.line("en", place, place).english for place in range(number)))


def about(captions: Captions) -> dict[str, Any]:
    """What an adapter records of the captions that it was aligned on."""
    found: dict[str, Any] = {"languages": list(captions.languages)}
    if isinstance(captions, CorpusCaptions):
        found |= {"left_out": captions.left_out, "not_learned": dict(captions.not_learned)}
    return found


def check_filter(run: ImageRun, previous: PreviousStage) -> None:
    """
    Raises:
        UserError: stage quality has no filter.
    """
    if previous.next_stage == "quality" and run.filter is None:
        raise UserError("stage quality trains on selected images: select them with --filter, such as 'width >= 512'.")


def store_images(
    run: ImageRun,
    previous: PreviousStage,
    store: Path,
    features: str = "llm",
    *,
    processes: int = 1,
    fitting: Fitting = AS_GIVEN,
) -> tuple[ImageRun, ImageData]:
    """The run as it fits the store, and the store's images and captions.

    Args:
        features: the store's set of the language model's features (`syzygy store add --llm`).

    Raises:
        UserError: the store has no such set, or one of another model; it was embedded with another CLIP; the filter cannot be read or leaves
            nothing; a setting would have no effect.
    """
    for name in ("scenes", "languages", "lengths"):
        if (value := getattr(run, name)) is not None:
            raise UserError(f"{name}={value} has no effect on a store: leave it out, or set {name}=null.")
    check_filter(run, previous)
    opened = EmbeddingStore.open(store)
    encoder = opened.encoder
    previous.check_clip(encoder["fingerprint"])
    read = open_features(store, previous.llm, features)
    run = fitting.validation(run, "validation_images", opened.different_images, str(store))
    training, validation = split_images(
        opened, read, run.validation_images, run.filter, by_text=run.task.contrast == "text"
    )
    run = fitting.batch(run, len(training), processes)
    fitting.passes(len(training), len(validation), run.loop.steps * run.task.batch_size)
    digest = split_digest(split(opened, run.validation_images)[1])  # of the whole store, as the filter leaves out more
    record = {"clip": encoder["fingerprint"], "data": opened.digest, "validation": digest, "captions": len(training)}
    scale = encoder.get("logit_scale") or PUBLISHED_SCALE
    return run, ImageData(training, validation, scale, lambda: training.pairs.statistics, record)


def image(
    run: ImageRun,
    previous: PreviousStage,
    data: ImageData,
    prior: EclipsePrior,
    out: Path,
    world: Ranks,
    *,
    report: Reporter | None = None,
) -> RunResult:
    """Stages 2 and 3: train adapter and prior (or resume) in `out`; they are `out/adapter` and `out/prior`, fp16.

    A residual prior is trained by ECLIPSE's loss here, without the penalty of its own training; it stays a residual prior.

    Args:
        previous: the adapter to continue from; `previous.next_stage` is the stage that is trained.
        data: a store's images (`store_images`), or others.

    Raises:
        UserError: the prior is not the one that the adapter was trained with, or does not fit.
    """
    prior_before = artifacts.fingerprint(prior.state_dict())
    aligned = previous.record.get("prior")
    if aligned not in (None, prior_before):
        raise UserError(
            f"the adapter of {previous.run} was trained with another prior ({aligned}, here {prior_before}). Use that one, or start again "
            "with stage align."
        )
    if not prior.has_statistics:
        prior.set_statistics(data.statistics())
        if world.first:
            warnings.warn(STATISTICS_MEASURED, stacklevel=2)
    adapter, prior = previous.adapter.to(world.device), prior.to(world.device)
    stage = ImageStage(adapter, prior, run.task, logit_scale=data.logit_scale)
    task = run.task
    source = ImageSource(data.training, data.validation, world.device, task.batch_size, task.empty, run.seed)
    record = {
        "stage": previous.next_stage,
        "llm": previous.llm,
        **data.record,
        "lineage": previous.lineage,
        "prior_before": prior_before,
    }

    def save(folder: Path, provenance: dict[str, Any]) -> None:
        provenance["languages"] = previous.languages(data.languages)
        prior.save_pretrained(out / "prior", provenance | {"kind": "prior"}, torch.float16)
        # The fingerprint of the prior as it is loaded, rounded to fp16.
        provenance["prior"] = artifacts.fingerprint(load_network(out / "prior").state_dict())
        adapter.save_pretrained(folder, provenance, torch.float16)

    return train_stage(run, stage, source, record, out, world, report, save)


def train_stage(
    run: Any,
    stage: Stage,
    source: Source,
    record: Mapping[str, Any],
    out: Path,
    world: Ranks,
    report: Reporter | None,
    save: Callable[[Path, dict[str, Any]], None],
) -> RunResult:
    """Train an adapter in `out`, or continue there; `save` writes it. What `record` says is in its provenance.

    Args:
        run: all settings; its `task` has `batch_size`, `micro_batch` and `precision`.
    """
    config = run.task
    precision = chosen_precision(config.precision, world.device)
    task = AdapterTask(
        stage, source, config.batch_size, micro_batch=config.micro_batch, precision=precision, world=world
    )
    return train_part(
        run,
        task,
        out,
        lambda folder, provenance: save(folder, {**provenance, **record}),
        kind=PART,
        # The place of a language model, and the versions it runs with, may change before a run is resumed; its weights may not.
        recorded={**record, "llm": record["llm"]["fingerprint"]},
        report=report or f"adapter, {record['stage']}",
        world=world,
    )
