"""`syzygy store info`, `verify` and `merge`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from syzygy.cli.common import json_option, progress_bar
from syzygy.core.wording import counted

folder = click.Path(path_type=Path)
ENCODER = ("source", "revision", "fingerprint", "layers", "normalise", "template", "start_token", "bits")
"""What is shown of an encoder's identity; from the layers on, it is a language model's."""


@click.command()
@click.argument("store", type=folder)
@json_option
def info(store: Path, as_json: bool) -> None:
    """Show what is in an embedding store: counts, columns, and which encoder made its features."""
    import json

    from syzygy.cli.subject_summary import about_subjects, subject_lines
    from syzygy.data.store_building import read_manifest

    manifest = read_manifest(store)
    subjects = about_subjects(manifest, store)
    features = {name: _features(values) for name, values in manifest["features"].items()}
    if as_json:
        names = ("pictures", "captions", "seen", "bad", "skipped", "full_captions")
        more = ("repeated", "duplicates", "captions_from", "text_left")
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        about = {"store": str(store), **{name: manifest.get(name) for name in (*names, *more)}}
        about |= {"subjects": subjects} if subjects else {}
        about |= {"shards": len(manifest["shards"]), "bytes": size, "columns": manifest["columns"]}
        click.echo(json.dumps({**about, "features": features}))
        return
    click.echo(
        f"{counted(manifest['pictures'], 'picture')} with {counted(manifest['captions'], 'caption')}, in "
        f"{counted(len(manifest['shards']), 'shard')}"
    )
    for line in about_captions(manifest):
        click.echo(line)
    if manifest.get("duplicates"):
        click.echo(f"duplicates: {counted(manifest['duplicates'], 'picture')}")
    click.echo(
        f"left out: {manifest['bad']:,} bad, {manifest['skipped']:,} without a picture; {store / 'bad.jsonl'} lists the bad ones"
    )
    for line in subject_lines(subjects):
        click.echo(line)
    click.echo("columns: " + ", ".join(f"{name} ({kind})" for name, kind in manifest["columns"].items()))
    for name, values in features.items():
        per_caption = values["tokens"] / manifest["captions"]
        click.echo(f"features {name}: {values['tokens']:,} tokens ({per_caption:.1f} per caption), {values['dtype']}")
        for key in (*ENCODER, "computed_in"):
            if values.get(key) is not None:
                click.echo(f"    {key.replace('_', ' ')}: {values[key]}")
        if not values["empty_text"]:
            click.echo("    no features of the empty text, which a diffusion prior needs: an older version wrote it")
        if "image_norm" in values:
            click.echo(f"    image embeddings: {values['width']} wide, raw, mean norm {values['image_norm']:.4g}")
    click.echo(f"made by: {manifest['command']}")


def about_captions(manifest: dict[str, Any]) -> Iterator[str]:
    """Where the captions come from, and which text was not kept, if the store recorded it."""
    if manifest.get("captions_from"):
        yield f"captions come from: {', '.join(manifest['captions_from'])}"
    if manifest.get("text_left"):
        yield f"text that was not kept: {', '.join(manifest['text_left'])}"


def _features(values: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a feature set."""
    encoder = values["encoder"]
    found = {"tokens": values["tokens"], "dtype": values["dtype"], "computed_in": encoder.get("dtype")}
    found |= {name: encoder.get(name) for name in ENCODER}
    found["empty_text"] = "empty" in values
    images = values.get("images")
    return found if images is None else found | {"width": images["width"], "image_norm": images["mean_norm"]}


@click.command()
@click.argument("store", type=folder)
@json_option
def verify(store: Path, as_json: bool) -> None:
    """Read every byte of a store and report damage. The exit code is 1 if there is any."""
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
            "repeat the command that made the store, which embeds these shards again. A store of an older version must be embedded into a new "
            "one."
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
    """Merge several stores of the same encoder into one.

    They need the same columns and feature sets. The new store shares its files with the old ones where the file system can
    (hard links). It then takes no space, and you may delete the old stores.
    """
    import json

    from syzygy.data.store_merging import merge

    manifest = merge(stores, out)
    if as_json:
        counts = {name: manifest[name] for name in ("pictures", "captions", "bad")}
        click.echo(json.dumps({"store": str(out), **counts}))
        return
    click.echo(f"{counted(manifest['pictures'], 'picture')} with {counted(manifest['captions'], 'caption')} in {out}")
    if manifest["duplicates"]:
        click.echo(f"duplicates: {counted(manifest['duplicates'], 'picture')}; validation keeps copies on one side.")
    click.echo(f"Try next: syzygy store verify {out}")
