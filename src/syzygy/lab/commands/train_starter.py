"""`syzygy train …` for the parts of the starter, which are trained on the embedded world."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import progress_bar
from syzygy.cli.train import clip_option
from syzygy.cli.train_concept import CONCEPT_HELP, concept_options, refuse_without_concept, train_concept
from syzygy.cli.training import EPILOG, Trained, run_training, train_options
from syzygy.core.errors import UserError
from syzygy.core.registry import imported

if TYPE_CHECKING:
    import torch

STAGES = "clip,reader,judge,autoencoder,t5,decoder,placement,prior,llm,align,image,quality"
PRESETS = "syzygy.lab.starter.presets"


def _part(name: str, description: str, following: str | None = None) -> click.Command:
    """The command that trains a part which needs no other part. `following` is a command to try next; {} is the run's folder."""

    @click.command(name=name, help=description, epilog=EPILOG)
    @train_options("starter")
    def command(**options: Any) -> None:
        def body(run: Any, out: Path, device: "torch.device") -> Trained:
            result = imported(f"syzygy.lab.starter.{name}_training:train")(run, out, device)
            return Trained(
                result.folder, result.metrics, () if following is None else (following.format(quote(str(out))),)
            )

        run_training(f"{PRESETS}:{name.upper()}", body, **options)

    return command


clip = _part("clip", "Train a CLIP on the embedded world.", "syzygy train decoder --clip {} --out RUN")
autoencoder = _part(
    "autoencoder",
    "Train an autoencoder on images of the embedded world: image to latents and back.",
    "syzygy train decoder --autoencoder {} --out RUN",
)
t5 = _part("t5", "Pre-train a T5 text encoder by span corruption on captions of the embedded world.")
lm = _part(
    "lm", "Train a language model of Llama's architecture on captions of the embedded world in all its languages."
)
reader = _part(
    "reader",
    "Train the reader, the scene classifier that trainings and selections may use: image to objects and their attributes.",
)
judge = _part(
    "judge",
    "Train the judge, the scene classifier that scores images in evaluations and that no other training may use: image to objects and their "
    "attributes.",
)


@click.command(epilog=EPILOG + CONCEPT_HELP)
@click.option(
    "--clip",
    "clip_source",
    default="starter",
    show_default=True,
    metavar="FOLDER|MODEL",
    help="The frozen CLIP: a model, a training run, or the folder of its weights. With --concept, a folder or hub id instead of the "
    "decoder's usual CLIP.",
)
@click.option(
    "--autoencoder",
    "autoencoder_source",
    default="starter",
    show_default=True,
    metavar="FOLDER|MODEL",
    help="The frozen autoencoder: a model, a training run, or the folder of its weights.",
)
@click.option(
    "--t5",
    "t5_source",
    metavar="RUN|FOLDER|HUB-ID",
    help="The frozen T5 whose states are condition t5.  [default: the starter's, if task.subsets name t5]",
)
@click.option(
    "--reader",
    "reader_source",
    default="starter",
    show_default=True,
    metavar="FOLDER|MODEL",
    help="The scene classifier that scores images in validation.",
)
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the encoded scenes are kept; runs with the same CLIP, autoencoder and T5 can share them.  [default: RUN/samples]",
)
@click.option(
    "--init", metavar="FOLDER|MODEL", help="Continue from this decoder; conditions that it does not read are added."
)
@concept_options
@train_options("starter")
def decoder(
    clip_source: str,
    autoencoder_source: str,
    t5_source: str | None,
    reader_source: str,
    samples: Path | None,
    init: str | None,
    concept: Path | None,
    model: str,
    download: bool,
    **options: Any,
) -> None:
    """Train a decoder (image embedding and text to latents) with a frozen CLIP, autoencoder and T5.

    With --concept, fine-tune a published decoder on a few pictures of one thing.
    """
    if concept is not None:
        train_concept(concept, model, clip_source, download, **options)
        return
    refuse_without_concept()

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.clip.clip_model import Clip
        from syzygy.core.model_parts import part_folder, part_or_id
        from syzygy.decoder.autoencoder import Autoencoder
        from syzygy.decoder.training import members_of
        from syzygy.lab.starter import decoder_training as decoder
        from syzygy.lab.world.reader import Reader
        from syzygy.text_encoders.t5 import T5Text

        clip = Clip.from_pretrained(part_folder(clip_source, "clip")).to(device).requires_grad_(False)
        latents = Autoencoder.from_pretrained(part_folder(autoencoder_source, "autoencoder")).to(device)
        t5 = None
        if any("t5" in members_of(subset) for subset in run.task.subsets):
            t5 = T5Text.from_pretrained(part_or_id(t5_source or "starter", "t5")).to(device)
        elif t5_source is not None:
            raise UserError("no subset of task.subsets has t5, so nothing would read --t5: leave it out.")
        reader = Reader.from_pretrained(part_folder(reader_source, "reader"))
        start = None if init is None else part_folder(init, "decoder")
        result = decoder.train(
            run, clip, latents.requires_grad_(False), out, device,
            t5=t5, init=start, reader=reader, samples=samples, bar=progress_bar,
        )  # fmt: skip
        return Trained(result.folder, result.metrics)

    run_training(f"{PRESETS}:DECODER", body, **options)


@click.command(epilog=EPILOG)
@clip_option
@click.option(
    "--t5",
    "t5_source",
    default="starter",
    show_default=True,
    metavar="RUN|FOLDER|HUB-ID",
    help="The frozen T5 that it reads.",
)
@click.option(
    "--decoder",
    "decoder_source",
    default="starter",
    show_default=True,
    metavar="FOLDER|MODEL",
    help="The decoder whose projections of words it reads.",
)
@train_options("starter")
def placement(clip_source: str, t5_source: str, decoder_source: str, **options: Any) -> None:
    """Train a placement predictor (CLIP's and T5's words to where their objects are), which draws objects to their places ("left of")."""

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.clip.clip_model import Clip
        from syzygy.core.model_parts import part_folder, part_or_id
        from syzygy.decoder.backbone import load_decoder
        from syzygy.lab.starter import placement_training
        from syzygy.text_encoders.t5 import T5Text

        clip = Clip.from_pretrained(part_folder(clip_source, "clip")).to(device).requires_grad_(False)
        t5 = T5Text.from_pretrained(part_or_id(t5_source, "t5")).to(device)
        decoder = load_decoder(part_folder(decoder_source, "decoder"))
        result = placement_training.train(run, clip, t5, decoder, out, device, progress_bar)
        return Trained(result.folder, result.metrics)

    run_training(f"{PRESETS}:PLACEMENT", body, **options)


@click.command(epilog=EPILOG)
@click.option("--stages", metavar="NAMES", help=f"Stages to run, separated by commas: {STAGES}.  [default: all]")
@train_options("cpu", dry_run=False)
def starter(stages: str | None, **options: Any) -> None:
    """Train all parts of the starter model: CLIP, reader, judge, autoencoder, T5, decoder, placement predictor, prior, a language model and
    the three stages of its adapter.

    Stages that are finished with the same settings are not run again. As soon as the parts can generate images, they are assembled to
    RUN/model. To estimate a stage, use its own command, such as syzygy train decoder --dry-run.
    """

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.lab.starter import starter_training as starter

        names = list(starter.STAGES) if stages is None else [name.strip() for name in stages.split(",")]
        folder = starter.train(run, out, device, names)
        next_steps = (f"syzygy generate 'a red circle' --model {quote(str(folder))}",) if folder != out else ()
        return Trained(folder, starter.metrics(out), next_steps)

    run_training(f"{PRESETS}:STARTER", body, **options)
