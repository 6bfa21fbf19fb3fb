"""`syzygy evaluate prior`."""

from pathlib import Path

import click

from syzygy.cli.common import Whole, device_option, note, progress_bar, seed_option, writable_folder
from syzygy.lab.commands.evaluation_options import named_priors, write_json


@click.command(
    epilog="""
\b
  syzygy evaluate prior --data STORE --prior RUN
  syzygy evaluate prior --data STORE --prior mine=RUN --prior other=RUN2 --html prior.html
"""
)
@click.option(
    "--data",
    "store",
    type=click.Path(path_type=Path),
    metavar="STORE",
    required=True,
    help="Embedding store to measure on.",
)
@click.option(
    "--prior",
    "priors",
    multiple=True,
    metavar="[NAME=]RUN|FOLDER|HUB-ID",
    help="Prior to measure; may be repeated. Without one, the controls alone are measured.",
)
@click.option(
    "--images",
    type=Whole(1),
    metavar="N",
    help="Number of held-out pictures, chosen by --seed.  [default: all, at most 4096]",
)
@seed_option
@device_option
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write everything as JSON; - prints it and nothing else.",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with tables and learning curves.",
)
def prior(
    store: Path,
    priors: tuple[str, ...],
    images: int | None,
    seed: int,
    device: str,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Measure priors on pairs of an embedding store that they were not trained on.

    Pictures are those that the runs held out for validation; with several priors, those that all of them held out. Each prior is compared
    with controls that need no training: the text embedding itself (raw, and moved to the images' mean), the first prior's
    predictions for shuffled captions, and the mean image embedding.
    """
    from syzygy.core import artifacts
    from syzygy.lab.evaluate.prior_retrieval import CONTROLS, evaluate
    from syzygy.lab.evaluate.prior_retrieval_page import page, table

    for file in (json_file, html_file):
        if file is not None and str(file) != "-":
            writable_folder(file.parent)
    found = evaluate(store, named_priors(priors, CONTROLS), images=images, seed=seed, device=device, bar=progress_bar)
    values = found.to_json()
    if str(json_file) == "-":
        for line in values["notes"]:
            note(line)
    else:
        for line in table(values):  # before any file, which may fail
            click.echo(line)
    write_json(json_file, values)
    if html_file is not None:
        artifacts.write_bytes(html_file, page(found, values).encode())
        note(f"page: {html_file}")
