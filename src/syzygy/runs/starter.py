"""The starter model from nothing: CLIP, reader, decoder and prior one after the other, then put together."""

from collections.abc import Sequence
from pathlib import Path

import torch

from syzygy import artifact
from syzygy.api import assemble
from syzygy.config import Config
from syzygy.errors import UserError, unknown
from syzygy.hub.clip import Clip
from syzygy.runs import clip as clip_run
from syzygy.runs import decoder as decoder_run
from syzygy.runs import prior as prior_run
from syzygy.runs import reader as reader_run
from syzygy.runs.clip import ClipRun
from syzygy.runs.decoder import DecoderRun
from syzygy.runs.prior import PriorRun
from syzygy.runs.reader import ReaderRun

STAGES = ("clip", "reader", "decoder", "prior")
BESIDE_CLIP = ("decoder", "prior")
DEFAULTS = {"num_inference_steps": 25, "guidance_scale": 2.0}
"""What suits the starter."""


class StarterRun(Config):
    """Everything that makes the starter model."""

    clip: ClipRun
    """CLIP; decoder and prior are trained beside it."""
    reader: ReaderRun
    """The reader that judges pictures."""
    decoder: DecoderRun
    """The decoder."""
    prior: PriorRun
    """The ECLIPSE prior."""


def train(run: StarterRun, out: Path, device: torch.device, stages: Sequence[str] = STAGES) -> Path:
    """Train (or resume) the named stages, each in `out/STAGE`; once all four are finished, the model is `out/model`.

    A stage that is finished with these settings is not run again.

    Returns:
        The model's folder; `out` where stages are missing.

    Raises:
        UserError: an unknown stage; a stage that needs the CLIP before there is one; what the stages raise.
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
    """Whether the stage's artefact is there, made with these settings and beside the CLIP that is there."""
    provenance = _part(out, stage) / artifact.PROVENANCE_FILE
    if not provenance.is_file():
        return False
    record = artifact.read_json(provenance)
    beside = Clip.from_pretrained(_part(out, "clip")).fingerprint() if stage in BESIDE_CLIP else None
    return record["recipe"] == getattr(run, stage).model_dump(mode="json") and record.get("clip") == beside


def _train_stage(run: StarterRun, stage: str, out: Path, device: torch.device) -> None:
    clip = _part(out, "clip")
    if stage in BESIDE_CLIP and not clip.is_dir():
        raise UserError(f"stage {stage!r} is trained beside a CLIP, and {out} holds none: run stage 'clip' first.")
    if stage == "clip":
        clip_run.train(run.clip, out / stage, device)
    elif stage == "reader":
        reader_run.train(run.reader, out / stage, device)
    elif stage == "decoder":
        decoder_run.train(run.decoder, clip, out / stage, device)
    else:
        prior_run.train(run.prior, Clip.from_pretrained(clip).to(device), out / stage, device)
