"""`syzygy evaluate …`."""

from pathlib import Path

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar, seed_option

QUICK_PROMPTS, QUICK_STEPS = 8, 12


@click.command()
@click.option("--model", default="starter", show_default=True, help="A model that comes with syzygy, or a folder.")
@click.option(
    "--prior",
    "priors",
    multiple=True,
    metavar="[NAME=]RUN",
    help="Prior to score; may be repeated. Default: the model's own.",
)
@click.option(
    "--prompts", type=Whole(1), default=40, show_default=True, help="Prompts a category, seen and held-out each."
)
@click.option("--steps", type=Whole(1), default=25, show_default=True, help="Sampling steps.")
@click.option("--guidance-scale", type=float, default=2.0, show_default=True, help="Guidance; 1 means off.")
@click.option("--with-text", is_flag=True, help="Let the decoder read the text too; text then slips past the prior.")
@click.option(
    "--quick", is_flag=True, help=f"{QUICK_PROMPTS} prompts and {QUICK_STEPS} steps: a first look, wide intervals."
)
@seed_option
@device_option
@json_option
@click.pass_context
def composition(
    ctx: click.Context,
    model: str,
    priors: tuple[str, ...],
    prompts: int,
    steps: int,
    guidance_scale: float,
    with_text: bool,
    quick: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Does the picture hold what the prompt says?

    Paints prompts of the embedded world and reads the pictures. Beside each prior stand the reference (the true embedding of a scene
    that shows just what the prompt says) and text-identity (the text embedding itself). Compositions that no prior saw in training are
    scored apart.
    """
    import json

    from syzygy.api import TextToImage, load_prior
    from syzygy.config import parse
    from syzygy.evals import composition as scores
    from syzygy.runs import evaluate
    from syzygy.world.prompts import CATEGORIES

    if quick:
        for name in ("prompts", "steps"):
            if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--quick sets --{name} itself: give one of the two.")
        prompts, steps = QUICK_PROMPTS, QUICK_STEPS
    loaded = TextToImage.from_pretrained(model, device=device)
    candidates = {}
    for one in priors:
        name, equals, folder = one.partition("=")
        candidates[name if equals else Path(one).name] = load_prior(folder if equals else one, loaded.clip, device)
    candidates = candidates or {"prior": loaded.pipeline.prior}
    candidates[evaluate.IDENTITY] = evaluate.text_identity(loaded, seed)
    settings = {
        "prompts": prompts,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "with_text": with_text,
        "seed": seed,
    }
    scoring = parse(evaluate.Scoring, settings, "options")
    wanted = evaluate.asked(CATEGORIES, prompts, seed)
    with progress_bar("painting", len(wanted) * (len(candidates) + 1)) as advance:
        painted = evaluate.paint(loaded, candidates, wanted, scoring, advance)
    rows = scores.table(painted)
    if as_json:
        click.echo(json.dumps({"model": model, "scoring": scoring.model_dump(), "rows": rows}))
        return
    click.echo(f"{'':>16}{'category':>12}{'seen':>22}{'held out':>22}")
    shares = {(r["candidate"], r["category"], r["held_out"]): r for r in rows}
    for candidate in dict.fromkeys(r["candidate"] for r in rows):
        for category in (*CATEGORIES, "all"):
            cells = [shares.get((candidate, category, held_out)) for held_out in (False, True)]
            click.echo(f"{candidate:>16}{category:>12}" + "".join(f"{scores.cell(row):>22}" for row in cells))
    single = shares[scores.REFERENCE, "single", False]["atoms"]
    click.echo(
        f"\nReference, one object: colour {100 * single['colour']:.0f} %, shape {100 * single['shape']:.0f} %. "
        "Agreement: every named thing right. Brackets: 95 % bootstrap over prompts."
    )
