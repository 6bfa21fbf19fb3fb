"""Priors from wherever they are: a run's folder, one in the published layout, a pipeline's repository, the hub's cache."""

from pathlib import Path

from syzygy import artifact
from syzygy.config import parse
from syzygy.errors import UserError
from syzygy.hub import checkpoint
from syzygy.hub.clip import Clip
from syzygy.prior import layout
from syzygy.prior.diffusion import DiffusionPrior, PriorSampling, SampledPrior
from syzygy.prior.model import EclipsePrior

EXAMPLE = "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior"
PART = "prior"
"""Where the prior lies in a finished run, and in a diffusers pipeline."""


def load_prior(
    source: str | Path, clip: Clip, device: str = "cpu", *, local_files_only: bool = True
) -> EclipsePrior | SampledPrior:
    """A prior that fits this CLIP (ECLIPSE or diffusion).

    A diffusion prior is sampled as it was in its own validation; without a record of that, in 25 steps with guidance 4.

    Args:
        source: a prior's own folder, that of a finished training run or of a diffusers pipeline, or a hub id of either
            such as `ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior`, with `@` and a revision if that shall be fixed.
        local_files_only: take a hub id from the hub's cache only; else download what is missing.

    Raises:
        UserError: it is not found, a file is missing, truncated or pickle, weights do not fit, or the prior belongs to
            another CLIP.
    """
    folder = find_prior(source, local_files_only=local_files_only)
    prior = _read_prior(folder)
    if prior.config.embedding_dim != clip.width:
        raise UserError(
            f"the prior in {folder} predicts embeddings {prior.config.embedding_dim} wide, this model's CLIP makes "
            f"{clip.width}. Use a prior trained beside the same CLIP."
        )
    trained_beside(folder, "clip", clip.fingerprint())
    prior = prior.to(device).eval()
    if isinstance(prior, EclipsePrior):
        return prior
    record = folder / artifact.PROVENANCE_FILE
    sampling = artifact.read_json(record)["recipe"]["task"]["sampling"] if record.is_file() else {}
    return SampledPrior(prior, clip.encode_text([""]), parse(PriorSampling, sampling, str(record)))


def find_prior(source: str | Path, *, local_files_only: bool = True) -> Path:
    """The folder that holds the prior itself; `source` as of `load_prior`.

    Raises:
        UserError: it is not found, or belongs to a run that is not finished.
    """
    folder = checkpoint.locate(source, None, local_files_only, EXAMPLE).folder
    if (folder / PART / artifact.CONFIG_FILE).is_file():
        return folder / PART
    if (folder / "run.json").is_file():
        raise UserError(f"the run in {folder} is not finished: continue it with the command that began it.")
    return folder


def _read_prior(folder: Path) -> EclipsePrior | DiffusionPrior:
    _, tensors = layout.read(folder)
    return (DiffusionPrior if layout.is_diffusion(tensors) else EclipsePrior).from_pretrained(folder)


def trained_beside(folder: Path, part: str, fingerprint: str) -> None:
    """Refuse weights that are known to have been trained beside another CLIP, or another autoencoder."""
    record = folder / artifact.PROVENANCE_FILE
    beside = artifact.read_json(record).get(part) if record.is_file() else None
    if beside not in (None, fingerprint):
        raise UserError(
            f"the weights in {folder} were trained beside another {part} ({beside}): its space is different."
        )
