"""`syzygy train …`."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import progress_bar
from syzygy.cli.training import EPILOG, Trained, fitting_of, run_training, train_options
from syzygy.core.errors import UserError

if TYPE_CHECKING:
    import torch

STARTER_STAGES = "clip,reader,autoencoder,decoder,t5,words,colours,more_colours,binding,more_binding,finish,prior,llm,align,image,quality"

clip_option = click.option(
    "--clip",
    "clip_source",
    default="starter",
    show_default=True,
    metavar="FOLDER|MODEL",
    help="The frozen CLIP: a model's, a training run's, or the folder of its weights.",
)


@click.command(epilog=EPILOG)
@train_options("starter")
def clip(**options: Any) -> None:
    """CLIP on the embedded world."""

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.lab.starter import clip_training as clip

        result = clip.train(run, out, device)
        return Trained(result.folder, result.metrics, (f"syzygy train decoder --clip {quote(str(out))} --out RUN",))

    run_training("CLIP", body, **options)


@click.command(
    epilog=EPILOG
    + """
\b
On your own pairs (docs/tutorials/train-your-own-prior.md):
  syzygy embed pairs/ --encoder FOLDER|HUB-ID --out STORE
  syzygy train prior --preset eclipse-kandinsky22 --data STORE --out RUN
  torchrun --nproc-per-node 4 -m syzygy.cli train prior … on four GPUs
"""
)
@clip_option
@click.option(
    "--data", "store", type=click.Path(path_type=Path), metavar="STORE", help="Train on this embedding store."
)
@click.option("--init", metavar="FOLDER|HUB-ID", help="Go on from this ECLIPSE prior, its folder, run, or hub id.")
@click.option("--tensorboard", is_flag=True, help="Write RUN/tensorboard too.")
@train_options("starter")
def prior(clip_source: str, store: Path | None, init: str | None, tensorboard: bool, **options: Any) -> None:
    """An ECLIPSE prior: text features to image embedding, on an embedding store or on the embedded world."""
    context = click.get_current_context()
    if store and context.get_parameter_source("clip_source") is not click.core.ParameterSource.DEFAULT:
        raise UserError("--clip has no effect with --data: the store tells which CLIP embedded it. Leave it out.")

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.prior import training as prior
        from syzygy.prior.next_steps import after_training
        from syzygy.training.estimate import is_dry_run
        from syzygy.training.parallel import joined
        from syzygy.training.progress import ConsoleReporter, TensorBoard

        fitting = fitting_of(options["overrides"])
        report = None  # the run's own, which knows the size of its batch once that is fitted to the data
        if tensorboard and not is_dry_run():
            report = TensorBoard(ConsoleReporter("prior"), out / "tensorboard")
        if store is not None and not any(text.startswith("scenes=") for text in options["overrides"]):
            run = run.model_copy(update={"scenes": None})
        with joined(device) as world:
            if store is None:
                clip = _frozen_clip(clip_source)
                result = prior.train(run, clip, out, world, init=init, bar=progress_bar, report=report, fitting=fitting)
            else:
                result = prior.train_on_store(run, store, out, world, init=init, report=report, fitting=fitting)
        return Trained(result.folder, result.metrics, after_training(out, store, clip_source))

    run_training("PRIOR", body, **options)


def _frozen_clip(source: str) -> Any:
    from syzygy.clip.clip_model import Clip
    from syzygy.core.model_parts import part_folder

    return Clip.from_pretrained(part_folder(source, "clip"))


@click.command(epilog=EPILOG)
@clip_option
@click.option(
    "--autoencoder",
    "autoencoder_source",
    default="starter",
    show_default=True,
    metavar="FOLDER|MODEL",
    help="The frozen autoencoder, likewise.",
)
@click.option("--t5", "t5_source", metavar="RUN|FOLDER|HUB-ID", help="Let it read this frozen T5's states too.")
@click.option("--init", metavar="FOLDER|MODEL", help="Go on from this decoder; conditions it does not read are added.")
@train_options("starter")
def decoder(clip_source: str, autoencoder_source: str, t5_source: str | None, init: str | None, **options: Any) -> None:
    """A decoder: image embedding and text to latents, beside a frozen CLIP and a frozen autoencoder."""

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.clip.clip_model import Clip
        from syzygy.core.model_parts import part_folder, part_or_id
        from syzygy.decoder.autoencoder import Autoencoder
        from syzygy.lab.starter import decoder_training as decoder
        from syzygy.text_encoders.t5 import T5Text

        clip = Clip.from_pretrained(part_folder(clip_source, "clip")).to(device).requires_grad_(False)
        latents = Autoencoder.from_pretrained(part_folder(autoencoder_source, "autoencoder")).to(device)
        t5 = None
        if t5_source is not None:
            t5 = T5Text.from_pretrained(part_or_id(t5_source, "t5")).to(device)
        start = None if init is None else part_folder(init, "decoder")
        result = decoder.train(run, clip, latents.requires_grad_(False), out, device, t5=t5, init=start)
        return Trained(result.folder, result.metrics)

    run_training("DECODER", body, **options)


@click.command(epilog=EPILOG)
@train_options("starter")
def autoencoder(**options: Any) -> None:
    """An autoencoder: picture to latents and back, for a decoder to paint in."""

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.lab.starter import autoencoder_training as autoencoder

        result = autoencoder.train(run, out, device)
        return Trained(
            result.folder, result.metrics, (f"syzygy train decoder --autoencoder {quote(str(out))} --out RUN",)
        )

    run_training("AUTOENCODER", body, **options)


@click.command(epilog=EPILOG)
@train_options("starter")
def t5(**options: Any) -> None:
    """A T5 text encoder, pre-trained by span corruption on the embedded world's captions."""

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.lab.starter import t5_training as t5

        result = t5.train(run, out, device)
        return Trained(result.folder, result.metrics)

    run_training("T5", body, **options)


@click.command(epilog=EPILOG)
@train_options("starter")
def lm(**options: Any) -> None:
    """A language model of Llama's architecture, on the embedded world's captions in all its languages."""

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.lab.starter import lm_training as lm

        result = lm.train(run, out, device)
        return Trained(result.folder, result.metrics)

    run_training("LM", body, **options)


@click.command(epilog=EPILOG)
@train_options("starter")
def reader(**options: Any) -> None:
    """The reader that judges pictures: picture to attributes."""

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.lab.starter import reader_training as reader

        result = reader.train(run, out, device)
        return Trained(result.folder, result.metrics)

    run_training("READER", body, **options)


@click.command(epilog=EPILOG)
@click.option("--stages", metavar="NAMES", help=f"Some of {STARTER_STAGES}. Default: all.")
@train_options("cpu")
def starter(stages: str | None, **options: Any) -> None:
    """The starter model from nothing: CLIP, reader, autoencoder, decoder, T5, the decoder six times more with its words, prior, a language
    model and the three stages of its adapter.

    Stages that are finished with the same settings are not run again. What is there is put together as soon as it can paint: RUN/model.
    """

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.lab.starter import starter_training as starter
        from syzygy.training.estimate import is_dry_run

        if is_dry_run():
            raise UserError(
                "syzygy train starter runs one training after another, each on the results of those before: "
                "estimate one by its own command, such as syzygy train decoder --dry-run."
            )
        names = list(starter.STAGES) if stages is None else [name.strip() for name in stages.split(",")]
        folder = starter.train(run, out, device, names)
        next_steps = (f"syzygy generate 'a red circle' --model {quote(str(folder))}",) if folder != out else ()
        return Trained(folder, starter.metrics(out), next_steps)

    run_training("STARTER", body, **options)
