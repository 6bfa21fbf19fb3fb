"""From what a client sent to an order: every limit and every check that needs no computing."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from syzygy.core.config import Config
from syzygy.core.contracts import Region, Sampling
from syzygy.core.errors import UserError, unknown
from syzygy.generation.mixing import shares
from syzygy.generation.request import check_texts
from syzygy.server import uploads
from syzygy.server.engine import Studio
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem, about
from syzygy.server.requests import KEPT_BYTES, Order, Source, Upload
from syzygy.server.schema import LARGEST_SEED, Common, Edit, Generation, Mix, Variation, size_of

T = TypeVar("T")
C = TypeVar("C", bound=Config)
DRAWN_SEEDS = 2**32
FIELD_BYTES = 2**16
MASKS_BYTES = 2**20
"""Of a request's masks in a record, as base64. Drawn ones have few thousands; noise in every pixel reaches it."""
PAINTED_ANEW = "the picture is painted anew in the manner of the one given; nothing of that is kept pixel by pixel."
OWN_MASK = "no mask was sent, so the transparent part of the image is the mask."
NO_MASK = "the transparent part of the image is not used as a mask: this model does not place phrases of the prompt."


class Desk:
    """Turns requests into orders. Pictures are decoded by one thread, one at a time: memory stays bounded."""

    def __init__(self, studio: Studio, limits: Limits) -> None:
        """
        Raises:
            UserError: a request that says nothing would go beyond the limits.
        """
        self.studio, self.limits = studio, limits
        if studio.record["steps"] > limits.steps:
            raise UserError(
                f"the server's own {studio.record['steps']} steps are more than the {limits.steps} that a request may ask for: "
                "start it with fewer (--steps), or allow more (--max-steps)."
            )
        self.about = studio.about()
        self.own_size = studio.own_size
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    def close(self) -> None:
        self._decoder.shutdown(cancel_futures=True)

    async def decoded(self, work: Callable[[], T]) -> T:
        """`work` in the thread for pictures."""
        return await asyncio.get_running_loop().run_in_executor(self._decoder, work)

    async def generation(self, asked: Generation) -> Order:
        """Raises Problem for what cannot be painted."""
        self._check_text(asked.prompt, "prompt")
        self._check_common(asked)
        if len(asked.regions) > self.limits.regions:
            raise _over("regions", len(asked.regions), self.limits.regions, "painted phrases")
        if not asked.regions:
            _check_unused(asked, ("painting", "mask_blur"), "for regions: give regions")
        if asked.style is None:
            _check_unused(asked, ("style_guidance",), "for a style: give a picture")
        self._check_can("regions", bool(asked.regions), "paints no words where they shall be: leave regions out.")
        self._check_can("style", asked.style is not None, "takes no style from a picture: leave style out.")
        self._check_style_guidance(asked.style_guidance)
        sampling = self._how(asked, **self._strengths(asked, bool(asked.regions), asked.style is not None))

        def decode() -> Order:
            regions = uploads.regions(asked.prompt, asked.regions, asked.mask_blur, self.limits)
            style = None if asked.style is None else self._picture(asked.style, "style")
            return self._order(asked, asked.prompt, sampling, regions=regions, style=style)

        return await self.decoded(decode)

    async def edit(self, asked: Edit, image: bytes, mask: bytes | None) -> Order:
        """Raises Problem for what cannot be painted."""
        self._check_text(asked.prompt, "prompt")
        self._check_common(asked)
        if asked.input_fidelity == "high":
            raise Problem(400, f"input_fidelity high is not possible: {PAINTED_ANEW} Say low.", param="input_fidelity")
        self._check_can("style", True, "takes no style from a picture, so it cannot edit one.", "image")
        self._check_can("regions", mask is not None, "paints no words where they shall be: leave the mask out.", "mask")
        self._check_style_guidance(asked.style_guidance)

        def decode() -> Order:
            with about("image"):
                seen = uploads.picture(image, "image", self.limits)
                style = self.studio.seen(seen, image)
                cut_out = mask is None and uploads.cut_out(image, self.limits)
            can = self.about["regions"]
            where, notes = (image if can else None, (OWN_MASK if can else NO_MASK,)) if cut_out else (mask, ())
            if where is None:
                _check_unused(asked, ("region", "painting", "mask_blur"), "for a mask: give one")
            sampling = self._how(asked, **self._strengths(asked, where is not None, True))
            regions = () if where is None else (self._masked(asked, where, seen.size),)
            return self._order(asked, asked.prompt, sampling, regions=regions, style=style, notes=notes)

        return await self.decoded(decode)

    def _masked(self, asked: Edit, mask: bytes, size: tuple[int, int]) -> Region:
        """What an edit's mask, of a picture of this width and height, says of its phrase."""
        phrase = asked.prompt if asked.region is None else asked.region
        with about("region"):
            uploads.check_phrase(asked.prompt, phrase)
        with about("mask"):
            drawn = uploads.opened(mask, "mask", self.limits)
            found = uploads.upright_size(drawn)
            if found != size:
                sizes = " and ".join(f"{one[0]} × {one[1]}" for one in (size, found))
                raise UserError(f"image and mask must have one size, got {sizes}.")
            return uploads.drawn(phrase, uploads.transparent(drawn), 1.0, asked.mask_blur)

    async def variation(self, asked: Variation, image: bytes) -> Order:
        """Raises Problem for what cannot be painted."""
        self._check_common(asked)
        self._check_can("variations", True, "reads texts alone: it cannot vary pictures.", "image")
        sampling = self._how(asked)

        def decode() -> Order:
            with about("image"):
                seen = self.studio.seen(uploads.picture(image, "image", self.limits), image)
            return self._order(asked, None, sampling, sources=(Source(seen, 1.0),))

        return await self.decoded(decode)

    async def mix(self, asked: Mix) -> Order:
        """Raises Problem for what cannot be painted."""
        self._check_common(asked)
        self._check_can("mixes", True, "reads texts alone, or has no prior: it cannot mix.", "sources")
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
        with about("sources"):
            shares(weights)
        sampling = self._how(asked)

        def decode() -> Order:
            parts = [
                self._picture(one.image or "", f"sources[{number}].image") if one.text is None else one.text
                for number, one in enumerate(given)
            ]
            return self._order(asked, None, sampling, sources=tuple(map(Source, parts, weights)))

        return await self.decoded(decode)

    def _picture(self, text: str, param: str) -> Upload:
        """A picture that came as base64."""
        with about(param):
            data = uploads.unpacked(text, param)
            return self.studio.seen(uploads.picture(data, param, self.limits), data)

    def notes(self, order: Order) -> list[str]:
        """What the model will not understand, or a client might not expect."""
        found = [*order.notes, *(note for text in order.texts for note in self.studio.model.notes(text))]
        if len(order.kept) < len(order.uploads):
            found.append(
                f"a record keeps pictures of {KEPT_BYTES:,} bytes together; of what is larger it has the SHA-256 alone."
            )
        return found

    def size(self, order: Order) -> str | None:
        """Of the pictures, as OpenAI writes it."""
        found = order.sampling.size or self.own_size
        return None if found is None else f"{found[1]}x{found[0]}"

    def _check_text(self, text: str, param: str) -> None:
        if len(text) > self.limits.prompt:
            raise _over(param, len(text), self.limits.prompt, "characters")
        with about(param):
            check_texts([text])

    def _check_common(self, asked: Common) -> None:
        name = self.studio.name
        if asked.model not in (None, "", name):
            raise Problem(
                404,
                f"there is no model {asked.model[:80]!r} here, but {name!r}.",
                param="model",
                code="model_not_found",
            )
        if asked.response_format == "url":
            raise Problem(400, "pictures are not kept, so they have no url: ask for b64_json.", param="response_format")
        if asked.n > self.limits.number:
            raise _over("n", asked.n, self.limits.number, "pictures")
        if asked.steps is not None and asked.steps > self.limits.steps:
            raise _over("steps", asked.steps, self.limits.steps, "steps")
        if asked.negative_prompt is not None:
            self._check_text(asked.negative_prompt, "negative_prompt")
            scale = self.studio.record["guidance_scale"] if asked.guidance_scale is None else asked.guidance_scale
            if scale == 1 and getattr(asked, "style_guidance", None) is None:
                text = "has no effect at guidance scale 1: raise the scale, or leave the prompt out."
                raise Problem(400, f"a negative prompt {text}", param="negative_prompt")
        samplers = self.about["samplers"]
        if asked.sampler is not None and asked.sampler not in samplers:
            with about("sampler"):
                raise unknown("sampler", asked.sampler[:80], samplers or ["none but the model's own: leave it out"])
        if not asked.stream:
            _check_unused(asked, ("partial_images", "progress"), "for streams: set stream")
        if asked.partial_images and not self.about["partial_images"]:
            raise Problem(400, "this model shows no pictures before they are done.", param="partial_images")

    def _check_can(self, what: str, wanted: bool, cannot: str, param: str | None = None) -> None:
        if wanted and not self.about[what]:
            raise Problem(400, f"{self.studio.name} {cannot}", param=param or what)

    def _check_style_guidance(self, value: float | None) -> None:
        self._check_can(
            "style_guidance", value is not None, "has no guidance for a style apart from the text: leave it out."
        )

    def _strengths(self, asked: Generation | Edit, regions: bool, style: bool) -> dict[str, float | None]:
        """How strongly its regions and its style pull; the model's own where it does not say, so that records tell it."""
        there = {"painting": regions, "style_guidance": style}
        own = self.about["defaults"]
        found = {name: getattr(asked, name) for name in there}
        return {name: own[name] if found[name] is None and there[name] else found[name] for name in there}

    def _how(self, asked: Common, *, painting: float | None = None, style_guidance: float | None = None) -> Sampling:
        """Settings of the request; where it has none, those that the server was started with."""
        own = self.studio.record
        with about("size"):
            size = size_of(asked.size, self.own_size, self.limits.pixels)
        if size is None and own.get("height") is not None:
            size = own["height"], own["width"]
        options = {name: own[name] for name in ("noise_level", "super_res_steps") if own.get(name) is not None}
        return Sampling(
            steps=own["steps"] if asked.steps is None else asked.steps,
            guidance_scale=own["guidance_scale"] if asked.guidance_scale is None else asked.guidance_scale,
            sampler=own["sampler"] if asked.sampler is None else asked.sampler,
            size=size,
            region_strength=painting,
            style_guidance=style_guidance,
            options=options,
        )

    def _order(self, asked: Common, prompt: str | None, sampling: Sampling, **more: Any) -> Order:
        first = secrets.randbelow(DRAWN_SEEDS) if asked.seed is None else asked.seed
        if first + asked.n - 1 > LARGEST_SEED:
            text = f"seeds end at {LARGEST_SEED}: choose a smaller one than {first}."
            raise Problem(400, text, param="seed")
        negative = self.studio.record.get("negative_prompt") if asked.negative_prompt is None else asked.negative_prompt
        order = Order(
            prompt,
            tuple(range(first, first + asked.n)),
            asked.seed is not None,
            sampling,
            negative_prompt=negative,
            previews=asked.partial_images,
            **more,
        )
        size = sum(len(one["mask"]) for one in order.painted)
        if size > MASKS_BYTES:
            text = (
                f"as PNG files the masks have {size:,} bytes; at most {MASKS_BYTES:,}: a picture's record holds them."
            )
            raise Problem(400, f"{text} Draw them with fewer shades.", param="regions")
        return order


def _check_unused(asked: Common, names: Sequence[str], of: str) -> None:
    """These fields are as if nothing was said, for what they are of is not there."""
    for name in names:
        if getattr(asked, name) != type(asked).model_fields[name].default:
            raise Problem(400, f"{name} is {of}, or leave it out.", param=name)


def _over(param: str, value: int, most: int, what: str) -> Problem:
    return Problem(400, f"{value:,} {what} are too many; at most {most:,} are allowed here.", param=param)


def checked(model: type[C], values: dict[str, Any]) -> C:
    """A form's fields as settings.

    Raises:
        Problem: one is unknown or out of range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False, include_input=False)) from None


def invalid(errors: Sequence[Any]) -> Problem:
    """The first of pydantic's errors."""
    first = errors[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "")
        where = f" at character {first['loc'][-1]}" if isinstance(first["loc"][-1], int) else ""
        return Problem(400, f"the body is not valid JSON: {why or 'it cannot be parsed'}{where}."[:300])
    place = [part for part in first["loc"] if part != "body"]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".") or None
    return Problem(400, f"{param or 'the body'}: {first['msg']}."[:300], param=param and param[:100])


async def form_of(request: Request, model: type[C], files: Sequence[str]) -> tuple[C, dict[str, bytes]]:
    """A multipart form: settings, and files by name (`image[]` is `image`).

    Raises:
        Problem: no such form, a field twice, a file where a text belongs, or the other way about.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem(415, "send this as multipart/form-data.", code="unsupported_media_type")
    texts: dict[str, str] = {}
    found: dict[str, bytes] = {}
    async with request.form(max_files=len(files), max_fields=64, max_part_size=FIELD_BYTES) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in texts or name in found:
                raise Problem(400, f"{name[:80]!r} is given twice; one is allowed.", param=name[:80])
            if isinstance(value, UploadFile) != (name in files):
                wanted = "a file" if name in files else "a text"
                raise Problem(400, f"{name[:80]!r} must be {wanted}.", param=name[:80])
            if isinstance(value, UploadFile):
                found[name] = await value.read()
            else:
                texts[name] = value
    return checked(model, texts), found
