"""Edits of pictures, as OpenAI's API has them: inpainting and image-to-image where the model can, or else pictures as style reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.core.image_reading import upright_size
from syzygy.server import uploads
from syzygy.server.field_problems import check_unused, too_long
from syzygy.server.problems import Problem, field_errors
from syzygy.server.requests import ImageRequest
from syzygy.server.schema import Edit, JsonEdit
from syzygy.server.validation import Validator

NOT_INPAINTED = "the given pictures are the style reference of a new image; none of their pixels are kept."
OWN_MASK = "no mask was sent, so the transparent part of the image is the mask."
NO_MASK = (
    "the transparent part of the image is not used as a mask: this model cannot inpaint, and does not support regions."
)
OF_REGIONS = ("region", "region_strength", "painting", "mask_blur")


@dataclass(frozen=True)
class EditValidator:
    """Checks edits. A mask makes an edit an inpainting, if the model can inpaint. Without a mask, the first picture is the start of the new
    image if the request gives a strength, or if the model knows no style references."""

    validator: Validator

    def json(self, asked: JsonEdit) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        texts = {f"images[{number}].image_url": one.image_url for number, one in enumerate(asked.images)}
        self._check(asked, len(texts), asked.mask is not None, "images")
        masks = {} if asked.mask is None else {"mask": asked.mask.image_url}
        files = uploads.files_of(texts | masks, self.validator.limits)
        return self._understood(asked, {name: files[name] for name in texts}, files.get("mask"))

    def form(self, asked: Edit, images: Sequence[bytes], mask: bytes | None) -> ImageRequest:
        """Raises Problem for a request that cannot be fulfilled."""
        self._check(asked, len(images), mask is not None, "image")
        pictures = {"image" if len(images) == 1 else f"image[{i}]": one for i, one in enumerate(images)}
        uploads.check(pictures | ({} if mask is None else {"mask": mask}), self.validator.limits)
        return self._understood(asked, pictures, mask)

    def _check(self, asked: Edit, number: int, masked: bool, param: str) -> None:
        """All that can be checked before a picture is decoded."""
        validator, can = self.validator, self.validator.capabilities
        validator.check_text(asked.prompt, "prompt")
        validator.check_common(asked)
        if not can["image"]:
            validator.check_can("style", True, "does not support a style reference, so it cannot edit pictures.", param)
            check_unused(asked, ("strength",), "for models that start from an image")
        if not can["mask"]:
            validator.check_can(
                "regions", masked, "cannot inpaint, and does not support regions: leave the mask out.", "mask"
            )
        validator.check_style(asked)
        if number > validator.limits.sources:
            raise too_long(param, number, validator.limits.sources, "array")

    def _understood(self, asked: Edit, pictures: Mapping[str, bytes], mask: bytes | None) -> ImageRequest:
        """The request for an edit of these pictures, by their fields. The mask belongs to the first one."""
        validator, can = self.validator, self.validator.capabilities
        (first, data), *others = pictures.items()
        with field_errors(first):
            opened = uploads.opened(data, first)
            size, cut_out = upright_size(opened), mask is None and uploads.cut_out(opened)
        del opened
        usable = can["mask"] or can["regions"]
        where, notes = (data if usable else None, (OWN_MASK if usable else NO_MASK,)) if cut_out else (mask, ())
        inpaints = where is not None and can["mask"]
        starts = inpaints or (can["image"] and where is None and (asked.strength is not None or not can["style"]))
        if where is None:
            check_unused(asked, OF_REGIONS, "for a mask: give one")
        elif inpaints and asked.region is None:
            check_unused(asked, OF_REGIONS, "for a region: give its phrase as region")
        if not starts:
            check_unused(asked, ("strength",), "for image-to-image, which takes no mask")
        files = {"image": data} if starts else {}
        if inpaints and where is not None:
            with field_errors("mask"):
                drawn = uploads.opened(where, "mask")
                _check_size(size, upright_size(drawn))
                files["mask"] = uploads.white_where_transparent(drawn)
        regions = (self._region(asked, where, size),) if where is not None and (asked.region or not inpaints) else ()
        styles = dict(others if starts else pictures.items())
        self._check_styles(asked, styles, first)
        style = tuple(validator.picture(data, name) for name, data in styles.items())
        pixels = validator.pixels(asked, files)
        return validator.prompted(
            asked,
            regions,
            style,
            notes if starts else (NOT_INPAINTED, *notes),
            references={name: one.pixels for name, one in pixels.items()},
            pictures=tuple(pixels.values()),
        )

    def _check_styles(self, asked: Edit, styles: Mapping[str, bytes], first: str) -> None:
        """Check the pictures that are style references, and the fields that belong to them."""
        if first in styles and asked.input_fidelity == "high":
            raise Problem(400, f"input_fidelity high is not possible: {NOT_INPAINTED} Say low.", param="input_fidelity")
        if not styles:
            check_unused(asked, ("style_guidance", "style_content"), "for a style: send further pictures")
        self.validator.check_can(
            "style", bool(styles), "does not support a style reference: send one picture.", "image"
        )

    def _region(self, asked: Edit, mask: bytes, size: tuple[int, int]) -> Region:
        """The region of an edit's mask. `size` is the picture's width and height."""
        phrase = asked.prompt if asked.region is None else asked.region
        self.validator.check_can("regions", True, "does not support regions: leave region out.", "region")
        self.validator.check_phrase(asked.prompt, phrase, "region")
        with field_errors("mask"):
            drawn = uploads.opened(mask, "mask")
            _check_size(size, upright_size(drawn))
            return uploads.drawn(phrase, uploads.transparent(drawn), 1.0, asked.mask_blur)


def _check_size(size: tuple[int, int], found: tuple[int, int]) -> None:
    if found != size:
        sizes = " and ".join(f"{one[0]} × {one[1]}" for one in (size, found))
        raise UserError(f"image and mask must have one size, got {sizes}.")
