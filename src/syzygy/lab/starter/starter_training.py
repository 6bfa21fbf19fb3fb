"""The starter model from nothing: its parts one after the other, then put together."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import model_validator

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import Config, parse
from syzygy.core.errors import UserError, unknown
from syzygy.core.model_parts import COMPONENTS
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_decoder
from syzygy.generation.own_models import assemble
from syzygy.lab.starter import autoencoder_training as autoencoder_run
from syzygy.lab.starter import clip_training as clip_run
from syzygy.lab.starter import decoder_training as decoder_run
from syzygy.lab.starter import lm_training as lm_run
from syzygy.lab.starter import reader_training as reader_run
from syzygy.lab.starter import t5_training as t5_run
from syzygy.lab.starter.autoencoder_training import AutoencoderRun
from syzygy.lab.starter.clip_training import ClipRun
from syzygy.lab.starter.decoder_training import DecoderRun
from syzygy.lab.starter.lm_training import LmRun
from syzygy.lab.starter.reader_training import ReaderRun
from syzygy.lab.starter.t5_training import T5Run
from syzygy.lab.starter.world_captions import world_images
from syzygy.prior import training as prior_run
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.training import PriorRun
from syzygy.text_encoders import training as adapter_run
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.t5 import T5Text
from syzygy.text_encoders.training import AlignRun, ImageRun, PreviousStage
from syzygy.training.parallel import joined
from syzygy.training.run_records import RunResult


@dataclass(frozen=True)
class Stage:
    """One training on the way to the starter."""

    part: str
    """Which part of the model it makes; a later stage's takes the place of an earlier one's."""
    train: Callable[..., object]
    beside: tuple[str, ...] = ()
    """Frozen parts that it is trained beside, as stages."""
    init: str | None = None
    """The stage that it goes on from."""


def _align(run: AlignRun, clip: Clip, prior: EclipsePrior, out: Path, device: torch.device, *, llm: Llm) -> RunResult:
    with joined(device) as world:
        return adapter_run.align(run, llm, clip, prior, out, world)


def _pictures(stage: str) -> Callable[..., RunResult]:
    """Stage 2 or 3 of the adapter."""

    def train(
        run: ImageRun, clip: Clip, prior: EclipsePrior, out: Path, device: torch.device, *, llm: Llm, init: Path
    ) -> RunResult:
        with joined(device) as world:
            previous = PreviousStage.load(init, stage)
            data = world_images(run, previous, llm, clip, world.device)
            return adapter_run.image(run, previous, data, prior, out, world)

    return train


READERS = ("t5", "llm")
"""Parts that a stage is given by name; a model has them only where a stage was trained beside them."""
STAGES: Mapping[str, Stage] = {
    "clip": Stage("clip", clip_run.train),
    "reader": Stage("reader", reader_run.train),
    "autoencoder": Stage("autoencoder", autoencoder_run.train),
    "decoder": Stage("decoder", decoder_run.train, ("clip", "autoencoder")),
    "t5": Stage("t5", t5_run.train),
    "words": Stage("decoder", decoder_run.train, ("clip", "autoencoder", "t5"), init="decoder"),
    "colours": Stage("decoder", decoder_run.train, ("clip", "autoencoder", "t5"), init="words"),
    "more_colours": Stage("decoder", decoder_run.train, ("clip", "autoencoder", "t5"), init="colours"),
    "binding": Stage("decoder", decoder_run.train, ("clip", "autoencoder", "t5"), init="more_colours"),
    "more_binding": Stage("decoder", decoder_run.train, ("clip", "autoencoder", "t5"), init="binding"),
    "finish": Stage("decoder", decoder_run.train, ("clip", "autoencoder", "t5"), init="more_binding"),
    "prior": Stage("prior", prior_run.train, ("clip",)),
    "llm": Stage("llm", lm_run.train),
    "align": Stage("adapter", _align, ("clip", "prior", "llm")),
    "image": Stage("adapter", _pictures("image"), ("clip", "prior", "llm"), init="align"),
    "quality": Stage("adapter", _pictures("quality"), ("clip", "prior", "llm"), init="image"),
}
DEFAULTS = {"num_inference_steps": 25, "guidance_scale": 3.0, "region_strength": 0.5, "style_guidance": 1.0}
"""What suits the starter (docs/LOG.md)."""


class StarterRun(Config):
    """Everything that makes the starter model."""

    clip: ClipRun
    """CLIP; decoder and prior are trained beside it."""
    reader: ReaderRun
    """The reader that judges pictures."""
    autoencoder: AutoencoderRun
    """The autoencoder, whose latents the decoder paints."""
    decoder: DecoderRun
    """The decoder, of image embeddings above all."""
    t5: T5Run
    """The T5 that tells the decoder words."""
    words: DecoderRun
    """The decoder again, going on from there: it learns to read words, and to be painted with them."""
    colours: DecoderRun
    """The decoder again: it learns colours through its words."""
    more_colours: DecoderRun
    """The same for longer, on other scenes."""
    binding: DecoderRun
    more_binding: DecoderRun
    finish: DecoderRun
    """The decoder three times more, with all its conditions: which colour belongs to which object."""
    prior: PriorRun
    """The ECLIPSE prior; it reads CLIP and the adapter alike, whose stages leave it as it is."""
    llm: LmRun
    """The language model, whose texts the adapter brings to CLIP's."""
    align: AlignRun
    """The adapter: texts alone."""
    image: ImageRun
    """The adapter: pictures."""
    quality: ImageRun
    """The adapter: chosen pictures."""

    @model_validator(mode="after")
    def _one_prior(self) -> "StarterRun":
        for name, stage in (("image", self.image), ("quality", self.quality)):
            if stage.task.frozen != "prior":
                raise ValueError(
                    f"{name}.task.frozen={stage.task.frozen!r}: a model has one prior, CLIP's and the adapter's. Keep it frozen: 'prior'"
                )
        return self


def train(run: StarterRun, out: Path, device: torch.device, stages: Collection[str] = STAGES) -> Path:
    """Train (or resume) the named stages, each in `out/STAGE`, in their order; what is finished is put together as `out/model`.

    A stage that is finished with these settings is not run again.

    Returns:
        The model's folder; `out` as long as there is no whole model.

    Raises:
        UserError: an unknown stage; a stage beside a part that is not there yet; what the stages raise.
    """
    for name in stages:
        if name not in STAGES:
            raise unknown("stage", name, STAGES)
    for name in STAGES:
        if name in stages and not _finished(run, name, out):
            _train_stage(run, name, out, device)
    finished = [name for name in STAGES if name not in READERS and _finished(run, name, out)]
    parts = {STAGES[each].part: _part(out, each) for name in finished for each in (*STAGES[name].beside, name)}
    if not parts.keys() >= set(COMPONENTS):
        return out
    return assemble(parts, out / "model", world=True, defaults=DEFAULTS)


def metrics(out: Path) -> dict[str, float]:
    """What the finished stages in `out` were measured to do when their training ended, as `stage/metric`."""
    found: dict[str, float] = {}
    for stage in STAGES:
        if (record := _part(out, stage) / artifacts.PROVENANCE_FILE).is_file():
            found |= {f"{stage}/{metric}": value for metric, value in artifacts.read_json(record)["metrics"].items()}
    return found


def _part(out: Path, name: str) -> Path:
    return out / name / STAGES[name].part


def _finished(run: StarterRun, name: str, out: Path) -> bool:
    """Whether the stage's artefact is there, made with these settings and beside, or from, the parts that are there."""
    stage, provenance = STAGES[name], _part(out, name) / artifacts.PROVENANCE_FILE
    if not provenance.is_file():
        return False
    record = artifacts.read_json(provenance)
    if not all(_part(out, needed).is_dir() for needed in (*stage.beside, *filter(None, [stage.init]))):
        return False
    known = {part: _fingerprint(_load(run, out, part)) for part in stage.beside}
    if stage.init is not None:
        load = TextAdapter.from_pretrained if stage.part == "adapter" else load_decoder
        known["init"] = artifacts.fingerprint(load(_part(out, stage.init)).state_dict())
    return _same(record["recipe"], getattr(run, name)) and all(
        _recorded(record, part) == fingerprint for part, fingerprint in known.items()
    )


def _fingerprint(part: Clip | Autoencoder | T5Text | Llm | EclipsePrior) -> str:
    return artifacts.fingerprint(part.state_dict()) if isinstance(part, EclipsePrior) else part.fingerprint()


def _recorded(record: Mapping[str, Any], part: str) -> str | None:
    """The fingerprint of what a stage was trained beside, or went on from."""
    if part == "llm":
        return record["llm"]["fingerprint"]
    if part == "init" and "lineage" in record:
        return record["lineage"][-1]["adapter"]
    return record.get(part)


def _same(recipe: dict[str, Any], wanted: Config) -> bool:
    """Whether a recorded recipe is the wanted one; settings that it does not name were added since and have their defaults."""
    try:
        return parse(type(wanted), recipe, "recipe") == wanted
    except UserError:
        return False


def _load(run: StarterRun, out: Path, name: str) -> Clip | Autoencoder | T5Text | Llm | EclipsePrior:
    folder = _part(out, name)
    if name == "t5":
        return T5Text.from_pretrained(folder)
    if name == "llm":
        return adapter_run.language_model(run.align, str(folder))
    loaders: dict[str, Any] = {"clip": Clip, "autoencoder": Autoencoder, "prior": EclipsePrior}
    return loaders[name].from_pretrained(folder).requires_grad_(False)


def _train_stage(run: StarterRun, name: str, out: Path, device: torch.device) -> None:
    stage = STAGES[name]
    for needed in (*stage.beside, *filter(None, [stage.init])):
        if not _part(out, needed).is_dir():
            how = "goes on from" if needed == stage.init else "is trained beside"
            raise UserError(f"stage {name!r} {how} {needed}, and {out} holds none: run stage {needed!r} first.")
    loaded: dict[str, Any] = {part: _load(run, out, part).to(device) for part in stage.beside}
    beside = [part for name, part in loaded.items() if name not in READERS]
    more = {name: part for name, part in loaded.items() if name in READERS}
    if stage.init is not None:
        more["init"] = _part(out, stage.init)
    stage.train(getattr(run, name), *beside, out / name, device, **more)
