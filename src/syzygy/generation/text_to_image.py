"""The facade that loads: `TextToImage.from_pretrained("starter")`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from syzygy.clip.clip_model import Clip
from syzygy.core import arguments, artifacts, model_parts
from syzygy.core.contracts import Prior, Progress, Region, TextFeatures
from syzygy.core.errors import UserError
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.experts.expert_folders import OffloadPolicy
from syzygy.experts.routing import Experts
from syzygy.generation import load_pretrained, own_models
from syzygy.generation.mixing import (
    Blender,
    Picture,
    Request,
    Source,
    best,
    clip_scores,
    pictures_of,
    texts_of,
    weighted,
)
from syzygy.generation.pipeline import Pipeline, PipelineOutput, check_number
from syzygy.generation.replaced_text_encoder import adapt
from syzygy.lab.world.language import detect_language, language
from syzygy.lab.world.reader import Reader
from syzygy.pretrained import repositories
from syzygy.prior.diffusion_prior import SampledPrior
from syzygy.regions.phrases import for_each
from syzygy.regions.region_bias import REGION_STRENGTH


@dataclass
class TextToImage:
    """A text-to-image model with all of its parts, called as diffusers' pipelines are."""

    name: str
    """The name or folder it was loaded from."""
    find_clip: Callable[[], Clip]
    """Gives `clip`."""
    pipeline: Pipeline
    """The path of a prompt."""
    folder: Path
    """Where its parts are."""
    world: bool
    """Whether it paints the embedded world, so that unknown words can be told."""
    identities: Mapping[str, str] | None = None
    """Of a published model: where each part is from, and at which commit. Ours are told by their weights."""
    languages: tuple[str, ...] = ("en",)
    """Codes of the world's languages that its text encoder was taught."""
    adapter: Mapping[str, str] = field(default_factory=dict)
    """Where an adapter reads the prompts in CLIP's place: fingerprints of it (`text_encoder`) and of its language model (`llm`)."""

    foreign_llm: bool = False
    """Whether that language model was not trained here: it may understand words and languages that the world does not have."""

    @cached_property
    def clip(self) -> Clip:
        """Text and image encoder. Of a model that reads texts with encoders of its own it is loaded when it is first asked for."""
        return self.find_clip()

    @classmethod
    def from_pretrained(  # noqa: PLR0913 (all by keyword but the first)
        cls,
        model: str | Path = "starter",
        *,
        prior: str | Path | Prior | None = None,
        clip: str | Path | None = None,
        text_encoder: str | Path | None = None,
        llm: str | Path | None = None,
        decoder: str | Path | None = None,
        experts: str | Path | None = None,
        experts_memory: str = "all",
        compile_experts: bool = False,
        device: str = "cpu",
        dtype: str = "fp32",
        offload: bool = False,
        tiling: bool = False,
        local_files_only: bool = True,
    ) -> "TextToImage":
        """Load a model that comes with the package ("starter"), a folder with the same layout, or a published one.

        Args:
            model: "starter", "kandinsky-2.2", "karlo", "stable-unclip", "stable-diffusion-1.5", "stable-diffusion-xl"; a folder of ours
                or in diffusers' layout; or a hub id.
            prior: another prior than the model's own: a folder or hub id as of `load_prior`, or any object with
                `predict`.
            clip: of a published model: another place of its CLIP, a folder or hub id. Of one that reads texts alone (Stable Diffusion):
                the CLIP that chooses the best of several pictures.
            text_encoder: a language model's adapter that reads the prompts, negative ones too, in CLIP's place: "adapter" (the model's
                own), a folder, the run that trained it, or another model that has one. Prior and decoder then read its features where
                they read CLIP's; Stable unCLIP's U-Net and the T5 of a decoder of ours have texts of their own, the latter only where
                `conditions` names it.
            llm: where the adapter's language model is, a folder or a hub id, if neither beside it nor where it was in training.
            decoder: of a model of ours: another decoder, its folder or the run that trained it, beside the same CLIP and autoencoder.
            experts: an ensemble in the place of the decoder (of a published model: of its U-Net), the folder of it or of the run that
                grew it.
            experts_memory: where experts are: "all" on the device, "offload" (one there, the others in the computer's memory, for a
                GPU) or "lazy" (one there, the others on disk).
            compile_experts: compile each expert's U-Net with torch.compile when it first runs.
            device: "cpu", "cuda", "mps".
            dtype: of a published model: what CLIP and decoder compute in, "fp32", "fp16" or "bf16".
            offload: of a published model: parts are on the device only while they compute.
            tiling: decode tile by tile, where diffusers has it (Stable Diffusion and unCLIP).
            local_files_only: take hub ids from the hub's cache only; else download what is missing.

        Raises:
            UserError: an unknown name, a missing, truncated or mismatched part, a setting without effect.
        """
        memory = load_pretrained.Memory(dtype=dtype, offload=offload, tiling=tiling)
        offload_policy = OffloadPolicy(memory=experts_memory, backend="inductor" if compile_experts else None)
        if experts is None and offload_policy != OffloadPolicy():
            raise UserError(
                "memory and compilation of experts have no effect without experts: give them, or leave it out."
            )
        if decoder is not None and experts is not None:
            raise UserError("experts take the decoder's place: give one of the two.")
        if text_encoder is None and llm is not None:
            raise UserError("a language model has no effect without its adapter: name a text encoder, or leave it out.")
        if str(model) not in model_parts.BUNDLED and repositories.is_foreign(model):
            if decoder is not None:
                raise UserError(
                    f"{model} is no model of ours, whose decoder could be exchanged: leave the decoder out."
                )
            found = load_pretrained.assemble(
                model,
                prior=prior,
                clip=clip,
                device=device,
                memory=memory,
                experts=experts,
                offload_policy=offload_policy,
                local_files_only=local_files_only,
            )
            loaded = cls(str(model), found.clip, found.pipeline, found.folder, False, found.identities)
            return loaded._reading_with(text_encoder, llm, offload, local_files_only)
        if clip is not None or memory != load_pretrained.Memory():
            raise UserError(
                f"{model} is small, and has its own CLIP: another CLIP, dtype, offloading and tiling are for published models."
            )
        own = own_models.load(
            model,
            prior=prior,
            decoder=decoder,
            experts=experts,
            device=device,
            local_files_only=local_files_only,
            offload_policy=offload_policy,
        )
        loaded = cls(str(model), lambda: own.clip, own.pipeline, own.folder, own.world)
        return loaded._reading_with(text_encoder, llm, False, local_files_only)

    def _reading_with(
        self, source: str | Path | None, llm: str | Path | None, offload: bool, local_files_only: bool
    ) -> "TextToImage":
        """The same with another text encoder, if one is asked for."""
        if source is None:
            return self
        found = adapt(
            self.pipeline,
            self.find_clip,
            self.folder,
            source,
            llm=llm,
            offload=offload,
            local_files_only=local_files_only,
        )
        about = {"languages": found.languages, "adapter": found.fingerprints, "foreign_llm": found.foreign_llm}
        return replace(self, pipeline=found.pipeline, **about)

    def __call__(  # noqa: PLR0913 (all by keyword, as of diffusers' pipelines)
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        best_of: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: str | None = None,
        conditions: Sequence[str] | None = None,
        regions: Sequence[Region] | Sequence[Sequence[Region]] | None = None,
        style: Picture | None = None,
        callback: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> PipelineOutput:
        """Paint prompts; arguments as of `Pipeline`; steps, guidance scale and sampler by default those that suit the model.

        Warns of words that the embedded world does not know, where the model paints that world.

        Args:
            negative_prompt: what the images should avoid: one text for all prompts, or a list with one for each.
            best_of: of so many candidates a picture, the one whose CLIP score against its prompt is best is kept; generators are
                then one for all, or one for each candidate, those of one picture together. CLIP's text encoder reads English alone:
                where an adapter reads the prompts, the score is against the image embedding that was predicted of them, and a style,
                which takes that embedding's place, is refused.
            regions: where phrases of a prompt shall be (paint-with-words): some for all prompts, or a list for each.
            style: a picture to paint in the manner of: a file, Pillow picture, or tensor [3, H, W] in [0, 1].
            options: `region_strength` (how strongly regions pull), `style_guidance`, `height` and `width` in pixels, and what the decoder
                alone knows (Stable unCLIP's `noise_level`, Karlo's `super_res_steps`).
        """
        prompts = arguments.texts(prompt)
        num_images_per_prompt = arguments.whole(num_images_per_prompt, "num_images_per_prompt")
        best_of, generator = arguments.whole(best_of, "best_of"), arguments.generators(generator)
        negative_prompt = arguments.negatives(negative_prompt, len(prompts))
        callback, conditions = arguments.callback(callback), arguments.names_of(conditions)
        sampling = arguments.sampling(num_inference_steps, guidance_scale, sampler, options)
        self._warn_of(prompts)
        check_number(num_images_per_prompt)
        regions = arguments.regions(regions)
        painted = None if regions is None else for_each(regions, len(prompts))
        manner = None if style is None else self.blender.embedded(style)
        if manner is not None and self.adapter and best_of > 1:
            raise UserError(
                "with an adapter the best of several pictures is the one nearest to the embedding predicted of the prompt, whose place a "
                "style takes: leave the style, the adapter or the choice out."
            )
        if style is None and options.get("style_guidance") is not None:
            raise UserError("style guidance is for a style: give a picture, or leave it out.")

        def paint(generators: list[torch.Generator]) -> PipelineOutput:
            return self.pipeline(
                prompts,
                negative_prompt=negative_prompt,
                num_images_per_prompt=num_images_per_prompt,
                sampling=sampling,
                generator=generators,
                conditions=conditions,
                regions=painted,
                style=manner,
                callback=callback,
            )

        def score(output: PipelineOutput) -> torch.Tensor:
            if self.adapter:
                return clip_scores(output.images, output.image_embeddings, self.clip)
            texts = self.clip.encode_text(prompts).pooled.repeat_interleave(num_images_per_prompt, 0)
            return clip_scores(output.images, texts, self.clip)

        return best(paint, len(prompts) * num_images_per_prompt, generator, best_of, score)

    def vary(
        self,
        image: Picture | Sequence[Picture],
        *,
        num_images: int = 1,
        best_of: int = 1,
        negative_prompt: str | Sequence[str] | None = None,
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
            negative_prompt: one text for all pictures, or a list with one for each.

        Other arguments as of `__call__`. The decoder is told no text.
        """
        pictures = pictures_of(image)
        request = Request(
            generator=arguments.generators(generator),
            best_of=arguments.whole(best_of, "best_of"),
            negative_prompt=arguments.negatives(negative_prompt, len(pictures), "picture"),
            sampling=arguments.sampling(num_inference_steps, guidance_scale, sampler, options),
            callback=arguments.callback(callback),
        )
        return self.blender.vary(pictures, arguments.whole(num_images, "num_images"), request)

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

        Other arguments as of `vary`. How they are mixed: `syzygy.generation.mixing.mixed`.
        """
        sources = weighted(sources)
        request = Request(
            generator=arguments.generators(generator),
            best_of=arguments.whole(best_of, "best_of"),
            negative_prompt=arguments.negatives(negative_prompt, None),
            sampling=arguments.sampling(num_inference_steps, guidance_scale, sampler, options),
            callback=arguments.callback(callback),
        )
        num_images = arguments.whole(num_images, "num_images")
        self._warn_of(texts_of([source for source, _ in sources]))
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
        (start, _), (end, _) = weighted([(start, 1.0), (end, 1.0)])
        frames, batch_size = arguments.whole(frames, "frames"), arguments.whole(batch_size, "batch_size", 1)
        request = Request(
            generator=arguments.generators(generator),
            negative_prompt=arguments.negatives(negative_prompt, None),
            sampling=arguments.sampling(num_inference_steps, guidance_scale, sampler, options),
            callback=arguments.callback(callback),
        )
        self._warn_of(texts_of([start, end]))
        return self.blender.interpolate(start, end, frames, batch_size, request)

    @property
    def blender(self) -> Blender:
        """What paints from pictures, with this model's image encoder.

        Raises:
            UserError: the decoder reads no image embedding.
        """
        if "image" not in self.pipeline.decoder.conditions:
            raise UserError(
                f"{self.name} reads texts alone: it cannot vary or mix pictures, nor take a style from one. Models that can: "
                "starter, kandinsky-2.2, karlo, stable-unclip."
            )
        return Blender(self.pipeline, self.clip)

    def _warn_of(self, texts: Sequence[str]) -> None:
        for note in [note for text in texts for note in self.notes(text)]:
            warnings.warn(note, stacklevel=3)

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """Texts as the prior reads them: by CLIP, or by the adapter in its place.

        Raises:
            UserError: the model has no prior, and its decoder reads texts with encoders of its own.
        """
        if self.pipeline.text_encoder is None:
            raise UserError(f"{self.name} paints from texts alone, with encoders of its own.")
        return self.pipeline.text_encoder.encode_text(texts)

    @property
    def defaults(self) -> dict[str, Any]:
        """The model's own `num_inference_steps`, `guidance_scale`, `sampler`, `region_strength`, `style_guidance` (None: that of the text)."""
        own = self.pipeline.decoder.defaults
        return {
            "num_inference_steps": own.steps,
            "guidance_scale": own.guidance_scale,
            "sampler": own.sampler,
            "region_strength": REGION_STRENGTH if own.region_strength is None else own.region_strength,
            "style_guidance": own.style_guidance,
        }

    def notes(self, prompt: str) -> list[str]:
        """What this model will not understand of a prompt, a line each; unknown where a language model from elsewhere reads it."""
        if not self.world or self.foreign_llm or not prompt.strip():
            return []
        code = detect_language(prompt)
        if code not in self.languages:
            names = [language(known).name for known in self.languages]
            taught = (
                " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]]) or "none of the world's languages"
            )
            return [f"{prompt.strip()[:80]!r} is {language(code).name}; this model was taught {taught} only."]
        try:
            unknown = language(code).parse(prompt).unknown
        except UserError as error:
            return [str(error)]
        return [
            f"this model's world does not know the word {word!r}; nearest known: {', '.join(near)}."
            for word, near in unknown.items()
        ]

    def fingerprints(self) -> dict[str, str]:
        """Sixteen hex digits a part that paints, or where it is from: with equal ones, equal settings give equal pictures."""
        if self.identities is not None:
            return {**self.identities, **self.adapter}
        found = {"clip": self.clip.fingerprint(), **self.adapter}
        path = self.pipeline
        prior = path.prior.network if isinstance(path.prior, SampledPrior) else path.prior
        parts: list[tuple[str, object]] = [("prior", prior)]
        if isinstance(path.decoder, LatentDecoder):
            parts += [("decoder", path.decoder.denoiser), ("autoencoder", path.decoder.autoencoder)]
        for name, part in parts:
            if isinstance(part, nn.Module):
                found[name] = artifacts.fingerprint(part.weights if isinstance(part, Experts) else part.state_dict())
        return found

    def reader(self) -> Reader:
        """The reader that judges this model's pictures.

        Raises:
            UserError: it has none, as it paints more than the embedded world.
        """
        if self.identities is not None:
            raise UserError(f"{self.name} has no reader: only pictures of the embedded world can be read exactly.")
        return Reader.from_pretrained(self.folder / "reader").to(self.pipeline.device)
