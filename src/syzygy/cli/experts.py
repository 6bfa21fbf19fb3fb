"""`syzygy experts …`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from syzygy.cli.common import Whole, json_option
from syzygy.core.errors import UserError
from syzygy.core.wording import counted

if TYPE_CHECKING:
    from syzygy.experts.routing import Evaluation, Stages


@click.command()
@click.argument("source", metavar="EXPERTS|NAMES")
@click.option("--steps", type=Whole(1), default=25, show_default=True, metavar="N", help="Sampling steps.")
@click.option("--sampler", metavar="NAME", help="euler, heun or dpm++2m.  [default: dpm++2m]")
@click.option(
    "--scheduler",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Plan for a diffusers scheduler: its folder, or a pipeline's.",
)
@json_option
def plan(source: str, steps: int, sampler: str | None, scheduler: Path | None, as_json: bool) -> None:
    """Show which evaluations of a schedule each expert serves.

    EXPERTS is the folder of an ensemble or of the run that trained it. NAMES are leaves separated by commas, such as
    E3_0,complement,E9_511; they divide the training noise of the starter's decoder, or of --scheduler. The plan is made in σ, so it
    is valid for any number of steps and any sampler. A second-order sampler also evaluates the end of each step, which another
    expert may serve.

    \b
    For a U-Net of diffusers, with the scheduler in a pipeline's folder:
      syzygy experts plan E3_0,complement,E9_511 --scheduler stable-diffusion-v1-5 --steps 50
    """
    import json
    import math

    stages, planned, name = _planned(source, steps, sampler, scheduler)
    edges = (0.0, *stages.edges, math.inf)
    found = []
    for place, expert in enumerate(stages.names):
        low, high = edges[place], edges[place + 1]
        own = [one for one in planned if stages.place(one.sigma) == place]
        stage = {"expert": expert, "sigma_from": low, "sigma_to": None if high == math.inf else high}
        found.append(stage | {"steps": sorted({one.step for one in own}), "evaluations": len(own)})
    if as_json:
        click.echo(json.dumps({"steps": steps, "sampler": name, "evaluations": len(planned), "stages": found}))
        return
    click.echo(f"{counted(steps, 'step')} of {name}: {counted(len(planned), 'evaluation')}")
    for stage in reversed(found):  # as sampling goes: from noise to picture
        upto = "∞" if stage["sigma_to"] is None else f"{stage['sigma_to']:.4g}"
        which = f"steps {stage['steps'][0] + 1} to {stage['steps'][-1] + 1}" if len(stage["steps"]) > 1 else "none"
        which = f"step {stage['steps'][0] + 1}" if len(stage["steps"]) == 1 else which
        click.echo(
            f"{stage['expert']:<12} σ {stage['sigma_from']:>8.4g} to {upto:<8} {counted(stage['evaluations'], 'evaluation'):>16} ({which})"
        )


def _planned(
    source: str, steps: int, sampler: str | None, scheduler: Path | None
) -> "tuple[Stages, list[Evaluation], str]":
    """The stages, the plan, and the name of the sampler."""
    from syzygy.core.model_parts import part_folder
    from syzygy.decoder.noise_levels import KarrasSchedule, LogNormal
    from syzygy.experts import routing, timestep_plan
    from syzygy.experts.expert_folders import experts_folder, load_stages
    from syzygy.experts.training import noise_of, stages_of

    leaves = None if Path(source).exists() else [name.strip() for name in source.split(",")]
    if scheduler is None:
        name = sampler or "dpm++2m"
        own = load_stages(experts_folder(Path(source))) if leaves is None else None
        stages = own or stages_of(leaves or [], noise_of(part_folder("starter", "decoder"), LogNormal()))
        return stages, routing.plan(stages, KarrasSchedule().sigmas(steps), name), name
    if sampler is not None:
        raise UserError("--sampler is for our own decoder, and --scheduler is a sampler itself: give one of them.")
    from syzygy.core import diffusers_timesteps

    walked = diffusers_timesteps.read_scheduler(scheduler)
    stages = load_stages(experts_folder(Path(source))) if leaves is None else timestep_plan.stages_of(leaves, walked)
    return stages, timestep_plan.plan(stages, walked, steps), type(walked).__name__
