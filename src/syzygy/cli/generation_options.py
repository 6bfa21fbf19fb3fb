"""What every command shares that generates with a whole model: its options, and the model and settings that they choose."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from syzygy.cli.common import Whole, stacked
from syzygy.core.errors import UserError
from syzygy.core.options import Option, decoder_options

if TYPE_CHECKING:
    from syzygy.generation.text_to_image import TextToImage

F = TypeVar("F", bound=Callable[..., Any])

DECODER_OPTIONS = decoder_options()
"""As the decoders declare them, those of other packages included."""
CALL_OPTIONS = (*(option.name for option in DECODER_OPTIONS), "region_strength", "style_guidance", "strength")
"""What a call takes as keywords, besides what `LoadedModel.settings` names."""
LOADING = (
    "prior",
    "clip",
    "text_encoder",
    "llm",
    "decoder",
    "experts",
    "experts_memory",
    "compile_experts",
    "dtype",
    "offload",
    "tiling",
)
"""What `TextToImage.from_pretrained` takes."""
LEAVE_NO_TRACE = ("offload", "download", "experts_memory")
"""Of those, what changes no image and is not recorded."""
ALWAYS_RECORDED = ("model", "prior", "dtype", "negative_prompt")
"""What a record names even if nothing was given."""


class OptionValue(click.ParamType):
    """A value that a decoder's option allows."""

    def __init__(self, option: Option) -> None:
        self.option, self.name = option, option.type.__name__

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.option.checked(self.option.type(value))
        except ValueError as error:
            reason = str(error) if isinstance(error, UserError) else f"{value!r} is not {self.option.allowed}."
            self.fail(reason, param, ctx)


def flag(option: Option) -> Callable[[F], F]:
    """The command line's option for one of a decoder."""
    if option.type is bool:
        return click.option(option.flag, is_flag=True, default=None, help=option.help)
    kind = click.Choice(option.choices) if option.choices else OptionValue(option)
    return click.option(option.flag, type=kind, metavar=option.metavar, help=option.help)


def text_encoder_options(command: F) -> F:
    """The text encoder that reads prompts instead of CLIP's: `text_encoder`, `llm`."""
    options = (
        click.option(
            "--text-encoder",
            metavar="adapter|MODEL|RUN|FOLDER",
            help="Read prompts with a language model and its adapter instead of CLIP's text encoder: in the languages that the adapter "
            "learned, and past 77 tokens. adapter means the model's own; the starter has one. For Stable Diffusion, an adapter that was "
            "trained with it. Stable unCLIP's U-Net continues to read prompts with its own CLIP as well.",
        ),
        click.option(
            "--llm",
            metavar="FOLDER|ID|FILE.gguf",
            help="Load the adapter's language model from here, if it has moved since the training.",
        ),
    )
    return stacked(*options)(command)


def region_options(command: F) -> F:
    """Options for regions and for the style: `regions`, `canvas`, `mask_blur`, `region_strength`, `style`, `style_content`,
    `style_guidance`."""
    file = click.Path(path_type=Path)
    options = (
        click.option(
            "--region",
            "regions",
            multiple=True,
            metavar="COLOUR|MASK=PHRASE",
            help="Place a phrase of the prompt (paint-with-words): give its colour on the canvas, such as '#ff0000=a red star', or the "
            "file of a mask, in which white means here and black or transparent means elsewhere. @2 after the phrase doubles its "
            "weight. Can be given several times.",
        ),
        click.option(
            "--canvas",
            type=file,
            metavar="PICTURE",
            help="Picture whose colours stand for phrases; edges may be soft. White, black and transparent stand for no phrase.",
        ),
        click.option(
            "--mask-blur",
            type=float,
            metavar="FRACTION",
            help="Soften the borders of regions by this fraction of the longer side, such as 0.05.",
        ),
        click.option(
            "--style", type=file, metavar="PICTURE", help="Style reference: picture whose style the images should have."
        ),
        click.option(
            "--style-content",
            metavar="TEXT",
            help="What the style reference shows, such as 'a red ring': its objects then do not appear in the images.",
        ),
        click.option(
            "--style-guidance",
            type=float,
            metavar="W",
            help="Guidance scale of the style reference. Default: the model's own; without one, the guidance scale counts for text and style.",
        ),
        click.option(
            "--region-strength",
            type=float,
            metavar="W",
            help="Strength of the regions; 0 switches them off. Default: the model's own.",
        ),
    )
    return stacked(*options)(command)


def subject_options(command: F) -> F:
    """Options for a λ-ECLIPSE prior: `subjects` and `layout`."""
    options = (
        click.option(
            "--subject",
            "subjects",
            multiple=True,
            metavar="WORD=PICTURE",
            help="Show the subject of a picture where the prompt has this word, such as dog=rex.png. Transparent parts of the picture become "
            "white. Needs a λ-ECLIPSE prior (--prior). Can be given several times.",
        ),
        click.option(
            "--layout",
            type=click.Path(path_type=Path),
            metavar="PICTURE",
            help="Picture whose edges the images should follow, or the edges themselves, white on black. Needs a λ-ECLIPSE prior (--prior).",
        ),
    )
    return stacked(*options)(command)


def pixel_options(command: F) -> F:
    """Options for pictures that a decoder reads pixel by pixel: `image`, `strength`, `mask` and `depth`."""
    file = click.Path(path_type=Path)
    options = (
        click.option(
            "--image",
            type=file,
            metavar="PICTURE",
            help="Picture to start from (image-to-image). It is resized to the size of the images.",
        ),
        click.option(
            "--strength",
            type=float,
            metavar="S",
            help="How much of --image is replaced, above 0 and at most 1: the share of the steps that are taken. Default: the model's own.",
        ),
        click.option(
            "--mask",
            type=file,
            metavar="PICTURE",
            help="Repaint --image where this mask is white, and keep it where the mask is black or transparent (inpainting).",
        ),
        click.option(
            "--depth",
            type=file,
            metavar="PICTURE",
            help="Depth map that the images should follow, bright where the scene is near. For kandinsky-2.2-controlnet-depth.",
        ),
    )
    return stacked(*options)(command)


def prompt_options(command: F) -> F:
    """As `image_options`, for models that read prompts only as well; and what the decoder reads of prompts."""
    text = (
        "Conditions that the decoder uses, comma-separated: image, text, t5. Default: the model's own (starter: text,t5), "
        "all that it can with --prior, and image alone with a prior that reads subjects."
    )
    models = (
        "starter, kandinsky-2.2, kandinsky-2.2-inpaint, kandinsky-2.2-controlnet-depth, karlo, stable-unclip, stable-diffusion-1.5 or "
        "stable-diffusion-xl"
    )
    return _model_options(models)(click.option("--conditions", metavar="NAMES", help=text)(command))


def image_options(command: F) -> F:
    """The model and its settings, passed as keyword arguments for `load_model`; and `--batch-size`, as `batch_size`."""
    return _model_options("starter, kandinsky-2.2, karlo or stable-unclip")(command)


def _model_options(models: str) -> Callable[[F], F]:
    return stacked(*_parts(models), text_encoder_options, *_sampling(), *_experts(), *_published())


def _parts(models: str) -> Iterator[Any]:
    """The model, and parts to use instead of its own."""
    yield click.option(
        "--model",
        default="starter",
        show_default=True,
        help=f"Model to generate with: {models}; a folder of a model trained here or in diffusers' layout; or a hub id.",
    )
    yield click.option(
        "--prior",
        metavar="RUN|FOLDER|ID",
        help="Prior to use instead of the model's own: a training run, a folder of weights, or a hub id.",
    )
    yield click.option(
        "--decoder",
        metavar="RUN|FOLDER",
        help="Decoder to use instead of the model's own: for a model trained here, such as one trained with an adapter; for kandinsky-2.2, "
        "one trained on a concept (syzygy train decoder --concept).",
    )


def _sampling() -> Iterator[Any]:
    yield click.option("--steps", type=Whole(1), metavar="N", help="Sampling steps. Default: what suits the model.")
    yield click.option(
        "--guidance-scale", type=float, help="Guidance scale; 1 switches guidance off. Default: what suits the model."
    )
    yield click.option(
        "--sampler",
        metavar="NAME",
        help="Sampler, such as euler, heun, dpm++2m or ddim. An unknown name lists those of the model.",
    )
    yield click.option("--negative-prompt", metavar="TEXT", help="Text the image should avoid (negative prompt).")
    yield click.option(
        "--batch-size",
        type=Whole(1),
        default=16,
        show_default=True,
        metavar="N",
        help="Images to generate at once. Lower it if memory runs out.",
    )


def _experts() -> Iterator[Any]:
    yield click.option(
        "--experts",
        metavar="RUN|FOLDER",
        help="Use an ensemble of expert denoisers instead of the decoder, or instead of a published decoder's U-Net.",
    )
    yield click.option(
        "--experts-memory",
        type=click.Choice(["all", "offload", "lazy"]),
        default="all",
        show_default=True,
        help="Where experts are kept: all on the device, or one there and the others in memory (offload, for a GPU) or on disk (lazy).",
    )
    yield click.option(
        "--compile-experts",
        is_flag=True,
        help="Compile each expert with torch.compile when it first runs. Takes minutes, once.",
    )


def _published() -> Iterator[Any]:
    """What concerns published models alone."""
    yield click.option(
        "--clip",
        metavar="FOLDER|ID",
        help="CLIP checkpoint to use instead of a published model's default (folder or hub id). With Stable Diffusion, used only "
        "by --best-of.",
    )
    yield from map(flag, DECODER_OPTIONS)
    yield click.option(
        "--dtype",
        type=click.Choice(["fp32", "fp16", "bf16"]),
        default="fp32",
        show_default=True,
        help="Precision of CLIP and decoder of a published model.",
    )
    yield click.option(
        "--offload",
        is_flag=True,
        help="Keep the parts of a published model on the CPU and move each to the GPU only while it computes.",
    )
    yield click.option(
        "--tiling",
        is_flag=True,
        help="Decode latents tile by tile, which saves memory with large images (Stable unCLIP and Stable Diffusion).",
    )
    yield click.option(
        "--download",
        is_flag=True,
        help="Download from the hub what is missing. Without it, only the local cache is searched.",
    )


@dataclass(frozen=True)
class LoadedModel:
    """A model and the settings to generate with."""

    model: "TextToImage"
    record: Mapping[str, Any]
    """All that decides an image but its subject and its seed, as plain JSON values."""
    load_seconds: float = 0.0

    def recording(self, **more: Any) -> "LoadedModel":
        """The same with `more` in the record."""
        return LoadedModel(self.model, {**self.record, **more}, self.load_seconds)

    @property
    def settings(self) -> dict[str, Any]:
        """The record's settings as keyword arguments of `TextToImage`'s methods."""
        names = {"num_inference_steps": "steps"}
        names |= {name: name for name in ("negative_prompt", "guidance_scale", "sampler", "conditions", *CALL_OPTIONS)}
        return {argument: self.record[name] for argument, name in names.items() if name in self.record}


def load_model(settings: Mapping[str, Any], device: str) -> LoadedModel:
    """The model that `prompt_options` or `image_options` chose, with its own settings where none were given.

    Raises:
        UserError: no such model, or a broken one.
    """
    began = time.perf_counter()
    from syzygy.core import artifacts
    from syzygy.generation.text_to_image import TextToImage

    model = TextToImage.from_pretrained(
        settings["model"],
        device=device,
        local_files_only=not settings["download"],
        **{name: settings[name] for name in LOADING},
    )
    record = {
        name: value
        for name, value in settings.items()
        if name not in LEAVE_NO_TRACE and (name in ALWAYS_RECORDED or (value is not None and value is not False))
    }
    names = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "sampler": "sampler"}
    record |= {name: model.defaults[own] if settings[name] is None else settings[name] for name, own in names.items()}
    record |= {"fingerprints": model.fingerprints(), "versions": artifacts.versions()}
    if "conditions" in settings:
        given = settings["conditions"]
        record["conditions"] = (
            list(model.pipeline.conditions) if given is None else [name.strip() for name in given.split(",")]
        )
    return LoadedModel(model, record, time.perf_counter() - began)


@contextmanager
def warnings_as_lines(most: int | None = None) -> Iterator[None]:
    """Each warning is one line on standard error, once, without a place in the code; of more than `most` only the number."""

    shown, left = set(), set()

    def show(message: Warning | str, *_where: Any, **_more: Any) -> None:
        line = f"warning: {' '.join(str(message).split())}"
        if line in shown:
            return
        if most is not None and len(shown) >= most:
            left.add(line)
            return
        print(line, file=sys.stderr)
        shown.add(line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # Python's own memory ends whenever a library changes filters
        warnings.showwarning = show
        yield
    if left:
        print(f"warning: and {len(left)} more such lines.", file=sys.stderr)
