"""The files of a `PriorPipeline`: where its components come from, and the folder that it is saved in.

The folder has the layout of diffusers' pipelines (`model_index.json`, and a folder for each component). Without the image encoder it also
holds the embedding of an image of zeros, for which alone that encoder is needed.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip import clip_loading
from syzygy.clip.clip_model import Clip
from syzygy.clip.image_processing import Preparation
from syzygy.clip.zero_image import NAME, ZeroImage
from syzygy.core import artifacts, hub_files
from syzygy.core.errors import UserError, unknown
from syzygy.core.model_files import weight_file
from syzygy.generation.replaced_text_encoder import adapter_folder, llm_beside
from syzygy.pretrained.repositories import CLASS, INDEX_FILE, identity
from syzygy.prior.diffusion_prior import DiffusionPrior, PriorSampling
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.prior_folders import EXAMPLE, find_prior, layout_of
from syzygy.prior.prior_loading import (
    OnePassPrior,
    check_trained_with,
    check_width,
    read_network,
    sampling_of,
    scheduler_file,
)
from syzygy.prior.unclip_sampling import Schedule
from syzygy.text_encoders.adapter import AdaptedText
from syzygy.text_encoders.adapter_folders import load_adapted

CLIPS = {1280: "kandinsky-community/kandinsky-2-2-prior", 768: "openai/clip-vit-large-patch14"}
"""Whose embeddings published priors predict, by their width."""
OWN_CLASS = "PriorPipeline"
"""`_class_name` in the `model_index.json` of folders that are written here."""
WITHOUT_EFFECT = (
    "cache_dir", "custom_pipeline", "custom_revision", "force_download", "low_cpu_mem_usage", "max_memory", "mirror", "offload_folder",
    "offload_state_dict", "output_loading_info", "proxies", "quantization_config", "resume_download", "token", "use_onnx",
)  # fmt: skip
"""Arguments of diffusers' `from_pretrained` that are accepted with a warning."""


@dataclass(frozen=True)
class Dtypes:
    """What the components compute in."""

    default: torch.dtype
    """Of the CLIP and of a diffusion prior."""
    own: Mapping[str, torch.dtype]
    """For components by name, where they are named."""

    @staticmethod
    def of(dtype: Any, torch_dtype: Any) -> "Dtypes":
        """From the arguments of `from_pretrained`: a dtype, or a dictionary from components (or "default") to dtypes.

        Raises:
            UserError: both are given.
        """
        if dtype is not None and torch_dtype is not None:
            raise UserError("dtype and torch_dtype are one setting: give one of them.")
        given = dtype if dtype is not None else torch_dtype
        if isinstance(given, Mapping):
            default = given.get("default", torch.float32)
            return Dtypes(default, {"prior": default, **given})
        return Dtypes(given or torch.float32, {})

    def __getitem__(self, component: str) -> torch.dtype:
        return self.own.get(component, self.default)


@dataclass(frozen=True)
class PriorParts:
    """The components of a `PriorPipeline`, and what belongs to them."""

    prior: OnePassPrior | DiffusionPrior
    text_encoder: Any
    """transformers' `CLIPTextModelWithProjection`, or an `AdaptedText`."""
    tokenizer: Any
    """CLIP's; None with an `AdaptedText`, which has its own."""
    image_encoder: Any
    """transformers' `CLIPVisionModelWithProjection`, or None."""
    scheduler: Any
    """diffusers' `UnCLIPScheduler` with which a published diffusion prior is sampled, or None."""
    image_processor: Any
    zero_image: Callable[[], Tensor]
    """Gives the embedding of an image of zeros where there is no image encoder, [1, D]."""
    sampling: tuple[PriorSampling, Schedule] | None
    """Of a diffusion prior."""
    record: dict[str, Any] | None
    """Of the prior's training."""

    @property
    def components(self) -> dict[str, Any]:
        """By the names that they have in the pipeline."""
        names = ("prior", "text_encoder", "tokenizer", "image_encoder", "scheduler", "image_processor")
        return {name: getattr(self, name) for name in names}


def load_parts(
    prior: str | Path,
    *,
    clip: str | Path | None,
    text_encoder: str | Path | None,
    llm: str | Path | None,
    dtypes: Dtypes,
    variant: str | None,
    local_files_only: bool,
) -> PriorParts:
    """All components, on the CPU; arguments as of `PriorPipeline.from_pretrained`.

    Raises:
        UserError: a part is not found, broken, or does not fit the other.
    """
    folder = find_prior(prior, local_files_only=local_files_only, variant=variant)
    own = clip is None and _index(folder).get(CLASS) == OWN_CLASS
    source = _clip_of(prior, folder) if clip is None else clip
    # One after the other, so that what has been downloaded is found by everything below.
    read = _Text.saved if own and (folder.parent / hub_files.ZERO_IMAGE).is_file() else _Text.of_clip
    text = read(source, dtypes["text_encoder"], variant, local_files_only)
    network = read_network(folder, dtypes["prior"], variant=variant)
    check_width(folder, network, text.model.config.projection_dim)
    if isinstance(network, LambdaEclipsePrior):
        network.zero_image = text.zero_image
    if not own and text.clip is not None:  # what was saved together belongs together, in whatever precision
        check_trained_with(folder, "clip", text.clip.fingerprint)
    _check_variant(variant, folder, text.folder)
    if own or "prior" in dtypes.own:
        network = network.to(dtypes["prior"])
    model, tokenizer = text.model, text.tokenizer
    if text_encoder is not None:
        model, tokenizer = _adapted(text_encoder, llm, folder, text, local_files_only), None
    image = text.clip.model.load_image() if own and text.clip is not None else None
    path = folder / artifacts.PROVENANCE_FILE
    diffusion = isinstance(network, DiffusionPrior)
    return PriorParts(
        prior=network,
        text_encoder=model,
        tokenizer=tokenizer,
        image_encoder=None if image is None else image.to(dtypes["image_encoder"]).requires_grad_(False),
        scheduler=_scheduler(folder) if diffusion else None,
        image_processor=None if text.preparation is None else image_processor(text.preparation),
        zero_image=text.zero_image,
        sampling=sampling_of(folder) if diffusion else None,
        record=artifacts.read_json(path) if path.is_file() else None,
    )


@dataclass(frozen=True)
class _Text:
    """What a pipeline needs of a CLIP."""

    model: Any
    tokenizer: Any
    preparation: Preparation | None
    zero_image: Callable[[], Tensor]
    folder: Path
    """Of the text encoder's weights."""
    clip: Clip | None
    """The whole of it; None where only the text encoder is there."""

    @staticmethod
    def of_clip(source: str | Path, dtype: torch.dtype, variant: str | None, local_files_only: bool) -> "_Text":
        clip = Clip.from_pretrained(
            source, dtype=dtype, text_first=True, local_files_only=local_files_only, variant=variant
        ).requires_grad_(False)
        at = hub_files.locate(source, None, local_files_only=True)
        zero, folder = ZeroImage(clip, identity(at)), _text_folder(at.folder)
        return _Text(clip.model.text, clip.tokenizer, clip.preparation, zero, folder, clip)

    @staticmethod
    def saved(source: str | Path, dtype: torch.dtype, variant: str | None, local_files_only: bool) -> "_Text":
        """Of a folder that was saved without its image encoder."""

        def download(source: str, revision: str | None) -> Any:
            return hub_files.download_model(source, revision, variant)

        at = hub_files.locate(source, None, local_files_only, download=download)
        model, tokenizer = clip_loading.load_text(at, dtype, variant)
        zero = artifacts.read_tensors(at.folder / hub_files.ZERO_IMAGE).get(NAME)
        if zero is None or zero.shape != (1, model.config.projection_dim):
            raise UserError(f"{at.folder / hub_files.ZERO_IMAGE} does not belong to this pipeline. Save it again.")
        preparation, folder = None, _text_folder(at.folder)
        if (at.folder / hub_files.PREPARATIONS[0]).is_dir():
            preparation = clip_loading.read_preparation(at)
        return _Text(model.requires_grad_(False), tokenizer, preparation, lambda: zero, folder, None)


def _text_folder(folder: Path) -> Path:
    return folder / hub_files.TEXT if hub_files.is_pipeline(folder) else folder


def _adapted(
    source: str | Path, llm: str | Path | None, folder: Path, text: _Text, local_files_only: bool
) -> AdaptedText:
    if text.clip is None:
        raise UserError(
            f"{folder.parent} was saved without its image encoder, and an adapter is checked against the whole CLIP that it was trained "
            "for: name that CLIP (clip=…)."
        )
    found = adapter_folder(source, folder.parent)
    return load_adapted(found, text.clip, llm=llm or llm_beside(found), local_files_only=local_files_only)


def _index(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of the pipeline that a prior lies in, if it lies in one."""
    path = folder.parent / INDEX_FILE
    return artifacts.read_json(path) if path.is_file() else {}


def _clip_of(source: str | Path, folder: Path) -> str | Path:
    """The CLIP of a prior: of the pipeline that it lies in, or the published one of its width."""
    index, needed = _index(folder), (hub_files.TEXT, hub_files.IMAGE)
    if index.get(CLASS) == OWN_CLASS or all(isinstance(one := index.get(part), list) and one[0] for part in needed):
        return folder.parent if Path(source).is_dir() else source
    if all((folder.parent / part).is_dir() for part in needed):
        return folder.parent
    width = artifacts.read_json(folder / artifacts.CONFIG_FILE).get("embedding_dim")
    if width not in CLIPS:
        raise UserError(
            f"the prior {source} predicts embeddings {width} wide, of no published CLIP known here: give the folder or hub id of "
            f"the CLIP that it was trained with (clip=…). A published prior is {EXAMPLE}."
        )
    return CLIPS[width]


def _check_variant(variant: str | None, prior: Path, text: Path) -> None:
    """Refuse a variant that no file of weights has; where only some have it, the others are read in what there is."""
    if variant is None:
        return
    found = [weight_file(prior, layout_of(prior).stem, variant), weight_file(text, hub_files.TRANSFORMERS, variant)]
    if not any(path is not None and f".{variant}." in path.name for path in found):
        raise UserError(
            f"You are trying to load the model files of the `variant={variant}`, but neither {prior} nor {text} has such files. "
            "Leave variant out: whatever precision is published is then read, and dtype says what is computed in."
        )


def _scheduler(folder: Path) -> Any:
    """The scheduler next to a diffusion prior, if there is one. It is not used by itself: its settings say how the prior is sampled."""
    from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

    path = scheduler_file(folder)
    return None if path is None else UnCLIPScheduler.from_config(artifacts.read_json(path))


def settings_of(scheduler: Any) -> dict[str, Any]:
    """What the `scheduler_config.json` of a scheduler would hold."""
    return dict(scheduler.config) | {CLASS: type(scheduler).__name__}


def image_processor(preparation: Preparation) -> Any:
    """transformers' image processor with these settings."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_dict(preparation.to_config())


def pinned(source: str | Path, revision: str | None) -> str | Path:
    """A hub id at a revision.

    Raises:
        UserError: a revision of a folder, or two revisions.
    """
    if revision is None:
        return source
    if Path(source).is_dir():
        raise UserError(f"{source} is a folder and has no revision {revision!r}; a revision belongs to a hub id.")
    if "@" in str(source):
        raise UserError(f"{source} names a revision already, and {revision!r} is another: give one.")
    return f"{source}@{revision}"


def device_of(device_map: torch.device | str) -> torch.device:
    """The device that a pipeline is to be on.

    Raises:
        UserError: it is a strategy of diffusers ("balanced"), or no device.
    """
    try:
        return torch.device(device_map)
    except RuntimeError:
        raise UserError(f"device_map {device_map!r} is no device: name one, such as 'cuda' or 'cpu'.") from None


def check_stock_arguments(given: Mapping[str, Any], pipeline: str, more: Sequence[str] = ()) -> None:
    """Warn of arguments of diffusers' `from_pretrained` that have no effect here.

    Args:
        given: the arguments that the function does not have itself.
        pipeline: the name of the class, for the warning.
        more: names of further arguments without effect.

    Raises:
        UserError: an argument that diffusers does not have either.
    """
    names = (*WITHOUT_EFFECT, *more)
    known = {*names, "use_safetensors"}
    for name in given:
        if name not in known:
            raise unknown("argument", name, known)
    without = [name for name, value in given.items() if name in names and value is not None]
    if given.get("use_safetensors") is False:
        without.append("use_safetensors=False (nothing but safetensors is read)")
    if without:
        warnings.warn(f"no effect in from_pretrained of a {pipeline}: {', '.join(without)}.", stacklevel=3)


def save_components(
    folder: Path,
    components: Mapping[str, Any],
    *,
    record: dict[str, Any] | None,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write each component into a folder of its own, as safetensors.

    Args:
        record: of the prior's training.
        variant: goes into the names of the weights of CLIP's encoders and of the prior.
        max_shard_size: of the files of CLIP's encoders.

    Raises:
        UserError: a component cannot be saved, or the folder cannot be written.
    """
    if isinstance(components["text_encoder"], AdaptedText):
        raise UserError(
            "a pipeline with a language model as its text encoder is not saved as a whole. Keep the folder of the adapter's run, and load "
            "the pipeline from it: PriorPipeline.from_pretrained(RUN, text_encoder=RUN)."
        )
    shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with artifacts.writing("the pipeline", folder):
        for name, component in components.items():
            if component is None:
                continue
            if name == "prior":
                component.save_pretrained(folder / name, record, variant=variant)
            elif name in (hub_files.TEXT, hub_files.IMAGE):
                component.save_pretrained(folder / name, variant=variant, **shards)
            else:
                component.save_pretrained(folder / name)


def save_zero_image(folder: Path, embedding: Float[Tensor, "1 D"] | None) -> None:
    """Write the embedding of an image of zeros; None, where the image encoder is saved, removes an old one."""
    path = folder / hub_files.ZERO_IMAGE
    if embedding is None:
        path.unlink(missing_ok=True)
    else:
        artifacts.write_tensors(path, {NAME: embedding.float().cpu()})
