"""Training of expert denoisers from one network (eDiff-I, arXiv 2211.01324, section 4.2): the leaves of a tree over the noise levels."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from syzygy.core import artifacts
from syzygy.core.config import Config, parse
from syzygy.core.errors import UserError
from syzygy.core.lora import Lora
from syzygy.decoder.noise_levels import LogNormal
from syzygy.experts.expert_folders import STAGES_FILE, save_lora
from syzygy.experts.routing import COMPLEMENT, Node, Stages
from syzygy.training.estimate import Estimated
from syzygy.training.loop import Task
from syzygy.training.run_records import train_part
from syzygy.training.schedule import LoopConfig

GROWN = "expert"
"""The folder of a node's weights in its run."""


class TreeRun(Config):
    """Settings of every tree of experts, whatever network they are."""

    leaves: tuple[str, ...] = Field(default=("E3_0", COMPLEMENT, "E9_511"), min_length=1)
    """The experts: nodes of the tree, E<level>_<index> counted from the least noise, and `complement` for the rest."""
    every_level: bool = True
    """Train each node on the path to a leaf from the node above it, as the paper does; otherwise leaves start from the shared model."""
    form: Literal["full", "lora"] = "full"
    """Whole networks, or low-rank adaptations of the frozen shared network, which all fit in memory together with it."""
    rank: int = Field(default=16, ge=1)
    """Rank of the low-rank adaptations."""
    layers: str = "attn|ff|conv"
    """Regular expression for the names of the U-Net's layers that are adapted."""
    loop: LoopConfig
    """Length and learning rate of each node's training."""
    seed: int = 0
    """Seed of samples and noise."""


@dataclass(frozen=True)
class Growth:
    """One training of the tree: the node, its parent, and its part of the noise levels."""

    name: str
    parent: str | None
    """The node that it starts from; None for the shared model."""
    shares: tuple[tuple[float, float], ...]
    """The part of the noise levels that it sees, as probabilities."""
    weights: tuple[float, ...] | None = None
    """How often it sees each share; None means in proportion to their widths."""


def noise_of(decoder: Path, otherwise: LogNormal) -> LogNormal:
    """The distribution of noise levels that the decoder in a folder was trained with; `otherwise` if that is not recorded."""
    place = decoder / artifacts.PROVENANCE_FILE
    recorded = artifacts.read_json(place).get("recipe", {}).get("task", {}).get("noise")
    return otherwise if recorded is None else parse(LogNormal, recorded, str(place))


def stages_of(leaves: Sequence[str], noise: LogNormal) -> Stages:
    """The experts of the noise levels, for a tree that divides this distribution."""
    return Stages.of(leaves, lambda p: noise.quantile(torch.tensor(p, dtype=torch.float64)).item())


def growth(run: TreeRun) -> list[Growth]:
    """All trainings, parents before children, and each node once.

    Raises:
        UserError: the leaves overlap, leave gaps, or are not nodes of the tree.
    """
    Stages.of(run.leaves, lambda probability: probability)
    found: dict[str, Growth] = {}
    nodes = [Node.parse(name) for name in run.leaves if name != COMPLEMENT]
    for leaf in nodes:
        way = leaf.lineage()[1:] if run.every_level else [leaf]
        for node in way:
            parent = node.parent.name if run.every_level and node.level > 1 else None
            found[node.name] = Growth(node.name, parent, (node.share,))
    if COMPLEMENT in run.leaves:
        borders = [0.0, *(border for low, high in sorted(node.share for node in nodes) for border in (low, high)), 1.0]
        gaps = tuple((low, high) for low, high in zip(borders[::2], borders[1::2], strict=True) if low < high)
        found[COMPLEMENT] = Growth(COMPLEMENT, None, gaps)
    return list(found.values())


def grow_tree(
    run: TreeRun,
    stages: Stages,
    out: Path,
    say: Callable[[str], None],
    *,
    node: Callable[[Growth], Path],
    complete: Callable[[Path], None],
) -> Path:
    """Train all nodes of a tree in `out` that are not finished, and collect the leaves in `out/experts`.

    Args:
        stages: the experts of the noise levels.
        node: trains a node in `out/nodes/NAME` unless it is finished; returns `out/nodes/NAME/expert`.
        complete: adds further files to the ensemble, such as the shared model that low-rank experts adapt.

    Raises:
        UserError: the leaves are not those of a tree.
    """
    todo = growth(run)
    for number, one in enumerate(todo, 1):
        done = node_folder(out, one.name).is_dir()
        say(f"{number}/{len(todo)}  {one.name}" + (": done before" if done else ""))
        try:
            node(one)
        except Estimated as dry:  # the other nodes' trainings are as long
            raise Estimated(replace(dry.estimate, trainings=len(todo))) from None
    with artifacts.folder_written(out / "experts", "the experts") as temporary:
        for name in stages.experts:
            shutil.copytree(node_folder(out, name), temporary / name)
        complete(temporary)
        artifacts.write_json(temporary / STAGES_FILE, {"names": stages.names, "edges": stages.edges, "form": run.form})
    return out / "experts"


def finished_node(run: TreeRun, one: Growth, out: Path, recorded: Mapping[str, Any]) -> Path | None:
    """The folder of a finished node's expert; None where it is still to be trained.

    Raises:
        UserError: it was trained with other settings (other leaves do not matter), or with other models or data than `recorded`.
    """
    grown = node_folder(out, one.name)
    if not grown.is_dir():
        return None
    record = artifacts.read_json(grown / artifacts.PROVENANCE_FILE)
    before, now = record["recipe"], run.model_dump(mode="json")
    other = [name for name in now if name != "leaves" and before.get(name) != now[name]]
    other += [name for name in recorded if record.get(name) != recorded[name]]
    if other:
        raise UserError(
            f"{grown.parent} was trained with other settings ({', '.join(other)}). Choose another --out, or the settings it has."
        )
    return grown


def train_node(
    run: TreeRun,
    one: Growth,
    out: Path,
    task: Task,
    network: nn.Module,
    lora: Lora | None,
    save_network: Callable[[Path, dict[str, Any]], None],
    *,
    recorded: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Train one node, or continue, and save its network or its low-rank adaptation; returns the expert's folder.

    Args:
        recorded: what the node was trained with; it is continued with the same only.
        about: further facts for its provenance.
    """
    trained = network if lora is None else lora
    own = {"node": one.name, "shares": one.shares, "parent": one.parent}

    def save(place: Path, record: dict[str, Any]) -> None:
        record |= {"parameters": sum(parameter.numel() for parameter in trained.parameters()), **(about or {})}
        if lora is None:
            save_network(place, record)
        else:
            save_lora(lora, place, {"rank": run.rank, "layers": run.layers}, record)

    place = node_folder(out, one.name).parent
    return train_part(
        run, task, place, save, kind="expert", folder=GROWN, report=one.name, recorded={**recorded, **own}
    ).folder


def node_folder(out: Path, name: str) -> Path:
    """Where the expert of a node is, in the folder of a tree."""
    return out / "nodes" / name / GROWN
