"""The folder in which priors are published: `config.json` and `diffusion_pytorch_model.safetensors`, with embedding statistics."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syzygy.core.artifacts import CONFIG_FILE, PROVENANCE_FILE, folder_written, read_json, write_json, write_tensors
from syzygy.core.errors import UserError
from syzygy.core.model_files import DIFFUSERS, Located, fetch, fetch_weights, locate, read_weights
from syzygy.prior.embedding_statistics import EmbeddingStatistics

CLASS_NAME = "PriorTransformer"
WEIGHTS_FILE = f"{DIFFUSERS}.safetensors"
EXAMPLE = "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior"
PART = "prior"
"""Where the prior lies in a finished run, and in a diffusers pipeline."""
SCHEDULERS = ("scheduler", "prior_scheduler")
"""Where pipelines keep how their prior is sampled: Kandinsky 2.2, and Karlo."""
SCHEDULER_FILE = "scheduler_config.json"
COMPLETED = (
    "the prior has no embedding statistics (clip_mean and clip_std are zeros, as in some published priors): they are measured on the "
    "training images and saved with it."
)


def find(source: str | Path, *, local_files_only: bool = True) -> Path:
    """The folder that holds the prior itself.

    Args:
        source: a prior's own folder, that of a finished training run or of a diffusers pipeline, or a hub id of either such as
            `ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior`, with `@` and a revision to fix that.
        local_files_only: look for hub ids in the hub's cache only; else download what is missing.

    Raises:
        UserError: it is not found, belongs to a run that is not finished, or is an embedding store.
    """
    folder = locate(source, None, local_files_only, EXAMPLE, _download).folder
    if (folder / PART / CONFIG_FILE).is_file():
        return folder / PART
    if (folder / "run.json").is_file():
        raise UserError(f"the run in {folder} is not finished: continue it with the command that began it.")
    if (folder / "store.json").is_file():
        raise UserError(
            f"{folder} is an embedding store, not a prior. `syzygy train prior --data {folder}` trains one on it."
        )
    return folder


def _download(source: str, revision: str | None) -> Located:
    """A prior's files, its own repository's or those in a pipeline's, and the settings of its sampling."""
    settings = [CONFIG_FILE, PROVENANCE_FILE]
    schedulers = [f"{name}/{SCHEDULER_FILE}" for name in SCHEDULERS]
    patterns = ["model_index.json", *settings, *(f"{PART}/{name}" for name in settings), *schedulers]
    found = fetch(source, revision, patterns, local_files_only=False)
    folder = f"{PART}/" if (found.folder / PART / CONFIG_FILE).is_file() else ""
    return fetch_weights(found, {folder: DIFFUSERS})


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings (without diffusers' own, which begin with "_") and tensors, those in full precision where both are there.

    Raises:
        UserError: missing, truncated or pickled files, or another class of model.
    """
    folder = Path(folder)
    values = read_json(folder / CONFIG_FILE)
    if values.get("_class_name") != CLASS_NAME:
        raise UserError(
            f"{folder / CONFIG_FILE} describes {values.get('_class_name')!r}, not a prior ({CLASS_NAME!r})."
        )
    return {k: v for k, v in values.items() if not k.startswith("_")}, read_weights(folder, DIFFUSERS)


def is_diffusion(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a diffusion prior: only such a one knows the time."""
    return any(map(_is_of_time, tensors))


def holds_diffusion(folder: Path) -> bool:
    """The same of a folder, without reading all of it."""
    return bool(read_weights(folder, DIFFUSERS, _is_of_time))


def _is_of_time(name: str) -> bool:
    return name.startswith("time_embedding.")


def set_statistics(prior: nn.Module, statistics: EmbeddingStatistics) -> None:
    """Keep mean and standard deviation of the training images' embeddings in `clip_mean` and `clip_std`."""
    mean, std = prior.get_parameter("clip_mean"), prior.get_parameter("clip_std")
    if len(statistics.mean) != mean.shape[1]:
        raise UserError(f"statistics are {len(statistics.mean)} wide; this prior predicts {mean.shape[1]}.")
    with torch.no_grad():
        mean.copy_(statistics.mean)
        std.copy_(statistics.std)


def has_statistics(prior: nn.Module) -> bool:
    """Whether `clip_mean` and `clip_std` hold measured values; in some published priors they are zeros."""
    mean, std = prior.get_parameter("clip_mean"), prior.get_parameter("clip_std")
    return bool((torch.isfinite(mean) & torch.isfinite(std) & (std > 0)).all())


def complete(prior: nn.Module, statistics: Callable[[], EmbeddingStatistics]) -> bool:
    """Give a prior without statistics those of the images that it will be trained on, as it could not be saved without; whether it had none.

    Raises:
        UserError: the images are too few or all alike.
    """
    if has_statistics(prior):
        return False
    set_statistics(prior, statistics())
    return True


def save(
    prior: nn.Module,
    settings: Mapping[str, Any],
    folder: str | Path,
    provenance: dict[str, Any] | None,
    dtype: torch.dtype | None,
) -> None:
    """Write the layout atomically, with `provenance` beside it; `dtype` (fp16) converts the weights.

    Raises:
        UserError: the statistics were never set, or the folder cannot be written.
    """
    if not has_statistics(prior):
        raise UserError(
            "this prior has no embedding statistics (clip_mean, clip_std), and other programs would multiply its "
            "predictions by them. Call set_statistics(EmbeddingStatistics.of(image_embeddings)) before saving."
        )
    with folder_written(Path(folder)) as temporary:
        write_json(temporary / CONFIG_FILE, {"_class_name": CLASS_NAME} | dict(sorted(settings.items())))
        write_tensors(temporary / WEIGHTS_FILE, prior.state_dict(), dtype)
        if provenance is not None:
            write_json(temporary / PROVENANCE_FILE, provenance)
