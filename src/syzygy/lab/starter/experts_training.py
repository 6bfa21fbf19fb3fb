"""Experts of our own decoder, trained on the embedded world: a tree over the noise levels (`experts/training.py`)."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.randomness import seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_decoder, save_decoder
from syzygy.decoder.training import DecoderTask, DecoderTaskConfig
from syzygy.experts.expert_folders import TRUNK, build_lora, load_lora, save_lora
from syzygy.experts.training import GROWN, Growth, TreeRun, check_same, grow_tree, record_of, stages_of
from syzygy.lab.starter.decoder_training import Encoding
from syzygy.text_encoders.t5 import T5Text
from syzygy.training.loop import fit
from syzygy.training.precision import precision_on
from syzygy.training.run_records import reporter


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


def as_trained(run: ExpertsRun, decoder: Path) -> ExpertsRun:
    """The run with the noise, conditions, painting and captions that the decoder in a folder was trained with, where its recipe is there."""
    recipe = artifacts.read_json(decoder / artifacts.PROVENANCE_FILE).get("recipe", {})
    if "task" not in recipe:
        return run
    own = {"batch_size": run.task.batch_size, "draws": run.task.draws}
    task = parse(DecoderTaskConfig, recipe["task"] | own, str(decoder / artifacts.PROVENANCE_FILE))
    captions = {name: recipe[name] for name in ("medium_captions", "long_captions", "just_told") if name in recipe}
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
