"""Concept fine-tuning of a decoder: the whole U-Net of Kandinsky 2.2 on a few pictures and their own CLIP image embeddings.

λ-ECLIPSE (arXiv 2402.05195) shows a subject without training. Its authors also tune the decoder to one concept, where the image
embedding does not hold enough of it. A step is that of every training of a U-Net here (`UNetTask`): noise of the decoder's own scheduler,
and the mean squared error on the first channels of the output; the predicted variance is not trained.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from syzygy.core.errors import UserError
from syzygy.core.wording import counted
from syzygy.data.source_pictures import PictureFolder
from syzygy.data.sources import Source
from syzygy.pretrained.captioned_latents import Batches, ImagesRun, Steps, fitted, latents_of, split_pictures
from syzygy.pretrained.families import DecoderFamily
from syzygy.pretrained.kandinsky import KandinskyDecoder
from syzygy.pretrained.repositories import FoundDecoder
from syzygy.pretrained.trained_unet import CONCEPT, WHOLE, unet_fingerprint
from syzygy.pretrained.training_families import load_beside
from syzygy.pretrained.unet_task import UNetTask, UNetTaskConfig, recomputed
from syzygy.pretrained.unet_training import load_unet, save_unet
from syzygy.training import checkpoints
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.parallel import Ranks
from syzygy.training.precision import precision_on
from syzygy.training.run_records import RunResult, finished_before, train_part

WHOLE_NOISE = ((0.0, 1.0),)
"""All timesteps, as shares of the noise."""


class ConceptRun(ImagesRun):
    """All settings of concept fine-tuning, except the model and the pictures."""

    task: UNetTaskConfig
    """Loss and batch."""


def check_family(family: DecoderFamily, source: str) -> None:
    """
    Raises:
        UserError: the decoder reads no image embedding, or is of a family whose U-Net cannot be trained here.
    """
    if not family.decoder.reads_image_embedding:
        raise UserError(
            f"{source} reads texts alone: a concept is trained on its pictures' image embeddings, which {family.name} does not read. "
            "Use kandinsky-2.2."
        )
    if family.decoder is not KandinskyDecoder:
        raise UserError(f"the decoder of {family.name} ({source}) cannot be trained on a concept. Use kandinsky-2.2.")


def train(
    run: ConceptRun,
    model: FoundDecoder,
    concept: PictureFolder,
    out: Path,
    world: Ranks,
    *,
    clip: str | Path | None = None,
    local_files_only: bool = True,
    say: Callable[[str], None],
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Train the U-Net of a decoder on a concept (or resume) in `out`; the result is `out/unet`, in diffusers' layout and fp16.

    Latents and image embeddings of the pictures are computed first, once, into `out/latents`. A finished run is not trained again. Its
    checkpoint, which is six times as large as the result, is deleted.

    Args:
        model: Kandinsky 2.2's decoder, or another repository in its layout.
        concept: the pictures; each is resized by its shorter side and cropped to the middle, `run.size` × `run.size` pixels.
        clip: folder or hub id of the CLIP whose image embeddings the U-Net reads; None: the one that the decoder's family declares.
        local_files_only: take a CLIP's hub id from the hub's cache only; else download what is missing.
        say: called with lines about the pictures and about progress before the training.

    Raises:
        UserError: the decoder cannot be trained on a concept; a part is missing, broken or does not fit; `out` belongs to another run; there
            are several processes.
    """
    if world.size > 1:
        raise UserError("a concept is trained in one process: start the training without torchrun.")
    check_family(model.family, model.at.source)
    folder, device, source = model.at.folder, world.device, concept.shard.folder
    parts = load_beside(
        folder, run.size, device, model.family.clip if clip is None else clip, local_files_only=local_files_only
    )
    for line in (*concept.notes(), *_too_small(concept, parts.pictures.side)):
        say(line)
    # Pictures that cannot be read were left out before.
    read = Source(str(source), "folder", [concept.shard])
    latents = latents_of(parts.pictures, read, out / "latents", say, max_bad=0.0)
    run = fitted(run, latents, str(source), fitting)
    recorded = {"unet": unet_fingerprint(folder), **parts.fingerprints(), "data": latents.fingerprint}
    conditions, noise = parts.conditions, parts.noise
    del parts  # frees the memory of the networks that encode images
    found = finished_before(run, out / WHOLE, recorded)
    if found is None:
        unet, precision = load_unet(folder / "unet").requires_grad_(True).to(device), precision_on(device)
        if run.task.checkpointing:
            unet.enable_gradient_checkpointing(recomputed(None, device, precision))
        unseen, seen = split_pictures(latents.same_picture, run.validation_pictures, run.seed)
        batches = Batches(Steps(latents, seen, run.task, run.seed), conditions, precision)
        task = UNetTask(unet, batches, batches.unseen(unseen), noise, WHOLE_NOISE, run.seed, precision=precision)
        about = {"model": model.at.source, "source": str(source), "pictures": len(latents)}

        def save(place: Path, record: dict[str, Any]) -> None:
            save_unet(unet, place, {**record, **about}, torch.float16)

        found = train_part(run, task, out, save, kind=CONCEPT, folder=WHOLE, recorded=recorded)
    shutil.rmtree(out / checkpoints.FOLDER, ignore_errors=True)
    return found


def _too_small(concept: PictureFolder, side: int) -> list[str]:
    """A warning of pictures that must be enlarged to the size of the training."""
    small = {name: size for name, size in concept.sizes.items() if min(size) < side}
    if not small:
        return []
    name = min(small, key=lambda one: min(small[one]))
    width, height = small[name]
    return [
        f"warning: {len(small)} of {counted(len(concept.sizes), 'picture')} enlarged to {side} × {side} pixels, which trains blur; the "
        f"smallest, {name}, has {width} × {height}. Use larger pictures, or a smaller size."
    ]
