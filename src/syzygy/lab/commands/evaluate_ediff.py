"""`syzygy evaluate regions|style|temporal|encoders`: what eDiff-I says of its decoder, measured on the embedded world."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from syzygy.cli.common import Whole, device_option, seed_option, stacked
from syzygy.core.errors import UserError
from syzygy.core.wording import counted
from syzygy.lab.commands.evaluation_options import check_places, read_pictures, write_json, write_page, write_svg

if TYPE_CHECKING:
    from syzygy.lab.evaluate.bootstrap import Interval

F = TypeVar("F", bound=Callable[..., Any])


def _options(prompts: int, steps: int) -> Callable[[F], F]:
    """What the commands share."""

    return stacked(
        click.option(
            "--model", default="starter", show_default=True, help="A model that comes with syzygy, or a folder."
        ),
        click.option(
            "--prompts",
            type=Whole(2),
            default=prompts,
            show_default=True,
            help="Prompts a category, seen and held-out each, or as many as there are.",
        ),
        click.option("--steps", type=Whole(1), default=steps, show_default=True, help="Sampling steps."),
        click.option("--guidance-scale", type=float, default=3.0, show_default=True, help="Guidance; 1 means off."),
        seed_option,
        device_option,
        click.option(
            "--json",
            "json_file",
            type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
            metavar="FILE",
            help="Write everything as JSON; - prints it and nothing else.",
        ),
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="FOLDER",
            help="Write results.json, a page (index.html) and its figure; what was read is kept there, so that the command goes on "
            "where it was interrupted.",
        ),
    )


@click.command()
@_options(prompts=100, steps=10)
@click.option(
    "--strengths",
    default="0.5,1,2",
    show_default=True,
    metavar="W,…",
    help="Of painting, w'; unpainted is always measured.",
)
@click.option(
    "--conditions", metavar="NAMES", help="What the decoder reads, such as text,t5. Default: all that it can."
)
@click.option("--experts", metavar="RUN|FOLDER", help="Expert denoisers in the decoder's place.")
def regions(
    model: str,
    json_file: Path | None,
    out: Path | None,
    device: str,
    strengths: str,
    conditions: str | None,
    experts: str | None,
    **settings: Any,
) -> None:
    """Does what is painted come where it was painted?

    Prompts of one and of two coloured objects, each object painted into a half of the picture: how many of the phrases have their object there,
    with all told attributes, and how many pictures hold all that is named, beside the same noise unpainted; and, of two objects, with the
    masks exchanged, when they should change places.

    \b
      syzygy evaluate regions --out out/regions       # the grid of pictures is out/regions/grid.png
    """
    from syzygy.core.config import parse
    from syzygy.generation.image_files import save_png
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate import region_accuracy as run

    chosen = {
        **settings,
        "strengths": tuple(_numbers(strengths, "--strengths", "0.5,1,2")),
        "conditions": _names(conditions),
    }
    scoring = parse(run.PaintingScoring, chosen, "options")
    check_places(json_file, out)
    loaded = TextToImage.from_pretrained(model, experts=experts, device=device)
    run.check(loaded, scoring)
    asked = run.ask(run.wanted(scoring), scoring.seed)
    found = read_pictures(loaded, run.series(loaded, asked, scoring), out, "painting", scoring.model_dump(mode="json"))
    rows = run.table(asked, found, scoring)
    result = {**run.result(loaded, scoring, asked, rows), "experts": experts}
    if str(json_file) != "-":
        _print_painting(rows, result["chosen_strength"])
    if out is not None:
        sheet = run.grid(loaded, asked, scoring, result["chosen_strength"])
        save_png(sheet, out / "grid.png", {name: result[name] for name in ("model", "scoring", "chosen_strength")})
        write_page(out, result, run.page(result, rows, sheet))
    write_json(json_file, result)


@click.command()
@_options(prompts=16, steps=10)
@click.option(
    "--style-guidance", "weights", default="0.5,1,2", show_default=True, metavar="W,…",
    help="Of the style apart from the text; the joint guidance of both is always measured.",
)  # fmt: skip
@click.option(
    "--references",
    type=Whole(1, 4),
    default=1,
    show_default=True,
    help="Reference pictures a prompt, each in another style.",
)
def style(model: str, json_file: Path | None, out: Path | None, device: str, weights: str, **settings: Any) -> None:
    """Does a picture take the style of a reference picture, and only that?

    Prompts that name no style are painted with the picture of another scene as style (as by --style of syzygy generate), in each of four
    styles in turn; beside them the same prompts without it, with the text alone, and with the style in their words, all from the same noise.
    Measured: style, agreement with the prompt, and how often the reference's objects appear.

    \b
      syzygy evaluate style --out out/style       # the grid of pictures is out/style/grid.png
    """
    from syzygy.core.config import parse
    from syzygy.generation.image_files import save_png
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate import style as run

    chosen = _numbers(weights, "--style-guidance", "0.5,1,2")
    scoring = parse(run.StyleScoring, {**settings, "weights": tuple(dict.fromkeys(chosen))}, "options")
    check_places(json_file, out)
    loaded = TextToImage.from_pretrained(model, device=device)
    run.check(loaded)
    asked = run.ask(scoring)
    found = read_pictures(loaded, run.series(loaded, asked, scoring), out, "style", scoring.model_dump(mode="json"))
    rows = run.table(asked, found)
    result = run.result(loaded, scoring, rows, len(asked))
    if str(json_file) != "-":
        _print_style(rows, result["chosen_style_guidance"])
    if out is not None:
        sheet = run.grid(loaded, asked, scoring, result["chosen_style_guidance"])
        save_png(
            sheet, out / "grid.png", {name: result[name] for name in ("model", "scoring", "chosen_style_guidance")}
        )
        write_page(out, result, run.page(result, rows, sheet))
    write_json(json_file, result)


@click.command()
@_options(prompts=50, steps=25)
@click.option(
    "--swaps", default="20,60,80", show_default=True, metavar="K,…",
    help="Per cent of the steps after which the prompt is swapped; 0, 40, 93 and 100 are added.",
)  # fmt: skip
@click.option("--conditions", metavar="NAMES", help="What the decoder reads, such as text. Default: all that it can.")
def temporal(
    model: str,
    json_file: Path | None,
    out: Path | None,
    device: str,
    swaps: str,
    conditions: str | None,
    **settings: Any,
) -> None:
    """When in sampling is the prompt read?

    Each picture begins with one prompt and ends with another, which shares no shape and no colour with it: agreement with both, over the
    part of the steps before the swap. eDiff-I says that a swap in the last 7 % of the steps changes nothing, and that with one in the first
    40 % the picture follows the new prompt wholly: confirmed or not.

    \b
      syzygy evaluate temporal --out out/temporal       # the plot is out/temporal/agreement.svg
    """
    from syzygy.core.config import parse
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate import temporal as run

    chosen = {**settings, "swaps": tuple(_numbers(swaps, "--swaps", "20,60,80")), "conditions": _names(conditions)}
    scoring = parse(run.TemporalScoring, chosen, "options")
    check_places(json_file, out)
    loaded = TextToImage.from_pretrained(model, device=device)
    run.check(loaded)
    asked = run.ask(scoring)
    found = read_pictures(loaded, run.series(loaded, asked, scoring), out, "temporal", scoring.model_dump(mode="json"))
    result, rows, said = run.result(loaded, scoring, asked, found)
    if str(json_file) != "-":
        _print_temporal(rows, said)
    if out is not None:
        write_svg(out / "agreement.svg", run.plot(rows))
        write_page(out, result, run.page(result, rows, said, run.strips(loaded, asked, scoring)))
    write_json(json_file, result)


@click.command()
@_options(prompts=16, steps=10)
def encoders(model: str, json_file: Path | None, out: Path | None, device: str, **settings: Any) -> None:
    """What do T5 and CLIP tell a decoder, of short and of long prompts?

    The decoder reads T5's states alone, CLIP's alone, both, the prior's image embedding alone, and all of it, of prompts as they are and
    after 100 to 220 words that say nothing of the picture (CLIP reads 77 tokens); beside them what it paints when it reads nothing. A
    decoder without T5 is measured on what it reads.

    \b
      syzygy evaluate encoders --model RUN --out out/encoders
    """
    from syzygy.core.config import parse
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate import encoders as run

    scoring = parse(run.EncodersScoring, settings, "options")
    check_places(json_file, out)
    loaded = TextToImage.from_pretrained(model, device=device)
    run.candidates(loaded.pipeline.decoder.conditions)
    asked = run.ask(scoring)
    found = read_pictures(loaded, run.series(loaded, asked, scoring), out, "encoders", scoring.model_dump(mode="json"))
    rows = run.table(loaded, asked, found)
    result = run.result(loaded, scoring, asked, rows)
    if str(json_file) != "-":
        _print_encoders(rows, result)
    if out is not None:
        write_svg(out / "agreement.svg", run.plot(rows))
        write_page(out, result, run.page(result, rows))
    write_json(json_file, result)


def _names(conditions: str | None) -> list[str] | None:
    return None if conditions is None else [name.strip() for name in conditions.split(",")]


def _numbers(text: str, option: str, example: str) -> list[float]:
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r} must be numbers joined by commas, such as {example}.") from None


def _print_painting(rows: Sequence[Mapping[str, Any]], chosen: float) -> None:
    from syzygy.lab.evaluate.predictions import points

    click.echo(f"{'':>24}{'category':>10}{'prompts':>10}{'in place':>18}{'all right':>18}{'less unpainted':>19}")
    for row in rows:
        if row["category"] != "all":
            less = points(row["against_unpainted"]) if "against_unpainted" in row else ""
            click.echo(
                f"{row['candidate']:>24}{row['category']:>10}{row['side']:>10}{row['placed']!s:>18}{row['agreement']!s:>18}{less:>19}"
            )
    click.echo(
        f"\nMost in place on seen prompts: w' {chosen:g}. In place: the phrase's object, with all told attributes, has its centre in"
    )
    click.echo(
        "its mask. All right: all that is named is there, wherever. Differences in points, paired. Brackets: 95 % bootstrap."
    )


def _print_style(rows: Sequence[Mapping[str, Any]], chosen: float | None) -> None:
    from syzygy.lab.evaluate.predictions import points

    click.echo(
        f"{'':>22}{'prompts':>9}{'style':>18}{'agreement':>18}{'less no style':>19}{'less text alone':>19}{'leaked objects':>18}"
    )
    for row in _whole(rows):
        less = [points(row[key]) if key in row else "" for key in ("against_no_style", "against_text_alone")]
        click.echo(
            f"{row['candidate']:>22}{row['side']:>9}{row['style']!s:>18}{row['agreement']!s:>18}{less[0]:>19}{less[1]:>19}{row['leaked']!s:>18}"
        )
    best = "joint with the text" if chosen is None else f"{chosen:g}"
    click.echo(
        f"\nBest style guidance on seen prompts: {best}. Style: the reader's is the reference's. Leaked: an object with shape and"
    )
    click.echo("colour of one of the reference's. Differences in points, paired. Brackets: 95 % bootstrap.")


def _print_temporal(rows: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, Any]]) -> None:
    from syzygy.lab.evaluate.predictions import points

    click.echo(
        f"{'swap after':>11}{'steps':>7}{'σ next':>9}{'prompts':>10}{'agrees: first':>18}{'second':>18}{'unchanged':>18}"
    )
    for row in _whole(rows):
        shares = "".join(f"{row[key]!s:>18}" for key in ("first", "second", "unchanged"))
        click.echo(f"{row['share']:>9.0f} %{row['steps']:>7}{row['sigma']:>9.3g}{row['side']:>10}{shares}")
    for one in said:
        click.echo(f"\n{one['statement']} (by {one['measure']}): {points(one['difference'])} points: {one['verdict']}.")


def _print_encoders(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
    from syzygy.lab.evaluate.predictions import points

    for one in found["left_out"]:
        click.echo(f"left out: {one}.")
    for one in found["tokens"]:
        read = f"{one['fewest']} to {counted(one['most'], 'token')} read, {one['cut']} of {counted(found['prompts'], 'prompt')} cut"
        click.echo(f"{one['encoder']}, {one['length']} prompts: {read}.")
    click.echo(
        f"\n{'':>25}{'prompts':>9}{'agreement':>18}{'facts':>18}{'less all texts':>19}{'less short':>19}{'less nothing':>19}"
    )
    for row in _whole(rows):
        less: list[Interval | None] = [row.get(key) for key in ("against_texts", "against_short", "against_nothing")]
        cells = "".join(f"{'' if one is None else points(one):>19}" for one in less)
        click.echo(f"{row['candidate']:>25}{row['side']:>9}{row['agreement']!s:>18}{row['facts']!s:>18}{cells}")
    click.echo(
        "\nAgreement: every named thing right; facts: the part of them. Differences in points, paired. Brackets: 95 % bootstrap."
    )


def _whole(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of all categories together."""
    return [row for row in rows if row["category"] == "all"]
