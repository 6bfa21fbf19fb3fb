"""`syzygy demo`."""

from pathlib import Path
from shlex import quote

import click

from syzygy.cli.common import device_option, json_option, note, progress_bar, writable_folder


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True, help="Folder to write."
)
@click.option("--model", default="starter", show_default=True, help="A model that comes with syzygy, or a folder.")
@click.option("--quick", is_flag=True, help="Run a shortened demo that only shows that everything works.")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]…")
@device_option
@json_option
def demo(out: Path, model: str, quick: bool, settings: tuple[str, ...], device: str, as_json: bool) -> None:
    """Train priors from scratch and generate images with them.

    The demo runs offline on the frozen starter, in about three minutes. It trains an ECLIPSE prior, the same without the contrastive loss,
    and a residual prior. It compares their embeddings and images with those of untrained controls, half of them of compositions that no
    prior saw, and writes a page with plots and images. KEY=VALUE overrides settings, for example prior.loop.steps=300. An interrupted demo
    resumes.
    """
    import json

    from syzygy.core.config import override
    from syzygy.core.registry import preset
    from syzygy.lab import demo as demo_run
    from syzygy.lab.evaluate.harness import SEEN, UNSEEN, overall, plain

    writable_folder(out)
    run = override(preset("syzygy.lab.demo:PRESETS", "quick" if quick else "full"), settings, note)

    def say(line: str) -> None:
        click.echo(line, err=True)

    result = demo_run.run(run, out, device=device, model=model, say=say, bar=progress_bar)
    if as_json:
        found = {"page": str(result.page), "rows": plain(result.rows), "cosine": plain(result.cosines)}
        click.echo(json.dumps(found | {"seconds": round(result.seconds, 1)}))
        return
    click.echo(f"\n{'':>22}{'cosine':>8}{f'accuracy, {SEEN}':>20}{f'{UNSEEN}':>18}")
    shares = {(row["candidate"], row["side"]): str(row["prompt_accuracy"]) for row in overall(result.rows, None)}
    for candidate in dict.fromkeys(row["candidate"] for row in result.rows):
        cosine = f"{result.cosines[candidate].mean:.3f}" if candidate in result.cosines else ""
        seen, unseen = (shares[candidate, side] for side in (SEEN, UNSEEN))
        click.echo(f"{candidate:>22}{cosine:>8}{seen:>20}{unseen:>18}")
    click.echo("\nDifferences whose 95 % interval excludes 0, in points:")
    for one in result.comparisons:
        click.echo(f"  {one}")
    click.echo(f"\nDone in {result.seconds:.0f} s. Open {result.page}")
    click.echo("Try next:")
    click.echo(f"  syzygy generate 'a red striped heart left of a blue star' --prior {quote(str(out / 'eclipse'))}")
    click.echo("  syzygy train prior --preset eclipse --out my-prior task.lambda_contrastive=0.4")
    click.echo(f"  syzygy evaluate composition --quick --prior {quote(str(out / 'eclipse'))}")
