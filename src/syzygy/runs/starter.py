"""The starter model from nothing: its parts one after the other, then put together."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syzygy import artifact
from syzygy.config import Config, parse
from syzygy.errors import UserError, unknown
from syzygy.hub.autoencoder import Autoencoder
from syzygy.hub.bundle import assemble
from syzygy.hub.clip import Clip
from syzygy.hub.t5 import T5Text
from syzygy.hub.unet import load_decoder
from syzygy.runs import autoencoder as autoencoder_run
from syzygy.runs import clip as clip_run
from syzygy.runs import decoder as decoder_run
from syzygy.runs import prior as prior_run
from syzygy.runs import reader as reader_run
from syzygy.runs import t5 as t5_run
from syzygy.runs.autoencoder import AutoencoderRun
from syzygy.runs.clip import ClipRun
from syzygy.runs.decoder import DecoderRun
from syzygy.runs.prior import PriorRun
from syzygy.runs.reader import ReaderRun
from syzygy.runs.t5 import T5Run


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


STAGES: Mapping[str, Stage] = {
    "clip": Stage("clip", clip_run.train),
    "reader": Stage("reader", reader_run.train),
    "autoencoder": Stage("autoencoder", autoencoder_run.train),
    "decoder": Stage("decoder", decoder_run.train, ("clip", "autoencoder")),
    "t5": Stage("t5", t5_run.train),
    "words": Stage("decoder", decoder_run.train, ("clip", "autoencoder", "t5"), init="decoder"),
    "prior": Stage("prior", prior_run.train, ("clip",)),
}
DEFAULTS = {"num_inference_steps": 25, "guidance_scale": 3.0}
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
    prior: PriorRun
    """The ECLIPSE prior."""


def train(run: StarterRun, out: Path, device: torch.device, stages: Collection[str] = STAGES) -> Path:
    """Train (or resume) the named stages, each in `out/STAGE`, in their order; once all are finished, the model is `out/model`.

    A stage that is finished with these settings is not run again.

    Returns:
        The model's folder; `out` where stages are missing.

    Raises:
        UserError: an unknown stage; a stage beside a part that is not there yet; what the stages raise.
    """
    for name in stages:
        if name not in STAGES:
            raise unknown("stage", name, STAGES)
    for name in STAGES:
        if name in stages and not _finished(run, name, out):
            _train_stage(run, name, out, device)
    if not all(_finished(run, name, out) for name in STAGES):
        return out
    parts = {stage.part: _part(out, name) for name, stage in STAGES.items()}
    return assemble(parts, out / "model", world=True, defaults=DEFAULTS)


def metrics(out: Path) -> dict[str, float]:
    """What the finished stages in `out` were measured to do when their training ended, as `stage/metric`."""
    found: dict[str, float] = {}
    for stage in STAGES:
        if (record := _part(out, stage) / artifact.PROVENANCE_FILE).is_file():
            found |= {f"{stage}/{metric}": value for metric, value in artifact.read_json(record)["metrics"].items()}
    return found


def _part(out: Path, name: str) -> Path:
    return out / name / STAGES[name].part


def _finished(run: StarterRun, name: str, out: Path) -> bool:
    """Whether the stage's artefact is there, made with these settings and beside, or from, the parts that are there."""
    stage, provenance = STAGES[name], _part(out, name) / artifact.PROVENANCE_FILE
    if not provenance.is_file():
        return False
    record = artifact.read_json(provenance)
    if not all(_part(out, needed).is_dir() for needed in (*stage.beside, *filter(None, [stage.init]))):
        return False
    known = {part: _load(out, part).fingerprint() for part in stage.beside}
    if stage.init is not None:
        known["init"] = artifact.fingerprint(load_decoder(_part(out, stage.init)).state_dict())
    return _same(record["recipe"], getattr(run, name)) and all(
        record.get(part) == fingerprint for part, fingerprint in known.items()
    )


def _same(recipe: dict[str, Any], wanted: Config) -> bool:
    """Whether a recorded recipe is the wanted one; settings that it does not name were added since and have their defaults."""
    try:
        return parse(type(wanted), recipe, "recipe") == wanted
    except UserError:
        return False


def _load(out: Path, name: str) -> Clip | Autoencoder | T5Text:
    if name == "t5":
        return T5Text.from_pretrained(_part(out, name))
    loader = Clip if name == "clip" else Autoencoder
    return loader.from_pretrained(_part(out, name)).requires_grad_(False)


def _train_stage(run: StarterRun, name: str, out: Path, device: torch.device) -> None:
    stage = STAGES[name]
    for needed in (*stage.beside, *filter(None, [stage.init])):
        if not _part(out, needed).is_dir():
            how = "goes on from" if needed == stage.init else "is trained beside"
            raise UserError(f"stage {name!r} {how} {needed}, and {out} holds none: run stage {needed!r} first.")
    beside: list[Any] = [_load(out, part).to(device) for part in stage.beside if part != "t5"]
    more: dict[str, Any] = {}
    if "t5" in stage.beside:
        more["t5"] = _load(out, "t5").to(device)
    if stage.init is not None:
        more["init"] = _part(out, stage.init)
    stage.train(getattr(run, name), *beside, out / name, device, **more)
