"""The bodies of requests: OpenAI's fields and further ones. Unknown fields are refused, and so are settings without effect."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import ConfigDict, Field, create_model, field_validator, model_validator

from syzygy.core.config import Config
from syzygy.core.options import HEIGHT, WIDTH, Option, decoder_options
from syzygy.server.field_problems import unsupported
from syzygy.server.problems import Problem

LARGEST_SEED = 2**64 - 1
MOST_PREVIEWS = 8
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
OLD_NAME: Any = Field(default=None, json_schema_extra={"deprecated": True})
Strength = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Blur = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
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
    """The model's id, or an alias of `--model-alias`. It can be omitted, because a server has one model."""
    n: int = Field(default=1, ge=1)
    """Number of images. `limits` of `GET /v1/models` says how many are allowed."""
    size: str = "auto"
    """`auto`, or WIDTHxHEIGHT in pixels if the model supports several sizes."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """`b64_json`: images are part of the answer. `url`: they are kept in memory for an hour, and the answer has their addresses. Those need
    the same API key as other requests. Not with `stream`."""
    user: str | None = None
    """Accepted for compatibility, without effect."""
    safety_identifier: str | None = None
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
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """Format of the files. Only PNG files hold the record from which the image can be generated again."""
    output_compression: int = Field(default=100, ge=0, le=100)
    """Quality of JPEG and WebP files: 0 is the smallest file, 100 the best image. PNG files are lossless and take only 100."""
    background: Literal["auto", "opaque"] = "auto"
    """Images are opaque."""
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = "auto"
    """Repeated in the answer, without effect: `steps` decides about quality. Values other than `auto` give a warning."""

    @property
    def pictures(self) -> bool:
        """Whether the body holds pictures, which must be decoded."""
        return False


def _text_or_list(schema: dict[str, Any]) -> None:
    """Describe a list that may also be given as its only item."""
    schema["anyOf"] = [{"type": "string"}, {name: schema.pop(name) for name in ("type", "items")}]


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
    style: list[str] = Field(default=[], json_schema_extra=_text_or_list)
    """The style reference: a picture in base64, or a data URL of one; or a list of them, whose styles are mixed in equal parts. OpenAI's
    values `vivid` and `natural` have no effect and give a warning."""
    style_guidance: Scale | None = None
    """Guidance scale of the style. Default: that of the text."""
    style_content: str | None = None
    """What the style reference shows, in words: its objects then do not appear in the image."""
    subjects: list[SubjectPicture] = []
    """Pictures that words of the prompt stand for. Needs a server with a λ-ECLIPSE prior."""
    layout: str | None = None
    """A picture whose edges the image should follow, in base64, or a data URL of one. Needs a server with a λ-ECLIPSE prior."""
    image: str | None = None
    """A picture to start from (image-to-image), in base64, or a data URL of one. It is resized to the image's size."""
    strength: Strength | None = None
    """How much of `image` is replaced: the share of the steps that are taken."""
    mask: str | None = None
    """A picture in base64, or a data URL of one: `image` is repainted where it is white, and kept where it is black or transparent."""
    depth: str | None = None
    """A depth map that the image should follow, bright where the scene is near, in base64, or a data URL of one."""
    moderation: Literal["auto", "low"] = "auto"
    """Accepted for compatibility: nothing is moderated."""

    @field_validator("style", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def plain_style(self) -> str | None:
        """One of OpenAI's styles, which has no effect here."""
        return self.style[0] if self.style in (["vivid"], ["natural"]) else None

    @property
    def pictures(self) -> bool:
        given = (self.layout, self.image, self.mask, self.depth)
        return bool(self.regions or self.style or self.subjects) or any(one is not None for one in given)


class Variation(Common):
    """Fields sent with a picture to vary."""


class MixedSource(Body):
    """A part of a mixture: a text or a picture."""

    text: str | None = None
    """A text, from which the prior predicts an image embedding."""
    image: str | None = None
    """A picture in base64, or a data URL of one."""
    weight: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
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
    """Fields sent with pictures and a mask. A model that inpaints repaints the first picture where the mask is transparent. With other
    models, the pictures are the style reference of a new image, and a phrase appears there."""

    prompt: str = Field(min_length=1)
    """Description of the image."""
    region: str | None = None
    """The phrase of the prompt that should appear where the mask is transparent, for models that support regions. Default: none when
    inpainting, and the whole prompt otherwise."""
    strength: Strength | None = None
    """How much of the first picture is replaced: the share of the steps that are taken. Without a mask, it makes the picture the start of
    the new image, and not its style reference."""
    mask_blur: Blur = 0.0
    """Softness of the mask's border, as a fraction of its longer side."""
    region_strength: Scale | None = None
    """How strongly the region influences the image; 0 is not at all."""
    painting: Scale | None = OLD_NAME
    """The old name of `region_strength`, which works for one more release."""
    style_guidance: Scale | None = None
    """Guidance scale of the style. Default: that of the text."""
    style_content: str | None = None
    """What the style reference shows, in words: its objects then do not appear in the image."""
    input_fidelity: Literal["low", "high"] = "low"
    """`high` is refused where pictures are style references: none of their pixels are kept."""
    moderation: Literal["auto", "low"] = "auto"
    """Accepted for compatibility: nothing is moderated."""


class ImageReference(Body):
    """A picture in a JSON body."""

    image_url: str = Field(min_length=1)
    """A data URL of a picture, or its base64. No other URL is opened."""


class JsonEdit(Edit):
    """An edit as JSON, with pictures and mask inside."""

    images: list[ImageReference] = Field(min_length=1)
    """The picture to edit, and further ones whose styles are mixed in equal parts. The mask belongs to the first one."""
    mask: ImageReference | None = None
    """A PNG of the same size as the first picture, transparent where it should change."""

    @property
    def pictures(self) -> bool:
        return True


def size_of(text: str, own: tuple[int, int] | None, most: int) -> tuple[int, int] | None:
    """Height and width from a request; None is the model's own.

    Args:
        own: the size of a model that supports only one.
        most: largest number of pixels.

    Raises:
        Problem: no size, too large, or one that the model does not support.
    """
    if text == "auto":
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if own is not None:
        if not found or (int(found[2]), int(found[1])) != own:
            raise unsupported("size", text, f"'{own[1]}x{own[0]}' and 'auto'")
        return None
    if not found:
        raise unsupported("size", text, "'auto', and WIDTHxHEIGHT in pixels such as '512x512'")
    width, height = map(int, found.groups())
    if width * height > most:
        text = f"Invalid value: '{text}' has {width * height:,} pixels. At most {most:,} are allowed."
        raise Problem(400, text, param="size")
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
    return {name: _nullable(schema) for name, schema in found.items()}


ABOUT_FIELDS = ("title", "description", "default", "deprecated")


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, with `null` among the values of optional fields, as `Body` reads it."""
    fields = {}
    for name, field in schema.get("properties", {}).items():
        about = {key: field[key] for key in ABOUT_FIELDS if key in field}
        choices = field.get("anyOf") or [{key: value for key, value in field.items() if key not in about}]
        optional = name not in schema.get("required", []) and {"type": "null"} not in choices
        fields[name] = {**about, "anyOf": [*choices, {"type": "null"}]} if optional else field
    return {**schema, "properties": fields}


def form_content(
    model: type[Config], files: Mapping[str, str], many: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """OpenAPI's description of the content of a form: a model's fields, and files.

    Args:
        files: what each file is, by its name. The first one is required.
        many: names that may have several files, and how many.
    """
    schema = model.model_json_schema()
    for name, text in files.items():
        file: dict[str, Any] = {"type": "string", "format": "binary"}
        if name in many:
            file = {"type": "array", "items": file, "minItems": 1, "maxItems": many[name]}
        schema.setdefault("properties", {})[name] = {**file, "description": text}
    schema["required"] = [*schema.get("required", []), next(iter(files))]
    return {"multipart/form-data": {"schema": schema}}


def form_body(model: type[Config], files: Mapping[str, str]) -> dict[str, Any]:
    """OpenAPI's description of a body that is a form. Arguments as of `form_content`."""
    return {"requestBody": {"required": True, "content": form_content(model, files)}}
