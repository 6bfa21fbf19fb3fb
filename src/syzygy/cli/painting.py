"""What every command shares that paints with a whole model: the options, the model they choose, and the call."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from syzygy.cli.common import Whole

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from syzygy.api import TextToImage
    from syzygy.pipeline import PipelineOutput

F = TypeVar("F", bound=Callable[..., Any])


def painting_options(command: F) -> F:
    """As `model_options`; and what the decoder reads of prompts."""
    text = "What the decoder reads: one or both."
    return model_options(click.option("--conditions", default="image,text", show_default=True, help=text)(command))


def model_options(command: F) -> F:
    """Which model paints and how, passed as keyword arguments for `Painter.load`; and `--batch-size`, as `batch_size`."""
    options = (
        click.option(
            "--model", default="starter", show_default=True, help="A model that comes with syzygy, or a folder."
        ),
        click.option("--prior", metavar="RUN", help="Another prior: the folder of a training run, or of its weights."),
        click.option("--steps", type=Whole(1), metavar="N", help="Sampling steps. Default: what suits the model."),
        click.option("--guidance-scale", type=float, help="Guidance; 1 means off. Default: what suits the model."),
        click.option("--sampler", default="dpm++2m", show_default=True, help="euler, heun or dpm++2m."),
        click.option("--negative-prompt", metavar="TEXT", help="What to move away from."),
        click.option(
            "--batch-size", type=Whole(1), default=16, show_default=True, metavar="N", help="Pictures at a time."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


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
        from syzygy import artifact
        from syzygy.api import TextToImage

        model = TextToImage.from_pretrained(settings["model"], prior=settings["prior"], device=device)
        steps, scale = settings["steps"], settings["guidance_scale"]
        own = {
            "steps": model.defaults["num_inference_steps"] if steps is None else steps,
            "guidance_scale": model.defaults["guidance_scale"] if scale is None else scale,
            "fingerprints": model.fingerprints(),
            "versions": artifact.versions(),
        }
        if "conditions" in settings:
            own["conditions"] = [name.strip() for name in settings["conditions"].split(",")]
        return cls(model, {**settings, **own})

    @property
    def arguments(self) -> dict[str, Any]:
        """The record's settings as keyword arguments of the model's methods that paint."""
        names = {"num_inference_steps": "steps"}
        names |= {name: name for name in ("negative_prompt", "guidance_scale", "sampler", "conditions")}
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
    ) -> "PipelineOutput":
        """The same with all that is known of the pictures; of `best_of` candidates each, from a generator for every candidate."""
        return self.model(
            prompts, generator=generators, callback=lambda _: on_step(), best_of=best_of, **self.arguments
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
