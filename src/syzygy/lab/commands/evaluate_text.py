"""`syzygy evaluate text-encoder`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from syzygy.cli.common import Whole, device_option, paced, seed_option
from syzygy.lab.commands.evaluation_options import check_places, read_pictures, write_json, write_page, write_svg

QUICK = {"captions": 64, "prompts": 2}


@click.command()
@click.option(
    "--text-encoder",
    default="adapter",
    show_default=True,
    metavar="adapter|MODEL|RUN|FOLDER",
    help="The adapter to measure; adapter: the model's own.",
)
@click.option("--llm", metavar="FOLDER|ID", help="Where its language model is now, if it is not where it was.")
@click.option(
    "--model",
    default="starter",
    show_default=True,
    help="A model that comes with syzygy, or a folder; a published one with --prompts 0, as its pictures cannot be read.",
)
@click.option("--clip", metavar="FOLDER|ID", help="Of a published model: another place of its CLIP.")
@click.option("--prior", metavar="RUN|FOLDER|ID", help="Another prior than the model's own.")
@click.option(
    "--decoder",
    metavar="RUN|FOLDER",
    help="Another decoder than the model's own, such as one trained with the adapter.",
)
@click.option(
    "--languages", metavar="CODES", help="Such as en,de,es,fr,ru,zh. Default: those that the adapter was taught."
)
@click.option(
    "--captions",
    type=Whole(2),
    default=512,
    show_default=True,
    help="Captions a language and length; as many are there to retrieve from.",
)
@click.option(
    "--prompts",
    type=Whole(0),
    default=16,
    show_default=True,
    help="Prompts a category, seen and held-out each, painted in each language; 0 paints nothing.",
)
@click.option("--steps", type=Whole(1), default=10, show_default=True, help="Sampling steps.")
@click.option("--guidance-scale", type=float, default=3.0, show_default=True, help="Guidance; 1 means off.")
@click.option("--conditions", metavar="NAMES", help="What the decoder reads, as of syzygy generate.")
@click.option(
    "--quick",
    is_flag=True,
    help=f"{QUICK['captions']} captions, {QUICK['prompts']} prompts: a first look, wide intervals.",
)
@seed_option
@device_option
@click.option("--download", is_flag=True, help="Fetch from the hub what is missing; else its cache must hold it.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write everything as JSON; - prints it and nothing else.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write results.json, a page (index.html), its figures and some of the pictures (languages.png); what was read in pictures is kept "
    "there, so that the command goes on where it was interrupted.",
)
@click.pass_context
def text_encoder(
    ctx: click.Context,
    text_encoder: str,
    llm: str | None,
    model: str,
    clip: str | None,
    prior: str | None,
    decoder: str | None,
    download: bool,
    json_file: Path | None,
    out: Path | None,
    device: str,
    quick: bool,
    languages: str | None,
    conditions: str | None,
    **settings: Any,
) -> None:
    """How well does a language model's adapter take CLIP's place?

    By language and length of captions: how near its embedding is to CLIP's of the English caption, how often that caption and the picture are
    found by it, directly and through the prior; whether words after CLIP's 77 tokens are read; and what prior and decoder paint of it,
    read exactly. Beside it the mean embedding, other captions' embeddings, and CLIP itself on the same texts.

    \b
      syzygy evaluate text-encoder --out out/text-encoder
      syzygy evaluate text-encoder --text-encoder RUN --languages en,de --quick
      syzygy evaluate text-encoder --model kandinsky-2.2 --text-encoder RUN --prompts 0
    """
    from syzygy.core.config import parse
    from syzygy.generation.image_files import save_png
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate import text_encoder as run
    from syzygy.lab.evaluate import text_encoder_images as painting
    from syzygy.lab.evaluate import text_encoder_page as pages

    _quick(ctx, quick, settings)
    check_places(json_file, out)
    loaded = TextToImage.from_pretrained(
        model,
        text_encoder=text_encoder,
        llm=llm,
        clip=clip,
        prior=prior,
        decoder=decoder,
        device=device,
        local_files_only=not download,
    )
    codes = run.checked_languages(loaded, None if languages is None else _names(languages))
    read = loaded.pipeline.chosen(None if conditions is None else _names(conditions))
    scoring = parse(run.TextScoring, {**settings, "languages": codes, "conditions": read}, "options")
    subject, asked = run.Subject.of(loaded), painting.ask(scoring)
    if asked:
        loaded.reader()  # fails before the work, not after it
    with paced("reading", run.reads(scoring), "texts") as advance:
        material = run.Material.of(subject, scoring, lambda done: advance(float(done)))
        captions = run.captions(subject, material, scoring, lambda done: advance(float(done)))
        tail = run.tail(subject, material, scoring, lambda done: advance(float(done)))
    agreement: list[dict[str, Any]] = []
    if asked:
        about = scoring.model_dump(mode="json")
        found = read_pictures(loaded, painting.series(subject, asked, scoring), out, "text-encoder", about)
        agreement = painting.table(asked, found, scoring)
    shown = painting.told(asked, scoring)
    scores = {"captions": captions, "tail": tail, "agreement": agreement, "shown": shown}
    result = run.result(subject, scoring, text_encoder, **scores)
    if str(json_file) != "-":
        _print(captions, tail, agreement)
    if out is not None:
        write_svg(out / "retrieval.svg", pages.retrieved(captions))
        if agreement:
            write_svg(out / "agreement.svg", pages.painted(agreement))
            sheet = painting.sheet(subject, asked, scoring)
            save_png(sheet, out / "languages.png", {"text_encoder": text_encoder} | scoring.model_dump(mode="json"))
        write_page(out, result, pages.page(result, captions, tail, agreement))
    write_json(json_file, result)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _quick(ctx: click.Context, quick: bool, settings: dict[str, Any]) -> None:
    for name, value in QUICK.items() if quick else ():
        if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--quick sets --{name} itself: give one of the two.")
        settings[name] = value


def _print(
    captions: Sequence[Mapping[str, Any]], tail: Sequence[Mapping[str, Any]], agreement: Sequence[Mapping[str, Any]]
) -> None:
    from syzygy.lab.evaluate.text_encoder_images import whole
    from syzygy.lab.evaluate.text_encoder_page import part, recalled, tokens

    click.echo(
        f"{'captions':>8}{'':>4}{'':>8}{'cosine':>8}{'mean':>7}{'shuffled':>9}{'norm':>7}{'to text':>17}{'to picture':>17}"
        f"{'prior to picture':>18}{'of CLIP, en':>20}"
    )
    for row in captions:
        cosines = (
            f"{row['pooled_cosine']:>8.3f}{row['mean_vector']:>7.3f}{row['shuffled']:>9.3f}{row['norm_ratio']:>7.2f}"
        )
        found = (
            f"{recalled(row['to_text']):>17}{recalled(row['to_image']):>17}{recalled(row['predicted_to_image']):>18}"
        )
        own = part(row["predicted_to_image"]["of_clip_english"])
        click.echo(f"{row['reader']:>8}{row['language']:>4}{row['length']:>8}{cosines}{found}{own:>20}")
    click.echo(
        "R@1 · R@5 · R@10 in per cent; the last column: R@1 of the prior's prediction as a part of CLIP's in English."
    )
    click.echo(
        f"\n{'tail':>8}{'':>4}{'tokens':>12}{'changed':>9}{'alone':>8}{'to picture':>17}{'of short':>20}"
        f"{'prior to picture':>18}{'of short':>20}"
    )
    for row in tail:
        cells = "".join(
            f"{recalled(row[name]['long']):>{width}}{part(row[name]['of_short']):>20}"
            for name, width in (("to_image", 17), ("predicted_to_image", 18))
        )
        said = f"{tokens(row):>12}{row['changed']:>9.3f}{row['changed_short']:>8.3f}"
        click.echo(f"{row['reader']:>8}{row['language']:>4}{said}{cells}")
    click.echo(
        "Changed: cosine to the embedding of the prompt with another last sentence (1: not read); alone: of the sentences alone."
    )
    if not agreement:
        return
    click.echo(f"\n{'':>18}{'agreement':>18}{'facts':>18}{'of CLIP, en':>20}{'of short':>20}")
    for row in whole(agreement):
        shares = "".join(f"{part(row.get(name)):>20}" for name in ("of_clip_english", "of_short"))
        click.echo(f"{row['candidate']:>18}{row['agreement']!s:>18}{row['facts']!s:>18}{shares}")
    click.echo("Agreement: every named thing right. Brackets: 95 % bootstrap over prompts, shares paired.")
