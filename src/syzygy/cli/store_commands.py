"""`syzygy store …`."""

from pathlib import Path
from typing import Any

import click

from syzygy.cli.common import json_option, progress_bar
from syzygy.core.wording import counted

folder = click.Path(path_type=Path)
MADE_BY = ("source", "revision", "fingerprint", "layers", "normalise", "template")
"""What of an encoder's identity is told; the last three are a language model's."""


@click.command()
@click.argument("store", type=folder)
@json_option
def info(store: Path, as_json: bool) -> None:
    """Say what is in an embedding store: counts, columns, and which encoder made its features."""
    import json

    from syzygy.data.store_building import read_manifest

    manifest = read_manifest(store)
    counts = {name: manifest[name] for name in ("pictures", "captions", "seen", "bad", "skipped", "full_captions")}
    more = {name: manifest.get(name) for name in ("repeated", "duplicates", "captions_from", "text_left")}
    features = {name: _features(values) for name, values in manifest["features"].items()}
    if as_json:
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        about = {"store": str(store), **counts, **more, "shards": len(manifest["shards"]), "bytes": size}
        click.echo(json.dumps({**about, "columns": manifest["columns"], "features": features}))
        return
    click.echo(
        f"{counted(manifest['pictures'], 'picture')} with {counted(manifest['captions'], 'caption')}, in "
        f"{counted(len(manifest['shards']), 'shard')}"
    )
    if more["captions_from"]:
        click.echo(f"captions come from: {', '.join(more['captions_from'])}")
    if more["text_left"]:
        click.echo(f"text that was not kept: {', '.join(more['text_left'])}")
    if more["duplicates"]:
        click.echo(f"duplicates: {counted(more['duplicates'], 'picture')}")
    click.echo(
        f"left out: {counts['bad']:,} bad, {counts['skipped']:,} without a picture; {store / 'bad.jsonl'} lists the bad ones"
    )
    click.echo("columns: " + ", ".join(f"{name} ({kind})" for name, kind in manifest["columns"].items()))
    for name, values in features.items():
        per_caption = values["tokens"] / manifest["captions"]
        click.echo(f"features {name}: {values['tokens']:,} tokens ({per_caption:.1f} a caption), {values['dtype']}")
        for key in (*MADE_BY, "computed_in"):
            if values.get(key) is not None:
                click.echo(f"    {key.replace('_', ' ')}: {values[key]}")
        if not values["empty_text"]:
            click.echo("    without the empty text, which a diffusion prior needs: an older version wrote it")
        if "image_norm" in values:
            click.echo(f"    image embeddings: {values['width']} wide, raw, mean norm {values['image_norm']:.4g}")
    click.echo(f"made by: {manifest['command']}")


def _features(values: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to know of a feature set."""
    encoder = values["encoder"]
    found = {"tokens": values["tokens"], "dtype": values["dtype"], "computed_in": encoder.get("dtype")}
    found |= {name: encoder.get(name) for name in MADE_BY}
    found["empty_text"] = "empty" in values
    images = values.get("images")
    return found if images is None else found | {"width": images["width"], "image_norm": images["mean_norm"]}


@click.command()
@click.argument("store", type=folder)
@json_option
def verify(store: Path, as_json: bool) -> None:
    """Read every byte of a store, and say what is damaged. Exit code 1 if anything is."""
    import json

    from syzygy.data import store_checking
    from syzygy.data.store_building import read_manifest

    captions = read_manifest(store)["captions"]
    with progress_bar("verifying", captions) as advance:
        problems = store_checking.verify(store, advance)
    if as_json:
        click.echo(json.dumps({"store": str(store), "captions": captions, "problems": problems}))
    elif problems:
        for line in problems:
            click.echo(line)
        click.echo(
            f"{counted(len(problems), 'problem')}. Copy damaged files again; or delete the records of their shards (shards/NUMBER.json) and "
            "repeat the command that made the store: it embeds these again. A store of an older version is embedded again into a new one."
        )
    else:
        click.echo(f"{store} is whole: {counted(captions, 'caption')}.")
    if problems:
        click.get_current_context().exit(1)


@click.command()
@click.argument("stores", type=folder, nargs=-1, required=True)
@click.option("--out", type=folder, required=True, metavar="STORE", help="Folder to write.")
@json_option
def merge(stores: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Make one store of several that the same encoder made.

    They need the same columns and feature sets. Files are shared with the old stores where the file system can (hard links):
    the new store takes no space, and the old ones may be deleted.
    """
    import json

    from syzygy.data.store_merging import merge

    manifest = merge(stores, out)
    if as_json:
        click.echo(
            json.dumps({"store": str(out), **{name: manifest[name] for name in ("pictures", "captions", "bad")}})
        )
    else:
        click.echo(
            f"{counted(manifest['pictures'], 'picture')} with {counted(manifest['captions'], 'caption')} in {out}"
        )
        if manifest["duplicates"]:
            click.echo(
                f"duplicates: {counted(manifest['duplicates'], 'picture')}; validation keeps copies on one side."
            )
        click.echo(f"Try next: syzygy store verify {out}")
