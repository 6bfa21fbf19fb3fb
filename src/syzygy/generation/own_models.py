"""Models trained with this package, as folders: their parts are loaded, checked to belong together, and joined to a pipeline."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syzygy.clip.clip_model import Clip
from syzygy.clip.zero_image import ZeroImage
from syzygy.core import artifacts
from syzygy.core.contracts import Prior, Sampling
from syzygy.core.errors import UserError
from syzygy.core.model_parts import CLASS_NAME, COMPONENTS, INDEX_FILE, OPTIONAL, model_folder, part_folder, read_index
from syzygy.core.registry import DECODERS
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import load_config, load_decoder
from syzygy.decoder.latent_decoder import IMAGE_STRENGTH, LatentDecoder
from syzygy.decoder.network import DecoderConfig
from syzygy.decoder.placement import PlacementPredictor
from syzygy.decoder.preconditioning import Preconditioned
from syzygy.experts.expert_folders import OffloadPolicy, decoders_of, experts_folder, load_experts
from syzygy.generation.pipeline import Pipeline
from syzygy.pretrained import repositories
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from syzygy.prior.prior_loading import check_trained_with, load_any_prior
from syzygy.regions.region_bias import REGION_STRENGTH
from syzygy.text_encoders.t5 import T5Text

DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 25,
    "guidance_scale": 2.0,
    "sampler": "dpm++2m",
    "region_strength": REGION_STRENGTH,
    "style_guidance": None,
    "strength": IMAGE_STRENGTH,
}
"""Used where a model's index names no other. It may also name `conditions`: what the decoder reads of prompts while no prior is named."""


@dataclass(frozen=True)
class OwnModel:
    """The parts of a `TextToImage` that was trained with this package."""

    clip: Clip
    pipeline: Pipeline
    folder: Path
    world: bool
    """Whether it was trained on the embedded world alone."""


def load(
    model: str | Path,
    *,
    prior: str | Path | Prior | None,
    decoder: str | Path | None,
    experts: str | Path | None,
    device: str,
    local_files_only: bool,
    offload_policy: OffloadPolicy = OffloadPolicy(),  # noqa: B008 (frozen)
) -> OwnModel:
    """Load a model that comes with the package, or a folder with the same layout.

    Args:
        prior: another prior than the model's own.
        decoder: another decoder: its folder, or the run that trained it.
        experts: an ensemble instead of the model's decoder: its folder, or the run that trained it.
        offload_policy: where the experts are.

    Raises:
        UserError: an unknown name, a missing, truncated or mismatched part.
    """
    folder = model_folder(model, DECODERS)
    index = read_index(folder, repositories.known_classes())
    clip = Clip.from_pretrained(folder / "clip").to(device)
    autoencoder = Autoencoder.from_pretrained(folder / "autoencoder").to(device)
    chosen = prior if prior is not None else folder / "prior"
    loaded: Any = chosen
    if isinstance(chosen, (str, Path)):
        loaded = load_any_prior(chosen, clip, device, local_files_only=local_files_only)
    said = index.get("defaults", {})
    own = DEFAULTS | {"region_strength" if name == "painting" else name: value for name, value in said.items()}
    named = own.get("conditions", ()) if prior is None else ()
    if isinstance(loaded, LambdaEclipsePrior):
        loaded.zero_image = ZeroImage(clip, clip.fingerprint())
        named = ("image",)  # the texts have a subject's word, and not what its picture shows
    defaults = Sampling(
        steps=own["num_inference_steps"],
        guidance_scale=own["guidance_scale"],
        sampler=own["sampler"],
        region_strength=own["region_strength"],
        style_guidance=own["style_guidance"],
        strength=own["strength"],
    )
    if experts is None:
        trained = part_folder(folder if decoder is None else decoder, "decoder")
        network = load_decoder(trained).to(device)
        _check_decoder(network.config, trained, clip, autoencoder)
        denoiser = Preconditioned(network, network.config.sigma_data)
    else:
        grown = experts_folder(Path(experts))
        trained = grown / decoders_of(grown)[0]
        for name in decoders_of(grown):
            _check_decoder(load_config(grown / name), grown / name, clip, autoencoder)
        denoiser = load_experts(grown, device, offload_policy)
    encoders = own_encoders(folder, trained, device)
    placement = _placement(folder, clip, encoders, device)
    image_decoder = LatentDecoder(
        denoiser, autoencoder, torch.device(device), defaults, encoders=encoders, placement=placement
    )
    reads = [name for name in named if name in image_decoder.conditions] or None
    pipeline = Pipeline(clip, loaded, image_decoder, torch.device(device), reads)
    return OwnModel(clip, pipeline, folder, bool(index.get("world")))


def _check_decoder(config: DecoderConfig, folder: Path, clip: Clip, autoencoder: Autoencoder) -> None:
    """Whether the decoder in this folder reads what the CLIP makes, and makes what the autoencoder reads."""
    for slot in config.slots:
        if slot.pooled_width not in (None, clip.width):
            raise UserError(
                f"the decoder in {folder} reads embeddings {slot.pooled_width} wide, its CLIP makes {clip.width}: "
                "they belong to different models."
            )
    if (made := (config.channels, config.size, config.size)) != autoencoder.latent_shape:
        raise UserError(
            f"the decoder in {folder} makes latents of shape {made}, its autoencoder reads {autoencoder.latent_shape}: "
            "they belong to different models."
        )
    check_trained_with(folder, "clip", clip.fingerprint())
    check_trained_with(folder, "autoencoder", autoencoder.fingerprint())


def own_encoders(folder: Path, decoder: Path, device: str) -> dict[str, T5Text]:
    """The text encoders that a decoder reads besides the model's CLIP: the same as in its training."""
    reads = {slot.name for slot in load_config(decoder).slots} - {"image", "text"}
    if strange := sorted(reads - {"t5"}):
        raise UserError(f"the decoder in {decoder} reads {', '.join(strange)}, which this version does not know.")
    if not reads:
        return {}
    if not (folder / "t5").is_dir():
        raise UserError(
            f"the decoder in {decoder} reads T5's states, but {folder} has no folder t5: copy the encoder there."
        )
    t5 = T5Text.from_pretrained(folder / "t5")
    check_trained_with(decoder, "t5", t5.fingerprint())
    return {"t5": t5.to(device)}


def _placement(folder: Path, clip: Clip, encoders: Mapping[str, T5Text], device: str) -> PlacementPredictor | None:
    """The model's placement predictor, if it has one, for the text encoders that it was trained with."""
    own = folder / "placement"
    if not own.is_dir():
        return None
    for name, encoder in {"clip": clip, **encoders}.items():
        check_trained_with(own, name, encoder.fingerprint())
    return PlacementPredictor.from_pretrained(own).to(device)


def write_model(parts: Mapping[str, Path], out: Path, *, world: bool, defaults: Mapping[str, Any]) -> Path:
    """Put trained parts (`COMPONENTS`, perhaps some of `OPTIONAL`) together as a model folder that `from_pretrained` loads."""
    assert set(parts) - set(OPTIONAL) == set(COMPONENTS)
    assert ("llm" in parts) == ("adapter" in parts), "an adapter reads the features of its language model alone"
    with artifacts.folder_written(out, "the model") as temporary:
        for name, folder in parts.items():
            shutil.copytree(folder, temporary / name)
        if "adapter" in parts:
            _move_language_model(temporary / "adapter")
        index = {"_class_name": CLASS_NAME, "schema_version": artifacts.SCHEMA_VERSION, "world": world}
        artifacts.write_json(temporary / INDEX_FILE, index | {"defaults": dict(defaults)})
    return out


def _move_language_model(adapter: Path) -> None:
    """Record that the adapter's language model is next to it from now on."""
    path = adapter / artifacts.PROVENANCE_FILE
    record = artifacts.read_json(path)
    artifacts.write_json(path, record | {"llm": record["llm"] | {"source": "llm"}})
