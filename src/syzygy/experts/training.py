"""Expert denoisers grown from one decoder (eDiff-I, arXiv 2211.01324, section 4.2): a tree over the noise levels, leaves kept."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import Config, parse
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_decoder, save_decoder
from syzygy.decoder.noise_levels import LogNormal
from syzygy.decoder.training import DecoderTask, DecoderTaskConfig
from syzygy.experts.expert_folders import STAGES_FILE, TRUNK, build_lora, load_lora, save_lora
from syzygy.experts.routing import COMPLEMENT, Node, Stages
from syzygy.lab.starter.decoder_training import Encoding
from syzygy.text_encoders.t5 import T5Text
from syzygy.training.estimate import Estimated
from syzygy.training.loop import FitResult, fit
from syzygy.training.precision import precision_on
from syzygy.training.run_records import provenance, reporter
from syzygy.training.schedule import LoopConfig

GROWN = "expert"
"""Where a node's weights are, in its run."""


class TreeRun(Config):
    """What every growing of experts is told, whatever network they are."""

    leaves: tuple[str, ...] = Field(default=("E3_0", COMPLEMENT, "E9_511"), min_length=1)
    """The experts: places in the tree, E<level>_<index> from the least noise, and `complement` for the rest."""
    every_level: bool = True
    """Train each node on the way to a leaf from the node above it, as the paper does; else leaves start from the shared model at once."""
    form: Literal["full", "lora"] = "full"
    """Whole networks, or low-rank adaptations of the frozen shared one: all of them then fit in memory beside it."""
    rank: int = Field(default=16, ge=1)
    """Of the low-rank adaptations."""
    layers: str = "attn|ff|conv"
    """Regular expression: which layers of the U-Net are adapted."""
    loop: LoopConfig
    """Length and learning rate of each node's training."""
    seed: int = 0
    """Samples and noise follow from it."""


class ExpertsRun(TreeRun):
    """Everything that grows an ensemble of experts from a decoder."""

    medium_captions: float = 0.1
    """Part of the batches whose captions open with other sentences."""
    long_captions: float = 0.0
    """Part of the batches whose captions open with so many that CLIP reads none of the decisive words, and T5 all."""
    just_told: float = 0.0
    """Part of the batches whose scenes show one or two things, and nothing that captions leave out: words are learned sooner from these."""
    task: DecoderTaskConfig
    """What a step sees; its distribution of noise levels is the one that the tree cuts."""


@dataclass(frozen=True)
class Growth:
    """One training of the tree: which node, from which, on which part of the noise."""

    name: str
    parent: str | None
    """The node it starts from; None is the shared model itself."""
    shares: tuple[tuple[float, float], ...]
    """The part of the noise levels that it sees, as probabilities."""
    weights: tuple[float, ...] | None = None
    """How often it sees each of them; None is as often as they are wide."""


def as_trained(run: ExpertsRun, decoder: Path) -> ExpertsRun:
    """The run with the noise, conditions, painting and captions that the decoder in a folder was trained with, where its recipe is there."""
    recipe = artifacts.read_json(decoder / artifacts.PROVENANCE_FILE).get("recipe", {})
    if "task" not in recipe:
        return run
    own = {"batch_size": run.task.batch_size, "draws": run.task.draws}
    task = parse(DecoderTaskConfig, recipe["task"] | own, str(decoder / artifacts.PROVENANCE_FILE))
    captions = {name: recipe[name] for name in ("medium_captions", "long_captions", "just_told") if name in recipe}
    return run.model_copy(update={"task": task, **captions})


def stages_of(leaves: Sequence[str], noise: LogNormal) -> Stages:
    """Who serves which noise level, for a tree that cuts this distribution."""
    return Stages.of(leaves, lambda p: noise.quantile(torch.tensor(p, dtype=torch.float64)).item())


def growth(run: TreeRun) -> list[Growth]:
    """Every training, parents before children; a node on the way to several leaves once.

    Raises:
        UserError: leaves that overlap, leave gaps, or are no places in the tree.
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
    """Train all nodes of a tree in `out`, or those that are not finished, and put the leaves together as `out/experts`.

    Args:
        stages: who serves which noise level.
        node: trains one, its run being `out/nodes/NAME`, unless it is finished; the value is `out/nodes/NAME/expert`.
        complete: adds what the ensemble needs besides, such as the shared model that low-rank experts adapt.

    Raises:
        UserError: leaves that are no tree's.
    """
    todo = growth(run)
    for number, one in enumerate(todo, 1):
        done = (out / "nodes" / one.name / GROWN).is_dir()
        say(f"{number}/{len(todo)}  {one.name}" + (": done before" if done else ""))
        try:
            node(one)
        except Estimated as dry:  # the other nodes' trainings are as long
            raise Estimated(replace(dry.estimate, trainings=len(todo))) from None
    with artifacts.folder_written(out / "experts", "the experts") as temporary:
        for name in stages.experts:
            shutil.copytree(out / "nodes" / name / GROWN, temporary / name)
        complete(temporary)
        artifacts.write_json(temporary / STAGES_FILE, {"names": stages.names, "edges": stages.edges, "form": run.form})
    return out / "experts"


def train(
    run: ExpertsRun,
    decoder: Path,
    clip: Clip,
    autoencoder: Autoencoder,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    t5: T5Text | None = None,
) -> Path:
    """Grow (or go on growing) the tree in `out` from the decoder in a folder; the finished ensemble is `out/experts`.

    Each node's training is a run of its own under `out/nodes`, resumed like any other; finished ones are not run again.

    Args:
        t5: the encoder whose states the decoder reads, if it does.

    Raises:
        UserError: leaves that are no tree's; a finished node with other settings; a T5 that is missing or not read.
    """

    def node(one: Growth) -> Path:
        return grow(run, one, decoder, clip, autoencoder, out, device, t5)

    def complete(experts: Path) -> None:
        if run.form == "lora":
            shutil.copytree(decoder, experts / TRUNK)

    return grow_tree(run, stages_of(run.leaves, run.task.noise), out, say, node=node, complete=complete)


def check_same(run: TreeRun, grown: Path, beside: Mapping[str, Any]) -> None:
    """Refuse a finished node that was trained with other settings, or beside or on something else; which leaves were wanted then does not
    matter.
    """
    record = artifacts.read_json(grown / artifacts.PROVENANCE_FILE)
    before, now = record["recipe"], run.model_dump(mode="json")
    other = [name for name in now if name != "leaves" and before.get(name) != now[name]]
    other += [name for name in beside if record.get(name) != beside[name]]
    if other:
        raise UserError(
            f"{grown.parent} was trained with other settings ({', '.join(other)}). Choose another --out, or the settings it has."
        )


def record_of(run: TreeRun, result: FitResult, samples: int, grown: nn.Module) -> dict[str, Any]:
    """How a finished node came to be."""
    record = provenance("expert", run, result, samples, result.metrics)
    return record | {"parameters": sum(parameter.numel() for parameter in grown.parameters())}


def grow(
    run: ExpertsRun,
    one: Growth,
    root: Path,
    clip: Clip,
    autoencoder: Autoencoder,
    out: Path,
    device: torch.device,
    t5: T5Text | None = None,
) -> Path:
    """One node's training, from the weights of the node above it, or from the decoder in `root`; a finished one is not run again.

    Raises:
        UserError: it is finished, with other settings; a T5 that is missing or not read.
    """
    above, folder = None if one.parent is None else out / "nodes" / one.parent / GROWN, out / "nodes" / one.name
    beside = {"clip": clip.fingerprint(), "autoencoder": autoencoder.fingerprint()}
    if t5 is not None:
        beside["t5"] = t5.fingerprint()
    if (folder / GROWN).is_dir():
        check_same(run, folder / GROWN, beside)
        return folder / GROWN
    precision = precision_on(device)
    encode = Encoding(clip, autoencoder, precision, t5, painted=run.task.painted > 0)
    decoder = load_decoder(above if above is not None and run.form == "full" else root).to(device).train()
    if ("t5" in decoder.slots) != (t5 is not None):
        raise UserError(
            f"the decoder in {root} reads {', '.join(decoder.slots)}: T5 is given if and only if it reads t5."
        )
    lora = None
    if run.form == "lora":
        lora = build_lora(decoder.requires_grad_(False), rank=run.rank, layers=run.layers, seed=run.seed)
        if above is not None:
            load_lora(lora, above)
    grown: nn.Module = decoder if lora is None else lora
    noise = run.task.noise.model_copy(update={"shares": one.shares, "weights": one.weights})
    settings = run.task.model_copy(update={"noise": noise})
    seed = seed_of(run.seed, "expert", one.name)
    batches = encode.stream(run.task.pictures, run, seed)
    task = DecoderTask(decoder, batches, [encode.unseen(run.seed)], settings, seed, precision, lora)
    started = artifacts.fingerprint(decoder.state_dict())
    own: dict[str, Any] = {
        "node": one.name,
        "shares": one.shares,
        "weights": one.weights,
        "parent": one.parent,
        "from": started,
    }
    live = reporter(one.name, run.task.batch_size)
    result = fit(task, run.loop, folder, reporter=live, run=run.model_dump(mode="json") | beside | own)
    record = record_of(run, result, result.steps * run.task.batch_size, grown) | beside | own
    if lora is None:
        save_decoder(decoder, folder / GROWN, record)
    else:
        save_lora(lora, folder / GROWN, {"rank": run.rank, "layers": run.layers}, record)
    return folder / GROWN
