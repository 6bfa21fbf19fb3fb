"""`syzygy export`."""

from pathlib import Path

import click

from syzygy.cli.common import json_option


@click.command(
    epilog="""
\b
  syzygy export runs/prior --out my-prior
  syzygy generate 'a red circle' --prior my-prior
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", required=True, help="Where to; new or empty.")
@click.option(
    "--best", is_flag=True, help="The weights that validated best (runs with loop.best set) instead of the last."
)
@click.option("--dtype", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True, help="Of the weights.")
@json_option
def export(run: Path, out: Path, best: bool, dtype: str, as_json: bool) -> None:
    """Write the prior of a finished training RUN as a folder to pass on, with a model card."""
    import json

    from syzygy.runs import export as exports

    folder = exports.export(run, out, best=best, dtype="fp16" if dtype == "fp16" else "fp32")
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": files}))
        return
    for name, size in files.items():
        click.echo(f"{size:>14,}  {name}")
    click.echo(f"Exported: {folder}")
    click.echo(f"Try next: syzygy generate 'a red circle' --prior {folder}")
