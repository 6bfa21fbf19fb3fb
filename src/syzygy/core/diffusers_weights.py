"""Parts of a diffusers pipeline, each from its own folder: strictly, from safetensors, without the pipeline that they were saved as.

diffusers' own loading only warns of weights that are missing, and makes some up.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syzygy.core import artifacts, hub_files
from syzygy.core.errors import UserError

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in attention of autoencoders from before diffusers 0.16 (Stable unCLIP's is one), and those since."""
SCHEDULER_FILE = "scheduler_config.json"


def read_settings(folder: Path, part: str, kind: str) -> dict[str, Any]:
    """The configuration of a part of diffusers' class `kind`.

    Raises:
        UserError: it is missing, or another class's.
    """
    path = folder / part / artifacts.CONFIG_FILE
    values = artifacts.read_json(path)
    if values.get("_class_name") != kind:
        raise UserError(f"{path} is for {values.get('_class_name')!r}; {kind} is needed there.")
    return values


def load_model(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """The model in `folder / part`, in `dtype`, on the CPU, in evaluation mode and frozen.

    Raises:
        UserError: a file is missing, truncated or pickle; another class; a weight is missing, unexpected or misshapen.
    """
    values = read_settings(folder, part, kind.__name__)
    path = folder / part
    try:
        with torch.device("meta"):  # random weights of a big model would take a minute, and be replaced
            model = kind.from_config(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path / artifacts.CONFIG_FILE} does not describe a {kind.__name__}: {error}") from None
    nn.Module.to(model, dtype)  # diffusers' own `to` warns that some modules could prefer fp32, even if none does
    stored = renamed(hub_files.read_weights(path, hub_files.DIFFUSERS))
    artifacts.load_strictly(model, stored, path, assign=True)
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers())), f"{path} stays without values"
    return model.eval().requires_grad_(False)


def renamed(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that diffusers has given them since 0.16."""

    def name_now(name: str) -> str:
        match name.split("."):
            case [*path, "attentions", number, module, kind] if module in OLD_ATTENTION:
                return ".".join([*path, "attentions", number, OLD_ATTENTION[module], kind])
        return name

    return {name_now(name): value for name, value in stored.items()}


def check_parts(folder: Path, parts: Sequence[str], what: str) -> None:
    """Refuse a folder that lacks a part of `what`; a part has a configuration, or is a scheduler's or a tokenizer's folder."""
    lacking = [part for part in parts if not (folder / part).is_dir()]
    if lacking:
        raise UserError(
            f"{folder} has no {', '.join(lacking)}: {what} needs {', '.join(parts)}. Copy or download the whole repository."
        )
