"""Training of a tree of expert denoisers (eDiff-I, arXiv 2211.01324, section 4.2): each node from the node above it; the leaves are kept."""

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
from syzygy.core.lora import Lora, save_lora
from syzygy.decoder.noise_levels import LogNormal
from syzygy.experts.expert_folders import STAGES_FILE
from syzygy.experts.routing import COMPLEMENT, Node, Stages
from syzygy.training.estimate import Estimated
from syzygy.training.loop import Task
from syzygy.training.run_records import finished_before, train_part
from syzygy.training.schedule import LoopConfig

EXPERT = "expert"
"""Folder of a node's weights, in its run."""


class TreeRun(Config):
    """Settings of every tree of experts, whatever the network."""

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
class NodeTraining:
    """The training of one node of the tree."""

    name: str
    parent: str | None
    """The node whose weights it starts from; None is the shared model."""
    shares: tuple[tuple[float, float], ...]
    """The intervals of noise levels that it sees, as probabilities."""
    weights: tuple[float, ...] | None = None
    """How often it sees each interval; None is in proportion to the widths."""


def noise_of(decoder: Path, otherwise: LogNormal) -> LogNormal:
    """The distribution of noise levels that the decoder in a folder was trained with; `otherwise` if its record has none."""
    place = decoder / artifacts.PROVENANCE_FILE
    recorded = artifacts.read_json(place).get("recipe", {}).get("task", {}).get("noise")
    return otherwise if recorded is None else parse(LogNormal, recorded, str(place))


def stages_of(leaves: Sequence[str], noise: LogNormal) -> Stages:
    """The stages of a tree that divides this distribution."""
    return Stages.of(leaves, lambda p: noise.quantile(torch.tensor(p, dtype=torch.float64)).item())


def node_trainings(run: TreeRun) -> list[NodeTraining]:
    """The trainings of all nodes, parents before children; a node above several leaves once.

    Raises:
        UserError: leaves overlap, leave gaps, or are no nodes of the tree.
    """
    Stages.of(run.leaves, lambda probability: probability)
    found: dict[str, NodeTraining] = {}
    nodes = [Node.parse(name) for name in run.leaves if name != COMPLEMENT]
    for leaf in nodes:
        for node in leaf.lineage()[1:] if run.every_level else [leaf]:
            parent = node.parent.name if run.every_level and node.level > 1 else None
            found[node.name] = NodeTraining(node.name, parent, (node.share,))
    if COMPLEMENT in run.leaves:
        borders = [0.0, *(border for low, high in sorted(node.share for node in nodes) for border in (low, high)), 1.0]
        gaps = tuple((low, high) for low, high in zip(borders[::2], borders[1::2], strict=True) if low < high)
        found[COMPLEMENT] = NodeTraining(COMPLEMENT, None, gaps)
    return list(found.values())


def train_tree(
    run: TreeRun,
    stages: Stages,
    out: Path,
    say: Callable[[str], None],
    *,
    node: Callable[[NodeTraining], object],
    complete: Callable[[Path], None],
) -> Path:
    """Train all nodes of a tree in `out` that are not finished, and combine the leaves in `out/experts`.

    Args:
        stages: the expert of each noise level.
        node: trains a node in `out/nodes/NAME`, unless it is finished.
        complete: adds what the ensemble also needs, such as the shared model that low-rank experts adapt.

    Raises:
        UserError: the leaves form no tree.
    """
    todo = node_trainings(run)
    for number, one in enumerate(todo, 1):
        done = node_folder(out, one.name).is_dir()
        say(f"{number}/{len(todo)}  {one.name}" + (": done before" if done else ""))
        try:
            node(one)
        except Estimated as dry:  # all nodes are trained equally long
            raise Estimated(replace(dry.estimate, trainings=len(todo))) from None
    with artifacts.folder_written(out / "experts", "the experts") as temporary:
        for name in stages.experts:
            shutil.copytree(node_folder(out, name), temporary / name)
        complete(temporary)
        artifacts.write_json(temporary / STAGES_FILE, {"names": stages.names, "edges": stages.edges, "form": run.form})
    return out / "experts"


def finished_node(run: TreeRun, one: NodeTraining, out: Path, recorded: Mapping[str, Any]) -> Path | None:
    """The folder of a finished node's expert; None if it is not finished.

    Raises:
        UserError: it was trained with other settings (except leaves), or with other models or data than `recorded`.
    """
    found = finished_before(run, node_folder(out, one.name), recorded, ignored=("leaves",))
    return None if found is None else found.folder


def train_node(
    run: TreeRun,
    one: NodeTraining,
    out: Path,
    task: Task,
    network: nn.Module,
    lora: Lora | None,
    save_network: Callable[[Path, dict[str, Any]], None],
    *,
    recorded: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Train a node, or resume its training, and save its network or low-rank adaptation; returns the expert's folder.

    Args:
        recorded: what the node is trained with; the training is resumed with the same only.
        about: further facts for the provenance.
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
        run, task, place, save, kind="expert", folder=EXPERT, report=one.name, recorded={**recorded, **own}
    ).folder


def node_folder(out: Path, name: str) -> Path:
    """The folder of a node's expert, in the folder of a tree."""
    return out / "nodes" / name / EXPERT
