"""A published decoder, the CLIP that it reads, and a prior, put together as one path of a prompt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from syzygy.clip.clip_model import Clip
from syzygy.clip.zero_image import ZeroImage
from syzygy.core import artifacts, checkpoint_files
from syzygy.core.contracts import ImageDecoder, Prior
from syzygy.core.errors import UserError
from syzygy.experts.expert_folders import OffloadPolicy
from syzygy.experts.expert_unets import ExpertUNet, with_experts
from syzygy.generation.pipeline import Pipeline
from syzygy.pretrained import decoder_validation, kandinsky, karlo, repositories, stable_diffusion, stable_unclip
from syzygy.pretrained.repositories import KANDINSKY, KARLO, Found, identity
from syzygy.pretrained.visiting import HOME, VisitingPrior, VisitingText
from syzygy.prior.diffusion_prior import SampledPrior
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.prior_loading import load_prior
from syzygy.prior.prior_network import find_prior, holds_diffusion

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WIDTH_OF = {KANDINSKY: kandinsky.embedding_width, KARLO: karlo.embedding_width}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What of a model is where, and in which precision."""

    dtype: str = "fp32"
    """What CLIP and decoder compute in: fp32, fp16 or bf16. ECLIPSE is small and stays in fp32."""
    offload: bool = False
    """Text encoder, prior and the decoder's parts are on the device only while they compute."""
    tiling: bool = False
    """Decode latents tile by tile."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r} is unknown. Known: {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class Assembled:
    """All that a `TextToImage` is made of."""

    clip: Callable[[], Clip]
    """Gives text and image encoder. Of a decoder that reads texts with its own: loads another, to judge pictures."""
    pipeline: Pipeline
    folder: Path
    """Of the decoder."""
    identities: Mapping[str, str]
    """Where each part is from, and at which commit."""


def assemble(
    model: str | Path,
    *,
    prior: str | Path | Prior | None = None,
    clip: str | Path | None = None,
    device: str = "cpu",
    memory: Memory = Memory(),
    experts: str | Path | None = None,
    offload_policy: OffloadPolicy = OffloadPolicy(),  # noqa: B008 (frozen)
    local_files_only: bool = True,
) -> Assembled:
    """Load a published model; what is not given is what belongs to it (`repositories.PUBLISHED`).

    Args:
        model: a name, a folder in diffusers' layout, or a hub id.
        prior: as of `load_prior`, or any object with `predict`.
        clip: a folder or hub id.
        experts: a folder as of `ExpertUNet.from_pretrained`: in the place of the decoder's U-Net.
        offload_policy: where they are.
        local_files_only: take hub ids from the hub's cache only; else download what is missing.

    Raises:
        UserError: a part is missing, broken or does not fit; offloading on the CPU.
    """
    where = _Place(torch.device(device), DTYPES[memory.dtype], memory, local_files_only)
    if memory.offload and where.device.type == "cpu":
        raise UserError(
            "offloading moves parts off a GPU between their turns; on the CPU it has no effect: leave it out."
        )
    found = repositories.find_decoder(model, local_files_only=local_files_only)
    if found.published.prior is None and prior is not None:
        raise UserError(f"{found.at.source} paints from texts alone and has no place for a prior: leave the prior out.")
    source = prior if prior is not None else found.published.prior
    clip = clip or found.published.clip
    made = _of_texts(found, clip, where) if source is None else _of_embeddings(found, source, clip, where)
    if experts is None:
        return made
    unets = ExpertUNet.from_pretrained(experts, device=where.device, dtype=where.dtype, offload_policy=offload_policy)
    decoder = with_experts(made.pipeline.decoder, unets.to(where.home))
    identities = {**made.identities, "experts": str(experts)}
    return replace(made, pipeline=replace(made.pipeline, decoder=decoder), identities=identities)


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


def _of_texts(found: Found, clip: str | Path, where: _Place) -> Assembled:
    """A decoder that reads texts alone."""

    def judge() -> Clip:
        read = Clip.from_pretrained(clip, dtype=where.dtype, local_files_only=where.local_files_only)
        return read.requires_grad_(False).to(where.home)

    decoder = stable_diffusion.load_stable_diffusion(
        found.at.folder,
        dtype=where.dtype,
        device=where.device,
        offload=where.memory.offload,
        tiling=where.memory.tiling,
    )
    path = Pipeline(None, None, decoder, where.device)
    return Assembled(judge, path, found.at.folder, {"decoder": identity(found.at)})


def _of_embeddings(found: Found, prior: str | Path | Prior, clip: str | Path, where: _Place) -> Assembled:
    """A decoder that reads image embeddings, with a CLIP and a prior."""
    width = WIDTH_OF.get(found.name, stable_unclip.embedding_width)(found.at.folder)
    named = isinstance(prior, (str, Path))
    if named:
        _check_prior(found, width, prior, where.local_files_only)
    encoder = Clip.from_pretrained(clip, dtype=where.dtype, text_first=True, local_files_only=where.local_files_only)
    if encoder.width != width:
        raise UserError(
            f"the decoder {found.at.source} reads image embeddings {decoder_validation.which_clip(width)}; the CLIP {clip} makes "
            f"embeddings {decoder_validation.which_clip(encoder.width)}. Give the CLIP that the decoder was trained with, such as "
            f"{found.published.clip}."
        )
    encoder = encoder.requires_grad_(False).to(where.home)
    loaded = _prior(prior, encoder, str(where.home), where.dtype, where.local_files_only) if named else prior
    clip_at = checkpoint_files.locate(clip, None, local_files_only=True)
    decoder = _decoder(found, encoder, identity(clip_at), where.device, where.memory)
    path = (
        Pipeline(VisitingText(encoder, where.device), VisitingPrior(loaded, where.device), decoder, where.device)
        if where.memory.offload
        else Pipeline(encoder, loaded, decoder, where.device)
    )
    identities = {"clip": identity(clip_at), "decoder": identity(found.at), "prior": _prior_identity(prior, loaded)}
    return Assembled(lambda: encoder, path, found.at.folder, identities)


def _decoder(found: Found, clip: Clip, clip_identity: str, device: torch.device, memory: Memory) -> ImageDecoder:
    folder, dtype = found.at.folder, DTYPES[memory.dtype]
    if found.name == KANDINSKY:
        return kandinsky.load_kandinsky(
            folder,
            unconditional=ZeroImage(clip, clip_identity),
            dtype=dtype,
            device=device,
            offload=memory.offload,
            tiling=memory.tiling,
        )
    if found.name == KARLO:
        if memory.tiling:
            raise UserError("Karlo paints pixels, without an autoencoder: there is nothing to tile. Leave tiling out.")
        return karlo.load_karlo(
            folder, empty=clip.encode_text([""]), dtype=dtype, device=device, offload=memory.offload
        )
    return stable_unclip.load_stable_unclip(
        folder, dtype=dtype, device=device, offload=memory.offload, tiling=memory.tiling
    )


def _check_prior(found: Found, width: int, source: str | Path, local_files_only: bool) -> None:
    """Refuse a prior for another CLIP before gigabytes are read."""
    folder = find_prior(source, local_files_only=local_files_only)
    predicts = artifacts.read_json(folder / artifacts.CONFIG_FILE).get("embedding_dim")
    if isinstance(predicts, int) and predicts != width:
        raise UserError(
            f"the decoder {found.at.source} reads image embeddings {decoder_validation.which_clip(width)}; the prior {source} predicts "
            f"embeddings {decoder_validation.which_clip(predicts)}. Give a prior trained with the decoder's CLIP, such as "
            f"{found.published.prior}."
        )


def _prior(
    source: str | Path, clip: Clip, device: str, dtype: torch.dtype, local_files_only: bool
) -> EclipsePrior | SampledPrior:
    if not holds_diffusion(find_prior(source, local_files_only=local_files_only)):
        dtype = torch.float32
    return load_prior(source, clip, device, dtype=dtype, local_files_only=local_files_only)


def _prior_identity(source: str | Path | Prior, loaded: Prior) -> str:
    """The weights' fingerprint where they are few; the commit or folder of a prior of a billion."""
    if isinstance(loaded, nn.Module):
        return artifacts.fingerprint(loaded.state_dict())
    if isinstance(source, (str, Path)):
        return identity(checkpoint_files.locate(source, None, local_files_only=True))
    return type(source).__name__
