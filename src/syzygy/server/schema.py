"""What clients send: OpenAI's names, and ours beside them. Unknown names are refused, and so are settings without effect here."""

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from syzygy.core.config import Config
from syzygy.core.errors import UserError

LARGEST_SEED = 2**64 - 1
MOST_PREVIEWS = 8
Scale = Annotated[float, Field(ge=0, le=100)]
Blur = Annotated[float, Field(ge=0, lt=1)]


class Asked(Config):
    """Base of what clients send: `null`, and an empty text, are as if an optional field was left out."""

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {
            name: value for name, value in values.items() if not (name in optional and (value is None or value == ""))
        }


class PaintedRegion(Asked):
    """A phrase of the prompt, and where it shall be."""

    phrase: str = Field(min_length=1)
    """As it stands in the prompt."""
    mask: str = Field(min_length=1)
    """A PNG in base64, or a data URL of one: bright is here, dark or transparent is elsewhere. All masks have one size."""
    weight: Scale = 1.0
    """How strongly, beside other regions."""


class Form(Asked):
    """No fields beside files."""


class Common(Asked):
    """What every way to paint takes."""

    model: str | None = None
    """The model's id, or nothing: there is one."""
    n: int = Field(default=1, ge=1)
    """Pictures."""
    size: str = "auto"
    """`auto`, or WIDTHxHEIGHT in pixels if the model paints several sizes."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """Pictures come in the answer: `url` is refused."""
    user: str | None = None
    """Taken for compatibility; nothing is done with it."""
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    """Of the first picture; others follow. With a seed pictures are painted one by one: equal requests give equal bytes."""
    steps: int | None = Field(default=None, ge=1)
    """Sampling steps."""
    guidance_scale: Scale | None = None
    """1 is off."""
    sampler: str | None = None
    """`GET /v1/models` names them."""
    negative_prompt: str | None = None
    """What to move away from."""
    stream: bool = False
    """Answer with server-sent events."""
    partial_images: int = Field(default=0, ge=0, le=MOST_PREVIEWS)
    """With `stream`: pictures to show of each before it is done."""
    progress: bool = False
    """With `stream`: tell each sampling step too, as `syzygy.progress`."""
    output_format: Literal["png"] = "png"
    background: Literal["auto", "opaque"] = "auto"
    quality: Literal["auto", "standard"] = "auto"
    """One quality, whose cost `steps` decides: others are refused."""


class Generation(Common):
    """A prompt to paint."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red star and a blue ring", "n": 2, "seed": 7},
                {"prompt": "a green circle", "stream": True, "partial_images": 2, "negative_prompt": "a square"},
            ]
        }
    )

    prompt: str = Field(min_length=1)
    """What to paint."""
    regions: list[PaintedRegion] = []
    """Where phrases of the prompt shall be (paint-with-words)."""
    mask_blur: Blur = 0.0
    """Softness of the masks' borders, as a part of their longer side."""
    painting: Scale | None = None
    """How strongly regions pull; 0 is not at all."""
    style: str | None = None
    """A picture in base64, or a data URL of one, to paint in the manner of."""
    style_guidance: Scale | None = None
    """Guidance of the style. Default: as of the text."""
    moderation: Literal["auto", "low"] = "auto"
    """Taken for compatibility: nothing is moderated."""


class Variation(Common):
    """Fields beside a picture to paint anew."""


class MixedSource(Asked):
    """A part of a mixture: a text, or a picture."""

    text: str | None = None
    """What the prior predicts a picture of."""
    image: str | None = None
    """A picture in base64, or a data URL of one."""
    weight: float | None = Field(default=None, ge=0, le=1)
    """Only proportions count. All sources have one, or none has: then all weigh the same."""


class Mix(Common):
    """What lies between texts and pictures; a single picture is painted anew."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"sources": [{"text": "a red star", "weight": 0.6}, {"text": "a blue ring", "weight": 0.4}]}]
        }
    )

    sources: list[MixedSource] = Field(min_length=1)
    """Texts and pictures."""


class Edit(Common):
    """Fields beside a picture and a mask: the picture is the style of a new one, and a phrase is painted where the mask is transparent."""

    prompt: str = Field(min_length=1)
    """What to paint."""
    region: str | None = None
    """The phrase of the prompt that goes where the mask is transparent. Default: all of it."""
    mask_blur: Blur = 0.0
    """Softness of the mask's border, as a part of its longer side."""
    painting: Scale | None = None
    """How strongly the region pulls."""
    style_guidance: Scale | None = None
    """Guidance of the style. Default: as of the text."""
    input_fidelity: Literal["low", "high"] = "low"
    """`high` is refused: nothing of the picture is kept pixel by pixel."""


def size_of(text: str, own: tuple[int, int] | None, most: int) -> tuple[int, int] | None:
    """Height and width asked for; None is the model's own.

    Args:
        own: of a model that paints one size.
        most: pixels.

    Raises:
        UserError: no size, too large, or one that the model cannot paint.
    """
    if text == "auto":
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if not found:
        raise UserError(f"size {text[:40]!r} must be auto, or WIDTHxHEIGHT such as 512x512.")
    width, height = map(int, found.groups())
    if own is not None:
        if (height, width) != own:
            raise UserError(f"size {text}: this model paints pictures of {own[1]}x{own[0]} only. Say that, or auto.")
        return None
    if width * height > most:
        raise UserError(f"size {text} has {width * height:,} pixels; at most {most:,} are painted here.")
    return height, width


def multipart(model: type[Config], files: dict[str, str], required: list[str]) -> dict[str, Any]:
    """OpenAPI's description of a form: a model's fields, and files by name with what they are."""
    schema = model.model_json_schema()
    binary = {name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()}
    schema["properties"] = {**schema.get("properties", {}), **binary}
    schema["required"] = [*schema.get("required", []), *required]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
