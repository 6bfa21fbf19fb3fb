"""The bodies of requests: OpenAI's fields and further ones. Unknown fields are refused, and so are settings without effect."""

import re
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import ConfigDict, Field, create_model, model_validator

from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.core.options import HEIGHT, WIDTH, Option, decoder_options

LARGEST_SEED = 2**64 - 1
MOST_PREVIEWS = 8
Scale = Annotated[float, Field(ge=0, le=100)]
OLD_NAME: Any = Field(default=None, json_schema_extra={"deprecated": True})
Blur = Annotated[float, Field(ge=0, lt=1)]
OPTIONS = tuple(option for option in decoder_options() if option not in (HEIGHT, WIDTH))
"""Options of all decoders, also of those that other packages register. Height and width are the field `size`."""
SCHEMAS = "#/components/schemas/{model}"
C = TypeVar("C", bound=Config)


class Body(Config):
    """Base of all bodies. An optional field that is `null` or an empty text counts as omitted."""

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {
            name: value for name, value in values.items() if not (name in optional and (value is None or value == ""))
        }


class RegionMask(Body):
    """A phrase of the prompt, and where it should appear."""

    phrase: str = Field(min_length=1)
    """The words as they are in the prompt."""
    mask: str = Field(min_length=1)
    """A PNG in base64, or a data URL of one: bright where the phrase should appear, dark or transparent elsewhere. All masks have one size."""
    weight: Scale = 1.0
    """Strength of this region relative to the others."""


class SubjectPicture(Body):
    """A word of the prompt, and a picture of what it stands for."""

    word: str = Field(min_length=1)
    """One or more words as they are in the prompt."""
    image: str = Field(min_length=1)
    """A picture in base64, or a data URL of one. Its transparent parts become white."""


class Form(Body):
    """A form without fields, for files only."""


def with_decoder_options(model: type[C]) -> type[C]:
    """Add a field for each of `OPTIONS`."""
    return create_model(
        model.__name__,
        __base__=model,
        __module__=model.__module__,
        __doc__=model.__doc__,
        **cast(dict[str, Any], {option.name: _field(option) for option in OPTIONS}),
    )


def _field(option: Option) -> tuple[Any, Any]:
    kind: Any = cast(Any, Literal)[option.choices] if option.choices else option.type
    limits: dict[str, Any] = {"ge": option.minimum, "le": option.maximum} if option.type in (int, float) else {}
    if option.type is float:
        limits["allow_inf_nan"] = False
    constrained: Any = Annotated[kind, Field(**limits)]
    return constrained | None, Field(default=None, description=option.help)


@with_decoder_options
class Common(Body):
    """Fields of all requests for images."""

    model: str | None = None
    """The model's id. It can be omitted, because a server has one model."""
    n: int = Field(default=1, ge=1)
    """Number of images."""
    size: str = "auto"
    """`auto`, or WIDTHxHEIGHT in pixels if the model supports several sizes."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """Images are part of the answer: `url` is refused."""
    user: str | None = None
    """Accepted for compatibility, without effect."""
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    """Seed of the first image; the others get the following ones. With a seed, images are generated one by one, so that equal requests
    give equal bytes."""
    steps: int | None = Field(default=None, ge=1)
    """Sampling steps."""
    guidance_scale: Scale | None = None
    """Scale of classifier-free guidance; 1 turns it off."""
    sampler: str | None = None
    """Name of the sampler. `GET /v1/models` lists them."""
    negative_prompt: str | None = None
    """Text that the image should avoid."""
    stream: bool = False
    """Answer with server-sent events."""
    partial_images: int = Field(default=0, ge=0, le=MOST_PREVIEWS)
    """With `stream`: unfinished images to send of each image."""
    progress: bool = False
    """With `stream`: send an event `syzygy.progress` for each sampling step too."""
    output_format: Literal["png"] = "png"
    background: Literal["auto", "opaque"] = "auto"
    quality: Literal["auto", "standard"] = "auto"
    """There is one quality, and `steps` decides its cost: other values are refused."""

    @property
    def pictures(self) -> bool:
        """Whether the body holds pictures, which must be decoded."""
        return False


class Generation(Common):
    """A prompt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red star and a blue ring", "n": 2, "seed": 7},
                {"prompt": "a green circle", "stream": True, "partial_images": 2, "negative_prompt": "a square"},
            ]
        }
    )

    prompt: str = Field(min_length=1)
    """Description of the image."""
    regions: list[RegionMask] = []
    """Where phrases of the prompt should appear (paint-with-words)."""
    mask_blur: Blur = 0.0
    """Softness of the masks' borders, as a fraction of their longer side."""
    region_strength: Scale | None = None
    """How strongly regions influence the image; 0 is not at all."""
    painting: Scale | None = OLD_NAME
    """The old name of `region_strength`, which works for one more release."""
    style: str | None = None
    """The style reference: a picture in base64, or a data URL of one."""
    style_guidance: Scale | None = None
    """Guidance scale of the style. Default: that of the text."""
    subjects: list[SubjectPicture] = []
    """Pictures that words of the prompt stand for. Needs a server with a λ-ECLIPSE prior."""
    layout: str | None = None
    """A picture whose edges the image should follow, in base64, or a data URL of one. Needs a server with a λ-ECLIPSE prior."""
    moderation: Literal["auto", "low"] = "auto"
    """Accepted for compatibility: nothing is moderated."""

    @property
    def pictures(self) -> bool:
        return bool(self.regions) or self.style is not None


class Variation(Common):
    """Fields sent with a picture to vary."""


class MixedSource(Body):
    """A part of a mixture: a text or a picture."""

    text: str | None = None
    """A text, from which the prior predicts an image embedding."""
    image: str | None = None
    """A picture in base64, or a data URL of one."""
    weight: float | None = Field(default=None, ge=0, le=1)
    """Share of the mixture; only proportions count. Give one to every source, or to none for equal shares."""


class Mix(Common):
    """Texts and pictures to mix. A single picture gives variations."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"sources": [{"text": "a red star", "weight": 0.6}, {"text": "a blue ring", "weight": 0.4}]}]
        }
    )

    sources: list[MixedSource] = Field(min_length=1)
    """Texts and pictures."""

    @property
    def pictures(self) -> bool:
        return any(one.image is not None for one in self.sources)


class Edit(Common):
    """Fields sent with a picture and a mask. The picture is the style reference of a new image, and a phrase appears where the mask is
    transparent."""

    prompt: str = Field(min_length=1)
    """Description of the image."""
    region: str | None = None
    """The phrase of the prompt that should appear where the mask is transparent. Default: the whole prompt."""
    mask_blur: Blur = 0.0
    """Softness of the mask's border, as a fraction of its longer side."""
    region_strength: Scale | None = None
    """How strongly the region influences the image; 0 is not at all."""
    painting: Scale | None = OLD_NAME
    """The old name of `region_strength`, which works for one more release."""
    style_guidance: Scale | None = None
    """Guidance scale of the style. Default: that of the text."""
    input_fidelity: Literal["low", "high"] = "low"
    """`high` is refused: none of the picture's pixels are kept."""


def size_of(text: str, own: tuple[int, int] | None, most: int) -> tuple[int, int] | None:
    """Height and width from a request; None is the model's own.

    Args:
        own: the size of a model that supports only one.
        most: largest number of pixels.

    Raises:
        UserError: no size, too large, or one that the model does not support.
    """
    if text == "auto":
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if not found:
        raise UserError(f"size {text[:40]!r} must be auto, or WIDTHxHEIGHT such as 512x512.")
    width, height = map(int, found.groups())
    if own is not None:
        if (height, width) != own:
            raise UserError(f"size {text}: this model generates images of {own[1]}x{own[0]} only. Give that, or auto.")
        return None
    if width * height > most:
        raise UserError(f"size {text} has {width * height:,} pixels; at most {most:,} are allowed here.")
    return height, width


def json_body(model: type[Config]) -> dict[str, Any]:
    """OpenAPI's description of a JSON body, whose schema is in `json_schemas`."""
    content = {"application/json": {"schema": {"$ref": SCHEMAS.format(model=model.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def json_schemas(*models: type[Config]) -> dict[str, Any]:
    """The schemas of models, and of those that they contain, by name."""
    found: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=SCHEMAS)
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return found


def multipart(model: type[Config], files: dict[str, str], required: list[str]) -> dict[str, Any]:
    """OpenAPI's description of a form: a model's fields, and files by name with what they are."""
    schema = model.model_json_schema()
    binary = {name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()}
    schema["properties"] = {**schema.get("properties", {}), **binary}
    schema["required"] = [*schema.get("required", []), *required]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
