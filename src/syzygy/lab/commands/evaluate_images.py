"""`syzygy evaluate …`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from syzygy.cli.common import Whole, device_option, progress_bar, seed_option, stacked, writable_folder
from syzygy.cli.generation_options import text_encoder_options
from syzygy.core.errors import UserError
from syzygy.core.wording import counted
from syzygy.lab.commands.evaluation_options import named_priors

if TYPE_CHECKING:
    from syzygy.core.contracts import Prior
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate.evaluate_composition import Scores, Scoring

F = TypeVar("F", bound=Callable[..., Any])
QUICK = {"prompts": 8, "pairs": 1000}


def scoring_options(command: F) -> F:
    """What every command takes that paints and judges."""
    options = (
        click.option(
            "--model", default="starter", show_default=True, help="A model that comes with syzygy, or a folder."
        ),
        click.option(
            "--prompts",
            type=Whole(1),
            default=200,
            show_default=True,
            help="Prompts a category, seen and held-out each, or as many as there are.",
        ),
        click.option("--draws", type=Whole(1), default=1, show_default=True, help="Pictures a prompt."),
        click.option("--steps", type=Whole(1), default=10, show_default=True, help="Sampling steps."),
        click.option("--guidance-scale", type=float, default=3.0, show_default=True, help="Guidance; 1 means off."),
        click.option("--quick", is_flag=True, help=f"{QUICK['prompts']} prompts: a first look, wide intervals."),
        seed_option,
        device_option,
        click.option(
            "--json",
            "json_file",
            type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
            metavar="FILE",
            help="Write everything as JSON; - prints it and nothing else.",
        ),
    )
    return stacked(*options)(command)


@click.command()
@scoring_options
@text_encoder_options
@click.option(
    "--prior",
    "priors",
    multiple=True,
    metavar="[NAME=]RUN",
    help="Prior to score; may be repeated. Default: the model's own.",
)
@click.option(
    "--pairs",
    type=Whole(0),
    default=5000,
    show_default=True,
    help="Pairs on which predicted embeddings are compared with true ones; 0 leaves that out.",
)
@click.option(
    "--with-text",
    is_flag=True,
    help="Paint once more with the text read too: a second column, where text slips past the prior.",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with plots and pictures.",
)
@click.pass_context
def composition(
    ctx: click.Context,
    model: str,
    priors: tuple[str, ...],
    text_encoder: str | None,
    llm: str | None,
    json_file: Path | None,
    html_file: Path | None,
    device: str,
    quick: bool,
    **settings: Any,
) -> None:
    """Does the picture hold what the prompt says?

    Paints prompts of the embedded world and reads the pictures. Beside each prior stand the reference (the true embedding of a scene
    that shows just what the prompt says), text-identity (the text embedding itself, also moved to the images' mean) and the first
    prior's answers to shuffled prompts. Compositions that no prior saw in training are scored apart.
    """
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate import evaluate_composition
    from syzygy.lab.evaluate.composition_page import page, result
    from syzygy.lab.world.prompts import CATEGORIES

    scoring = _scoring(ctx, quick, settings)
    _check_places(json_file, html_file)
    loaded = TextToImage.from_pretrained(model, text_encoder=text_encoder, llm=llm, device=device)
    if (own := loaded.pipeline.prior) is None:
        raise UserError(f"{model} paints from texts alone: it has no prior to evaluate.")
    named = _named(priors, loaded, device) or {"prior": own}
    wanted = evaluate_composition.asked(CATEGORIES, scoring.prompts, scoring.seed)
    scores = evaluate_composition.score(loaded, named, wanted, scoring, progress_bar)
    found = result(model, scoring, scores) | ({} if text_encoder is None else {"text_encoder": text_encoder})
    if str(json_file) != "-":
        _print(scores)  # before any file, which may fail
    _write(json_file, found)
    if html_file is not None:
        from syzygy.core import artifacts

        artifacts.write_bytes(html_file, page(found, scores).encode())


@click.command()
@scoring_options
@text_encoder_options
@click.option(
    "--prior", "priors", multiple=True, metavar="[NAME=]RUN", help="Give two: the first is compared with the second."
)
@click.option(
    "--pickscore",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="A PickScore checkpoint (or any CLIP) on disk, as a further judge.",
)
@click.pass_context
def preference(
    ctx: click.Context,
    model: str,
    priors: tuple[str, ...],
    text_encoder: str | None,
    llm: str | None,
    pickscore: Path | None,
    json_file: Path | None,
    device: str,
    quick: bool,
    **settings: Any,
) -> None:
    """How often is one prior's picture preferred to another's?

    Both paint the same prompts from the same noise. Judges: the reader (which picture bears out more of the prompt's facts) and the
    model's CLIP (which is nearer to the prompt). A tie counts half for each.
    """
    from syzygy.clip.clip_model import Clip
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate import evaluate_composition
    from syzygy.lab.world.prompts import CATEGORIES

    scoring = _scoring(ctx, quick, settings)
    if len(priors) != 2:
        raise UserError(f"give --prior twice, the two to compare; got {len(priors)}.")
    _check_places(json_file)
    judge = None if pickscore is None else Clip.from_pretrained(pickscore).to(device)
    loaded = TextToImage.from_pretrained(model, text_encoder=text_encoder, llm=llm, device=device)
    named = _named(priors, loaded, device)
    wanted = evaluate_composition.asked(CATEGORIES, scoring.prompts, scoring.seed)
    with progress_bar("painting", 2 * len(wanted) * scoring.draws) as advance:
        rows = evaluate_composition.prefer(loaded, named, wanted, scoring, advance, pickscore=judge)
    first, second = named
    if str(json_file) != "-":
        click.echo(f"How often {first} is preferred to {second}:")
        for row in rows:
            side = "held out" if row["held_out"] else "seen"
            rate = f"{100 * row['rate']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
            ties = f"ties {100 * row['ties']:.0f} %"
            click.echo(f"{row['judge']:>12}  {side:>8}  {rate:>16}  {counted(row['prompts'], 'prompt')}, {ties}")
    about = {"model": model} | ({} if text_encoder is None else {"text_encoder": text_encoder})
    _write(json_file, about | {"first": first, "second": second, "scoring": scoring.model_dump(), "rows": rows})


def _scoring(ctx: click.Context, quick: bool, settings: dict[str, Any]) -> "Scoring":
    from syzygy.core.config import parse
    from syzygy.lab.evaluate.evaluate_composition import Scoring

    if quick:
        for name, value in QUICK.items():
            if name not in settings:
                continue
            if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--quick sets --{name} itself: give one of the two.")
            settings[name] = value
    return parse(Scoring, settings, "options")


def _named(priors: tuple[str, ...], model: "TextToImage", device: str) -> "dict[str, Prior]":
    """`NAME=RUN`, or a run under the name of its folder."""
    from syzygy.lab.evaluate.evaluate_composition import IDENTITY, SHIFTED, SHUFFLED
    from syzygy.prior.prior_loading import load_prior

    sources = named_priors(priors, (IDENTITY, SHIFTED, SHUFFLED))
    return {name: load_prior(source, model.clip, device) for name, source in sources.items()}


def _check_places(*files: Path | None) -> None:
    """Fail before the work, not after it."""
    for file in files:
        if file is not None and str(file) != "-":
            writable_folder(file.parent)


def _write(file: Path | None, found: Mapping[str, Any]) -> None:
    import json

    from syzygy.core import artifacts

    if str(file) == "-":
        click.echo(json.dumps(found))
    elif file is not None:
        artifacts.write_json(file, found)


def _print(scores: "Scores") -> None:
    from syzygy.lab.evaluate import composition as tables
    from syzygy.lab.world.prompts import CATEGORIES

    for title, painted in (("", scores.painted), ("with text: ", scores.with_text)):
        rows = tables.table(painted)
        if not rows:
            continue
        click.echo(f"{title:>24}{'category':>12}{'seen':>20}{'held out':>20}")
        shares = {(r["candidate"], r["category"], r["held_out"]): r for r in rows}
        for candidate in dict.fromkeys(r["candidate"] for r in rows):
            for category in (*CATEGORIES, "all"):
                cells = [shares.get((candidate, category, held_out)) for held_out in (False, True)]
                click.echo(f"{candidate:>24}{category:>12}" + "".join(f"{tables.cell(row):>20}" for row in cells))
        single = shares[tables.REFERENCE, "single", False]["atoms"]
        click.echo(
            f"\nReference, one object: colour {100 * single['colour']:.0f} %, shape {100 * single['shape']:.0f} %."
        )
    if scores.embeddings:
        click.echo(f"\n{'embeddings':>24}{'cosine':>10}{'R@1':>10}{'Fréchet':>10}")
        for candidate, found in scores.embeddings.items():
            values = f"{found['cosine']:>10.3f}{found['recall_at_1']:>10.3f}{found['frechet']:>10.2f}"
            click.echo(f"{candidate:>24}{values}")
    if scores.pictures:
        click.echo(f"\n{'pictures':>24}{'FID-reader':>12}")
        for candidate, value in scores.pictures.items():
            click.echo(f"{candidate:>24}{value:>12.2f}")
    click.echo("\nAgreement: every named thing right. Brackets: 95 % bootstrap over prompts and their pictures.")
