"""`syzygy train prior`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import progress_bar
from syzygy.cli.training import EPILOG, Trained, fitting_of, run_training, set_names, train_options
from syzygy.core.errors import UserError
from syzygy.core.registry import imported

if TYPE_CHECKING:
    import torch

clip_option = click.option(
    "--clip",
    "clip_source",
    default="starter",
    show_default=True,
    metavar="FOLDER|MODEL",
    help="The frozen CLIP: a model, a training run, or the folder of its weights.",
)


@click.command(
    epilog=EPILOG
    + """
\b
On your own pairs (docs/tutorials/train-your-own-prior.md):
  syzygy embed pairs/ --encoder FOLDER|HUB-ID --out STORE
  syzygy train prior --preset eclipse-kandinsky22 --data STORE --out RUN
  syzygy train prior --preset eclipse-residual --data STORE --out RUN
  syzygy train prior --preset lambda-eclipse-residual-kandinsky22 --data STORE --out RUN   # docs/how-to/subjects.md
  torchrun --nproc-per-node 4 -m syzygy.cli train prior …   # on four GPUs
"""
)
@clip_option
@click.option(
    "--data", "store", type=click.Path(path_type=Path), metavar="STORE", help="Train on this embedding store."
)
@click.option(
    "--init",
    metavar="FOLDER|HUB-ID",
    help="Continue from this prior of the preset's kind (ECLIPSE or residual): a folder, a run, or a hub id.",
)
@click.option("--tensorboard", is_flag=True, help="Also write metrics to RUN/tensorboard.")
@train_options("eclipse")
def prior(clip_source: str, store: Path | None, init: str | None, tensorboard: bool, **options: Any) -> None:
    """Train a prior (text features to image embedding) on an embedding store or on the embedded world.

    \b
    Presets:
      eclipse, eclipse-kandinsky22, eclipse-karlo
        ECLIPSE; the first is small, of 0.7M parameters
      eclipse-residual, eclipse-residual-kandinsky22, eclipse-residual-karlo
        Text embedding, moved to the mean of the images, plus a correction
      lambda-eclipse, lambda-eclipse-kandinsky22
        λ-ECLIPSE, on captions with subjects: a store that was embedded with --subjects --edges
      lambda-eclipse-residual, lambda-eclipse-residual-kandinsky22
        The same, as a correction to an estimate from text and subjects
      linear
        Linear map, fitted without steps
      diffusion
        The diffusion prior that ECLIPSE is compared with
      flow
        The same with flow matching
      starter
        The starter's prior: a residual one of 3.4M parameters
    """
    context = click.get_current_context()
    if store and context.get_parameter_source("clip_source") is not click.core.ParameterSource.DEFAULT:
        raise UserError("--clip has no effect with --data: the store records which CLIP embedded it. Leave it out.")

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.clip.clip_model import Clip
        from syzygy.core.model_parts import part_folder
        from syzygy.prior import training as prior
        from syzygy.prior.next_steps import after_training
        from syzygy.training.estimate import is_dry_run
        from syzygy.training.parallel import process_group
        from syzygy.training.progress import ConsoleReporter

        if tensorboard and not hasattr(run, "loop"):
            raise UserError(
                "a linear map is fitted without steps, so there is nothing to watch: leave --tensorboard out."
            )
        fitting = fitting_of(options["overrides"])
        report: Any = ""  # the run's own, which knows the size of its batch once that is fitted to the data
        if tensorboard and not is_dry_run():
            report = ConsoleReporter("prior", tensorboard=out / "tensorboard")
        if store is not None and "scenes" not in set_names(options["overrides"]):
            run = run.model_copy(update={"scenes": None})
        with process_group(device) as world:
            if store is None:
                clip = Clip.from_pretrained(part_folder(clip_source, "clip"))
                train = imported("syzygy.lab.starter.prior_training:train")
                result = train(run, clip, out, world, init=init, bar=progress_bar, report=report, fitting=fitting)
            else:
                of_the_world = imported("syzygy.lab.starter.prior_training:of_the_world")
                result = prior.train_on_store(
                    run, store, out, world, init=init, of_the_world=of_the_world, report=report, fitting=fitting
                )
        return Trained(result.folder, result.metrics, after_training(out, store, clip_source))

    run_training("syzygy.prior.presets:PRESETS", body, **options)
