"""Experts of our own decoder, trained on the embedded world: a tree over the noise levels (`experts/training.py`)."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.lora import build_lora, load_lora
from syzygy.core.randomness import seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_decoder, save_decoder
from syzygy.decoder.training import DecoderTask, DecoderTaskConfig
from syzygy.experts.expert_folders import TRUNK
from syzygy.experts.training import NodeTraining, TreeRun, finished_node, node_folder, stages_of, train_node, train_tree
from syzygy.lab.starter.decoder_data import CaptionMixture, Encoding
from syzygy.text_encoders.t5 import T5Text
from syzygy.training.precision import precision_on


class ExpertsRun(TreeRun, CaptionMixture):
    """All settings of an ensemble of experts that is trained from a decoder."""

    task: DecoderTaskConfig
    """What a step sees; the tree divides its distribution of noise levels."""


def as_trained(run: ExpertsRun, decoder: Path) -> ExpertsRun:
    """The run with the noise, conditions, regions and captions that the decoder in a folder was trained with, if its recipe is recorded."""
    recipe = artifacts.read_json(decoder / artifacts.PROVENANCE_FILE).get("recipe", {})
    if "task" not in recipe:
        return run
    own = {
        "batch_size": run.task.batch_size,
        "draws": run.task.draws,
        "attention_weight": 0,
        "classification_weight": 0,
    }
    task = parse(DecoderTaskConfig, recipe["task"] | own, str(decoder / artifacts.PROVENANCE_FILE))
    captions = {name: recipe[name] for name in CaptionMixture.model_fields if name in recipe}
    return run.model_copy(update={"task": task, **captions})


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
    """Train (or resume) the tree in `out` from the decoder in a folder; the finished ensemble is `out/experts`.

    Each node's training is a run of its own under `out/nodes`. Finished nodes are not trained again.

    Args:
        t5: the encoder whose states the decoder reads, if it does.

    Raises:
        UserError: the leaves are not those of a tree; a finished node has other settings; T5 is missing, or the decoder does not read it.
    """

    def node(one: NodeTraining) -> Path:
        return train_expert(run, one, decoder, clip, autoencoder, out, device, t5)

    def complete(experts: Path) -> None:
        if run.form == "lora":
            shutil.copytree(decoder, experts / TRUNK)

    return train_tree(run, stages_of(run.leaves, run.task.noise), out, say, node=node, complete=complete)


def train_expert(
    run: ExpertsRun,
    one: NodeTraining,
    root: Path,
    clip: Clip,
    autoencoder: Autoencoder,
    out: Path,
    device: torch.device,
    t5: T5Text | None = None,
) -> Path:
    """Train one node from its parent node, or from the decoder in `root`; a finished node is not trained again.

    Raises:
        UserError: it was trained with other settings; T5 is missing, or the decoder does not read it.
    """
    encode = Encoding(clip, autoencoder, precision_on(device), t5, painted=run.task.painted > 0)
    if (finished := finished_node(run, one, out, encode.fingerprints())) is not None:
        return finished
    above = None if one.parent is None else node_folder(out, one.parent)
    decoder = load_decoder(above if above is not None and run.form == "full" else root).to(device).train()
    if ("t5" in decoder.slots) != (t5 is not None):
        raise UserError(
            f"the decoder in {root} reads {', '.join(decoder.slots)}: give a T5 if and only if it reads t5."
        )
    lora = None
    if run.form == "lora":
        lora = build_lora(decoder.requires_grad_(False).backbone, rank=run.rank, layers=run.layers, seed=run.seed)
        if above is not None:
            load_lora(lora, above)
    started = artifacts.fingerprint(decoder.state_dict())
    noise = run.task.noise.model_copy(update={"shares": one.shares, "weights": one.weights})
    settings = run.task.model_copy(update={"noise": noise})
    seed = seed_of(run.seed, "expert", one.name)
    batches = encode.stream(run.task.pictures, run, seed)
    task = DecoderTask(decoder, batches, [encode.unseen(run.seed, run)], settings, seed, encode.precision, lora)

    def save(place: Path, record: dict[str, Any]) -> None:
        save_decoder(decoder, place, record)

    recorded = {**encode.fingerprints(), "weights": one.weights, "from": started}
    return train_node(run, one, out, task, decoder, lora, save, recorded=recorded)
