"""`syzygy export`."""

from pathlib import Path

import click

from syzygy.cli.common import json_option, tell_next


@click.command(
    epilog="""
\b
  syzygy export runs/prior --out my-prior
  syzygy generate 'a red circle' --prior my-prior
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FOLDER", required=True, help="New or empty folder to write."
)
@click.option(
    "--best",
    is_flag=True,
    help="Export the weights with the best validation (runs with loop.best) instead of the last ones.",
)
@click.option(
    "--dtype", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True, help="Precision of the weights."
)
@click.option(
    "--layout",
    type=click.Choice(["published", "syzygy"]),
    default="published",
    show_default=True,
    help="Layout of the folder: that of ECLIPSE's authors, or Syzygy's own for residual and linear priors, which do not fit it.",
)
@click.option(
    "--license",
    "licence",
    metavar="NAME",
    help="Licence to state in the model card, such as cc-by-4.0.  [default: not stated]",
)
@click.option(
    "--source", metavar="TEXT", help="Source of the training data to state in the model card.  [default: as recorded]"
)
@json_option
def export(
    run: Path, out: Path, best: bool, dtype: str, layout: str, licence: str | None, source: str | None, as_json: bool
) -> None:
    """Export the prior of a finished training RUN as a folder to share, with a model card."""
    import json

    from syzygy.prior import export_prior as exports
    from syzygy.prior.next_steps import after_export

    half = "fp16" if dtype == "fp16" else "fp32"
    own = "syzygy" if layout == "syzygy" else "published"
    folder = exports.export(run, out, best=best, dtype=half, licence=licence, source=source, layout=own)
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": files}))
        return
    for name, size in files.items():
        click.echo(f"{size:>14,}  {name}")
    click.echo(f"Exported: {folder}")
    tell_next(after_export(folder, run))
