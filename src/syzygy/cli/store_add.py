"""`syzygy store add`."""

from pathlib import Path
from typing import Any

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar

EPILOG = """
\b
Features are the mean of all layers, each normalised. They are made once, and many trainings can use them:
  syzygy store add STORE --llm Qwen/Qwen3-0.6B --download
  syzygy store add STORE --llm RUN --name last --layers last --plain
  syzygy store add STORE --llm gemma/ --template 'Describe the image: {text}'

\b
A training on them needs the same model, recipe and precision; the store records them, and others are refused.
The same command continues an interrupted one.
"""


class Layers(click.ParamType):
    """all, last, or numbers joined by commas."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("all", "last"):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}; allowed: all, last, or numbers such as 8,16,24.", param, ctx)


@click.command(epilog=EPILOG)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--llm", required=True, metavar="RUN|FOLDER|HUB-ID", help="The language model.")
@click.option("--name", default="llm", show_default=True, help="Name of the feature set.")
@click.option(
    "--layers", type=Layers(), default="all", show_default=True, help="Hidden states to read: all, last, or 8,16,24."
)
@click.option("--plain", is_flag=True, help="Do not normalise the layers before their mean is taken.")
@click.option(
    "--template",
    metavar="TEXT",
    help="Text in which {text} is replaced by the caption; only the caption's tokens are kept.",
)
@click.option(
    "--max-tokens",
    type=Whole(4),
    default=512,
    show_default=True,
    metavar="N",
    help="Longest caption in tokens; longer ones are cut.",
)
@click.option("--revision", metavar="COMMIT", help="Commit, tag or branch of a hub id.")
@click.option("--download", is_flag=True, help="Download the files of a hub id that are not in the cache.")
@click.option(
    "--dtype",
    type=click.Choice(["fp16", "bf16"]),
    default="bf16",
    show_default=True,
    help="Precision in which features are stored.",
)
@click.option(
    "--compute",
    type=click.Choice(["fp32", "bf16"]),
    help="Precision in which the model computes, now and whenever the features are used.  [default: bf16 on a GPU, else fp32]",
)
@click.option(
    "--batch-size", type=Whole(1), default=32, show_default=True, metavar="N", help="Captions encoded together."
)
@click.option("--threads", type=Whole(1, 256), default=1, show_default=True, metavar="N", help="CPU threads.")
@device_option
@json_option
def add(
    store: Path,
    llm: str,
    name: str,
    layers: Any,
    plain: bool,
    template: str | None,
    max_tokens: int,
    revision: str | None,
    download: bool,
    compute: Any,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Add a language model's features of all captions to a store, as a further feature set. Nothing else in the store changes."""
    import json

    from syzygy.core.config import parse
    from syzygy.data.building import read_manifest
    from syzygy.text_encoders.llm import COMPUTE, LlmRecipe, load_llm
    from syzygy.text_encoders.store_features import add_llm_features

    captions = read_manifest(store)["captions"]
    recipe = {"layers": layers, "normalise": not plain, "template": template, "max_tokens": max_tokens}
    parsed = parse(LlmRecipe, recipe, "store add")
    dtype = COMPUTE[compute or ("bf16" if device == "cuda" else "fp32")]
    with progress_bar(f"adding {name}", captions) as advance:
        model = load_llm(llm, recipe=parsed, revision=revision, dtype=dtype, local_files_only=not download).to(device)
        result = add_llm_features(store, model, name, watch=advance, **options)
    tokens, longest = result.manifest["features"][name]["tokens"], result.longest
    if as_json:
        click.echo(json.dumps({"store": str(store), "features": name, "tokens": tokens, "longest": longest}))
        return
    click.echo(f"{captions:,} captions, {tokens:,} tokens in the set {name!r} of {store}; the longest has {longest}.")
    if longest == result.positions:
        click.echo(
            f"The longest caption may have been cut: the model reads {max_tokens} tokens (--max-tokens), including special ones."
        )
    click.echo(f"Try next: syzygy store verify {store}")
