"""From what a client sent to an `ImageRequest`: the limits, and every check that needs no model."""

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from syzygy.core.contracts import Region
from syzygy.core.deprecation import renamed
from syzygy.core.errors import UserError, unknown
from syzygy.generation.layout_edges import edge_map
from syzygy.generation.request import GenerationRequest, check_texts
from syzygy.generation.subjects import Subject, check_subjects, check_words
from syzygy.server import recipes, uploads
from syzygy.server.engine import Description
from syzygy.server.field_problems import above, check_unused, too_long
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem, field_errors
from syzygy.server.requests import KEPT_BYTES, LONGEST_SIDE, FileFormat, ImageRequest, Upload
from syzygy.server.schema import LARGEST_SEED, OPTIONS, Common, Edit, Generation, Mix, Variation, size_of

DRAWN_SEEDS = 2**32
PIXELS = ("image", "mask", "depth")
"""Fields with pictures that a decoder reads pixel by pixel, in the order of a request's uploads."""
MASKS_BYTES = 2**20
"""Largest size of a request's masks in a record, as base64. Drawn masks have a few thousand bytes."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Characters that no text has: control characters other than the tab and the ends of lines."""
NO_EFFECT = "{name} {value} has no effect here: {instead}."
OLD_STRENGTH = renamed("painting", "region_strength")


class Validator:
    """Checks requests, and decodes their pictures after all other checks."""

    def __init__(self, about: Description, limits: Limits, aliases: Sequence[str] = ()) -> None:
        """
        Args:
            aliases: further names of the model.

        Raises:
            UserError: the server's default settings are beyond its limits; an alias is empty.
        """
        if not all(alias.strip() for alias in aliases):
            raise UserError("a model alias is empty: give a name, or leave it out.")
        self.about, self.limits = about, limits
        self.names = tuple(dict.fromkeys((about.name, *aliases)))
        """Ids of the model that requests may use."""
        if about.record["steps"] > limits.steps:
            raise UserError(
                f"the server's own {about.record['steps']} steps are more than the {limits.steps} that a request may ask for: "
                "start it with fewer (--steps), or allow more (--max-steps)."
            )
        if about.own_size is not None and math.prod(about.own_size) > limits.pixels:
            raise UserError(
                f"{about.name} generates {math.prod(about.own_size):,} pixels, which are more than the {limits.pixels:,} of --max-pixels: "
                "allow more."
            )
        known, sampler = about.capabilities["samplers"], about.record.get("sampler")
        if sampler is not None and sampler not in known:
            raise unknown("sampler", sampler, known)
        self.capabilities = about.capabilities
        self.own_size = about.own_size

    def generation(self, asked: Generation) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        self.check_text(asked.prompt, "prompt")
        self.check_common(asked)
        if len(asked.regions) > self.limits.regions:
            raise too_long("regions", len(asked.regions), self.limits.regions, "array")
        if not asked.regions:
            check_unused(asked, ("region_strength", "painting", "mask_blur"), "for regions: give regions")
        plain = asked.plain_style
        styles = {"style" if len(asked.style) == 1 else f"style[{i}]": one for i, one in enumerate(asked.style)}
        if plain is not None or not styles:
            check_unused(asked, ("style_guidance", "style_content"), "for a style: give a picture")
            styles = {}
        self.check_can("regions", bool(asked.regions), "does not support regions: leave regions out.")
        self.check_can("style", bool(styles), "does not support a style reference: leave style out.")
        self.check_can("subjects", bool(asked.subjects), "has no prior that reads subjects: leave subjects out.")
        self.check_can("layout", asked.layout is not None, "has no prior that reads a layout: leave layout out.")
        self.check_can("image", asked.image is not None, "cannot start from an image: leave image out.")
        self.check_can("mask", asked.mask is not None, "cannot inpaint: leave mask out.")
        self.check_can("depth", asked.depth is not None, "cannot read a depth map: leave depth out.")
        if asked.image is None:
            check_unused(asked, ("strength", "mask"), "for an image: give one")
        for name in ("subjects", "style"):
            if len(given := getattr(asked, name)) > self.limits.sources:
                raise too_long(name, len(given), self.limits.sources, "array")
        self.check_style(asked)
        for number, one in enumerate(asked.regions):
            self.check_phrase(asked.prompt, one.phrase, f"regions[{number}].phrase")
        masks = {f"regions[{number}].mask": one.mask for number, one in enumerate(asked.regions)}
        pictures = {f"subjects[{number}].image": one.image for number, one in enumerate(asked.subjects)}
        pictures |= styles | ({} if asked.layout is None else {"layout": asked.layout})
        pictures |= {name: text for name in PIXELS if (text := getattr(asked, name)) is not None}
        files = uploads.files_of(masks | pictures, self.limits)
        style = tuple(self.picture(files[name], name) for name in styles)
        regions = uploads.regions(asked.regions, [files[name] for name in masks], asked.mask_blur)
        references, shown = self._references(asked, files)
        pixels = self.pixels(asked, {name: files[name] for name in PIXELS if name in files})
        instead = "describe the style in the prompt, or give a picture"
        notes = () if plain is None else (NO_EFFECT.format(name="style", value=plain, instead=instead),)
        references |= {name: one.pixels for name, one in pixels.items()}
        return self.prompted(asked, regions, style, notes, references=references, pictures=(*shown, *pixels.values()))

    def pixels(self, asked: Common, files: Mapping[str, bytes]) -> dict[str, Upload]:
        """The pictures that the decoder reads pixel by pixel, by field: image, mask (white where the image is repainted) and depth."""
        size, found = size_of(asked.size, self.own_size, self.limits.pixels) or self.about.default_size, {}
        for name, data in files.items():
            assert size is not None, "a decoder that takes pictures has a size of its own"
            with field_errors(name):
                read = uploads.resized_mask if name == "mask" else uploads.resized_picture
                found[name] = Upload.of(read(data, name, size), data)
        return found

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
                pictures.append(self.about.prepared(shown, files[name]))
            subjects.append(replace(subject, image=pictures[-1].pixels))
        layout = None
        if asked.layout is not None:
            with field_errors("layout"):
                edges = edge_map(uploads.picture(files["layout"], "layout"))
                pictures.append(self.about.prepared(edges, files["layout"]))
            layout = pictures[-1].pixels
        return {"subjects": subjects, "layout": layout}, tuple(pictures)

    def variation(self, asked: Variation, image: bytes) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        self.check_common(asked)
        self.check_can("variations", True, "reads only texts: it cannot vary pictures.", "image")
        uploads.check({"image": image}, self.limits)
        seen = self.picture(image, "image")
        return self._request(asked, uploads=(seen,), mixtures=[[(seen.pixels, 1.0)]])

    def mix(self, asked: Mix) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        self.check_common(asked)
        self.check_can("mixes", True, "reads only texts, or has no prior: it cannot mix.", "sources")
        given = asked.sources
        if len(given) > self.limits.sources:
            raise too_long("sources", len(given), self.limits.sources, "array")
        for number, one in enumerate(given):
            name = f"sources[{number}]"
            if (one.text is None) == (one.image is None):
                raise Problem(400, f"{name} must have either a text or an image.", param=name)
            if (one.weight is None) != (given[0].weight is None):
                raise Problem(400, "give every source a weight, or none for equal parts.", param=f"{name}.weight")
            if one.text is not None:
                self.check_text(one.text, f"{name}.text")
        weights = [1.0 if one.weight is None else one.weight for one in given]
        names = [f"sources[{number}].image" for number in range(len(given))]
        texts = {name: one.image for name, one in zip(names, given, strict=True) if one.image is not None}
        files = uploads.files_of(texts, self.limits)
        found = {name: self.picture(data, name) for name, data in files.items()}
        sources = [found[name].pixels if name in found else one.text for name, one in zip(names, given, strict=True)]
        with field_errors("sources"):
            mixture = list(zip(sources, weights, strict=True))
            return self._request(asked, uploads=tuple(found.values()), mixtures=[mixture])

    def recipe(self, image: bytes) -> dict[str, Any]:
        """The record inside a picture, and the request that generates it again. Raises Problem as `recipes.again`."""
        uploads.check({"image": image}, self.limits)
        with field_errors("image"):
            record = uploads.recipe(image, "the picture", self.limits)
        again = recipes.again(record, self.about.record, self.own_size, self.capabilities["options"])
        return {"record": record, **again}

    def picture(self, data: bytes, param: str) -> Upload:
        """A picture, prepared for the image encoder."""
        with field_errors(param):
            return self.about.prepared(uploads.picture(data, param), data)

    def notes(self, request: ImageRequest) -> list[str]:
        """What the model does not understand, or a client may not expect."""
        found = [
            *request.notes,
            *(note for text in request.texts for note in self.about.notes(text, request.generation.subjects)),
        ]
        if len(request.kept) < len(request.uploads):
            found.append(
                f"a record holds uploaded pictures of up to {KEPT_BYTES:,} bytes in all; of the others it holds only the SHA-256."
            )
        return found

    def size(self, request: ImageRequest) -> str | None:
        """The size of the images, as OpenAI writes it."""
        found = request.generation.sampling.size or self.own_size
        return None if found is None else f"{found[1]}x{found[0]}"

    def check_text(self, text: str, param: str) -> None:
        if len(text) > self.limits.prompt:
            raise too_long(param, len(text), self.limits.prompt)
        with field_errors(param):
            check_texts([text])
        if found := CONTROL.search(text):
            raise Problem(400, f"{param} holds the control character {found[0]!r}: leave it out.", param=param)

    def check_phrase(self, prompt: str, phrase: str, param: str) -> None:
        if len(phrase) > self.limits.prompt:
            raise too_long(param, len(phrase), self.limits.prompt)
        with field_errors(param):
            uploads.check_phrase(prompt, phrase)

    def check_common(self, asked: Common) -> None:
        if asked.model is not None and asked.model not in self.names:
            raise model_not_found(asked.model, self.about.name)
        if asked.stream and asked.response_format == "url":
            text = "response_format url is not supported with stream, whose events hold the images: use b64_json."
            raise Problem(400, text, param="response_format")
        if asked.output_format == "png" and asked.output_compression < 100:
            text = "Compression less than 100 is not supported for PNG output format."
            raise Problem(400, text, param="output_compression")
        for name in ("n", "steps"):
            value, most = getattr(asked, name), self.limits.number if name == "n" else self.limits.steps
            if value is not None and value > most:
                raise above(name, value, most)
        if asked.negative_prompt is not None:
            self.check_text(asked.negative_prompt, "negative_prompt")
            scale = self.about.record["guidance_scale"] if asked.guidance_scale is None else asked.guidance_scale
            if scale == 1 and getattr(asked, "style_guidance", None) is None:
                text = "has no effect at guidance scale 1: raise the scale, or leave the prompt out."
                raise Problem(400, f"a negative prompt {text}", param="negative_prompt")
        samplers = self.capabilities["samplers"]
        if asked.sampler is not None and asked.sampler not in samplers:
            with field_errors("sampler"):
                raise unknown("sampler", asked.sampler[:80], samplers or ["none but the model's own: leave it out"])
        if not asked.stream:
            check_unused(asked, ("partial_images", "progress"), "for streams: set stream")
        if asked.partial_images and not self.capabilities["partial_images"]:
            raise Problem(400, "this model shows no images before they are finished.", param="partial_images")

    def check_can(self, what: str, wanted: bool, cannot: str, param: str | None = None) -> None:
        if wanted and not self.capabilities[what]:
            raise Problem(400, f"{self.about.name} {cannot}", param=param or what)

    def check_style(self, asked: Generation | Edit) -> None:
        guided, content = asked.style_guidance is not None, asked.style_content
        self.check_can("style_guidance", guided, "has no separate guidance for a style: leave it out.")
        cannot = "has no prior, which takes the content out of a style: leave style_content out."
        self.check_can("mixes", content is not None, cannot, "style_content")
        if content is not None:
            if not content.strip():
                raise Problem(400, "style_content is empty: say what the style shows.", param="style_content")
            self.check_text(content, "style_content")

    def _options(self, asked: Common) -> dict[str, Any]:
        """The decoder's options: those of the request, else those that the server was started with."""
        known = self.capabilities["options"]
        given = {one.name: value for one in OPTIONS if (value := getattr(asked, one.name)) is not None}
        for name in given:
            if name not in known:
                allowed = f"its options are {', '.join(known)}" if known else "it has no options"
                raise Problem(400, f"{self.about.name} has no option {name}; {allowed}. Leave it out.", param=name)
        return {one.name: self.about.record.get(one.name) for one in OPTIONS} | given

    def prompted(
        self,
        asked: Generation | Edit,
        regions: Sequence[Region],
        style: tuple[Upload, ...],
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
        starts = "image" in references and "mask" not in references
        return self._request(
            asked,
            uploads=(*pictures, *style),
            notes=notes,
            prompts=[asked.prompt],
            conditions=self.about.record.get("conditions"),
            regions=list(regions) or None,
            region_strength=own["region_strength"] if strength is None and regions else strength,
            style=_pixels(style),
            style_content=asked.style_content,
            style_guidance=own["style_guidance"] if guidance is None and style else guidance,
            strength=own["strength"] if asked.strength is None and starts else asked.strength,
            **references,
        )

    def _request(
        self, asked: Common, *, uploads: tuple[Upload, ...] = (), notes: tuple[str, ...] = (), **subject: Any
    ) -> ImageRequest:
        """The request with its own settings; the others are those that the server was started with."""
        first = secrets.randbelow(DRAWN_SEEDS) if asked.seed is None else asked.seed
        if first + asked.n - 1 > LARGEST_SEED:
            raise Problem(400, f"seeds end at {LARGEST_SEED}: choose one below {first}.", param="seed")
        own = self.about.record
        size = size_of(asked.size, self.own_size, self.limits.pixels)
        height, width = size or (own.get("height"), own.get("width"))
        longest = LONGEST_SIDE[asked.output_format]
        if size is not None and max(size) > longest:
            text = (
                f"Invalid value: {asked.size!r}. A {asked.output_format} file holds at most {longest:,} pixels a side."
            )
            raise Problem(400, text, param="size")
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
        if asked.quality != "auto":
            notes = (
                *notes,
                NO_EFFECT.format(name="quality", value=asked.quality, instead="steps decides about quality"),
            )
        output = FileFormat(asked.output_format, asked.output_compression)
        request = ImageRequest(generation, seeds, asked.seed is not None, uploads, asked.partial_images, notes, output)
        masks = sum(len(one["mask"]) for one in request.region_records)
        if masks > MASKS_BYTES:
            raise Problem(
                400,
                f"the masks have {masks:,} bytes as PNG files; an image's record holds at most {MASKS_BYTES:,}. "
                "Draw them with fewer shades.",
                param="regions",
            )
        return request


def model_not_found(name: str, own: str) -> Problem:
    """The answer to the name of another model than the server's `own`."""
    text = f"The model `{name[:80]}` does not exist or you do not have access to it. This server has `{own}`."
    return Problem(404, text, param="model", code="model_not_found")


def _pixels(style: Sequence[Upload]) -> Tensor | None:
    """What `ImageRequest.generation` holds of style pictures."""
    found = [one.pixels for one in style if isinstance(one.pixels, Tensor)]
    if len(found) > 1:
        return torch.stack(found)
    return found[0] if found else None
