"""`syzygy train adapter`."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import progress_bar
from syzygy.cli.training import EPILOG, Trained, fitting_of, run_training, train_options
from syzygy.core.errors import UserError
from syzygy.core.registry import imported

if TYPE_CHECKING:
    import torch

STARTER = "starter"
ORDER = """
\b
Three stages, in this order, each in a folder of its own:
  align    texts alone: captions of any language come to where CLIP puts their English
  image    adapter and prior learn from pictures, also what stands after CLIP's 77th token
  quality  the same on chosen pictures
task.frozen says which of the two stays as it is: of the preset starter the prior, as it is CLIP's too.

\b
On the embedded world (LM: a run of syzygy train lm):
  syzygy train adapter --stage align --llm LM --out align
  syzygy train adapter --stage image --from align --out image
  syzygy train adapter --stage quality --from image --out quality
  syzygy train adapter --stage image --from align --decoder starter --out decoder    with the paper's loss

\b
For published models, on a corpus and pairs of your own:
  syzygy train adapter --stage align --preset bigg-14 --llm Qwen/Qwen3-0.6B --clip CLIP \\
    --prior PRIOR --corpus corpus.jsonl --out align
  syzygy store add STORE --llm Qwen/Qwen3-0.6B --compute bf16
  syzygy train adapter --stage image --preset bigg-14 --from align --prior PRIOR --data STORE --out image
  syzygy train adapter --stage quality --preset bigg-14 --from image --data STORE \\
    --filter 'width >= 512 and aesthetic > 5.5' --out quality

\b
A line of a corpus is {"texts": {"en": "a red ring", "de": "ein roter Ring"}}: English, and what you have besides; see
syzygy world corpus. A filter compares columns of the store (syzygy store info) with numbers, true, false or 'texts' by
< <= > >= == !=, joined by and, or, brackets; the world's columns are objects, unnamed (those that the caption does not
name), smallest (a radius, as a part of the side) and style. What is embedded of the world shall not show what tests ask for: make it
with syzygy world sample --held-out exclude.
  torchrun --nproc-per-node 4 -m syzygy.cli train adapter …      on four GPUs
"""


@click.command(epilog=EPILOG + ORDER)
@click.option(
    "--stage", type=click.Choice(["align", "image", "quality"]), required=True, help="Which of the three, see below."
)
@click.option(
    "--llm",
    metavar="RUN|FOLDER|HUB-ID",
    help="The frozen language model. Later stages: where it is now, if it was moved.",
)
@click.option("--clip", metavar="FOLDER|MODEL|HUB-ID", help=f"The frozen CLIP.  [default: {STARTER}]")
@click.option(
    "--prior",
    metavar="RUN|FOLDER|MODEL|HUB-ID",
    help=f"The ECLIPSE prior beside it: frozen in align, trained afterwards.  [default: {STARTER}'s, then that of --from]",
)
@click.option(
    "--corpus",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Align on these parallel captions, in JSON Lines; else on the embedded world's.",
)
@click.option(
    "--data", "store", type=click.Path(path_type=Path), metavar="STORE", help="Train on this embedding store."
)
@click.option("--features", metavar="NAME", help="The store's set of the language model's features.  [default: llm]")
@click.option("--filter", "condition", metavar="EXPRESSION", help="See only pictures that it passes.")
@click.option(
    "--decoder",
    metavar="MODEL|RUN",
    help="Stage image with the denoising loss of this decoder, in place of the prior's.",
)
@click.option("--autoencoder", metavar="MODEL|RUN", help=f"The frozen autoencoder beside it.  [default: {STARTER}]")
@click.option("--from", "former", metavar="RUN", help="The finished run of the stage before.")
@train_options(STARTER)
def adapter(
    stage: str,
    llm: str | None,
    clip: str | None,
    prior: str | None,
    corpus: Path | None,
    store: Path | None,
    features: str | None,
    condition: str | None,
    decoder: str | None,
    autoencoder: str | None,
    former: str | None,
    **options: Any,
) -> None:
    """An adapter: a language model's features to CLIP's text space, for prompts in other languages and past 77 tokens."""
    given = {"--llm": llm, "--clip": clip, "--corpus": corpus, "--data": store, "--features": features, "--filter": condition,
             "--from": former, "--decoder": decoder, "--autoencoder": autoencoder}  # fmt: skip
    if not options["show_settings"]:
        _check(stage, {name for name, value in given.items() if value is not None})
    if condition is not None:
        options["overrides"] = _with_filter(condition, options["overrides"])
    if decoder is not None:
        _with_decoder(stage, llm, clip or STARTER, prior, decoder, autoencoder or STARTER, str(former), **options)
        return

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.training.parallel import joined

        with joined(device) as world:
            if stage == "align":
                result = _align(run, world, out, llm, clip or STARTER, prior, corpus)
                following = f"syzygy train adapter --stage image --from {quote(str(out))} --out RUN"
                return Trained(result.folder, result.metrics, (following,))
            result = _image(run, world, out, stage, llm, clip or STARTER, prior, store, features or "llm",
                            condition is not None, str(former))  # fmt: skip
            return Trained(result.folder, result.metrics)

    run_training(f"ADAPTER_{stage.upper()}", body, **options)


def _check(stage: str, given: set[str]) -> None:
    """Refuse what has no effect, and ask for what is needed."""
    needed = {"align": {"--llm"}, "image": {"--from"}, "quality": {"--from"}}[stage]
    if missing := sorted(needed - given):
        what = (
            "A language model, such as a run of syzygy train lm"
            if missing[0] == "--llm"
            else "The order is align, image, quality"
        )
        raise UserError(f"stage {stage!r} needs {' and '.join(missing)}. {what}: see syzygy train adapter --help.")
    useless = {"--data", "--features", "--filter", "--from"} if stage == "align" else {"--corpus"}
    if "--data" in given:
        useless |= {"--llm", "--clip"}
    elif stage != "align":
        useless |= {"--features"}
    if stage != "image" or "--data" in given:
        useless |= {"--decoder", "--autoencoder"}
    elif "--decoder" not in given:
        useless |= {"--autoencoder"}
    if found := sorted(given & useless):
        why = f"with stage {stage!r}" + (" and --data: the store tells" if {"--llm", "--clip"} & set(found) else "")
        raise UserError(f"{' and '.join(found)} {'has' if len(found) == 1 else 'have'} no effect {why}. Leave it out.")


def _with_filter(condition: str, overrides: tuple[str, ...]) -> tuple[str, ...]:
    import json

    if any(text.partition("=")[0] == "filter" for text in overrides):
        raise UserError("--filter and filter=… say the same: give one of them.")
    return (f"filter={json.dumps(condition)}", *overrides)


def _align(
    run: Any, world: Any, out: Path, llm: str | None, clip_source: str, prior_source: str | None, corpus: Path | None
) -> Any:
    from syzygy.clip.clip_model import Clip
    from syzygy.core.model_parts import part_or_id
    from syzygy.text_encoders import training as adapter

    if prior_source is not None and not run.task.prior:
        raise UserError("--prior has no effect with task.prior=0. Leave it out.")
    # Pictures are not read here, and the published image towers are the bigger ones. Only the whole tells CLIP's own temperature.
    clip = Clip.from_pretrained(part_or_id(clip_source, "clip"), text_first=run.task.temperature != "clip")
    prior = adapter.frozen_prior(prior_source or STARTER, clip.fingerprint()) if run.task.prior else None
    if corpus is not None and not any(text.startswith("lengths=") for text in _overrides()):
        run = run.model_copy(update={"lengths": None})
    model = adapter.language_model(run, str(llm))
    return adapter.align(run, model, clip, prior, out, world, corpus=corpus, fitting=fitting_of(_overrides()))


def _image(
    run: Any, world: Any, out: Path, stage: str, llm: str | None, clip_source: str, prior_source: str | None,
    store: Path | None, features: str, filtered: bool, former_source: str,
) -> Any:  # fmt: skip
    from syzygy.clip.clip_model import Clip
    from syzygy.core.model_parts import part_or_id
    from syzygy.text_encoders import training as adapter

    previous = adapter.PreviousStage.load(former_source, stage)
    own = previous.run if (previous.run / "prior").is_dir() else STARTER
    prior = adapter.frozen_prior(prior_source or own, previous.record["clip"])
    if store is not None:
        names = [text.partition("=")[0] for text in _overrides()] + ["filter"] * filtered
        unset = {name: None for name in ("scenes", "languages", "lengths", "filter") if name not in names}
        run = run.model_copy(update=unset)
        fitting = fitting_of(_overrides())
        run, data = adapter.store_images(run, previous, store, features, processes=world.size, fitting=fitting)
    else:
        clip = Clip.from_pretrained(part_or_id(clip_source, "clip"))
        images = imported("syzygy.lab.starter.world_captions:world_images")
        data = images(run, previous, previous.language_model(llm), clip, world.device, progress_bar)
    return adapter.image(run, previous, data, prior, out, world)


def _with_decoder(
    stage: str, llm: str | None, clip_source: str, prior: str | None, decoder: str, autoencoder: str, former_source: str,
    **options: Any,
) -> None:  # fmt: skip
    """Stage image with a decoder: its presets are others."""
    if prior is not None:
        raise UserError("--prior has no effect with --decoder, which takes its place. Leave it out.")

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.clip.clip_model import Clip
        from syzygy.core.model_parts import part_folder
        from syzygy.decoder.autoencoder import Autoencoder
        from syzygy.text_encoders.training import PreviousStage
        from syzygy.training.parallel import joined

        with joined(device) as world:
            previous = PreviousStage.load(former_source, stage)
            clip = Clip.from_pretrained(part_folder(clip_source, "clip"))
            latents = Autoencoder.from_pretrained(part_folder(autoencoder, "autoencoder"))
            model, network = previous.language_model(llm), part_folder(decoder, "decoder")
            train = imported("syzygy.lab.starter.adapted_decoder_training:train")
            result = train(run, previous, model, clip, latents, network, out, world)
            return Trained(result.folder, result.metrics)

    run_training("ADAPTER_DECODER", body, **options)


def _overrides() -> tuple[str, ...]:
    return click.get_current_context().params["overrides"]
