"""`syzygy train experts`."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import note
from syzygy.cli.training import EPILOG, Trained, as_setting, fitting_of, run_training, train_options
from syzygy.core.errors import UserError
from syzygy.core.registry import imported

if TYPE_CHECKING:
    import torch


@click.command(
    epilog=EPILOG
    + """
\b
Each node of the tree is a run of its own in RUN/nodes. Finished nodes are not trained again.
  syzygy experts plan E3_0,complement,E9_511    shows which steps the leaves would serve

\b
On your own images, from a local Stable Diffusion 1.x, 2.x or XL, or Kandinsky 2.2's decoder:
  syzygy train experts --model stable-diffusion-xl-base-1.0/ --data pairs/ --out RUN
  syzygy train experts --model kandinsky-2-2-decoder/ --clip kandinsky-2-2-prior/ --data pairs/ --out RUN
  syzygy train experts --model … --data … --form full --leaves E1_0,E1_1 --out RUN
  syzygy train experts --data … --settings      lists the settings with --data
The images are encoded to latents once, before training. SOURCE is as in syzygy embed: tars, parquet, or a folder with
metadata.jsonl. With --data the presets are lora and full. In Python, the experts replace a pipeline's U-Net:
  pipe.unet = ExpertUNet.from_pretrained("RUN")
"""
)
@click.option(
    "--model",
    default="starter",
    show_default=True,
    metavar="FOLDER|MODEL",
    help="The model whose decoder the experts start from. With --data, a pipeline's folder in diffusers' layout.",
)
@click.option("--data", metavar="SOURCE", help="Your own images with captions, to train experts of a pipeline's U-Net.")
@click.option(
    "--clip",
    "clip_source",
    metavar="FOLDER|HUB-ID",
    help="With --data and Kandinsky's decoder, the CLIP that it was trained with.",
)
@click.option(
    "--form",
    type=click.Choice(["lora", "full"]),
    help="Train low-rank adaptations or whole networks.  [default: full; with --data lora]",
)
@click.option(
    "--leaves", metavar="NAMES", help="Names of the experts, separated by commas.  [default: E3_0,complement,E9_511]"
)
@train_options("full")
def experts(
    model: str, data: str | None, clip_source: str | None, form: str | None, leaves: str | None, **options: Any
) -> None:
    """Train expert denoisers for intervals of the noise level, from a model's decoder (eDiff-I)."""
    names = None if leaves is None else [name.strip() for name in leaves.split(",")]
    options["overrides"] = as_setting({"form": form, "leaves": names}, options["overrides"])
    if data is not None:
        _expert_unets(model, data, clip_source, form, **options)
        return
    if clip_source is not None:
        raise UserError("--clip has no effect without --data, because a model has its own. Leave it out.")
    if (Path(model) / "unet").is_dir():
        raise UserError(
            f"{model} is a pipeline in diffusers' layout: give the captioned images to train on with --data."
        )

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.clip.clip_model import Clip
        from syzygy.core.model_parts import part_folder
        from syzygy.decoder.autoencoder import Autoencoder
        from syzygy.generation.own_models import own_encoders

        clip = Clip.from_pretrained(part_folder(model, "clip")).to(device).requires_grad_(False)
        latents = Autoencoder.from_pretrained(part_folder(model, "autoencoder")).to(device).requires_grad_(False)
        decoder = part_folder(model, "decoder")
        t5 = own_encoders(decoder.parent, decoder, str(device)).get("t5")
        train = imported("syzygy.lab.starter.experts_training:train")
        folder = train(run, decoder, clip, latents, out, device, note, t5)
        return Trained(folder, {}, (f"syzygy experts plan {quote(str(out))}",))

    def as_trained(run: Any) -> Any:
        from syzygy.core.model_parts import part_folder

        return imported("syzygy.lab.starter.experts_training:as_trained")(run, part_folder(model, "decoder"))

    run_training("syzygy.lab.starter.presets:EXPERTS", body, as_trained, **options)


def _expert_unets(model: str, data: str, clip: str | None, form: str | None, **options: Any) -> None:
    """`train experts --data`, which has other presets."""
    source = click.get_current_context().get_parameter_source("preset")
    if source is click.core.ParameterSource.DEFAULT:
        options["preset"] = form or "lora"

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.experts import unet_expert_training

        if not Path(model).is_dir():
            raise UserError(f"--data needs a local --model in diffusers' layout; there is no folder {model}.")
        folder = unet_expert_training.train(
            run, Path(model), data, out, device, note, clip, fitting_of(options["overrides"])
        )
        return Trained(folder, {}, (f"syzygy experts plan {quote(str(out))}",))

    run_training("syzygy.experts.presets:PRESETS", body, **options)
