"""`syzygy evaluate reader`."""

from typing import TYPE_CHECKING

import click

from syzygy.cli.common import Whole, device_option, json_option, seed_option

if TYPE_CHECKING:
    from syzygy.lab.starter.reader_training import ReaderScores


@click.command()
@click.option("--model", default="starter", show_default=True, help="The model whose reader is measured, or a folder.")
@click.option("--num", type=Whole(1), default=2048, show_default=True, metavar="N", help="Unseen pictures.")
@seed_option
@device_option
@json_option
def reader(model: str, num: int, seed: int, device: str, as_json: bool) -> None:
    """How well does the reader read?

    Share of attributes, counts and styles read right on unseen renders, as they are and under mild blur, noise and shift; and what is
    taken for what. All scores of pictures rest on this.
    """
    import json
    from dataclasses import asdict

    from syzygy.core.model_parts import model_folder
    from syzygy.core.randomness import seed_of
    from syzygy.lab.starter.reader_training import measure
    from syzygy.lab.world.reader import Reader

    loaded = Reader.from_pretrained(model_folder(model) / "reader").to(device)
    scores = measure(loaded, seed_of(seed, "evaluate reader"), num)
    if as_json:
        click.echo(json.dumps({"model": model, "pictures": num, "threshold": loaded.config.threshold} | asdict(scores)))
    else:
        _print(scores)


def _print(scores: "ReaderScores") -> None:
    kinds = list(next(iter(scores.accuracy.values())))
    click.echo(" " * 8 + "".join(f"{kind:>12}" for kind in kinds))
    for condition, found in scores.accuracy.items():
        click.echo(f"{condition:>8}" + "".join(f"{100 * found[kind]:>10.1f} %" for kind in kinds))
    for kind, table in scores.confusion.items():
        seen = list(next(iter(table.values())))
        click.echo(f"\n{kind}: true in rows, read in columns")
        click.echo(" " * 10 + "".join(f"{name:>10}" for name in seen))
        for true, row in table.items():
            click.echo(f"{true:>10}" + "".join(f"{row[name] or '.':>10}" for name in seen))
