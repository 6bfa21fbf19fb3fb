"""Loading of priors: from a run, a folder in the published layout, a pipeline's repository, or the hub."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, get_args

import torch

from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.contracts import Prior, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.registry import PRIORS, by_name
from syzygy.prior.diffusion_prior import DiffusionPrior, PriorSampling, SampledPrior
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.lambda_residual import LambdaResidualPrior
from syzygy.prior.linear_prior import LinearPrior
from syzygy.prior.prior_folders import (
    LAMBDA_RESIDUAL,
    LINEAR,
    RESIDUAL,
    SCHEDULER_FILE,
    SCHEDULERS,
    find_prior,
    holds_controlled,
    holds_diffusion,
    layout_of,
)
from syzygy.prior.residual_prior import ResidualPrior
from syzygy.prior.unclip_sampling import Schedule, scheduler_settings

OnePassPrior: TypeAlias = EclipsePrior | LambdaEclipsePrior | LinearPrior
"""A prior that predicts in one pass: ECLIPSE or λ-ECLIPSE, the residual ones (subclasses of these), or linear."""


class ClipSpace(Protocol):
    """The properties of a CLIP that a prior needs: a `Clip` has them, and so has the record of one in an embedding store."""

    @property
    def width(self) -> int: ...

    def fingerprint(self) -> str: ...

    def encode_text(self, texts: list[str]) -> TextFeatures: ...


def load_prior(
    source: str | Path,
    clip: ClipSpace,
    device: str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = True,
) -> OnePassPrior | SampledPrior:
    """A prior for this CLIP: ECLIPSE, residual, λ-ECLIPSE or linear, or a diffusion prior with all of its steps behind the same contract.

    A diffusion prior that was trained here is sampled as in its own validation. A published one follows its pipeline's scheduler,
    with 25 steps and guidance 4.

    Args:
        source: a prior's own folder, that of a finished training run or of a diffusers pipeline, or a hub id of either
            such as `ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior`, with `@` and a revision to fix that.
        clip: the CLIP that embedded the prior's training data.
        device: "cpu", "cuda", "mps".
        dtype: the dtype that it computes in; files may hold fp32, fp16 or bf16.
        local_files_only: look for hub ids in the hub's cache only; otherwise download missing files.

    Raises:
        UserError: it is not found, a file is missing, truncated or a pickle, weights do not fit, or the prior was trained with another
            CLIP.
    """
    folder = find_prior(source, local_files_only=local_files_only)
    prior = read_network(folder, dtype)
    check_width(folder, prior, clip.width)
    check_trained_with(folder, "clip", clip.fingerprint)
    prior = prior.to(device, dtype)
    if not isinstance(prior, DiffusionPrior):
        return prior
    sampling, schedule = sampling_of(folder)
    return SampledPrior(prior, clip.encode_text([""]), sampling, schedule)


def load_any_prior(
    source: str | Path,
    clip: ClipSpace,
    device: str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = True,
) -> Prior:
    """A registered prior, as "NAME" or "NAME:SOURCE" (`core.registry.register_prior`), or else one as of `load_prior`.

    Raises:
        UserError: as `load_prior`, or as the registered function.
    """
    named = by_name(PRIORS, source)
    if named is None:
        return load_prior(source, clip, device, dtype=dtype, local_files_only=local_files_only)
    make, rest = named
    return make(rest, clip, device)


def load_one_pass(source: str | Path, *, local_files_only: bool = True, variant: str | None = None) -> OnePassPrior:
    """An ECLIPSE, residual, λ-ECLIPSE or linear prior in fp32, whatever its CLIP; `source` as in `load_prior`.

    Raises:
        UserError: it is not found, is a diffusion prior, or a file is missing, truncated or mismatched.
    """
    folder = find_prior(source, local_files_only=local_files_only, variant=variant)
    layout = layout_of(folder)
    if layout == LINEAR:
        return LinearPrior.from_pretrained(folder, variant=variant)
    if layout == RESIDUAL:
        return ResidualPrior.from_pretrained(folder, variant=variant)
    if layout == LAMBDA_RESIDUAL:
        return LambdaResidualPrior.from_pretrained(folder, variant=variant)
    kind = LambdaEclipsePrior if holds_controlled(folder) else EclipsePrior
    return kind.from_pretrained(folder, variant=variant)


def load_network(source: str | Path, *, local_files_only: bool = True) -> EclipsePrior:
    """An ECLIPSE or residual prior in fp32, for trainings through its network; `source` as in `load_prior`.

    Raises:
        UserError: as `load_one_pass`; it is a linear map, or reads a control.
    """
    prior = load_one_pass(source, local_files_only=local_files_only)
    if isinstance(prior, LambdaEclipsePrior):
        raise UserError(
            f"the prior in {source} is a λ-ECLIPSE prior, which reads a control besides the text: no other part is trained through it. "
            "Use an ECLIPSE or residual prior."
        )
    if isinstance(prior, LinearPrior):
        raise UserError(
            f"the prior in {source} is a linear map, which reads pooled text embeddings alone and no token states: nothing can be trained "
            "through it. Use an ECLIPSE or residual prior."
        )
    return prior


def read_network(
    folder: Path, dtype: torch.dtype = torch.float32, *, variant: str | None = None
) -> OnePassPrior | DiffusionPrior:
    """The network of the prior in a folder, whatever its CLIP: in evaluation mode and frozen, on the CPU.

    Args:
        dtype: of a diffusion prior; the others are read into fp32.
        variant: prefer weights of this variant, "fp16" or "bf16"; by default full precision.

    Raises:
        UserError: a file is missing, truncated or a pickle, weights do not fit, or a diffusion prior lacks its statistics.
    """
    if not holds_diffusion(folder):
        return load_one_pass(folder, variant=variant).eval().requires_grad_(False)
    prior = DiffusionPrior.from_pretrained(folder, dtype, variant=variant)
    if not (prior.clip_std > 0).all():
        raise UserError(
            f"the diffusion prior in {folder} has a clip_std of zero: all its embeddings would be equal. Its statistics were "
            "never set; use the published weights, or set them."
        )
    if (folder / artifacts.PROVENANCE_FILE).is_file():
        prior.own_sampling = sampling_of(folder)
    return prior.eval().requires_grad_(False)


def check_width(folder: Path, prior: OnePassPrior | DiffusionPrior, width: int) -> None:
    """Refuse a prior whose embeddings are not as wide as those of the CLIP."""
    if prior.config.embedding_dim != width:
        raise UserError(
            f"the prior in {folder} predicts embeddings {prior.config.embedding_dim} wide, and those of this model's CLIP are "
            f"{width} wide. Use a prior that was trained with the same CLIP."
        )


def scheduler_file(folder: Path) -> Path | None:
    """The settings of the scheduler that the prior in a folder is sampled with in its pipeline; None if there is none."""
    paths = (folder.parent / name / SCHEDULER_FILE for name in SCHEDULERS)
    return next((path for path in paths if path.is_file()), None)


def sampling_of(folder: Path) -> tuple[PriorSampling, Schedule]:
    """The sampling of the diffusion prior in a folder: as recorded in training, or as in the scheduler of its pipeline.

    Raises:
        UserError: neither is there, or it cannot be followed.
    """
    record = folder / artifacts.PROVENANCE_FILE
    if record.is_file():
        task = artifacts.read_json(record).get("recipe", {}).get("task", {})
        schedule = task.get("schedule", "linear")
        if schedule not in get_args(Schedule):
            raise UserError(f"{record}: schedule is {schedule!r}; known are {', '.join(get_args(Schedule))}.")
        return parse(PriorSampling, task.get("sampling", {}), str(record)), schedule
    if (path := scheduler_file(folder)) is not None:
        return as_scheduled(artifacts.read_json(path), str(path)), "cosine"
    raise UserError(
        f"the diffusion prior in {folder} does not say how to sample it: it holds no {record.name}, and there is no "
        f"{SCHEDULERS[0]}/{SCHEDULER_FILE} next to it. Give the folder of the whole pipeline."
    )


def as_scheduled(settings: Mapping[str, Any], source: str) -> PriorSampling:
    """The sampling of a published diffusion prior, by the settings of its `UnCLIPScheduler`.

    Args:
        source: what errors call the settings.

    Raises:
        UserError: they are another scheduler's, or cannot be followed.
    """
    values = scheduler_settings(settings, source, prediction_type="sample", variance_type="fixed_small_log")
    bound = values["clip_sample_range"] if values["clip_sample"] else math.inf
    return parse(PriorSampling, {"clip_range": bound}, source)


def check_trained_with(folder: Path, part: str, fingerprint: Callable[[], str] | str) -> None:
    """Refuse weights that are known to have been trained with another CLIP, or another autoencoder.

    `fingerprint` is the part's, or a function that returns it, which is called only if the folder has a record.
    """
    record = folder / artifacts.PROVENANCE_FILE
    recorded = artifacts.read_json(record).get(part) if record.is_file() else None
    if recorded is not None and recorded != (fingerprint() if callable(fingerprint) else fingerprint):
        raise UserError(
            f"the weights in {folder} were trained with another {part} ({recorded}): its space is different."
        )
