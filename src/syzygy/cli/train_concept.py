"""`syzygy train decoder --concept`: concept fine-tuning of a published decoder."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import note, stacked
from syzygy.cli.training import Trained, fitting_of, run_training
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "kandinsky-2.2"
OF_CONCEPTS = {"model": "--model", "download": "--download"}
"""Options that have an effect only with --concept."""
OF_THE_STARTER = {
    "autoencoder_source": "--autoencoder",
    "t5_source": "--t5",
    "reader_source": "--reader",
    "samples": "--samples",
    "init": "--init",
}
"""Options of `train decoder` that have no effect with --concept."""
concept_options = stacked(
    click.option(
        "--concept",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Fine-tune a published decoder on the pictures in this folder instead: its whole U-Net, on the pictures and their own CLIP "
        "image embeddings. Captions are not needed.",
    ),
    click.option(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|FOLDER|ID",
        help=f"With --concept, the decoder to fine-tune: {DEFAULT_MODEL}, a folder in its layout, or a hub id.  [default: {DEFAULT_MODEL}]",
    ),
    click.option("--download", is_flag=True, help="With --concept, download from the hub what is missing."),
)
CONCEPT_HELP = """
\b
Fine-tune Kandinsky 2.2 on a few pictures of one thing (docs/how-to/subjects.md):
  syzygy train decoder --concept rex/ --model kandinsky-2.2 --device cuda --out RUN
  syzygy train decoder --concept rex/ --out RUN loop.steps=200     changes a setting
  syzygy train decoder --concept rex/ --settings                   lists the settings with --concept
  syzygy train decoder --concept rex/ --dry-run                    estimates time and memory
  syzygy generate "a dog on a beach" --model kandinsky-2.2 --decoder RUN

Latents and image embeddings are computed once, before training. The U-Net of Kandinsky 2.2 has 1.25 billion parameters: training needs 20
GB of memory for weights, gradients and AdamW's moments, and more for activations. A dry run needs as much.
"""


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def refuse_without_concept() -> None:
    """
    Raises:
        UserError: an option was given that has an effect only with --concept.
    """
    for name, flag in OF_CONCEPTS.items():
        if _given(name):
            raise UserError(
                f"{flag} has no effect without --concept: give the folder of the pictures, or leave it out."
            )


def train_concept(concept: Path, model: str, clip: str, download: bool, **options: Any) -> None:
    """`train decoder --concept`, which has other presets. `clip` counts only if it was given.

    Raises:
        UserError: an option has no effect; and as `concept_training.train`.
    """
    for name, flag in OF_THE_STARTER.items():
        if _given(name):
            raise UserError(f"{flag} has no effect with --concept, which trains a published decoder. Leave it out.")
    if not _given("preset"):
        options["preset"] = "concept"
    own_clip = clip if _given("clip_source") else None

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.data.source_pictures import picture_folder
        from syzygy.pretrained import concept_training
        from syzygy.pretrained.repositories import find_decoder, named_family
        from syzygy.training.parallel import process_group

        if (family := named_family(model)) is not None:  # refused before anything is looked for
            concept_training.check_family(family, model)
        pictures = picture_folder(concept)
        found = find_decoder(model, local_files_only=not download)
        with process_group(device) as world:
            result = concept_training.train(
                run, found, pictures, out, world,
                clip=own_clip, local_files_only=not download, say=note, fitting=fitting_of(options["overrides"]),
            )  # fmt: skip
        return Trained(result.folder, result.metrics, _next_steps(model, own_clip, out))

    run_training("syzygy.pretrained.presets:CONCEPT_PRESETS", body, **options)


def _next_steps(model: str, clip: str | None, out: Path) -> tuple[str, ...]:
    other = "" if clip is None else f" --clip {quote(clip)}"
    command = f"syzygy generate PROMPT --model {quote(model)}{other} --decoder {quote(str(out))}"
    return (command, f"{command} --prior ECLIPSE-Community/Lambda-ECLIPSE-Prior-v1.0 --subject WORD=PICTURE")
