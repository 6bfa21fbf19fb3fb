"""Training of experts from the U-Net of a model in diffusers' layout, on the user's own captioned images."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from syzygy.core import artifacts
from syzygy.core.lora import build_lora, load_lora
from syzygy.core.randomness import seed_of
from syzygy.experts.expert_folders import TRUNK
from syzygy.experts.routing import Stages
from syzygy.experts.training import (
    NodeTraining,
    TreeRun,
    finished_node,
    node_folder,
    node_trainings,
    train_node,
    train_tree,
)
from syzygy.pretrained.captioned_latents import (
    Batches,
    CaptionedImagesRun,
    Steps,
    captioned_latents,
    fitted,
    opened,
    split_pictures,
)
from syzygy.pretrained.latent_cache import Latents
from syzygy.pretrained.training_families import load_beside
from syzygy.pretrained.unet_task import DiscreteNoise, UNetTask, UNetTaskConfig, recomputed
from syzygy.pretrained.unet_training import SCHEDULER, Conditions, copy_unet, load_unet, save_unet
from syzygy.training import checkpoints
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.precision import precision_on


class ExpertUNetsRun(CaptionedImagesRun, TreeRun):
    """All settings of experts of a U-Net, except the model and the images."""

    form: Literal["full", "lora"] = "lora"
    """Low-rank adaptations of the frozen U-Net, of a few megabytes each; or whole U-Nets."""
    layers: str = r"\.(to_[qkv]|to_out|add_[kv]_proj)\b"
    """Regular expression for the names of the U-Net's layers that are adapted; the default is the projections of its attention."""
    task: UNetTaskConfig
    """Loss and batch."""


@dataclass(frozen=True)
class _Shared:
    """What all nodes of a tree share."""

    run: ExpertUNetsRun
    model: Path
    conditions: Conditions
    noise: DiscreteNoise
    latents: Latents
    device: torch.device
    recorded: dict[str, Any]
    """Fingerprints of the model's parts and of the data; a node's training is resumed with the same only."""
    about: dict[str, Any]
    """Further facts for the provenance."""
    out: Path


def train(
    run: ExpertUNetsRun,
    model: Path,
    data: str,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    clip: str | Path | None = None,
    fitting: Fitting = AS_GIVEN,
) -> Path:
    """Train (or resume) a tree in `out` from the U-Net of a model's folder; the finished ensemble is `out/experts`.

    The latents of the images are encoded first, once, into `out/latents`. Each node is a run of its own under `out/nodes`; finished nodes are
    not trained again, and their checkpoints are deleted.

    Args:
        model: a folder in diffusers' layout of Stable Diffusion 1.x, 2.x or XL, or of Kandinsky 2.2's decoder.
        data: a source of captioned images (`open_source`).
        clip: folder or hub id of the CLIP whose image embeddings the U-Net reads, for Kandinsky only.

    Raises:
        UserError: the model is incomplete or of another kind; the data are unusable; the leaves form no tree, or are finer than the timesteps;
            no layer to adapt has such a name; a finished node was trained differently.
    """
    source = opened(run, data)
    parts = load_beside(model, run.size, device, clip)
    conditions, noise = parts.conditions, parts.noise
    for one in node_trainings(run):
        noise.timesteps(one.shares)  # a tree that is too fine is refused before anything is encoded
    stages = Stages.of(run.leaves, noise.quantile)
    root = load_unet(model / "unet")
    if run.form == "lora":
        build_lora(root, rank=run.rank, layers=run.layers, seed=run.seed)  # so are layers that do not exist
    recorded = {"unet": artifacts.fingerprint(root.state_dict()), **parts.fingerprints()}
    del root
    latents = captioned_latents(run, parts.pictures, source, out / "latents", say)
    del parts  # frees the memory of the networks that encode images
    run = fitted(run, latents, source.text, fitting)
    recorded["data"] = latents.fingerprint
    about = {"model": str(model), "source": source.text, "pictures": len(latents)}
    shared = _Shared(run, model, conditions, noise, latents, device, recorded, about, out)

    def complete(experts: Path) -> None:
        shutil.copytree(model / SCHEDULER, experts / SCHEDULER)
        if run.form == "lora":
            copy_unet(model / "unet", experts / TRUNK)

    return train_tree(run, stages, out, say, node=lambda one: _train_node(shared, one), complete=complete)


def _train_node(shared: _Shared, one: NodeTraining) -> None:
    """Train a node from the weights of the node above it, or from the model's U-Net, unless it is finished."""
    run, device, precision = shared.run, shared.device, precision_on(shared.device)
    if finished_node(run, one, shared.out, shared.recorded) is not None:
        return
    above = None if one.parent is None else node_folder(shared.out, one.parent)
    unet = load_unet(above if above is not None and run.form == "full" else shared.model / "unet")
    lora = build_lora(unet, rank=run.rank, layers=run.layers, seed=run.seed) if run.form == "lora" else None
    if lora is not None and above is not None:
        load_lora(lora, above)
    trained = unet.requires_grad_(True) if lora is None else lora
    started = artifacts.fingerprint(trained.state_dict())
    unet.to(device)
    trained.to(device)
    if run.task.checkpointing:
        unet.enable_gradient_checkpointing(recomputed(lora, device, precision))
    unseen, seen = split_pictures(shared.latents.same_picture, run.validation_pictures, run.seed)
    seed = seed_of(run.seed, "expert", one.name)
    batches = Batches(Steps(shared.latents, seen, run.task, seed), shared.conditions, precision)
    task = UNetTask(
        unet, batches, batches.unseen(unseen), shared.noise, one.shares, seed, precision=precision, lora=lora
    )

    def save(place: Path, record: dict[str, Any]) -> None:
        save_unet(unet, place, record)

    recorded = {**shared.recorded, "from": started}
    folder = train_node(run, one, shared.out, task, unet, lora, save, recorded=recorded, about=shared.about)
    shutil.rmtree(folder.parent / checkpoints.FOLDER)  # which is four times as large as the weights
