"""The folders of priors: where they are found, which kind a folder holds, and how it is read and written.

A folder holds `config.json`, whose `_class_name` says which kind of prior it is, and one file of weights (`Layout`).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syzygy.core.artifacts import CONFIG_FILE, PROVENANCE_FILE, folder_written, read_json, write_json, write_tensors
from syzygy.core.errors import UserError
from syzygy.core.hub_files import ZERO_IMAGE
from syzygy.core.model_files import DIFFUSERS, TRANSFORMERS, Located, fetch, fetch_weights, locate, read_weights

EXAMPLE = "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior"
PART = "prior"
"""The prior's folder in a finished run, and in a diffusers pipeline."""
SCHEDULERS = ("scheduler", "prior_scheduler")
"""The folders of pipelines that say how their prior is sampled: in Kandinsky 2.2, and in Karlo."""
SCHEDULER_FILE = "scheduler_config.json"


class Layout(NamedTuple):
    """How one kind of prior is kept in a folder."""

    class_name: str
    """`_class_name` in its `config.json`."""
    stem: str
    """Name of its file of weights, without the ending."""
    kind: str
    """What errors call it, such as "a residual prior"."""
    remedy: str
    """What to do where another kind is needed: the end of an error."""

    @property
    def weights_file(self) -> str:
        return self.variant_file(None)

    def variant_file(self, variant: str | None) -> str:
        """The name of the file of all weights, of a variant such as "fp16" or of none."""
        return f"{self.stem}{'' if variant is None else f'.{variant}'}.safetensors"


PUBLISHED = Layout(
    "PriorTransformer",
    DIFFUSERS,
    "a prior of the published layout (ECLIPSE, λ-ECLIPSE or diffusion)",
    "To continue an ECLIPSE or λ-ECLIPSE prior, use a preset of it, such as eclipse-karlo or lambda-eclipse.",
)
RESIDUAL = Layout(
    "ResidualPrior",
    TRANSFORMERS,
    "a residual prior",
    "ResidualPrior.from_pretrained reads it; to continue it, use a preset such as eclipse-residual.",
)
LAMBDA_RESIDUAL = Layout(
    "LambdaResidualPrior",
    TRANSFORMERS,
    "a residual λ prior",
    "LambdaResidualPrior.from_pretrained reads it; to continue it, use a preset such as lambda-eclipse-residual.",
)
LINEAR = Layout(
    "LinearPrior",
    TRANSFORMERS,
    "a linear map",
    "LinearPrior.from_pretrained reads it; the preset linear fits a new one.",
)
LAYOUTS = (PUBLISHED, RESIDUAL, LAMBDA_RESIDUAL, LINEAR)
"""PUBLISHED is that of ECLIPSE's authors and of diffusers. The others are Syzygy's own: what these priors need has no place in it."""


def find_prior(source: str | Path, *, local_files_only: bool = True, variant: str | None = None) -> Path:
    """The folder that holds the prior itself.

    Args:
        source: the folder of a prior, of a finished training run or of a diffusers pipeline, or a hub id such as
            `ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior`, with `@` and a revision to fix that.
        local_files_only: look for hub ids in the hub's cache only; else download what is missing.
        variant: of the weights to download: "fp16" or "bf16"; by default full precision, where it is published.

    Raises:
        UserError: it is not found, the run is not finished, or it is an embedding store.
    """
    folder = locate(source, None, local_files_only, EXAMPLE, partial(_download, variant=variant)).folder
    if (folder / PART / CONFIG_FILE).is_file():
        return folder / PART
    if (folder / "run.json").is_file():
        raise UserError(f"the run in {folder} is not finished: continue it with the command that began it.")
    if (folder / "store.json").is_file():
        raise UserError(
            f"{folder} is an embedding store, not a prior. `syzygy train prior --data {folder}` trains one on it."
        )
    return folder


def _download(source: str, revision: str | None, variant: str | None) -> Located:
    """Download a prior's files, from its own repository or a pipeline's, and the settings of its sampling."""
    settings = [CONFIG_FILE, PROVENANCE_FILE]
    schedulers = [f"{name}/{SCHEDULER_FILE}" for name in SCHEDULERS]
    patterns = ["model_index.json", ZERO_IMAGE, *settings, *(f"{PART}/{name}" for name in settings), *schedulers]
    found = fetch(source, revision, patterns, local_files_only=False)
    folder = f"{PART}/" if (found.folder / PART / CONFIG_FILE).is_file() else ""
    layout = layout_of(found.folder / folder) if (found.folder / folder / CONFIG_FILE).is_file() else PUBLISHED
    return fetch_weights(found, {folder: layout.stem}, variant)


def layout_of(folder: Path) -> Layout:
    """Which kind of prior a folder holds.

    Raises:
        UserError: its `config.json` is missing, or describes no prior.
    """
    name = read_json(folder / CONFIG_FILE).get("_class_name")
    for layout in LAYOUTS:
        if layout.class_name == name:
            return layout
    known = ", ".join(repr(layout.class_name) for layout in LAYOUTS)
    raise UserError(f"{folder / CONFIG_FILE} describes {name!r}, not a prior ({known}).")


def write_prior(
    folder: Path,
    layout: Layout,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    provenance: dict[str, Any] | None,
    dtype: torch.dtype | None,
    variant: str | None = None,
) -> None:
    """Write a prior's folder atomically; `dtype` converts the tensors, `variant` goes into the name of their file."""
    with folder_written(folder) as temporary:
        write_json(temporary / CONFIG_FILE, {"_class_name": layout.class_name} | dict(sorted(settings.items())))
        write_tensors(temporary / layout.variant_file(variant), tensors, dtype)
        if provenance is not None:
            write_json(temporary / PROVENANCE_FILE, provenance)


def read_prior(
    folder: str | Path, layout: Layout, variant: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings (without diffusers' own, which begin with "_") and tensors: of `variant`, or in full precision, if the folder has that.

    Raises:
        UserError: missing, truncated or pickled files, another kind of prior or another class of model.
    """
    folder = Path(folder)
    found = layout_of(folder)
    if found != layout:
        raise UserError(f"{folder} holds {found.kind}, and {layout.kind} is needed. {found.remedy}")
    values = read_json(folder / CONFIG_FILE)
    return {k: v for k, v in values.items() if not k.startswith("_")}, read_weights(
        folder, layout.stem, variant=variant
    )


def is_diffusion(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a diffusion prior: only such a prior has a time embedding."""
    return any(map(_is_of_time, tensors))


def holds_diffusion(folder: Path) -> bool:
    """Whether a folder holds a diffusion prior; reads the time embedding alone."""
    return layout_of(folder) == PUBLISHED and bool(read_weights(folder, DIFFUSERS, _is_of_time))


def _is_of_time(name: str) -> bool:
    return name.startswith("time_embedding.")


def is_controlled(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a λ-ECLIPSE prior: only such a prior has an embedding of a control."""
    return any(map(_is_of_control, tensors))


def holds_controlled(folder: Path) -> bool:
    """Whether a folder holds a λ-ECLIPSE prior; reads the embedding of the control alone."""
    return layout_of(folder) == PUBLISHED and bool(read_weights(folder, DIFFUSERS, _is_of_control))


def _is_of_control(name: str) -> bool:
    return name.startswith("embedding_control.")
