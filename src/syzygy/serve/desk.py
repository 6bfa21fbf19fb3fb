"""From what a client sent to an order: every limit and every check that needs no computing."""

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from syzygy.config import Config
from syzygy.errors import UserError
from syzygy.pipeline import check_texts
from syzygy.serve import uploads
from syzygy.serve.limits import Limits
from syzygy.serve.orders import Order, Upload
from syzygy.serve.problems import Problem
from syzygy.serve.schema import LARGEST_SEED, Common, Edit, Generation, Variation, size_of
from syzygy.serve.studio import Studio
from syzygy.types import Region, Sampling

T = TypeVar("T")
C = TypeVar("C", bound=Config)
DRAWN_SEEDS = 2**32
FIELD_BYTES = 2**16
PAINTED_ANEW = "the picture is painted anew in the manner of the one given; nothing of that is kept pixel by pixel."


class Desk:
    """Turns requests into orders. Pictures are decoded by one thread, one at a time: memory stays bounded."""

    def __init__(self, studio: Studio, limits: Limits) -> None:
        self.studio, self.limits = studio, limits
        self.about = studio.about()
        self.own_size = studio.own_size
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    def close(self) -> None:
        self._decoder.shutdown(cancel_futures=True)

    async def decoded(self, work: Callable[[], T]) -> T:
        """`work` in the thread for pictures."""
        return await asyncio.get_running_loop().run_in_executor(self._decoder, work)

    async def generation(self, asked: Generation) -> Order:
        """Raises Problem or UserError for what cannot be painted."""
        self._check_text(asked.prompt, "prompt")
        self._check_common(asked)
        if len(asked.regions) > self.limits.regions:
            raise _over("regions", len(asked.regions), self.limits.regions, "painted phrases")
        if not asked.regions and (asked.painting is not None or asked.mask_blur):
            raise UserError("painting and mask_blur are for regions: give regions, or leave them out.")
        if asked.style is None and asked.style_guidance is not None:
            raise UserError("style guidance is for a style: give a picture, or leave it out.")
        self._check_can("regions", bool(asked.regions), "paints no words where they shall be: leave regions out.")
        self._check_can("style", asked.style is not None, "takes no style from a picture: leave style out.")

        def decode() -> tuple[tuple[Region, ...], Upload | None]:
            regions = uploads.regions(asked.prompt, asked.regions, asked.mask_blur, self.limits)
            given = asked.style
            style = None if given is None else uploads.picture(uploads.unpacked(given, "style"), "style", self.limits)
            return regions, style

        regions, style = await self.decoded(decode)
        how = self._how(asked, painting=asked.painting, style_guidance=asked.style_guidance)
        return self._order(asked, asked.prompt, how, regions=regions, style=style)

    async def edit(self, asked: Edit, image: bytes, mask: bytes | None) -> Order:
        """Raises Problem or UserError for what cannot be painted."""
        self._check_text(asked.prompt, "prompt")
        self._check_common(asked)
        if asked.input_fidelity == "high":
            raise Problem(400, f"input_fidelity high is not possible: {PAINTED_ANEW} Say low.", param="input_fidelity")
        self._check_can("style", True, "takes no style from a picture, so it cannot edit one.")
        self._check_can("regions", mask is not None, "paints no words where they shall be: leave the mask out.")
        if mask is None and (asked.region is not None or asked.painting is not None or asked.mask_blur):
            raise UserError("region, painting and mask_blur are for a mask: give one, or leave them out.")

        def decode() -> tuple[tuple[Region, ...], Upload]:
            style = uploads.picture(image, "image", self.limits)
            if mask is None:
                return (), style
            drawn = uploads.opened(mask, "mask", self.limits)
            if drawn.size != style.image.size:
                sizes = " and ".join(f"{one[0]} × {one[1]}" for one in (style.image.size, drawn.size))
                raise UserError(f"image and mask must have one size, got {sizes}.")
            phrase = asked.prompt if asked.region is None else asked.region
            uploads.places(asked.prompt, phrase)
            region = uploads.fitted(Region(phrase, uploads.transparent(drawn)))
            return (uploads.blurred(region, asked.mask_blur),), style

        regions, style = await self.decoded(decode)
        how = self._how(asked, painting=asked.painting, style_guidance=asked.style_guidance)
        return self._order(asked, asked.prompt, how, regions=regions, style=style)

    async def variation(self, asked: Variation, image: bytes) -> Order:
        """Raises Problem or UserError for what cannot be painted."""
        self._check_common(asked)
        self._check_can("variations", True, "reads texts alone: it cannot vary pictures.")
        source = await self.decoded(lambda: uploads.picture(image, "image", self.limits))
        return self._order(asked, None, self._how(asked), source=source)

    def notes(self, order: Order) -> list[str]:
        """What the model will not understand, or a client might not expect."""
        return self.studio.model.notes(order.prompt or "")

    def size(self, order: Order) -> str | None:
        """Of the pictures, as OpenAI writes it."""
        found = order.how.size or self.own_size
        return None if found is None else f"{found[1]}x{found[0]}"

    def _check_text(self, text: str, param: str) -> None:
        if len(text) > self.limits.prompt:
            raise _over(param, len(text), self.limits.prompt, "characters")
        try:
            check_texts([text])
        except UserError as error:
            raise Problem(400, str(error), param=param) from None

    def _check_common(self, asked: Common) -> None:
        name = self.studio.model.name
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
        if not asked.stream and (asked.partial_images or asked.progress):
            raise Problem(400, "partial_images and progress are for streams: set stream, or leave them out.")
        if asked.partial_images and not self.about["partial_images"]:
            raise Problem(400, "this model shows no pictures before they are done.", param="partial_images")

    def _check_can(self, what: str, wanted: bool, cannot: str) -> None:
        if wanted and not self.about[what]:
            raise Problem(400, f"{self.studio.model.name} {cannot}", param=what)

    def _how(self, asked: Common, *, painting: float | None = None, style_guidance: float | None = None) -> Sampling:
        """Settings of the request; where it has none, those that the server was started with."""
        own = self.studio.record
        size = size_of(asked.size, self.own_size, self.limits.pixels)
        if size is None and own.get("height") is not None:
            size = own["height"], own["width"]
        options = {name: own[name] for name in ("noise_level", "super_res_steps") if own.get(name) is not None}
        return Sampling(
            steps=own["steps"] if asked.steps is None else asked.steps,
            guidance_scale=own["guidance_scale"] if asked.guidance_scale is None else asked.guidance_scale,
            sampler=own["sampler"] if asked.sampler is None else asked.sampler,
            size=size,
            painting=painting,
            style_guidance=style_guidance,
            options=options,
        )

    def _order(self, asked: Common, prompt: str | None, how: Sampling, **more: Any) -> Order:
        first = random.randrange(DRAWN_SEEDS) if asked.seed is None else asked.seed
        if first + asked.n - 1 > LARGEST_SEED:
            raise UserError(f"seeds end at {LARGEST_SEED}: choose a smaller one than {first}.")
        negative = self.studio.record.get("negative_prompt") if asked.negative_prompt is None else asked.negative_prompt
        return Order(
            prompt,
            tuple(range(first, first + asked.n)),
            asked.seed is not None,
            how,
            negative_prompt=negative,
            previews=asked.partial_images,
            **more,
        )


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
    place = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(place) or None
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
