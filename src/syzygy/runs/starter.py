"""The starter model from nothing: its parts one after the other, then put together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from syzygy import artifact
from syzygy.config import Config, parse
from syzygy.errors import UserError, unknown
from syzygy.hub.autoencoder import Autoencoder
from syzygy.hub.bundle import assemble
from syzygy.hub.clip import Clip
from syzygy.runs import autoencoder as autoencoder_run
from syzygy.runs import clip as clip_run
from syzygy.runs import decoder as decoder_run
from syzygy.runs import prior as prior_run
from syzygy.runs import reader as reader_run
from syzygy.runs.autoencoder import AutoencoderRun
from syzygy.runs.clip import ClipRun
from syzygy.runs.decoder import DecoderRun
from syzygy.runs.prior import PriorRun
from syzygy.runs.reader import ReaderRun

STAGES = ("clip", "reader", "autoencoder", "decoder", "prior")
BESIDE = {"decoder": ("clip", "autoencoder"), "prior": ("clip",)}
"""Which frozen parts a stage is trained beside."""
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
    """The decoder."""
    prior: PriorRun
    """The ECLIPSE prior."""


def train(run: StarterRun, out: Path, device: torch.device, stages: Sequence[str] = STAGES) -> Path:
    """Train (or resume) the named stages, each in `out/STAGE`; once all are finished, the model is `out/model`.

    A stage that is finished with these settings is not run again.

    Returns:
        The model's folder; `out` where stages are missing.

    Raises:
        UserError: an unknown stage; a stage beside a part that is not there yet; what the stages raise.
    """
    for stage in stages:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    for stage in STAGES:
        if stage in stages and not _finished(run, stage, out):
            _train_stage(run, stage, out, device)
    if not all(_finished(run, stage, out) for stage in STAGES):
        return out
    return assemble({stage: _part(out, stage) for stage in STAGES}, out / "model", world=True, defaults=DEFAULTS)


def metrics(out: Path) -> dict[str, float]:
    """What the finished stages in `out` were measured to do when their training ended, as `stage/metric`."""
    found: dict[str, float] = {}
    for stage in STAGES:
        if (record := _part(out, stage) / artifact.PROVENANCE_FILE).is_file():
            found |= {f"{stage}/{name}": value for name, value in artifact.read_json(record)["metrics"].items()}
    return found


def _part(out: Path, stage: str) -> Path:
    return out / stage / stage


def _finished(run: StarterRun, stage: str, out: Path) -> bool:
    """Whether the stage's artefact is there, made with these settings and beside the parts that are there."""
    provenance = _part(out, stage) / artifact.PROVENANCE_FILE
    if not provenance.is_file():
        return False
    record = artifact.read_json(provenance)
    beside = {part: _load(out, part).fingerprint() for part in BESIDE.get(stage, ())}
    return _same(record["recipe"], getattr(run, stage)) and all(
        record.get(part) == fingerprint for part, fingerprint in beside.items()
    )


def _same(recipe: dict[str, Any], wanted: Config) -> bool:
    """Whether a recorded recipe is the wanted one; settings that it does not name were added since and have their defaults."""
    try:
        return parse(type(wanted), recipe, "recipe") == wanted
    except UserError:
        return False


def _load(out: Path, part: str) -> Clip | Autoencoder:
    loader = Clip if part == "clip" else Autoencoder
    return loader.from_pretrained(_part(out, part)).requires_grad_(False)


def _train_stage(run: StarterRun, stage: str, out: Path, device: torch.device) -> None:
    for part in BESIDE.get(stage, ()):
        if not _part(out, part).is_dir():
            raise UserError(
                f"stage {stage!r} is trained beside {part}, and {out} holds none: run stage {part!r} first."
            )
    beside: list[Any] = [_load(out, part).to(device) for part in BESIDE.get(stage, ())]
    runs: dict[str, Callable[..., object]] = {
        "clip": clip_run.train,
        "reader": reader_run.train,
        "autoencoder": autoencoder_run.train,
        "decoder": decoder_run.train,
        "prior": prior_run.train,
    }
    runs[stage](getattr(run, stage), *beside, out / stage, device)
