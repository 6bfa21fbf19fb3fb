"""From what a client sent to an `ImageRequest`: the limits, and every check that needs no model."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from PIL import Image

from syzygy.core.contracts import Region
from syzygy.core.deprecation import renamed
from syzygy.core.errors import UserError, unknown
from syzygy.generation.layout_edges import edge_map
from syzygy.generation.request import GenerationRequest, check_texts
from syzygy.generation.subjects import Subject, check_subjects, check_words
from syzygy.server import recipes, uploads
from syzygy.server.engine import ImageEngine
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem, field_errors
from syzygy.server.requests import KEPT_BYTES, ImageRequest, Upload
from syzygy.server.schema import LARGEST_SEED, OPTIONS, Common, Edit, Generation, Mix, Variation, size_of

DRAWN_SEEDS = 2**32
MASKS_BYTES = 2**20
"""Largest size of a request's masks in a record, as base64. Drawn masks have a few thousand bytes."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Characters that no text has: control characters other than the tab and the ends of lines."""
NOT_INPAINTED = "the given picture is the style reference of a new image; none of its pixels are kept."
OLD_STRENGTH = renamed("painting", "region_strength")
OWN_MASK = "no mask was sent, so the transparent part of the image is the mask."
NO_MASK = "the transparent part of the image is not used as a mask: this model does not support regions."


class Validator:
    """Checks requests, and decodes their pictures after all other checks."""

    def __init__(self, engine: ImageEngine, limits: Limits) -> None:
        """
        Raises:
            UserError: the server's default settings are beyond its limits.
        """
        self.engine, self.limits = engine, limits
        if engine.record["steps"] > limits.steps:
            raise UserError(
                f"the server's own {engine.record['steps']} steps are more than the {limits.steps} that a request may ask for: "
                "start it with fewer (--steps), or allow more (--max-steps)."
            )
        self.capabilities = engine.capabilities()
        self.own_size = engine.own_size

    def generation(self, asked: Generation) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        self._check_text(asked.prompt, "prompt")
        self._check_common(asked)
        if len(asked.regions) > self.limits.regions:
            raise _over("regions", len(asked.regions), self.limits.regions, "regions")
        if not asked.regions:
            _check_unused(asked, ("region_strength", "painting", "mask_blur"), "for regions: give regions")
        if asked.style is None:
            _check_unused(asked, ("style_guidance",), "for a style: give a picture")
        self._check_can("regions", bool(asked.regions), "does not support regions: leave regions out.")
        self._check_can("style", asked.style is not None, "does not support a style reference: leave style out.")
        self._check_can("subjects", bool(asked.subjects), "has no prior that reads subjects: leave subjects out.")
        self._check_can("layout", asked.layout is not None, "has no prior that reads a layout: leave layout out.")
        if len(asked.subjects) > self.limits.sources:
            raise _over("subjects", len(asked.subjects), self.limits.sources, "subjects")
        self._check_style_guidance(asked.style_guidance)
        for number, one in enumerate(asked.regions):
            self._check_phrase(asked.prompt, one.phrase, f"regions[{number}].phrase")
        masks = {f"regions[{number}].mask": one.mask for number, one in enumerate(asked.regions)}
        pictures = {f"subjects[{number}].image": one.image for number, one in enumerate(asked.subjects)}
        pictures |= {name: data for name in ("layout", "style") if (data := getattr(asked, name)) is not None}
        files = uploads.files_of(masks | pictures, self.limits)
        style = self._picture(files["style"], "style") if "style" in files else None
        regions = uploads.regions(asked.regions, [files[name] for name in masks], asked.mask_blur)
        references, shown = self._references(asked, files)
        return self._prompted(asked, regions, style, references=references, pictures=shown)

    def _references(self, asked: Generation, files: Mapping[str, bytes]) -> tuple[dict[str, Any], tuple[Upload, ...]]:
        """Subjects and layout as a request has them, and their uploads in this order."""
        subjects, pictures = [], []
        for number, one in enumerate(asked.subjects):
            name = f"subjects[{number}].image"
            with field_errors(name):
                opened = uploads.opened(files[name], name)
            with field_errors(f"subjects[{number}].word"):
                subject = Subject(one.word, opened)
                check_subjects([*subjects, subject])
                check_words([subject], [asked.prompt])
            with field_errors(name):
                shown = subject.cut_out()
                assert isinstance(shown, Image.Image), "that of a Pillow image"
                pictures.append(self.engine.prepared(shown, files[name]))
            subjects.append(replace(subject, image=pictures[-1].pixels))
        layout = None
        if asked.layout is not None:
            with field_errors("layout"):
                edges = edge_map(uploads.picture(files["layout"], "layout"))
                pictures.append(self.engine.prepared(edges, files["layout"]))
            layout = pictures[-1].pixels
        return {"subjects": subjects, "layout": layout}, tuple(pictures)

    def edit(self, asked: Edit, image: bytes, mask: bytes | None) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        self._check_text(asked.prompt, "prompt")
        self._check_common(asked)
        if asked.input_fidelity == "high":
            raise Problem(400, f"input_fidelity high is not possible: {NOT_INPAINTED} Say low.", param="input_fidelity")
        self._check_can("style", True, "does not support a style reference, so it cannot edit pictures.", "image")
        self._check_can("regions", mask is not None, "does not support regions: leave the mask out.", "mask")
        self._check_style_guidance(asked.style_guidance)
        uploads.check({"image": image} if mask is None else {"image": image, "mask": mask}, self.limits)
        with field_errors("image"):
            seen = uploads.picture(image, "image")
            style = self.engine.prepared(seen, image)
            cut_out = mask is None and uploads.cut_out(image)
        can = self.capabilities["regions"]
        where, notes = (image if can else None, (OWN_MASK if can else NO_MASK,)) if cut_out else (mask, ())
        if where is None:
            _check_unused(asked, ("region", "region_strength", "painting", "mask_blur"), "for a mask: give one")
        regions = () if where is None else (self._masked(asked, where, seen.size),)
        return self._prompted(asked, regions, style, (NOT_INPAINTED, *notes))

    def _masked(self, asked: Edit, mask: bytes, size: tuple[int, int]) -> Region:
        """The region of an edit's mask. `size` is the picture's width and height."""
        phrase = asked.prompt if asked.region is None else asked.region
        self._check_phrase(asked.prompt, phrase, "region")
        with field_errors("mask"):
            drawn = uploads.opened(mask, "mask")
            found = uploads.upright_size(drawn)
            if found != size:
                sizes = " and ".join(f"{one[0]} × {one[1]}" for one in (size, found))
                raise UserError(f"image and mask must have one size, got {sizes}.")
            return uploads.drawn(phrase, uploads.transparent(drawn), 1.0, asked.mask_blur)

    def variation(self, asked: Variation, image: bytes) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        self._check_common(asked)
        self._check_can("variations", True, "reads only texts: it cannot vary pictures.", "image")
        uploads.check({"image": image}, self.limits)
        seen = self._picture(image, "image")
        return self._request(asked, uploads=(seen,), mixtures=[[(seen.pixels, 1.0)]])

    def mix(self, asked: Mix) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        self._check_common(asked)
        self._check_can("mixes", True, "reads only texts, or has no prior: it cannot mix.", "sources")
        given = asked.sources
        if len(given) > self.limits.sources:
            raise _over("sources", len(given), self.limits.sources, "sources")
        for number, one in enumerate(given):
            name = f"sources[{number}]"
            if (one.text is None) == (one.image is None):
                raise Problem(400, f"{name} must have either a text or an image.", param=name)
            if (one.weight is None) != (given[0].weight is None):
                raise Problem(400, "give every source a weight, or none for equal parts.", param=f"{name}.weight")
            if one.text is not None:
                self._check_text(one.text, f"{name}.text")
        weights = [1.0 if one.weight is None else one.weight for one in given]
        names = [f"sources[{number}].image" for number in range(len(given))]
        texts = {name: one.image for name, one in zip(names, given, strict=True) if one.image is not None}
        files = uploads.files_of(texts, self.limits)
        found = {name: self._picture(data, name) for name, data in files.items()}
        sources = [found[name].pixels if name in found else one.text for name, one in zip(names, given, strict=True)]
        with field_errors("sources"):
            mixture = list(zip(sources, weights, strict=True))
            return self._request(asked, uploads=tuple(found.values()), mixtures=[mixture])

    def recipe(self, image: bytes) -> dict[str, Any]:
        """The record inside a picture, and the request that generates it again. Raises Problem as `recipes.again`."""
        uploads.check({"image": image}, self.limits)
        with field_errors("image"):
            record = uploads.recipe(image, "the picture", self.limits)
        again = recipes.again(record, self.engine.record, self.own_size, self.capabilities["options"])
        return {"record": record, **again}

    def _picture(self, data: bytes, param: str) -> Upload:
        with field_errors(param):
            return self.engine.prepared(uploads.picture(data, param), data)

    def notes(self, request: ImageRequest) -> list[str]:
        """What the model does not understand, or a client may not expect."""
        found = [*request.notes, *(note for text in request.texts for note in self.engine.notes(text))]
        if len(request.kept) < len(request.uploads):
            found.append(
                f"a record holds uploaded pictures of up to {KEPT_BYTES:,} bytes in all; of the others it holds only the SHA-256."
            )
        return found

    def size(self, request: ImageRequest) -> str | None:
        """The size of the images, as OpenAI writes it."""
        found = request.generation.sampling.size or self.own_size
        return None if found is None else f"{found[1]}x{found[0]}"

    def _check_text(self, text: str, param: str) -> None:
        if len(text) > self.limits.prompt:
            raise _over(param, len(text), self.limits.prompt, "characters")
        with field_errors(param):
            check_texts([text])
        if found := CONTROL.search(text):
            raise Problem(400, f"{param} holds the control character {found[0]!r}: leave it out.", param=param)

    def _check_phrase(self, prompt: str, phrase: str, param: str) -> None:
        if len(phrase) > self.limits.prompt:
            raise _over(param, len(phrase), self.limits.prompt, "characters")
        with field_errors(param):
            uploads.check_phrase(prompt, phrase)

    def _check_common(self, asked: Common) -> None:
        name = self.engine.name
        if asked.model not in (None, "", name):
            raise Problem(
                404,
                f"there is no model {asked.model[:80]!r} here, but {name!r}.",
                param="model",
                code="model_not_found",
            )
        if asked.response_format == "url":
            raise Problem(400, "images are not stored, so they have no url: ask for b64_json.", param="response_format")
        if asked.n > self.limits.number:
            raise _over("n", asked.n, self.limits.number, "pictures")
        if asked.steps is not None and asked.steps > self.limits.steps:
            raise _over("steps", asked.steps, self.limits.steps, "steps")
        if asked.negative_prompt is not None:
            self._check_text(asked.negative_prompt, "negative_prompt")
            scale = self.engine.record["guidance_scale"] if asked.guidance_scale is None else asked.guidance_scale
            if scale == 1 and getattr(asked, "style_guidance", None) is None:
                text = "has no effect at guidance scale 1: raise the scale, or leave the prompt out."
                raise Problem(400, f"a negative prompt {text}", param="negative_prompt")
        samplers = self.capabilities["samplers"]
        if asked.sampler is not None and asked.sampler not in samplers:
            with field_errors("sampler"):
                raise unknown("sampler", asked.sampler[:80], samplers or ["none but the model's own: leave it out"])
        if not asked.stream:
            _check_unused(asked, ("partial_images", "progress"), "for streams: set stream")
        if asked.partial_images and not self.capabilities["partial_images"]:
            raise Problem(400, "this model shows no images before they are finished.", param="partial_images")

    def _check_can(self, what: str, wanted: bool, cannot: str, param: str | None = None) -> None:
        if wanted and not self.capabilities[what]:
            raise Problem(400, f"{self.engine.name} {cannot}", param=param or what)

    def _check_style_guidance(self, value: float | None) -> None:
        self._check_can("style_guidance", value is not None, "has no separate guidance for a style: leave it out.")

    def _options(self, asked: Common) -> dict[str, Any]:
        """The decoder's options: those of the request, else those that the server was started with."""
        known = self.capabilities["options"]
        given = {one.name: value for one in OPTIONS if (value := getattr(asked, one.name)) is not None}
        for name in given:
            if name not in known:
                allowed = f"its options are {', '.join(known)}" if known else "it has no options"
                raise Problem(400, f"{self.engine.name} has no option {name}; {allowed}. Leave it out.", param=name)
        return {one.name: self.engine.record.get(one.name) for one in OPTIONS} | given

    def _prompted(
        self,
        asked: Generation | Edit,
        regions: Sequence[Region],
        style: Upload | None,
        notes: tuple[str, ...] = (),
        *,
        references: Mapping[str, Any] = MappingProxyType({}),
        pictures: tuple[Upload, ...] = (),
    ) -> ImageRequest:
        """A request for a prompt. Where it leaves out a strength that applies, it gets the model's own, so that records hold it."""
        own = self.capabilities["defaults"]
        strength, guidance = asked.region_strength, asked.style_guidance
        if asked.painting is not None:
            if strength is not None:
                raise Problem(
                    400, "painting is the old name of region_strength: give only region_strength.", param="painting"
                )
            strength, notes = asked.painting, (*notes, OLD_STRENGTH)
        return self._request(
            asked,
            uploads=pictures if style is None else (*pictures, style),
            notes=notes,
            prompts=[asked.prompt],
            conditions=self.engine.record.get("conditions"),
            regions=list(regions) or None,
            region_strength=own["region_strength"] if strength is None and regions else strength,
            style=style and style.pixels,
            style_guidance=own["style_guidance"] if guidance is None and style else guidance,
            **references,
        )

    def _request(
        self, asked: Common, *, uploads: tuple[Upload, ...] = (), notes: tuple[str, ...] = (), **subject: Any
    ) -> ImageRequest:
        """The request with its own settings; the others are those that the server was started with."""
        first = secrets.randbelow(DRAWN_SEEDS) if asked.seed is None else asked.seed
        if first + asked.n - 1 > LARGEST_SEED:
            raise Problem(400, f"seeds end at {LARGEST_SEED}: choose one below {first}.", param="seed")
        own = self.engine.record
        with field_errors("size"):
            height, width = size_of(asked.size, self.own_size, self.limits.pixels) or (
                own.get("height"),
                own.get("width"),
            )
        generation = GenerationRequest.from_keywords(
            num_inference_steps=own["steps"] if asked.steps is None else asked.steps,
            guidance_scale=own["guidance_scale"] if asked.guidance_scale is None else asked.guidance_scale,
            sampler=own["sampler"] if asked.sampler is None else asked.sampler,
            negative_prompt=own.get("negative_prompt") if asked.negative_prompt is None else asked.negative_prompt,
            height=height,
            width=width,
            **self._options(asked),
            **subject,
        )
        seeds = tuple(range(first, first + asked.n))
        request = ImageRequest(generation, seeds, asked.seed is not None, uploads, asked.partial_images, notes)
        size = sum(len(one["mask"]) for one in request.region_records)
        if size > MASKS_BYTES:
            raise Problem(
                400,
                f"the masks have {size:,} bytes as PNG files; an image's record holds at most {MASKS_BYTES:,}. "
                "Draw them with fewer shades.",
                param="regions",
            )
        return request


def _check_unused(asked: Common, names: Sequence[str], of: str) -> None:
    """Refuse fields that have no effect because what they belong to is missing."""
    for name in names:
        if getattr(asked, name) != type(asked).model_fields[name].default:
            raise Problem(400, f"{name} is {of}, or leave it out.", param=name)


def _over(param: str, value: int, most: int, what: str) -> Problem:
    return Problem(400, f"{value:,} {what} are too many; at most {most:,} are allowed here.", param=param)
