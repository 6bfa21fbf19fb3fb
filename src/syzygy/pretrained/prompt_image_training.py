"""Training of an adapter for a Stable Diffusion on images with captions: its stages image and quality."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.lora import Lora, build_lora, lora_settings, save_lora
from syzygy.data.store_files import MANIFEST_FILE
from syzygy.pretrained.captioned_latents import (
    CaptionedImagesRun,
    Steps,
    captioned_latents,
    fitted,
    opened,
    split_pictures,
)
from syzygy.pretrained.latent_cache import Latents
from syzygy.pretrained.prompt_diffusion import DescribedLatentsSource, DiffusionStage, PromptImageTaskConfig
from syzygy.pretrained.repositories import FoundDecoder
from syzygy.pretrained.stable_diffusion import negative_is_zeros
from syzygy.pretrained.trained_unet import (
    LORA,
    WHOLE,
    Trains,
    check_unet,
    load_trained_lora,
    trained_form,
    unet_fingerprint,
)
from syzygy.pretrained.training_families import stable_diffusion_pictures
from syzygy.pretrained.unet_task import DiscreteNoise, recomputed
from syzygy.pretrained.unet_training import WEIGHTS_FILE, load_unet, save_unet, training_noise
from syzygy.text_encoders.adapter import TextAdapter
from syzygy.text_encoders.adapter_folders import PreviousStage
from syzygy.text_encoders.feature_cache import CacheFolder, FeatureSet
from syzygy.text_encoders.llm import Llm
from syzygy.text_encoders.prompt_training import read_once, with_timesteps
from syzygy.text_encoders.store_features import StoredFeatures, open_features
from syzygy.text_encoders.training import features_of, precision_of, train_stage
from syzygy.training.estimate import is_dry_run
from syzygy.training.fitting import AS_GIVEN, Fitting
from syzygy.training.parallel import Ranks
from syzygy.training.precision import chosen_precision
from syzygy.training.progress import Reporter
from syzygy.training.run_records import RunResult


class PromptImageRun(CaptionedImagesRun):
    """All settings of the stages image and quality for a Stable Diffusion."""

    trains: Trains | None = None
    """"adapter" trains the adapter with the U-Net frozen, which then serves its own text encoders too; "lora" also trains a LoRA of the
    U-Net; "unet" also trains the whole U-Net, as the paper does. null is what the previous stage trained, and "adapter" after stage align."""
    timestep_aware: bool | None = None
    """Whether the adapter's states depend on the timestep that the U-Net denoises (ELLA, arXiv 2403.05135). In generation the adapter, but not
    the language model, then runs at each step. null is as in the previous stage, and false after stage align, which has no timesteps."""
    rank: int = Field(default=16, ge=1)
    """Rank of the LoRA."""
    layers: str = r"\.attn2\."
    """Regular expression for the names of the layers that have a LoRA; the default is the U-Net's cross-attention. A stage that continues
    a LoRA takes rank and layers from it."""
    task: PromptImageTaskConfig
    """Loss and batch."""


def train_on_images(
    run: PromptImageRun,
    previous: PreviousStage,
    llm: Llm | StoredFeatures,
    model: FoundDecoder,
    data: str,
    out: Path,
    world: Ranks,
    *,
    cache: CacheFolder | None = None,
    report: Reporter | None = None,
    fitting: Fitting = AS_GIVEN,
) -> RunResult:
    """Train the adapter (or resume) in `out`; the results are `out/adapter`, and `out/lora` or `out/unet` if these are trained, in fp16.

    The latents of the images are encoded first, once, into `out/latents`.

    Args:
        previous: the adapter to continue from; `previous.next_stage` is the stage that is trained.
        llm: its language model, or the store that has its features of the captions.
        model: the Stable Diffusion whose U-Net reads the adapter's states.
        data: a source of captioned images (`open_source`); for stage quality, the selected ones.
        cache: where the language model's features of the captions are kept, which are then computed once, before the first step; None
            computes them at each step.

    Raises:
        UserError: the previous stage trained something else, or the U-Net of another model; its adapter is timestep-aware, which would be lost;
            nothing would be trained; a part of the model or the data are unusable; there are several processes.
    """
    _check(previous, llm, data, world)
    folder, device = model.at.folder, world.device
    settled = {"trains": _trains(run, previous, folder), "timestep_aware": _timestep_aware(run, previous)}
    run = run.model_copy(update=settled)
    adapter = _adapter(run, previous)
    unet, lora = _networks(run, previous, folder)
    source, noise = opened(run, data), training_noise(folder)
    pictures = stable_diffusion_pictures(folder, run.size, device)
    latents = captioned_latents(run, pictures, source, out / "latents", fitting.say)
    run = fitted(run, latents, source.text, fitting)
    unseen, seen = split_pictures(latents.same_picture, run.validation_pictures, run.seed)
    if not is_dry_run():  # which encodes a few of the images only
        run = fitting.batch(run, len(seen))
        fitting.passes(len(seen), len(unseen), run.loop.steps * run.task.batch_size)
    record = {**_about(run, previous, folder, noise), **pictures.fingerprints, "data": latents.fingerprint}
    del pictures  # frees the memory of the autoencoder
    reads, kept = _features(previous, llm, latents, cache, world, fitting)
    record |= kept
    stage = _stage(run, adapter, unet, lora, noise, device)
    steps, zeros = Steps(latents, seen, run.task, run.seed), negative_is_zeros(folder) and run.trains != "adapter"
    batches = DescribedLatentsSource(steps, unseen, reads, len(noise.kept), device, run.task, zeros=zeros)

    def save(place: Path, provenance: dict[str, Any]) -> None:
        provenance |= {"languages": previous.languages(), "model": model.at.source, "source": source.text}
        if run.trains != "adapter":
            provenance["trained_unet"] = _save_unet(out, unet, lora, provenance)
        adapter.save_pretrained(place, provenance, torch.float16)

    return train_stage(run, stage, batches, record, out, world, report, save)


def _check(previous: PreviousStage, llm: Llm | StoredFeatures, data: str, world: Ranks) -> None:
    """Refuse what cannot be trained, before the images are encoded."""
    if world.size > 1:
        raise UserError("an adapter for Stable Diffusion learns from images in one process: start it without torchrun.")
    if (Path(data) / MANIFEST_FILE).is_file():
        raise UserError(
            f"{data} is an embedding store, which holds no images: give the images that it was embedded from as --data, and the store as "
            "--store."
        )
    if isinstance(llm, StoredFeatures):
        open_features(llm.store, previous.llm, llm.name)


def _trains(run: PromptImageRun, previous: PreviousStage, folder: Path) -> Trains:
    """What is trained, by the settings and the stage before.

    Raises:
        UserError: they contradict each other; nothing would be trained; the stage before trained the U-Net of another model.
    """
    before = trained_form(previous.record)
    if before != "adapter":
        check_unet(previous.record, previous.run, folder)
    found = run.trains or before
    if before not in ("adapter", found):
        raise UserError(
            f"{previous.run} was trained with trains={before}, and its adapter needs that; trains={found} would lose it. Set trains={before}."
        )
    if found == "adapter" and run.task.frozen == "adapter":
        raise UserError("task.frozen=adapter leaves nothing to train with a frozen U-Net: set trains=lora or unet.")
    return found


def _timestep_aware(run: PromptImageRun, previous: PreviousStage) -> bool:
    """Whether the adapter is timestep-aware, by the settings and the stage before.

    Raises:
        UserError: what the stage before learned would be lost, or nothing would be learned.
    """
    before = previous.adapter.timestep_aware
    if before and run.timestep_aware is False:
        raise UserError(
            f"the adapter of {previous.run} is timestep-aware; timestep_aware=false would lose what it learned. Leave the setting out, or "
            "start again from an adapter that is not."
        )
    found = before or bool(run.timestep_aware)
    if found and not before and run.task.frozen == "adapter":
        raise UserError(
            f"timestep_aware=true has no effect with task.frozen=adapter: the adapter of {previous.run} is not timestep-aware, and would not "
            "learn to be. Leave one of them out."
        )
    return found


def _adapter(run: PromptImageRun, previous: PreviousStage) -> TextAdapter:
    """The adapter as the stage before left it, perhaps made timestep-aware, which changes nothing yet."""
    if run.timestep_aware and not previous.adapter.timestep_aware:
        return with_timesteps(previous.adapter, run.seed)
    return previous.adapter


def _networks(run: PromptImageRun, previous: PreviousStage, folder: Path) -> tuple[Any, Lora | None]:
    """The U-Net, with gradients where it is trained, and its LoRA, on the CPU; as the stage before left them."""
    continues = trained_form(previous.record) != "adapter"
    if run.trains == "unet":
        return load_unet(previous.run / WHOLE if continues else folder / "unet").requires_grad_(True), None
    unet: nn.Module = load_unet(folder / "unet")
    if run.trains == "adapter":
        return unet, None
    if continues:
        return unet, load_trained_lora(previous.run / LORA, unet)
    return unet, build_lora(unet, rank=run.rank, layers=run.layers, seed=run.seed)


def _features(
    previous: PreviousStage,
    llm: Llm | StoredFeatures,
    latents: Latents,
    cache: CacheFolder | None,
    world: Ranks,
    fitting: Fitting,
) -> tuple[Llm | FeatureSet, dict[str, Any]]:
    """What gives the language model's features of the captions, and what is recorded of it: a run is continued with the same rounding."""

    def captions() -> Iterator[str]:
        return (text for one in latents.captions for text in one)

    if isinstance(llm, StoredFeatures):
        found, dtype = llm.opened(previous.llm, captions())
        fitting.say(
            f"The language model's features of the captions are read from {llm.store} (feature set {llm.name!r})."
        )
        return found, {"cached": {"llm": dtype}}
    llm.to(world.device)
    if cache is None:
        fitting.say(
            "The language model computes the features of the captions at each step; --cache computes them once."
        )
        return llm, {}
    found = read_once(cache, features_of(captions, llm, previous.llm), llm, world, fitting)
    return found, {"cached": {"llm": precision_of(llm)}}


def _about(run: PromptImageRun, previous: PreviousStage, folder: Path, noise: DiscreteNoise) -> dict[str, Any]:
    """What the adapter is trained with, besides the images."""
    return {
        "stage": previous.next_stage,
        "trains": run.trains,
        "llm": previous.llm,
        "text_encoders": previous.record["text_encoders"],
        "unet": unet_fingerprint(folder),
        "scheduler": noise.fingerprint(),
        "lineage": previous.lineage,
    }


def _stage(
    run: PromptImageRun, adapter: TextAdapter, unet: Any, lora: Lora | None, noise: DiscreteNoise, device: torch.device
) -> DiffusionStage:
    """The networks on the device, and what is minimised."""
    adapter.to(device)
    unet.to(device)
    if lora is not None:
        lora.to(device)
    if run.task.checkpointing:
        unet.enable_gradient_checkpointing(recomputed(lora, device, chosen_precision(run.task.precision, device)))
    return DiffusionStage(adapter, unet, noise, run.task, lora=lora)


def _save_unet(out: Path, unet: Any, lora: Lora | None, provenance: Mapping[str, Any]) -> str:
    """Write what was trained besides the adapter; returns its fingerprint."""
    if lora is None:
        save_unet(unet, out / WHOLE, {**provenance, "kind": "unet"}, torch.float16)
        return artifacts.fingerprint(artifacts.read_tensors(out / WHOLE / WEIGHTS_FILE))
    save_lora(lora, out / LORA, lora_settings(lora), {**provenance, "kind": "lora"})
    return artifacts.fingerprint(artifacts.read_tensors(out / LORA / artifacts.WEIGHTS_FILE))
