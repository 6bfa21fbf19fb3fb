"""`syzygy experts …`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from syzygy.cli.common import Whole, json_option

if TYPE_CHECKING:
    from syzygy.diffusion.experts import Stages


@click.command()
@click.argument("source", metavar="EXPERTS|NAMES")
@click.option("--steps", type=Whole(1), default=25, show_default=True, metavar="N", help="Sampling steps.")
@click.option("--sampler", default="dpm++2m", show_default=True, help="euler, heun or dpm++2m.")
@json_option
def plan(source: str, steps: int, sampler: str, as_json: bool) -> None:
    """Which evaluations of a schedule each expert serves.

    EXPERTS is the folder of an ensemble, or of the run that grew it. Or the NAMES of leaves joined by commas, such as
    E3_0,complement,E9_511, cut from the training noise of the starter's decoder. The plan is made in σ, so it holds for any
    number of steps and any sampler; a second-order one evaluates the end of its steps too, perhaps with another expert.
    """
    import json
    import math

    from syzygy.diffusion.experts import plan
    from syzygy.diffusion.noise import KarrasSchedule

    stages = _stages(source)
    planned = plan(stages, KarrasSchedule().sigmas(steps), sampler)
    edges = (0.0, *stages.edges, math.inf)
    found = []
    for place, name in enumerate(stages.names):
        low, high = edges[place], edges[place + 1]
        own = [one for one in planned if low <= one.sigma < high]
        stage = {"expert": name, "sigma_from": low, "sigma_to": None if high == math.inf else high}
        found.append(stage | {"steps": sorted({one.step for one in own}), "evaluations": len(own)})
    if as_json:
        click.echo(json.dumps({"steps": steps, "sampler": sampler, "evaluations": len(planned), "stages": found}))
        return
    click.echo(f"{steps} steps of {sampler}: {len(planned)} evaluations")
    for stage in reversed(found):  # as sampling goes: from noise to picture
        upto = "∞" if stage["sigma_to"] is None else f"{stage['sigma_to']:.4g}"
        which = f"steps {stage['steps'][0] + 1} to {stage['steps'][-1] + 1}" if stage["steps"] else "none"
        click.echo(
            f"{stage['expert']:<12} σ {stage['sigma_from']:>8.4g} to {upto:<8} {stage['evaluations']:>4} evaluations ({which})"
        )


def _stages(source: str) -> "Stages":
    """Of an ensemble on disk, or of leaves named."""
    from syzygy.hub.experts import experts_folder, load_stages
    from syzygy.presets import decoder_starter
    from syzygy.runs.experts import stages_of

    if Path(source).exists():
        return load_stages(experts_folder(Path(source)))
    return stages_of([name.strip() for name in source.split(",")], decoder_starter().task.noise)
