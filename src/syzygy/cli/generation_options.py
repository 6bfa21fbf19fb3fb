"""What every command shares that paints with a whole model: the options, the model they choose, and the call."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from syzygy.cli.common import Whole, stacked

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from syzygy.core.contracts import Region
    from syzygy.generation.pipeline import PipelineOutput
    from syzygy.generation.text_to_image import TextToImage

F = TypeVar("F", bound=Callable[..., Any])


_PUBLISHED = (
    click.option(
        "--clip",
        metavar="FOLDER|ID",
        help="Of a published model: another place of its CLIP; of Stable Diffusion: the CLIP for --best-of.",
    ),
    click.option("--height", type=Whole(1), metavar="PIXELS", help="Of a published model; with --width."),
    click.option("--width", type=Whole(1), metavar="PIXELS", help="Of a published model; with --height."),
    click.option(
        "--noise-level", type=Whole(0), metavar="N", help="Of Stable unCLIP: noise on the embedding, 0 to 999."
    ),
    click.option("--super-res-steps", type=Whole(1), metavar="N", help="Of Karlo: steps from 64 to 256 pixels."),
    click.option(
        "--dtype",
        type=click.Choice(["fp32", "fp16", "bf16"]),
        default="fp32",
        show_default=True,
        help="Of a published model: what its CLIP and decoder compute in.",
    ),
    click.option("--offload", is_flag=True, help="Of a published model: parts are on the GPU only while they compute."),
    click.option(
        "--tiling", is_flag=True, help="Of Stable unCLIP and Stable Diffusion: decode tile by tile, for big pictures."
    ),
    click.option("--download", is_flag=True, help="Fetch from the hub what is missing; else its cache must hold it."),
)
"""What only published models take."""
OPTIONS = ("height", "width", "noise_level", "super_res_steps", "region_strength", "style_guidance")
"""Of those (and of `region_options`), what a call takes; the rest is for loading."""
LEAVE_NO_TRACE = ("offload", "download", "experts_memory")
"""Of those, what changes no picture."""


def text_encoder_options(command: F) -> F:
    """Who reads the prompts in CLIP's place: `text_encoder`, `llm`."""
    options = (
        click.option(
            "--text-encoder",
            metavar="adapter|MODEL|RUN|FOLDER",
            help="A language model's adapter that reads the prompts in CLIP's place, in its languages and past 77 tokens; adapter: the "
            "model's own, as starter is the starter's. Stable unCLIP's U-Net goes on reading them with its own CLIP, too.",
        ),
        click.option(
            "--llm", metavar="FOLDER|ID", help="Where the adapter's language model is now, if it is not where it was."
        ),
    )
    return stacked(*options)(command)


def region_options(command: F) -> F:
    """Options for regions and for the style: `regions`, `canvas`, `mask_blur`, `painting`, `style`, `style_guidance`."""
    file = click.Path(path_type=Path)
    options = (
        click.option(
            "--region",
            "regions",
            multiple=True,
            metavar="COLOUR|MASK=PHRASE",
            help="Where a phrase of the prompt should be: its colour on the canvas, such as '#ff0000=a red star', or the file of a mask "
            "(white is here, black or transparent elsewhere). @2 after the phrase makes it twice as strong. Can be given several times.",
        ),
        click.option(
            "--canvas",
            type=file,
            metavar="PICTURE",
            help="Picture in which colours stand for phrases; edges may be soft. White, black and transparent stand for none.",
        ),
        click.option(
            "--mask-blur",
            type=float,
            metavar="FRACTION",
            help="Softness of the regions' borders, as a fraction of the longer side, such as 0.05.",
        ),
        click.option("--style", type=file, metavar="PICTURE", help="Picture whose style the images should have."),
        click.option(
            "--style-guidance",
            type=float,
            metavar="W",
            help="Guidance scale of the style. Default: the model's own, or that of the text.",
        ),
        click.option(
            "--paint-strength",
            "region_strength",
            type=float,
            metavar="W",
            help="Strength of the regions; 0 switches them off.",
        ),
    )
    return stacked(*options)(command)


def painting_options(command: F) -> F:
    """As `model_options`; and what the decoder reads of prompts."""
    text = "What the decoder reads of prompts: image, text, or image,text. Default: all that it can."
    return model_options(click.option("--conditions", metavar="NAMES", help=text)(command))


def model_options(command: F) -> F:
    """Which model paints and how, passed as keyword arguments for `Painter.load`; and `--batch-size`, as `batch_size`."""
    options = (
        click.option(
            "--model",
            default="starter",
            show_default=True,
            help="starter, kandinsky-2.2, karlo, stable-unclip, stable-diffusion-1.5 or stable-diffusion-xl; a folder of ours or in "
            "diffusers' layout; or a hub id.",
        ),
        click.option(
            "--prior", metavar="RUN|FOLDER|ID", help="Another prior: a training run, a folder of weights, or a hub id."
        ),
        click.option(
            "--decoder",
            metavar="RUN|FOLDER",
            help="Of a model of ours: another decoder, such as one trained with an adapter.",
        ),
        text_encoder_options,
        click.option("--steps", type=Whole(1), metavar="N", help="Sampling steps. Default: what suits the model."),
        click.option("--guidance-scale", type=float, help="Guidance; 1 means off. Default: what suits the model."),
        click.option(
            "--sampler", metavar="NAME", help="euler, heun, dpm++2m, ddim, …: the model names its own if it lacks one."
        ),
        click.option("--negative-prompt", metavar="TEXT", help="What to move away from."),
        click.option(
            "--batch-size", type=Whole(1), default=16, show_default=True, metavar="N", help="Pictures at a time."
        ),
        click.option(
            "--experts", metavar="RUN|FOLDER", help="Expert denoisers in the place of the decoder, or of its U-Net."
        ),
        click.option(
            "--experts-memory",
            type=click.Choice(["all", "offload", "lazy"]),
            default="all",
            show_default=True,
            help="Where experts are: all on the device; one there and the others in memory (for a GPU), or on disk.",
        ),
        click.option("--compile-experts", is_flag=True, help="Compile each expert when it first runs: minutes, once."),
        *_PUBLISHED,
    )
    return stacked(*options)(command)


class Painter(NamedTuple):
    """A loaded model and the settings to call it with."""

    model: "TextToImage"
    record: Mapping[str, Any]
    """All that decides a picture but what it is of and its seed, as plain JSON values."""

    @classmethod
    def load(cls, settings: Mapping[str, Any], device: str) -> "Painter":
        """The model that `painting_options` or `model_options` chose, with its own settings where nothing was said.

        Raises:
            UserError: no such model, or a broken one.
        """
        from syzygy.core import artifacts
        from syzygy.generation.text_to_image import TextToImage

        model = TextToImage.from_pretrained(
            settings["model"],
            prior=settings["prior"],
            clip=settings["clip"],
            text_encoder=settings["text_encoder"],
            llm=settings["llm"],
            decoder=settings["decoder"],
            experts=settings["experts"],
            experts_memory=settings["experts_memory"],
            compile_experts=settings["compile_experts"],
            device=device,
            dtype=settings["dtype"],
            offload=settings["offload"],
            tiling=settings["tiling"],
            local_files_only=not settings["download"],
        )
        names = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "sampler": "sampler"}
        own: dict[str, Any] = {
            name: model.defaults[theirs] if settings[name] is None else settings[name] for name, theirs in names.items()
        }
        own |= {"fingerprints": model.fingerprints(), "versions": artifacts.versions()}
        if "conditions" in settings:
            chosen = settings["conditions"]
            own["conditions"] = (
                list(model.pipeline.conditions) if chosen is None else [name.strip() for name in chosen.split(",")]
            )
        said = {
            name: value
            for name, value in settings.items()
            if name not in LEAVE_NO_TRACE
            and not (
                name in (*OPTIONS, "clip", "text_encoder", "llm", "decoder", "experts", "compile_experts", "tiling")
                and (value is None or value is False)
            )
        }
        return cls(model, said | own)

    @property
    def arguments(self) -> dict[str, Any]:
        """The record's settings as keyword arguments of the model's methods that paint."""
        names = {"num_inference_steps": "steps"}
        names |= {name: name for name in ("negative_prompt", "guidance_scale", "sampler", "conditions", *OPTIONS)}
        return {argument: self.record[name] for argument, name in names.items() if name in self.record}

    def paint(
        self, prompts: Sequence[str], generators: "Sequence[torch.Generator]", on_step: Callable[[], None]
    ) -> "list[Image.Image]":
        """A picture a prompt, each from its own generator."""
        return self.output(prompts, generators, on_step).images

    def output(
        self,
        prompts: Sequence[str],
        generators: "Sequence[torch.Generator]",
        on_step: Callable[[], None],
        best_of: int = 1,
        regions: "Sequence[Region] | None" = None,
        style: "Image.Image | None" = None,
    ) -> "PipelineOutput":
        """The same with all that is known of the pictures; of `best_of` candidates each, from a generator for every candidate."""
        return self.model(
            prompts,
            generator=generators,
            callback=lambda _: on_step(),
            best_of=best_of,
            regions=regions,
            style=style,
            **self.arguments,
        )


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
