"""`syzygy reproduce …`."""

from pathlib import Path

import click

from syzygy.cli.common import device_option, json_option, progress_bar, writable_folder


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--model", default="starter", show_default=True, help="The frozen CLIP, decoder and reader.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/eclipse"),
    show_default=True,
    help="Folder of the comparison.",
)
@click.option("--quick", is_flag=True, help="Fewer pairs, seeds and prompts: sooner, wide intervals.")
@device_option
@json_option
def eclipse(overrides: tuple[str, ...], model: str, out: Path, quick: bool, device: str, as_json: bool) -> None:
    """ECLIPSE's comparison, in small.

    Projection, diffusion baseline and ECLIPSE with the same size, pairs, steps and hyperparameters, beside text-identity and the
    reference: scored on embeddings and on pictures, on compositions seen and held out; sweeps over λ, data, steps and noise.
    The same command continues an interrupted comparison. Writes index.html, results.json, report.md and its eclipse.jpg.
    """
    import json

    from syzygy import artifact, presets
    from syzygy.config import override
    from syzygy.runs import judgements, reproduce
    from syzygy.runs.reproduce_report import SHEET, markdown, page, results, shown

    run = override(presets.choose(presets.REPRODUCE, "quick" if quick else "full"), overrides)
    writable_folder(out)
    bench = reproduce.reproduce(
        run, out, model=model, device=device, say=lambda line: click.echo(line, err=True), bar=progress_bar
    )
    found = results(run, out)
    artifact.write_json(out / "results.json", found)
    artifact.write_bytes(out / "report.md", markdown(found).encode())
    judgements.save_sheet(out / SHEET, shown(out, bench.wanted))
    artifact.write_bytes(out / "index.html", page(found, out, bench.wanted).encode())
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(markdown(found))
        click.echo(f"Look at {out / 'index.html'}")
