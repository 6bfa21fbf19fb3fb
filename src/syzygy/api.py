"""The facade that loads: `TextToImage.from_pretrained("starter")`."""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from syzygy import artifact
from syzygy.blend import Blender, Picture, Request, Source, best, clip_scores, pictures_of, texts_of
from syzygy.diffusion.decoder import DecoderConfig
from syzygy.diffusion.latents import LatentDecoder
from syzygy.diffusion.preconditioning import Preconditioned
from syzygy.errors import UserError
from syzygy.hub import assembly, repositories
from syzygy.hub.autoencoder import Autoencoder
from syzygy.hub.clip import Clip
from syzygy.hub.priors import load_prior, trained_beside
from syzygy.hub.unet import load_decoder
from syzygy.pipeline import Pipeline, PipelineOutput, check_number
from syzygy.prior.diffusion import SampledPrior
from syzygy.types import Prior, Progress, Sampling
from syzygy.world.language import language
from syzygy.world.reader import Reader

INDEX_FILE = "model_index.json"
CLASS_NAME = "TextToImage"
COMPONENTS = ("clip", "prior", "decoder", "autoencoder", "reader")
BUNDLED = {"starter": Path(__file__).parent / "starter"}
"""Models that come with the package."""
DEFAULTS: dict[str, Any] = {"num_inference_steps": 25, "guidance_scale": 2.0, "sampler": "dpm++2m"}
"""Where a model says nothing else."""


@dataclass
class TextToImage:
    """A text-to-image model with all of its parts, called as diffusers' pipelines are."""

    name: str
    """The name or folder it was loaded from."""
    clip: Clip
    """Text and image encoder."""
    pipeline: Pipeline
    """The path of a prompt."""
    folder: Path
    """Where its parts are."""
    world: bool
    """Whether it paints the embedded world, so that unknown words can be told."""
    identities: Mapping[str, str] | None = None
    """Of a published model: where each part is from, and at which commit. Ours are told by their weights."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "starter",
        *,
        prior: str | Path | Prior | None = None,
        clip: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "fp32",
        offload: bool = False,
        tiling: bool = False,
        local_files_only: bool = True,
    ) -> "TextToImage":
        """Load a model that comes with the package ("starter"), a folder with the same layout, or a published one.

        Args:
            model: "starter", "kandinsky-2.2", "karlo", "stable-unclip"; a folder of ours or in diffusers' layout; or a hub id.
            prior: another prior than the model's own: a folder or hub id as of `load_prior`, or any object with
                `predict`.
            clip: of a published model: another place of its CLIP, a folder or hub id.
            device: "cpu", "cuda", "mps".
            dtype: of a published model: what CLIP and decoder compute in, "fp32", "fp16" or "bf16".
            offload: of a published model: parts are on the device only while they compute.
            tiling: decode tile by tile, where diffusers has it (Stable unCLIP).
            local_files_only: take hub ids from the hub's cache only; else download what is missing.

        Raises:
            UserError: an unknown name, a missing, truncated or mismatched part, a setting without effect.
        """
        memory = assembly.Memory(dtype=dtype, offload=offload, tiling=tiling)
        if str(model) not in BUNDLED and repositories.is_foreign(model):
            found = assembly.assemble(
                model, prior=prior, clip=clip, device=device, memory=memory, local_files_only=local_files_only
            )
            return cls(str(model), found.clip, found.pipeline, found.folder, False, found.identities)
        folder = model_folder(model)
        index = _read_index(folder)
        if clip is not None or memory != assembly.Memory():
            raise UserError(
                f"{model} is small, and has its own CLIP: another CLIP, dtype, offloading and tiling are for published models."
            )
        own_clip = Clip.from_pretrained(folder / "clip").to(device)
        decoder = load_decoder(folder / "decoder").to(device)
        autoencoder = Autoencoder.from_pretrained(folder / "autoencoder").to(device)
        _check_decoder(decoder.config, folder, own_clip, autoencoder)
        chosen = prior if prior is not None else folder / "prior"
        loaded: Any = chosen
        if isinstance(chosen, (str, Path)):
            loaded = load_prior(chosen, own_clip, device, local_files_only=local_files_only)
        own = DEFAULTS | index.get("defaults", {})
        defaults = Sampling(
            steps=own["num_inference_steps"], guidance_scale=own["guidance_scale"], sampler=own["sampler"]
        )
        denoiser = Preconditioned(decoder, decoder.config.sigma_data)
        painter = LatentDecoder(denoiser, autoencoder, torch.device(device), defaults)
        pipeline = Pipeline(own_clip, loaded, painter, torch.device(device))
        return cls(str(model), own_clip, pipeline, folder, bool(index.get("world")))

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        best_of: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: str | None = None,
        conditions: Sequence[str] | None = None,
        callback: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> PipelineOutput:
        """Paint prompts; arguments as of `Pipeline`; steps, guidance scale and sampler by default those that suit the model.

        With `best_of` k, each picture is the one of k whose CLIP score against its prompt is best; generators are then one for
        all, or one for each candidate, those of one picture together. `options` are `height` and `width` in pixels, and what the
        decoder alone knows (Stable unCLIP's `noise_level`, Karlo's `super_res_steps`). Warns of words that the embedded world does not
        know, where the model paints that world.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        self._warn_of(prompts)
        check_number(num_images_per_prompt)

        def paint(generators: list[torch.Generator]) -> PipelineOutput:
            return self.pipeline(
                prompts,
                negative_prompt=negative_prompt,
                num_images_per_prompt=num_images_per_prompt,
                how=sampling(num_inference_steps, guidance_scale, sampler, options),
                generator=generators,
                conditions=conditions,
                callback=callback,
            )

        def score(output: PipelineOutput) -> torch.Tensor:
            texts = self.clip.encode_text(prompts).pooled.repeat_interleave(num_images_per_prompt, 0)
            return clip_scores(output.images, texts, self.clip)

        return best(paint, len(prompts) * num_images_per_prompt, generator, best_of, score)

    def vary(
        self,
        image: Picture | Sequence[Picture],
        *,
        num_images: int = 1,
        best_of: int = 1,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: str | None = None,
        callback: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> PipelineOutput:
        """Paint pictures anew, each `num_images` times: what its CLIP embedding holds, from noise of its own.

        Args:
            image: file, Pillow picture or tensor [3, H, W] in [0, 1]; or several.
            best_of: the best of so many is kept, by cosine with the embedding that it was painted from.

        Other arguments as of `__call__`. The decoder is told no text.
        """
        how = sampling(num_inference_steps, guidance_scale, sampler, options)
        request = Request(
            generator=generator, best_of=best_of, negative_prompt=negative_prompt, how=how, callback=callback
        )
        return self.blender.vary(pictures_of(image), num_images, request)

    def mix(
        self,
        sources: Sequence[tuple[Source, float]],
        *,
        num_images: int = 1,
        best_of: int = 1,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: str | None = None,
        callback: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> PipelineOutput:
        """Paint what lies between pictures and texts, with weights from 0 to 1 of which the proportions count.

        Args:
            sources: with weights: texts, and pictures as for `vary`. A `str` is a picture if it names a file or ends as
                a picture's name does.

        Other arguments as of `vary`. How they are mixed: `syzygy.blend.mixed`.
        """
        self._warn_of(texts_of([source for source, _ in sources]))
        how = sampling(num_inference_steps, guidance_scale, sampler, options)
        request = Request(
            generator=generator, best_of=best_of, negative_prompt=negative_prompt, how=how, callback=callback
        )
        return self.blender.mix(sources, num_images, request)

    def interpolate(
        self,
        start: Source,
        end: Source,
        frames: int,
        *,
        batch_size: int = 16,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: str | None = None,
        callback: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> PipelineOutput:
        """Paint the way from one source to another, ends included, all frames from one noise, `batch_size` at a time.

        Sources as of `mix`, other arguments as of `__call__`.
        """
        self._warn_of(texts_of([start, end]))
        how = sampling(num_inference_steps, guidance_scale, sampler, options)
        request = Request(generator=generator, negative_prompt=negative_prompt, how=how, callback=callback)
        return self.blender.interpolate(start, end, frames, batch_size, request)

    @property
    def blender(self) -> Blender:
        """What paints from pictures, with this model's image encoder."""
        return Blender(self.pipeline, self.clip)

    def _warn_of(self, texts: Sequence[str]) -> None:
        for note in [note for text in texts for note in self.notes(text)]:
            warnings.warn(note, stacklevel=3)

    @property
    def defaults(self) -> dict[str, Any]:
        """`num_inference_steps`, `guidance_scale` and `sampler` that suit the model."""
        own = self.pipeline.decoder.defaults
        return {"num_inference_steps": own.steps, "guidance_scale": own.guidance_scale, "sampler": own.sampler}

    def notes(self, prompt: str) -> list[str]:
        """What this model will not understand of a prompt, a line each."""
        if not self.world or not prompt.strip():
            return []
        try:
            unknown = language("en").read(prompt).unknown
        except UserError as error:
            return [str(error)]
        return [
            f"this model's world does not know the word {word!r}; nearest known: {', '.join(near)}."
            for word, near in unknown.items()
        ]

    def fingerprints(self) -> dict[str, str]:
        """Sixteen hex digits a part that paints, or where it is from: with equal ones, equal settings give equal pictures."""
        if self.identities is not None:
            return dict(self.identities)
        found = {"clip": self.clip.fingerprint()}
        path = self.pipeline
        prior = path.prior.network if isinstance(path.prior, SampledPrior) else path.prior
        parts: list[tuple[str, object]] = [("prior", prior)]
        if isinstance(path.decoder, LatentDecoder):
            parts += [("decoder", path.decoder.denoiser), ("autoencoder", path.decoder.autoencoder)]
        for name, part in parts:
            if isinstance(part, nn.Module):
                found[name] = artifact.fingerprint(part.state_dict())
        return found

    def reader(self) -> Reader:
        """The reader that judges this model's pictures.

        Raises:
            UserError: it has none, as it paints more than the embedded world.
        """
        if self.identities is not None:
            raise UserError(f"{self.name} has no reader: only pictures of the embedded world can be read exactly.")
        return Reader.from_pretrained(self.folder / "reader").to(self.pipeline.device)


def sampling(
    steps: int | None, guidance_scale: float | None, sampler: str | None, options: Mapping[str, Any]
) -> Sampling:
    """The arguments of methods that paint as the decoder takes them; `options` are height, width and the decoder's own.

    Raises:
        UserError: a height without a width, or the other way about.
    """
    own = {name: value for name, value in options.items() if value is not None}
    height, width = own.pop("height", None), own.pop("width", None)
    if (height is None) != (width is None):
        raise UserError("height and width come together: give both, or neither.")
    size = None if height is None or width is None else (height, width)
    return Sampling(steps=steps, guidance_scale=guidance_scale, sampler=sampler, size=size, options=own)


def model_folder(model: str | Path) -> Path:
    """The folder of a model that comes with the package, or of one on disk."""
    if str(model) in BUNDLED:
        folder = BUNDLED[str(model)]
        if not (folder / INDEX_FILE).is_file():
            raise UserError(f"the weights of {str(model)!r} are not here. Make them: syzygy train starter --out RUN")
        return folder
    folder = Path(model)
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
    if (folder / part / artifact.CONFIG_FILE).is_file():
        return folder / part
    if (folder / "run.json").is_file():
        raise UserError(f"the run in {folder} is not finished: continue it with the command that began it.")
    if not folder.is_dir():
        raise UserError(f"{part} {str(source)!r} is neither a folder nor a known model. Known: {', '.join(BUNDLED)}.")
    return folder


def _check_decoder(config: DecoderConfig, folder: Path, clip: Clip, autoencoder: Autoencoder) -> None:
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
    trained_beside(folder / "decoder", "clip", clip.fingerprint())
    trained_beside(folder / "decoder", "autoencoder", autoencoder.fingerprint())


def assemble(parts: Mapping[str, Path], out: Path, *, world: bool, defaults: Mapping[str, Any]) -> Path:
    """Put trained parts (`COMPONENTS`) together as a model folder that `from_pretrained` loads."""
    assert set(parts) == set(COMPONENTS)
    with artifact.folder_written(out, "the model") as temporary:
        for name, folder in parts.items():
            shutil.copytree(folder, temporary / name)
        index = {"_class_name": CLASS_NAME, "schema_version": artifact.SCHEMA_VERSION, "world": world}
        artifact.write_json(temporary / INDEX_FILE, index | {"defaults": dict(defaults)})
    return out
