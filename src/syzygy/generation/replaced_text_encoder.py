"""Another text encoder instead of a model's CLIP, such as a language model with its adapter: prior and decoder then read its features."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from syzygy.clip.clip_model import Clip
from syzygy.core import artifacts
from syzygy.core.contracts import ImageDecoder, Prior, StatesEncoder, TextEncoder, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.model_parts import INDEX_FILE, part_folder
from syzygy.core.offload import HOME
from syzygy.core.registry import TEXT_ENCODERS, Named, by_name, imported
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.generation.pipeline import Pipeline
from syzygy.pretrained.prompt_teacher import target_of
from syzygy.pretrained.stable_diffusion import StableDiffusionDecoder
from syzygy.pretrained.trained_unet import record_of, with_trained_unet
from syzygy.pretrained.visiting import VisitingPrior, VisitingPrompts, VisitingText
from syzygy.prior.diffusion_prior import SampledPrior
from syzygy.prior.eclipse import EclipsePrior
from syzygy.text_encoders.adapted_prompts import load_adapted_prompts
from syzygy.text_encoders.adapter_folders import PART, identity_of, load_adapted
from syzygy.text_encoders.llm import Llm

OWN = "adapter"
"""The name of the adapter in the model's own folder."""
LLM = "llm"
"""Where a model's folder keeps its adapter's language model."""


@dataclass(frozen=True)
class Adapted:
    """A pipeline with another text encoder."""

    pipeline: Pipeline
    languages: tuple[str, ...]
    """Codes of the languages that the adapter was trained on."""
    fingerprints: Mapping[str, str]
    """Of the adapter (`text_encoder`) and of its language model (`llm`)."""
    foreign_llm: bool
    """Whether the language model was not trained here (`syzygy train lm`)."""


def adapt(
    path: Pipeline,
    clip: Callable[[], Clip],
    model: Path,
    source: str | Path,
    *,
    llm: str | Path | None = None,
    offload: bool = False,
    local_files_only: bool = True,
) -> Adapted:
    """Load an adapter and let it read the prompts of a path, the empty one and negative ones included.

    In a Stable Diffusion the adapter replaces the U-Net's text encoders. Stable unCLIP's U-Net goes on reading texts with an encoder of its
    own: this is warned of, and so is a prior that is not the one that the adapter was trained with.

    Args:
        clip: gives the one in whose place it comes.
        model: the folder of the model, in case the adapter is its own (`OWN`).
        source: "adapter", the adapter's folder, that of its run, or of a model that has one; or the name of a registered text encoder,
            perhaps followed by ":" and what it reads.
        llm: folder of its language model. None: next to the adapter in a model's folder, or else where it was in training.
        offload: on the device only while it reads.

    Raises:
        UserError: the model has no text encoder that can be replaced; and as `load_adapted`.
    """
    if isinstance(path.decoder, StableDiffusionDecoder):
        return _in_stable_diffusion(path, path.decoder, model, source, llm, offload, local_files_only)
    if path.text_encoder is None:
        raise UserError(
            "this model reads prompts with text encoders of its own, which cannot be replaced: leave the text encoder out. "
            "Models that take one: starter, kandinsky-2.2, karlo, stable-unclip, stable-diffusion-1.5, stable-diffusion-xl."
        )
    device = HOME if offload else str(path.device)
    if (named := by_name(TEXT_ENCODERS, source)) is not None:
        return _registered(path, clip(), str(source), named, device, llm)
    folder = adapter_folder(source, model)
    found = load_adapted(
        folder, clip(), llm=llm or llm_beside(folder), device=device, local_files_only=local_files_only
    )
    encoder: TextEncoder = VisitingText(found, path.device) if offload else found
    _warn_of_own_text_encoder(path.decoder)
    _warn_of_prior(folder, path.prior)
    own = {"text_encoder": artifacts.fingerprint(found.adapter.state_dict()), "llm": identity_of(folder)["fingerprint"]}
    together = _trained_together(folder, path.decoder)
    adapted = with_text(path, encoder, decoder_knows=together)
    return Adapted(adapted, languages_of(folder), own, _is_foreign(found.llm))


def _in_stable_diffusion(
    path: Pipeline,
    decoder: StableDiffusionDecoder,
    model: Path,
    source: str | Path,
    llm: str | Path | None,
    offload: bool,
    local_files_only: bool,
) -> Adapted:
    """With an adapter instead of the U-Net's own text encoders, and with the U-Net that was trained with it, if one was."""
    if by_name(TEXT_ENCODERS, source) is not None:
        raise UserError(
            f"the text encoder {source} gives CLIP's features to a prior, and Stable Diffusion has none. Give an adapter of that model "
            "(syzygy train adapter --stage align --model)."
        )
    folder = adapter_folder(source, model)
    found = load_adapted_prompts(
        folder,
        target_of(model),
        model,
        llm=llm or llm_beside(folder),
        device=HOME if offload else str(path.device),
        local_files_only=local_files_only,
    )
    reader = VisitingPrompts(found, path.device) if offload else found
    own = {"text_encoder": artifacts.fingerprint(found.adapter.state_dict()), "llm": found.fingerprint}
    if "trained_unet" in (record := record_of(folder)):
        own["unet"] = record["trained_unet"]
    changed = replace(path, decoder=replace(with_trained_unet(decoder, folder, model), reader=reader))
    return Adapted(changed, found.languages, own, _is_foreign(found.llm))


def _is_foreign(llm: StatesEncoder) -> bool:
    """Whether a language model was not trained here, where runs have a record."""
    assert isinstance(llm, Llm)
    return not (Path(llm.source) / artifacts.PROVENANCE_FILE).is_file()


def _registered(path: Pipeline, clip: Clip, source: str, named: Named, device: str, llm: str | Path | None) -> Adapted:
    """With a text encoder that was registered by name."""
    if llm is not None:
        raise UserError(f"the text encoder {source} is no adapter of a language model: leave the language model out.")
    make, rest = named
    _warn_of_own_text_encoder(path.decoder)
    return Adapted(with_text(path, make(rest, clip, device)), (), {"text_encoder": source}, True)


def _warn_of_own_text_encoder(decoder: ImageDecoder) -> None:
    if decoder.own_text_encoder is not None:
        warnings.warn(
            f"{decoder.own_text_encoder}, besides the image embedding that the prior predicts from the text encoder's features. "
            "To leave that text out: conditions image.",
            stacklevel=4,
        )


def _trained_together(folder: Path, decoder: ImageDecoder) -> bool:
    """Whether our decoder learned to read this adapter's states."""
    trained_with = artifacts.read_json(folder / artifacts.PROVENANCE_FILE).get("decoder")
    network = getattr(decoder.denoiser, "network", None) if isinstance(decoder, LatentDecoder) else None
    return network is not None and trained_with == artifacts.fingerprint(network.state_dict())


def _warn_of_prior(folder: Path, prior: Prior | None) -> None:
    """An adapter's stage on pictures may have changed the prior as well; both then belong together."""
    prior = prior.prior if isinstance(prior, VisitingPrior) else prior
    trained_with = artifacts.read_json(folder / artifacts.PROVENANCE_FILE).get("prior")
    if trained_with is None or not isinstance(prior, EclipsePrior):
        return
    if trained_with != artifacts.fingerprint(prior.state_dict()):
        own = folder.parent / "prior"
        which = f"that of its run (prior {own})" if own.is_dir() else f"the one with the fingerprint {trained_with}"
        warnings.warn(
            f"the adapter in {folder} was trained with another prior than this model's, so images may be worse. Use {which}.",
            stacklevel=4,
        )


def with_text(path: Pipeline, encoder: TextEncoder, *, decoder_knows: bool = False) -> Pipeline:
    """The same path with another text encoder in CLIP's space: its features of the empty prompt are also the negative conditioning.

    Our decoder then reads only the prior's image embedding. It reads the encoder's token states too if it was trained with them
    (`decoder_knows`): they are a soft prompt for the prior, and no copy of CLIP's tokens (docs/LOG.md says what it costs). T5 reads English.
    A call may say otherwise.
    """
    nothing = encoder.encode_text([""])
    reads = path.reads
    if isinstance(path.decoder, LatentDecoder):
        reads = ("image", "text") if decoder_knows else ("image",)
    prior = None if path.prior is None else _prior_with(path.prior, nothing)
    return replace(path, text_encoder=encoder, prior=prior, decoder=path.decoder.with_empty_text(nothing), reads=reads)


def _prior_with(prior: Prior, nothing: TextFeatures) -> Prior:
    """A diffusion prior is guided away from the empty prompt as its text encoder reads it; others as they are."""
    if isinstance(prior, VisitingPrior):
        return replace(prior, prior=_prior_with(prior.prior, nothing))
    return replace(prior, unconditional=nothing) if isinstance(prior, SampledPrior) else prior


def adapter_folder(source: str | Path, model: Path) -> Path:
    """The adapter's own folder; `source` as of `adapt`.

    Raises:
        UserError: it is not there.
    """
    folder = model / PART if str(source) == OWN else part_folder(source, PART)
    bare = (folder / INDEX_FILE).is_file()  # a model without one
    if bare or (folder.name == PART and not (folder / artifacts.CONFIG_FILE).is_file()):
        raise UserError(
            f"{model if str(source) == OWN else repr(str(source))} has no adapter of its own: name the folder of one, or of the run that "
            "trained it (syzygy train adapter; syzygy train starter makes a whole model with one)."
        )
    return folder


def llm_beside(folder: Path) -> Path | None:
    """The language model next to an adapter in a model's folder, if there is one."""
    found = folder.parent / LLM
    return found if (found / artifacts.CONFIG_FILE).is_file() else None


def languages_of(folder: Path) -> tuple[str, ...]:
    """The languages that an adapter was trained on, by its record; where it names none, all of the embedded world."""
    record: dict[str, Any] = artifacts.read_json(folder / artifacts.PROVENANCE_FILE)
    return tuple(record.get("languages") or imported("syzygy.lab.world.language:LANGUAGES"))
