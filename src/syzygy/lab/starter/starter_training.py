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
from syzygy.generation.own_models import write_model
from syzygy.lab.starter import (
    autoencoder_training,
    clip_training,
    decoder_training,
    judge_training,
    lm_training,
    placement_training,
    prior_training,
    reader_training,
    t5_training,
)
from syzygy.lab.starter.autoencoder_training import AutoencoderRun
from syzygy.lab.starter.clip_training import ClipRun
from syzygy.lab.starter.decoder_training import DecoderRun
from syzygy.lab.starter.judge_training import JudgeRun
from syzygy.lab.starter.lm_training import LmRun
from syzygy.lab.starter.placement_training import PlacementRun
from syzygy.lab.starter.reader_training import ReaderRun
from syzygy.lab.starter.t5_training import T5Run
from syzygy.lab.starter.world_captions import world_images
from syzygy.lab.world.reader import Reader
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.prior_loading import load_network
from syzygy.prior.training import PriorRun
from syzygy.text_encoders import training as adapter_training
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.t5 import T5Text
from syzygy.text_encoders.training import AlignRun, ImageRun, PreviousStage
from syzygy.training.parallel import process_group
from syzygy.training.run_records import RunResult

Parts = Mapping[str, Any]
"""The frozen parts of a stage by name, and the folder of the part that it continues from as `init`."""


@dataclass(frozen=True)
class Stage:
    """One training of the starter."""

    part: str
    """The part of the model that it trains; the part of a later stage replaces that of an earlier one."""
    train: Callable[[Any, Parts, Path, torch.device], object]
    frozen: tuple[str, ...] = ()
    """Stages whose parts it needs and does not change."""
    init: str | None = None
    """The stage that it continues from, or takes weights of."""


def _alone(train: Callable[[Any, Path, torch.device], object]) -> Callable[[Any, Parts, Path, torch.device], object]:
    return lambda run, parts, out, device: train(run, out, device)


def _decoder(run: DecoderRun, parts: Parts, out: Path, device: torch.device) -> RunResult:
    reader = Reader.from_pretrained(_folder(out.parent, "reader"))
    return decoder_training.train(run, parts["clip"], parts["autoencoder"], out, device, t5=parts["t5"], reader=reader)


def _placement(run: PlacementRun, parts: Parts, out: Path, device: torch.device) -> RunResult:
    return placement_training.train(run, parts["clip"], parts["t5"], load_decoder(parts["init"]), out, device)


def _prior(run: PriorRun, parts: Parts, out: Path, device: torch.device) -> RunResult:
    return prior_training.train(run, parts["clip"], out, device)


def _align(run: AlignRun, parts: Parts, out: Path, device: torch.device) -> RunResult:
    with process_group(device) as world:
        return adapter_training.align(run, parts["llm"], parts["clip"], parts["prior"], out, world)


def _image(stage: str) -> Callable[[ImageRun, Parts, Path, torch.device], RunResult]:
    """Stage 2 or 3 of the adapter."""

    def train(run: ImageRun, parts: Parts, out: Path, device: torch.device) -> RunResult:
        llm, clip, prior = parts["llm"], parts["clip"], parts["prior"]
        with process_group(device) as world:
            previous = PreviousStage.load(parts["init"], stage)
            data = world_images(run, previous, llm, clip, world.device)
            return adapter_training.image(run, previous, data, prior, out, world)

    return train


OPTIONAL = ("t5", "llm")
"""Parts that belong to a model only if one of its stages needs them."""
STAGES: Mapping[str, Stage] = {
    "clip": Stage("clip", _alone(clip_training.train)),
    "reader": Stage("reader", _alone(reader_training.train)),
    "judge": Stage("judge", _alone(judge_training.train)),
    "autoencoder": Stage("autoencoder", _alone(autoencoder_training.train)),
    "t5": Stage("t5", _alone(t5_training.train)),
    "decoder": Stage("decoder", _decoder, ("clip", "autoencoder", "t5")),
    "placement": Stage("placement", _placement, ("clip", "t5"), "decoder"),
    "prior": Stage("prior", _prior, ("clip",)),
    "llm": Stage("llm", _alone(lm_training.train)),
    "align": Stage("adapter", _align, ("clip", "prior", "llm")),
    "image": Stage("adapter", _image("image"), ("clip", "prior", "llm"), "align"),
    "quality": Stage("adapter", _image("quality"), ("clip", "prior", "llm"), "image"),
}
DEFAULTS = {
    "num_inference_steps": 25,
    "guidance_scale": 3.0,
    "region_strength": 0.5,
    "style_guidance": 1.0,
    "conditions": ["text", "t5"],
}
"""Defaults of generation with the starter (docs/LOG.md). The words alone give more right images than the prior's embedding with them."""


class StarterRun(Config):
    """All settings of the starter model, stage by stage."""

    clip: ClipRun
    """CLIP; decoder and prior are trained with it."""
    reader: ReaderRun
    """The scene classifier that trainings and selections may use."""
    judge: JudgeRun
    """The scene classifier that scores images."""
    autoencoder: AutoencoderRun
    """The autoencoder, in whose latent space the decoder denoises."""
    t5: T5Run
    """The T5 whose states the decoder reads."""
    decoder: DecoderRun
    """The decoder, from image embeddings, words, and both."""
    placement: PlacementRun
    """The placement predictor, which draws objects to where the words say that they are."""
    prior: PriorRun
    """The residual prior. It reads CLIP's features and the adapter's, and the adapter's stages do not change it."""
    llm: LmRun
    """The language model, whose features the adapter maps to CLIP's."""
    align: AlignRun
    """The adapter, on texts alone."""
    image: ImageRun
    """The adapter, on images."""
    quality: ImageRun
    """The adapter, on chosen images."""

    @model_validator(mode="after")
    def _one_prior(self) -> "StarterRun":
        for name, stage in (("image", self.image), ("quality", self.quality)):
            if stage.task.frozen != "prior":
                raise ValueError(
                    f"{name}.task.frozen={stage.task.frozen!r}: a model has one prior, CLIP's and the adapter's. Keep it frozen: 'prior'"
                )
        return self


def train(run: StarterRun, out: Path, device: torch.device, stages: Collection[str] = STAGES) -> Path:
    """Train (or resume) the named stages in their order, each in `out/STAGE`; the finished parts become the model `out/model`.

    A stage that is finished with these settings is not run again.

    Returns:
        The model's folder; `out` while parts are missing.

    Raises:
        UserError: an unknown stage; a stage that needs a part which is missing; errors of the stages.
    """
    for name in stages:
        if name not in STAGES:
            raise unknown("stage", name, STAGES)
    for name in STAGES:
        if name in stages and not _finished(run, name, out):
            _train_stage(run, name, out, device)
    finished = [name for name in STAGES if name not in OPTIONAL and _finished(run, name, out)]
    parts = {STAGES[each].part: _folder(out, each) for name in finished for each in (*STAGES[name].frozen, name)}
    if not parts.keys() >= set(COMPONENTS):
        return out
    return write_model(parts, out / "model", world=True, defaults=DEFAULTS)


def metrics(out: Path) -> dict[str, float]:
    """The metrics of the finished stages in `out`, as `stage/metric`, from the end of their training."""
    found: dict[str, float] = {}
    for stage in STAGES:
        if (record := _folder(out, stage) / artifacts.PROVENANCE_FILE).is_file():
            found |= {f"{stage}/{metric}": value for metric, value in artifacts.read_json(record)["metrics"].items()}
    return found


def _folder(out: Path, name: str) -> Path:
    return out / name / STAGES[name].part


def _needed(stage: Stage) -> tuple[str, ...]:
    return (*stage.frozen, *filter(None, [stage.init]))


def _finished(run: StarterRun, name: str, out: Path) -> bool:
    """Whether the stage's artefact was made with these settings and from the parts that are there."""
    stage, provenance = STAGES[name], _folder(out, name) / artifacts.PROVENANCE_FILE
    if not provenance.is_file() or not all(_folder(out, needed).is_dir() for needed in _needed(stage)):
        return False
    record = artifacts.read_json(provenance)
    known = {part: _load(run, out, part).fingerprint() for part in stage.frozen}
    if stage.init is not None:
        load = load_decoder if STAGES[stage.init].part == "decoder" else TextAdapter.from_pretrained
        known["init"] = artifacts.fingerprint(load(_folder(out, stage.init)).state_dict())
    return _same(record["recipe"], getattr(run, name)) and all(
        _recorded(record, part) == fingerprint for part, fingerprint in known.items()
    )


def _recorded(record: Mapping[str, Any], part: str) -> str | None:
    """The fingerprint of a part that a stage was trained with, or of the `init` that it continued from."""
    if part == "llm":
        return record["llm"]["fingerprint"]
    if part == "init" and "lineage" in record:
        return record["lineage"][-1]["adapter"]
    if part == "init" and record["kind"] == "placement":
        return record["decoder"]
    return record.get(part)


def _same(recipe: dict[str, Any], wanted: Config) -> bool:
    """Whether a recorded recipe is the wanted one; settings that it does not name were added later and have their defaults."""
    try:
        return parse(type(wanted), recipe, "recipe") == wanted
    except UserError:
        return False


def _load(run: StarterRun, out: Path, name: str) -> Clip | Autoencoder | T5Text | Llm | EclipsePrior:
    folder = _folder(out, name)
    if name == "llm":
        return adapter_training.language_model(run.align, str(folder))
    if name == "t5":
        return T5Text.from_pretrained(folder)
    if name == "prior":
        return load_network(folder).requires_grad_(False)
    loaders = {"clip": Clip, "autoencoder": Autoencoder}
    return loaders[name].from_pretrained(folder).requires_grad_(False)


def _train_stage(run: StarterRun, name: str, out: Path, device: torch.device) -> None:
    stage = STAGES[name]
    for needed in _needed(stage):
        if not _folder(out, needed).is_dir():
            raise UserError(f"stage {name!r} needs {needed}, and {out} holds none: run stage {needed!r} first.")
    parts: dict[str, Any] = {part: _load(run, out, part).to(device) for part in stage.frozen}
    if stage.init is not None:
        parts["init"] = _folder(out, stage.init)
    stage.train(getattr(run, name), parts, out / name, device)
