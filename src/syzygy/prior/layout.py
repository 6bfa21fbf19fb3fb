"""The folder in which priors are published: `config.json` and `diffusion_pytorch_model.safetensors`, with embedding statistics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syzygy.artifact import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    folder_written,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from syzygy.errors import UserError
from syzygy.prior.statistics import EmbeddingStatistics

CLASS_NAME = "PriorTransformer"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
HALF_FILE = "diffusion_pytorch_model.fp16.safetensors"
"""How diffusers names weights that are published in half precision beside, or instead of, full precision."""


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
    return {k: v for k, v in values.items() if not k.startswith("_")}, read_tensors(_weights(folder))


def _weights(folder: Path) -> Path:
    found = [folder / name for name in (WEIGHTS_FILE, HALF_FILE) if (folder / name).is_file()]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern))
    if pickles and not found:
        raise UserError(
            f"{folder} has its weights only as pickle ({', '.join(pickles)}), which can run code and is never read here. "
            "Take a revision with safetensors, or convert them where you trust them: load with diffusers, then "
            "save_pretrained."
        )
    return (found or [folder / WEIGHTS_FILE])[0]


def is_diffusion(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a diffusion prior: only such a one knows the time."""
    return any(map(_is_of_time, tensors))


def holds_diffusion(folder: Path) -> bool:
    """The same of a folder, without reading all of it."""
    return bool(read_tensors(_weights(folder), _is_of_time))


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
    mean, std = prior.get_parameter("clip_mean"), prior.get_parameter("clip_std")
    if not (torch.isfinite(mean) & torch.isfinite(std) & (std > 0)).all():
        raise UserError(
            "this prior has no embedding statistics (clip_mean, clip_std), and other programs would multiply its "
            "predictions by them. Call set_statistics(EmbeddingStatistics.of(image_embeddings)) before saving."
        )
    with folder_written(Path(folder)) as temporary:
        write_json(temporary / CONFIG_FILE, {"_class_name": CLASS_NAME} | dict(sorted(settings.items())))
        write_tensors(temporary / WEIGHTS_FILE, prior.state_dict(), dtype)
        if provenance is not None:
            write_json(temporary / PROVENANCE_FILE, provenance)
