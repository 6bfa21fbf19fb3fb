"""Models of our own as folders: which parts there are, whether they belong together, and how a path of a prompt is made of them."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syzygy import artifact
from syzygy.diffusion.decoder import DecoderConfig
from syzygy.diffusion.latents import PAINTING, LatentDecoder
from syzygy.diffusion.preconditioning import Preconditioned
from syzygy.errors import UserError
from syzygy.hub import repositories
from syzygy.hub.autoencoder import Autoencoder
from syzygy.hub.clip import Clip
from syzygy.hub.experts import Keeping, decoders_of, experts_folder, load_experts
from syzygy.hub.priors import load_prior, trained_beside
from syzygy.hub.t5 import T5Text
from syzygy.hub.unet import load_config, load_decoder
from syzygy.model_files import refuse_file
from syzygy.pipeline import Pipeline
from syzygy.types import Prior, Sampling

INDEX_FILE = "model_index.json"
CLASS_NAME = "TextToImage"
COMPONENTS = ("clip", "prior", "decoder", "autoencoder", "reader")
OPTIONAL = ("t5", "llm", "adapter")
"""Further parts that a model may have: T5 where its decoder reads it; a language model and its adapter, which are loaded only when
they are asked for as text encoder."""
BUNDLED = {"starter": Path(__file__).parents[1] / "starter"}
"""Models that come with the package."""
DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 25,
    "guidance_scale": 2.0,
    "sampler": "dpm++2m",
    "painting": PAINTING,
    "style_guidance": None,
}
"""Where a model says nothing else."""


@dataclass(frozen=True)
class Bundle:
    """All that a `TextToImage` of our own is made of."""

    clip: Clip
    pipeline: Pipeline
    folder: Path
    world: bool
    """Whether it paints the embedded world."""


def load(
    model: str | Path,
    *,
    prior: str | Path | Prior | None,
    decoder: str | Path | None,
    experts: str | Path | None,
    device: str,
    local_files_only: bool,
    keeping: Keeping = Keeping(),  # noqa: B008 (frozen)
) -> Bundle:
    """Load a model that comes with the package, or a folder with the same layout.

    Args:
        prior: another prior than the model's own.
        decoder: another decoder: its folder, or that of the run that trained it.
        experts: an ensemble in place of the model's decoder: its folder, or that of the run that grew it.
        keeping: where the experts are.

    Raises:
        UserError: an unknown name, a missing, truncated or mismatched part.
    """
    folder = model_folder(model)
    index = _read_index(folder)
    clip = Clip.from_pretrained(folder / "clip").to(device)
    autoencoder = Autoencoder.from_pretrained(folder / "autoencoder").to(device)
    chosen = prior if prior is not None else folder / "prior"
    loaded: Any = chosen
    if isinstance(chosen, (str, Path)):
        loaded = load_prior(chosen, clip, device, local_files_only=local_files_only)
    own = DEFAULTS | index.get("defaults", {})
    defaults = Sampling(
        steps=own["num_inference_steps"],
        guidance_scale=own["guidance_scale"],
        sampler=own["sampler"],
        painting=own["painting"],
        style_guidance=own["style_guidance"],
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
        denoiser = load_experts(grown, device, keeping)
    encoders = own_encoders(folder, trained, device)
    painter = LatentDecoder(denoiser, autoencoder, torch.device(device), defaults, encoders=encoders)
    return Bundle(clip, Pipeline(clip, loaded, painter, torch.device(device)), folder, bool(index.get("world")))


def model_folder(model: str | Path) -> Path:
    """The folder of a model that comes with the package, or of one on disk."""
    if str(model) in BUNDLED:
        folder = BUNDLED[str(model)]
        if not (folder / INDEX_FILE).is_file():
            raise UserError(f"the weights of {str(model)!r} are not here. Make them: syzygy train starter --out RUN")
        return folder
    folder = Path(model)
    refuse_file(folder)
    if not (folder / INDEX_FILE).is_file():
        what = "has no " + INDEX_FILE if folder.is_dir() else "is neither a folder nor a known model"
        raise UserError(
            f"model {str(model)!r} {what}. Known: {', '.join([*BUNDLED, *repositories.PUBLISHED])}; or a folder made by syzygy "
            "train starter, one in diffusers' layout, or a hub id."
        )
    return folder


def _read_index(folder: Path) -> dict[str, Any]:
    index = artifact.read_json(folder / INDEX_FILE)
    if index.get("_class_name") != CLASS_NAME:
        raise UserError(
            f"{folder} holds a {index.get('_class_name')!r}, not a model of syzygy ({CLASS_NAME!r}), nor one of "
            f"{', '.join(repositories.known_classes())}."
        )
    if (schema := index.get("schema_version")) != artifact.SCHEMA_VERSION:
        raise UserError(f"{folder} has schema {schema}, this version reads {artifact.SCHEMA_VERSION}: update syzygy.")
    return index


def part_folder(source: str | Path, part: str) -> Path:
    """The folder of a model's part: of a model (by name or folder), of the finished run that trained it, or the folder itself."""
    if str(source) in BUNDLED:
        return model_folder(source) / part
    folder = Path(source)
    refuse_file(folder)
    if (folder / part / artifact.CONFIG_FILE).is_file():
        return folder / part
    if (folder / "run.json").is_file():
        raise UserError(f"the run in {folder} is not finished: continue it with the command that began it.")
    if not folder.is_dir():
        raise UserError(f"{part} {str(source)!r} is neither a folder nor a known model. Known: {', '.join(BUNDLED)}.")
    return folder


def part_or_id(source: str | Path, part: str) -> Path | str:
    """`part_folder` of a model that comes with the package or of a folder; anything else as it is, a hub id."""
    return part_folder(source, part) if str(source) in BUNDLED or Path(source).is_dir() else str(source)


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
    trained_beside(folder, "clip", clip.fingerprint())
    trained_beside(folder, "autoencoder", autoencoder.fingerprint())


def own_encoders(folder: Path, decoder: Path, device: str) -> dict[str, T5Text]:
    """The text encoders that a decoder reads beside the model's CLIP: the same as in its training."""
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
    trained_beside(decoder, "t5", t5.fingerprint())
    return {"t5": t5.to(device)}


def assemble(parts: Mapping[str, Path], out: Path, *, world: bool, defaults: Mapping[str, Any]) -> Path:
    """Put trained parts (`COMPONENTS`, perhaps some of `OPTIONAL`) together as a model folder that `from_pretrained` loads."""
    assert set(parts) - set(OPTIONAL) == set(COMPONENTS)
    assert ("llm" in parts) == ("adapter" in parts), "an adapter reads the features of its language model alone"
    with artifact.folder_written(out, "the model") as temporary:
        for name, folder in parts.items():
            shutil.copytree(folder, temporary / name)
        if "adapter" in parts:
            _move_language_model(temporary / "adapter")
        index = {"_class_name": CLASS_NAME, "schema_version": artifact.SCHEMA_VERSION, "world": world}
        artifact.write_json(temporary / INDEX_FILE, index | {"defaults": dict(defaults)})
    return out


def _move_language_model(adapter: Path) -> None:
    """The adapter's record names where its language model lies: beside it from now on."""
    path = adapter / artifact.PROVENANCE_FILE
    record = artifact.read_json(path)
    artifact.write_json(path, record | {"llm": record["llm"] | {"source": "llm"}})
