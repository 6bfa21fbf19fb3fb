"""Published models: a decoder, the CLIP that it was trained with, and a prior are loaded and joined to a pipeline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from syzygy.clip.clip_model import Clip
from syzygy.clip.zero_image import ZeroImage
from syzygy.core import artifacts, hub_files
from syzygy.core.contracts import Prior
from syzygy.core.errors import UserError
from syzygy.core.offload import HOME
from syzygy.core.registry import PRIORS, by_name
from syzygy.experts.expert_folders import OffloadPolicy
from syzygy.experts.expert_unets import ExpertUNet, with_experts
from syzygy.generation.pipeline import Pipeline
from syzygy.pretrained import repositories
from syzygy.pretrained.decoder_validation import which_clip
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.repositories import FoundDecoder, identity
from syzygy.pretrained.trained_unet import concept_unet, fingerprint_of
from syzygy.pretrained.visiting import VisitingPrior, VisitingText
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.prior_folders import find_prior, holds_diffusion
from syzygy.prior.prior_loading import load_any_prior

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

CONCEPTS = "kandinsky-2.2"
"""The model whose decoder can be trained on a concept."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where the parts of a model are kept, and in which precision."""

    dtype: str = "fp32"
    """Precision of CLIP and decoder: fp32, fp16 or bf16. ECLIPSE is small and stays in fp32."""
    offload: bool = False
    """Text encoder, prior and the decoder's parts are on the device only while they compute."""
    tiling: bool = False
    """Decode latents tile by tile."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r} is unknown. Known: {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class Assembled:
    """The parts of a `TextToImage` that was published."""

    clip: Callable[[], Clip]
    """Gives text and image encoder. For a decoder with its own text encoder it loads a CLIP that scores images."""
    pipeline: Pipeline
    folder: Path
    """Of the decoder."""
    identities: Mapping[str, str]
    """Where each part is from, and at which commit."""


def load_published(
    model: str | Path,
    *,
    prior: str | Path | Prior | None = None,
    clip: str | Path | None = None,
    device: str = "cpu",
    memory: Memory = Memory(),
    decoder: str | Path | None = None,
    experts: str | Path | None = None,
    offload_policy: OffloadPolicy = OffloadPolicy(),  # noqa: B008 (frozen)
    own_text: bool = True,
    local_files_only: bool = True,
) -> Assembled:
    """Load a published model; what is not given is what its family declares (`pretrained.families`).

    Args:
        model: a name, a folder in diffusers' layout, or a hub id.
        prior: as of `load_prior`, or any object with `predict`.
        clip: a folder or hub id.
        decoder: a run of concept fine-tuning, or the folder of its U-Net, which replaces the decoder's.
        experts: a folder as of `ExpertUNet.from_pretrained`: in the place of the decoder's U-Net.
        offload_policy: where they are.
        own_text: load the text encoders of a decoder that reads texts alone; not where an adapter replaces them.
        local_files_only: take hub ids from the hub's cache only; else download what is missing.

    Raises:
        UserError: a part is missing, broken or does not fit; offloading on the CPU.
    """
    where = _Place(torch.device(device), DTYPES[memory.dtype], memory, local_files_only)
    if memory.offload and where.device.type == "cpu":
        raise UserError(
            "offloading moves parts off a GPU while others compute. On the CPU it has no effect: leave it out."
        )
    named = None if decoder is None else repositories.named_family(model)
    if named is not None and named.name != CONCEPTS:  # refused before anything is looked for
        raise UserError(
            f"{model} was not trained with this package, so its decoder cannot be exchanged; that of {CONCEPTS} can, after `syzygy train "
            "decoder --concept`. Leave the decoder out."
        )
    found = repositories.find_decoder(model, local_files_only=local_files_only)
    family, reads_embedding = found.family, found.family.decoder.reads_image_embedding
    if not reads_embedding and prior is not None:
        raise UserError(f"{found.at.source} reads texts alone and has no place for a prior: leave the prior out.")
    unet = None if decoder is None else concept_unet(decoder, found.at.folder)
    clip = clip or family.clip
    if clip is None:
        raise UserError(f"the decoder {family.name} names no CLIP of its own: give one (--clip, or clip=…).")
    if not reads_embedding:
        made = _of_texts(found, clip, where, own_text)
    elif (prior := family.prior if prior is None else prior) is None:
        raise UserError(f"the decoder {family.name} names no prior of its own: give one (--prior, or prior=…).")
    else:
        made = _of_embeddings(found, prior, clip, where, unet)
    if experts is None:
        return made
    unets = ExpertUNet.from_pretrained(experts, device=where.device, dtype=where.dtype, offload_policy=offload_policy)
    pipeline = replace(made.pipeline, decoder=with_experts(made.pipeline.decoder, unets.to(where.home)))
    return replace(made, pipeline=pipeline, identities={**made.identities, "experts": str(experts)})


@dataclass(frozen=True)
class _Place:
    """Where parts are, and how they are found."""

    device: torch.device
    dtype: torch.dtype
    memory: Memory
    local_files_only: bool

    @property
    def home(self) -> torch.device:
        """Where parts are that do not compute."""
        return torch.device(HOME) if self.memory.offload else self.device

    def context(self, folder: Path, clip: Clip | None = None, clip_identity: str = "") -> LoadContext:
        """What a decoder is loaded with."""
        return LoadContext(
            folder=folder,
            device=self.device,
            dtype=self.dtype,
            offload=self.memory.offload,
            tiling=self.memory.tiling,
            clip=clip,
            clip_identity=clip_identity,
        )


def _of_texts(found: FoundDecoder, clip: str | Path, where: _Place, own_text: bool) -> Assembled:
    """A decoder that reads texts alone."""

    def load_clip() -> Clip:
        read = Clip.from_pretrained(clip, dtype=where.dtype, local_files_only=where.local_files_only)
        return read.requires_grad_(False).to(where.home)

    decoder = found.family.decoder.load(replace(where.context(found.at.folder), own_text=own_text))
    path = Pipeline(None, None, decoder, where.device)
    return Assembled(load_clip, path, found.at.folder, {"decoder": identity(found.at)})


def _of_embeddings(
    found: FoundDecoder, prior: str | Path | Prior, clip: str | Path, where: _Place, unet: Path | None
) -> Assembled:
    """A decoder that reads image embeddings, with a CLIP and a prior; `unet` replaces its U-Net."""
    width = found.family.decoder.embedding_width(found.at.folder)
    named = isinstance(prior, (str, Path))
    if named and by_name(PRIORS, prior) is None:
        _check_prior(found, width, prior, where.local_files_only)
    encoder = Clip.from_pretrained(clip, dtype=where.dtype, text_first=True, local_files_only=where.local_files_only)
    if encoder.width != width:
        raise UserError(
            f"the decoder {found.at.source} reads image embeddings {which_clip(width)}; the CLIP {clip} makes "
            f"embeddings {which_clip(encoder.width)}. Give the CLIP that the decoder was trained with"
            f"{_such_as(found.family.clip)}."
        )
    encoder = encoder.requires_grad_(False).to(where.home)
    loaded = _prior(prior, encoder, str(where.home), where.dtype, where.local_files_only) if named else prior
    clip_at = hub_files.locate(clip, None, local_files_only=True)
    if isinstance(loaded, LambdaEclipsePrior):
        loaded.zero_image = ZeroImage(encoder, identity(clip_at))
    context = replace(where.context(found.at.folder, encoder, identity(clip_at)), unet=unet)
    decoder = found.family.decoder.load(context)
    path = (
        Pipeline(VisitingText(encoder, where.device), VisitingPrior(loaded, where.device), decoder, where.device)
        if where.memory.offload
        else Pipeline(encoder, loaded, decoder, where.device)
    )
    identities = {"clip": identity(clip_at), "decoder": identity(found.at), "prior": _prior_identity(prior, loaded)}
    if unet is not None:
        identities["unet"] = fingerprint_of(unet)
    return Assembled(lambda: encoder, path, found.at.folder, identities)


def _such_as(example: str | None) -> str:
    return "" if example is None else f", such as {example}"


def _check_prior(found: FoundDecoder, width: int, source: str | Path, local_files_only: bool) -> None:
    """Refuse a prior for another CLIP before gigabytes are read."""
    folder = find_prior(source, local_files_only=local_files_only)
    predicts = artifacts.read_json(folder / artifacts.CONFIG_FILE).get("embedding_dim")
    if isinstance(predicts, int) and predicts != width:
        raise UserError(
            f"the decoder {found.at.source} reads image embeddings {which_clip(width)}; the prior {source} predicts "
            f"embeddings {which_clip(predicts)}. Give a prior trained with the decoder's CLIP"
            f"{_such_as(found.family.prior)}."
        )


def _prior(source: str | Path, clip: Clip, device: str, dtype: torch.dtype, local_files_only: bool) -> Prior:
    if by_name(PRIORS, source) is None and not holds_diffusion(find_prior(source, local_files_only=local_files_only)):
        dtype = torch.float32
    return load_any_prior(source, clip, device, dtype=dtype, local_files_only=local_files_only)


def _prior_identity(source: str | Path | Prior, loaded: Prior) -> str:
    """The weights' fingerprint where they are few; the commit or folder of a prior of a billion."""
    if isinstance(loaded, nn.Module):
        return artifacts.fingerprint(loaded.state_dict())
    if isinstance(source, (str, Path)) and by_name(PRIORS, source) is None:
        return identity(hub_files.locate(source, None, local_files_only=True))
    return source if isinstance(source, str) else type(source).__name__
