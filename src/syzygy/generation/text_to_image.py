"""`TextToImage`: load a text-to-image model, and generate, vary, mix and interpolate images with it."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from syzygy.clip.clip_model import Clip
from syzygy.core import arguments, artifacts, model_parts
from syzygy.core.contracts import Prior, Progress, Region, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.registry import imported
from syzygy.experts.expert_folders import OffloadPolicy
from syzygy.experts.routing import Experts
from syzygy.generation import load_pretrained, own_models
from syzygy.generation.best_of import best, clip_scores
from syzygy.generation.embedded_pictures import embedded
from syzygy.generation.mixing import Picture, Source, checked, image_of, path, pictures_of, weighted
from syzygy.generation.pipeline import Pipeline, PipelineOutput
from syzygy.generation.replaced_text_encoder import adapt
from syzygy.generation.request import GenerationRequest, notes, one_each
from syzygy.generation.subjects import Subject
from syzygy.pretrained import repositories
from syzygy.prior.diffusion_prior import SampledPrior
from syzygy.prior.prior_network import PriorNetwork
from syzygy.regions.region_bias import REGION_STRENGTH


@dataclass
class TextToImage:
    """A text-to-image model with all of its parts, called as diffusers' pipelines are."""

    name: str
    """The name or folder it was loaded from."""
    find_clip: Callable[[], Clip]
    """Loads `clip`."""
    pipeline: Pipeline
    """Text encoder, prior and decoder."""
    folder: Path
    """The folder of its parts, or of a published decoder."""
    world: bool
    """Whether it was trained on the embedded world alone, so that unknown words can be named."""
    identities: Mapping[str, str] | None = None
    """For a published model: the source and commit of each part. Models trained here are identified by their weights instead."""
    languages: tuple[str, ...] = ("en",)
    """Codes of the languages that its text encoder was trained on."""
    adapter: Mapping[str, str] = field(default_factory=dict)
    """Where another text encoder reads the prompts: fingerprints of the adapter (`text_encoder`) and of its language model (`llm`)."""
    foreign_llm: bool = False
    """Whether that language model was not trained here: it may understand words and languages that the world does not have."""

    @cached_property
    def clip(self) -> Clip:
        """Text and image encoder. For a model with text encoders of its own it is loaded when it is first used."""
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
            model: "starter", "kandinsky-2.2" (also "-inpaint" and "-controlnet-depth"), "karlo", "stable-unclip", "stable-diffusion-1.5",
                "stable-diffusion-xl"; a folder of ours or in diffusers' layout; or a hub id.
            prior: a prior to use instead of the model's own: a folder, hub id or registered name, or any object with `predict`.
            clip: CLIP checkpoint to use instead of a published model's default (folder or hub id). With Stable Diffusion, used only to
                choose the best of several images.
            text_encoder: a text encoder that reads all prompts instead of CLIP's: "adapter" (a language model with the model's own
                adapter), an adapter's folder, the run that trained it, another model that has one, or a registered name. Prior and
                decoder, or the U-Net of Stable Diffusion, then read what it gives. Stable unCLIP's U-Net continues to read prompts with
                its own CLIP, and a decoder trained with T5 reads it only where `conditions` names it.
            llm: the adapter's language model (folder or hub id), if it has moved since the training.
            decoder: a decoder to use instead of the model's own: a folder, or the run that trained it. For a model trained here, with the
                same CLIP and autoencoder; for Kandinsky 2.2, on a concept (`syzygy train decoder --concept`).
            experts: an ensemble of expert denoisers to use instead of the decoder, or of a published decoder's U-Net: its folder, or
                the run that trained it.
            experts_memory: where experts are kept: "all" on the device, "offload" (one there, the others in memory, for a GPU) or
                "lazy" (one there, the others on disk).
            compile_experts: compile each expert's network with torch.compile when it first runs.
            device: "cpu", "cuda", "mps".
            dtype: precision of a published model's CLIP and decoder: "fp32", "fp16" or "bf16".
            offload: keep the parts of a published model on the CPU and move each to the device only while it computes.
            tiling: decode latents tile by tile, where diffusers can (Stable Diffusion and Stable unCLIP).
            local_files_only: search hub ids in the local cache only, instead of downloading what is missing.

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
            raise UserError("experts replace the decoder: give one of the two.")
        if text_encoder is None and llm is not None:
            raise UserError("a language model has no effect without its adapter: name a text encoder, or leave it out.")
        if str(model) not in model_parts.BUNDLED and repositories.is_published(model):
            found = load_pretrained.load_published(
                model,
                prior=prior,
                clip=clip,
                device=device,
                memory=memory,
                decoder=decoder,
                experts=experts,
                offload_policy=offload_policy,
                own_text=text_encoder is None,
                local_files_only=local_files_only,
            )
            loaded = cls(str(model), found.clip, found.pipeline, found.folder, False, found.identities)
            return loaded._reading_with(text_encoder, llm, offload, local_files_only)
        if clip is not None or memory != load_pretrained.Memory():
            raise UserError(
                f"{model} is small and has its own CLIP: another CLIP, dtype, offloading and tiling are for published models. Leave them out."
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
        """The same with another text encoder, if one is given."""
        if source is None:
            return self
        parts = self.pipeline, self.find_clip, self.folder
        found = adapt(*parts, source, llm=llm, offload=offload, local_files_only=local_files_only)
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
        style_content: str | Sequence[str] | None = None,
        subjects: Sequence[Subject] | None = None,
        layout: Picture | None = None,
        callback: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> PipelineOutput:
        """Generate images from prompts. Steps, guidance scale and sampler are by default those that suit the model.

        Warns of words that the model's world does not have, if it was trained on one.

        Args:
            negative_prompt: what the images should avoid: one text for all prompts, or a list with one for each. It goes through the same
                text encoder and prior, and needs guidance (a scale other than 1).
            best_of: candidates for each image. The one whose CLIP score with its prompt is best is kept. Generators are then one for all, or
                one for each candidate, those of one image together. CLIP's text encoder reads English alone: where an adapter reads the
                prompts, the score is with the predicted image embedding, and a style, which replaces it, is refused. It is so with
                subjects too, which the prompts do not describe.
            generator: one for each image, or one from which each image's own is drawn in turn. None draws a fresh seed.
            conditions: what the decoder reads: "image" (the predicted embedding), "text", names of its own text encoders ("t5"), or several.
                None is the model's own choice (the starter: text and t5), or all that it can where a prior was named.
            regions: where phrases of a prompt should be (paint-with-words): a list for all prompts, or a list for each.
            style: a picture whose style the images should have: a file, a Pillow image, or a tensor [3, H, W] in [0, 1].
            style_content: what the style reference shows, in words ("a red ring"): its objects then do not appear in the images, as what the
                prior predicts of these words is taken out of the style. One text for all prompts, or a list with one for each.
            subjects: pictures that words of every prompt stand for, with a λ-ECLIPSE prior.
            layout: a picture whose edges the images should follow, with a λ-ECLIPSE prior; or the edges themselves, white on black.
            callback: is called with a `Progress` after each sampling step.
            options: `image`, `strength`, `mask` and `depth` (fields of `GenerationRequest`: image-to-image, inpainting, depth maps),
                `region_strength`, `style_guidance`, `height` and `width` in pixels, `batch_size` (images at once; default all), and options
                of the decoder (`placement_strength` of the starter, `noise_level` of Stable unCLIP, …).

        Raises:
            UserError: a value has another type, is out of range, or has no effect with this model.
            NonFiniteError: the model computes NaN or infinity; the message names the images.
        """
        request = GenerationRequest.from_keywords(
            prompts=prompt,
            num_images=arguments.whole(num_images_per_prompt, "num_images_per_prompt", 1),
            negative_prompt=negative_prompt,
            best_of=best_of,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            sampler=sampler,
            conditions=conditions,
            regions=regions,
            style=style,
            style_content=style_content,
            subjects=subjects,
            layout=layout,
            callback=callback,
            **options,
        )
        self.warn_of(request.prompts, request.subjects)
        return self.generate(request)

    def vary(self, image: Picture | Sequence[Picture], *, num_images: int = 1, **settings: Any) -> PipelineOutput:
        """Generate variations of pictures, `num_images` of each: what its CLIP embedding holds, from new noise (DALL·E 2, section 3.1).

        The decoder reads no text.

        Args:
            image: a file, a Pillow image or a tensor [3, H, W] in [0, 1]; or several.
            settings: as of `__call__`: `negative_prompt`, `best_of` (by the cosine with the picture's embedding), `num_inference_steps`,
                `guidance_scale`, `sampler`, `generator`, `callback`, and options.
        """
        mixtures = [[(picture, 1.0)] for picture in pictures_of(image)]
        if not mixtures:
            raise UserError("no picture to vary: give one or more.")
        return self.generate(GenerationRequest.from_keywords(mixtures=mixtures, num_images=num_images, **settings))

    def mix(self, sources: Sequence[tuple[Source, float]], *, num_images: int = 1, **settings: Any) -> PipelineOutput:
        """Generate images of a mixture of pictures and texts, with weights from 0 to 1 of which the proportions count.

        Args:
            sources: with weights: texts, and pictures as for `vary`. A `str` is a picture if it names a file or ends as a picture's name
                does. How they are mixed: `syzygy.generation.mixing.mixed`.
            settings: as of `vary`; one negative prompt for all.
        """
        mixture = weighted(sources)
        request = GenerationRequest.from_keywords(mixtures=[mixture], num_images=num_images, **_one_negative(settings))
        self.warn_of([source for source, _ in mixture if isinstance(source, str)])
        return self.generate(request)

    def interpolate(self, start: Source, end: Source, frames: int, **settings: Any) -> PipelineOutput:
        """Generate the way from one source to another in `frames` images, ends included, all from the same noise.

        Args:
            start: a source, as of `mix`.
            end: the other source.
            settings: as of `mix`, and `batch_size`, 16 by default. There is nothing to choose from, so there is no `best_of`.
        """
        return self.generate(self.interpolation(start, end, frames, **settings))

    def interpolation(self, start: Source, end: Source, frames: int, **settings: Any) -> GenerationRequest:
        """The request of `interpolate`: a mixture for each frame."""
        frames = arguments.whole(frames, "frames", 2)
        if {"num_images", "best_of"} & settings.keys():
            raise UserError("the frames of an interpolation share their noise: leave out num_images and best_of.")
        ends = weighted([(start, 1.0), (end, 1.0)])
        settings = {"batch_size": 16} | _one_negative(settings)
        request = embedded(self, GenerationRequest.from_keywords(mixtures=[[one] for one in ends], **settings))
        self.warn_of([source for source, _ in ends if isinstance(source, str)])
        (generator,) = one_each(request.generator, 1)
        state = generator.get_state()
        noise = self.pipeline.noise([generator])
        with torch.inference_mode():
            first, last = (self.pipeline.embedding_of(source, noise) for ((source, _),) in request.mixtures)
            way = path(first, last, frames)
        same = [torch.Generator(generator.device).set_state(state) for _ in range(frames)]
        return replace(request, mixtures=[[(embedding, 1.0)] for embedding in way], generator=same)

    def generate(self, request: GenerationRequest) -> PipelineOutput:
        """Generate the images of a request."""
        outputs = list(self.batches(request))
        return PipelineOutput(
            [image for output in outputs for image in output.images],
            torch.cat([output.image_embeddings for output in outputs]),
            [seed for output in outputs for seed in output.seeds],
            None if outputs[0].scores is None else torch.cat([o.scores for o in outputs if o.scores is not None]),
        )

    def batches(self, request: GenerationRequest) -> Iterator[PipelineOutput]:
        """Generate the images of a request `batch_size` at a time, so that each batch can be saved when it is done."""
        for batch in embedded(self, request).batches():
            outputs = list(map(self.pipeline, batch.candidates()))
            yield outputs[0] if len(outputs) == 1 else self._best(batch, outputs)

    def _best(self, batch: GenerationRequest, outputs: Sequence[PipelineOutput]) -> PipelineOutput:
        """For each image the candidate whose CLIP score is best. A candidate's own seed makes its image again without the others.

        Scores are with the prompt, or with the predicted embedding where the prompt does not say everything (subjects) or CLIP does not
        read it (adapters).
        """
        texts = None
        if batch.prompts and not self.adapter and not batch.subjects:
            texts = self.clip.encode_text([*batch.prompts]).pooled[batch.rows]
        scores = torch.stack(
            [clip_scores(one.images, one.image_embeddings if texts is None else texts, self.clip) for one in outputs]
        )
        return best(outputs, scores)

    @torch.inference_mode()
    def embed_image(self, picture: Picture) -> Float[Tensor, "1 D"]:
        """A picture's image embedding: of a file or Pillow image through CLIP's preparation, or of a tensor [3, H, W]; [1, D] is one already.

        Raises:
            UserError: it cannot be read, or is a tensor of another shape or range, or of another type.
        """
        if isinstance(picture, Tensor) and picture.shape == (1, self.clip.width):
            return picture.to(self.pipeline.device, torch.float32)
        if isinstance(picture, Tensor):
            found = self.clip.encode_image(checked(picture)[None])
        else:
            found = self.clip.encode_pixels(self.clip.preparation.prepare(image_of(picture))[None])
        return found.to(self.pipeline.device, torch.float32)

    def warn_of(self, texts: Sequence[str], subjects: Sequence[Subject] = ()) -> None:
        """Warn of what the model does not understand in these texts (`notes`), apart from the words of subjects."""
        for note in [note for text in texts for note in notes(text, self.limited_to, subjects)]:
            warnings.warn(note, stacklevel=3)

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """Features of texts as the prior reads them.

        Raises:
            UserError: the model has no prior, and its decoder reads texts with encoders of its own.
        """
        if self.pipeline.text_encoder is None:
            raise UserError(f"{self.name} reads texts alone, with text encoders of its own.")
        return self.pipeline.text_encoder.encode_text(texts)

    @property
    def defaults(self) -> dict[str, Any]:
        """The model's own `num_inference_steps`, `guidance_scale`, `sampler`, `region_strength`, `style_guidance` (None: that of the text),
        and `strength` of image-to-image."""
        own = self.pipeline.decoder.defaults
        return {
            "num_inference_steps": own.steps,
            "guidance_scale": own.guidance_scale,
            "sampler": own.sampler,
            "region_strength": REGION_STRENGTH if own.region_strength is None else own.region_strength,
            "style_guidance": own.style_guidance,
            "strength": own.strength,
        }

    @property
    def limited_to(self) -> tuple[str, ...] | None:
        """The languages of a model that is limited to the embedded world; None for others."""
        return self.languages if self.world and not self.foreign_llm else None

    def notes(self, prompt: str) -> list[str]:
        """What this model does not understand in a prompt, one sentence each. Models that are not limited to a world have none."""
        return notes(prompt, self.limited_to)

    def fingerprints(self) -> dict[str, str]:
        """Sixteen hex digits of each part's weights, or the part's source. With equal ones, equal settings give equal images."""
        if self.identities is not None:
            return {**self.identities, **self.adapter}
        found = {"clip": self.clip.fingerprint(), **self.adapter}
        prior = self.pipeline.prior
        prior = prior.network if isinstance(prior, SampledPrior) else prior
        for name, part in {"prior": prior, **self.pipeline.decoder.weights()}.items():
            if isinstance(part, PriorNetwork):
                found[name] = part.fingerprint()
            elif isinstance(part, nn.Module):
                found[name] = artifacts.fingerprint(part.weights if isinstance(part, Experts) else part.state_dict())
        return found

    def reader(self) -> Any:
        """The scene classifier that comes with a model of the embedded world (`syzygy.lab.world.reader.Reader`).

        Raises:
            UserError: it has none, because it is not limited to that world.
        """
        if self.identities is not None:
            raise UserError(f"{self.name} has no reader: only images of the embedded world can be read exactly.")
        Reader = imported("syzygy.lab.world.reader:Reader")
        return Reader.from_pretrained(self.folder / "reader").to(self.pipeline.device)


def _one_negative(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a mixture, which has one negative prompt for all its images."""
    if isinstance(settings.get("negative_prompt"), list | tuple):
        raise UserError(
            "negative_prompt must be a single text (str) here, got a list: a mixture or an interpolation has one for all its images."
        )
    return dict(settings)
