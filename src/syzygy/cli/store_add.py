"""`syzygy store add`."""

from pathlib import Path
from typing import Any

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar

EPILOG = """
\b
Features are the mean of all normalised layers. They are computed once and can be trained on many times:
  syzygy store add STORE --llm Qwen/Qwen3-0.6B --download
  syzygy store add STORE --llm RUN --name last --layers last --plain
  syzygy store add STORE --llm gemma/ --template 'Describe the image: {text}'

\b
To read the features later, you need the same model, layers, template and precision. The store records them,
and others are refused. To continue an interrupted run, repeat its command.
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
@click.option(
    "--llm",
    required=True,
    metavar="RUN|FOLDER|HUB-ID|FILE.gguf",
    help="The language model to encode the captions with.",
)
@click.option("--name", default="llm", show_default=True, help="Name of the feature set.")
@click.option(
    "--layers",
    type=Layers(),
    default="all",
    show_default=True,
    help="Layers whose hidden states are used: all, last, or numbers such as 8,16,24.",
)
@click.option("--plain", is_flag=True, help="Compute the mean over layers without normalising each layer first.")
@click.option(
    "--template",
    metavar="TEXT",
    help="Text around each caption, which replaces {text}; only the caption's own tokens are kept. Or the name of a published model's "
    "instruction: qwen-image, lumina-2 or sana.",
)
@click.option(
    "--start-token",
    metavar="auto|TOKEN",
    help="Token to put before each caption, for tokenizers that add none; it gives no feature.",
)
@click.option(
    "--max-tokens",
    type=Whole(4),
    default=512,
    show_default=True,
    metavar="N",
    help="Longest caption in tokens; the rest is cut.",
)
@click.option("--revision", metavar="COMMIT", help="Commit, tag or branch of the hub id.")
@click.option("--download", is_flag=True, help="Download missing files of the hub id.")
@click.option(
    "--dtype",
    type=click.Choice(["fp16", "bf16"]),
    default="bf16",
    show_default=True,
    help="Precision of the stored features.",
)
@click.option(
    "--compute",
    type=click.Choice(["fp32", "bf16"]),
    help="Precision in which the model computes, now and whenever the features are used.  [default: bf16 on a GPU, else fp32]",
)
@click.option(
    "--bits",
    type=click.Choice(["8", "4"]),
    help="Quantise the model's weights while they are loaded, now and whenever the features are used (bitsandbytes, on a CUDA GPU).",
)
@click.option(
    "--batch-size", type=Whole(1), default=32, show_default=True, metavar="N", help="Captions to encode together."
)
@click.option(
    "--threads", type=Whole(1, 256), default=1, show_default=True, metavar="N", help="Threads to compute with on a CPU."
)
@device_option
@json_option
def add(
    store: Path,
    llm: str,
    name: str,
    layers: Any,
    plain: bool,
    template: str | None,
    start_token: str | None,
    max_tokens: int,
    revision: str | None,
    download: bool,
    compute: Any,
    bits: str | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Add a language model's features of all captions to a store, as another feature set. Nothing else in the store changes."""
    import json

    from syzygy.core.config import parse
    from syzygy.data.store_building import read_manifest
    from syzygy.text_encoders.llm import COMPUTE, LlmRecipe, load_llm
    from syzygy.text_encoders.store_features import add_llm_features

    captions = read_manifest(store)["captions"]
    recipe = {
        "layers": layers,
        "normalise": not plain,
        "template": template,
        "start_token": start_token,
        "max_tokens": max_tokens,
    }
    parsed = parse(LlmRecipe, recipe, "store add")
    dtype = COMPUTE[compute or ("bf16" if device == "cuda" else "fp32")]
    with progress_bar(f"adding {name}", captions) as advance:
        how: dict[str, Any] = {"dtype": dtype, "bits": None if bits is None else int(bits)}
        model = load_llm(llm, recipe=parsed, revision=revision, local_files_only=not download, **how)
        result = add_llm_features(store, model.to(device), name, watch=advance, **options)
    tokens, longest = result.manifest["features"][name]["tokens"], result.longest
    if as_json:
        click.echo(json.dumps({"store": str(store), "features": name, "tokens": tokens, "longest": longest}))
        return
    click.echo(f"{captions:,} captions, {tokens:,} tokens in the set {name!r} of {store}; the longest has {longest}.")
    if longest == result.positions:
        click.echo(
            f"The longest may have been cut: at most {max_tokens} tokens are read (--max-tokens), including special ones."
        )
    click.echo(f"Try next: syzygy store verify {store}")
