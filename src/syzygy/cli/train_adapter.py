"""`syzygy train adapter`."""

from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from syzygy.cli.common import progress_bar
from syzygy.cli.training import EPILOG, Trained, as_setting, fitting_of, run_training, set_names, train_options
from syzygy.core.errors import UserError
from syzygy.core.registry import imported

if TYPE_CHECKING:
    import torch

STARTER = "starter"
FOLDER = click.Path(path_type=Path)
ORDER = """
\b
The stages build on each other, each in a folder of its own:
  align    learns from texts: captions in any language get the features that CLIP gives their English version
  image    learns from images, also what comes after CLIP's 77th token
  quality  the same, on chosen images
In the last two, adapter and prior are trained, except what task.frozen names. The preset starter freezes the prior,
because CLIP's own features use it too.

\b
On the embedded world (LM is a run of syzygy train lm):
  syzygy train adapter --stage align --llm LM --out align
  syzygy train adapter --stage image --from align --out image
  syzygy train adapter --stage quality --from image --out quality
  syzygy train adapter --stage image --from align --decoder starter --out decoder    with the paper's loss

\b
For published models, on a corpus and pairs of your own:
  syzygy train adapter --stage align --preset bigg-14 --llm Qwen/Qwen3-0.6B --clip CLIP \\
    --prior PRIOR --corpus corpus.jsonl --out align --cache
  syzygy store add STORE --llm Qwen/Qwen3-0.6B --compute bf16
  syzygy train adapter --stage image --preset bigg-14 --from align --prior PRIOR --data STORE --out image
  syzygy train adapter --stage quality --preset bigg-14 --from image --data STORE \\
    --filter 'width >= 512 and aesthetic > 5.5' --out quality

\b
For Stable Diffusion 1.x, 2.x or XL, whose text encoders the adapter replaces. Stage align is enough to generate; the
others use the diffusion loss, and train the U-Net too if trains=lora or trains=unet:
  syzygy train adapter --stage align --model stable-diffusion-xl --llm Qwen/Qwen3-0.6B --corpus corpus.jsonl --out align
  syzygy train adapter --stage image --model stable-diffusion-xl --from align --data pairs/ --out image
  syzygy train adapter --stage quality --model stable-diffusion-xl --from image --data selected/ --out quality
  syzygy generate "ein roter Kreis" --model stable-diffusion-xl --text-encoder quality

\b
A line of a corpus is {"texts": {"en": "a red ring", "de": "ein roter Ring"}}, with English and any other languages;
see syzygy world corpus. A filter compares columns of the store (syzygy store info) with numbers, true, false or
'texts' by < <= > >= == !=, joined by and, or, brackets. The columns of the embedded world are objects, unnamed (the
number of objects that the caption omits), smallest (a radius relative to the side) and style.
To keep the compositions of the tests unseen, embed the output of syzygy world sample --unseen exclude.
  torchrun --nproc-per-node 4 -m syzygy.cli train adapter …      on four GPUs
"""


@dataclass(frozen=True)
class _Choice:
    """The values of the command's own options."""

    stage: str
    model: str | None
    llm: str | None
    clip: str | None
    prior: str | None
    corpus: Path | None
    cache: bool | None
    cache_folder: Path | None
    data: str | None
    store: Path | None
    features: str | None
    filter: str | None
    decoder: str | None
    autoencoder: str | None
    previous: str | None

    def given(self) -> set[str]:
        """The options that were given, as a user writes them."""
        names = {field.name: f"--{field.name.replace('_', '-')}" for field in fields(self)} | {"previous": "--from"}
        return {option for name, option in names.items() if getattr(self, name) is not None}

    def check(self) -> None:
        """Refuse options that have no effect, and ask for those that are missing."""
        given, needed = self.given(), {"--llm"} if self.stage == "align" else {"--from"}
        if self.stage != "align" and self.model is not None:
            needed |= {"--data"}
        if missing := sorted(needed - given):
            what = {
                "--llm": "A language model, such as a run of syzygy train lm",
                "--data": "Images with captions, as in syzygy embed",
            }.get(missing[0], "The order is align, image, quality")
            raise UserError(
                f"stage {self.stage!r} needs {' and '.join(missing)}. {what}: see syzygy train adapter --help."
            )
        if found := sorted(given & self._useless()):
            why = f"with stage {self.stage!r}"
            if self.store is not None and {"--llm", "--cache", "--cache-folder"} >= set(found):
                why = "with --store, which has the language model's features"
            elif found == ["--store"] and self.stage != "align":
                why += " and a prior: --data is the store"
            elif self.model is not None and self.stage != "align":
                why += " and --model"
                if "--filter" in found:
                    why += ", which trains on all images of --data: select them there"
            elif self.data is not None and {"--llm", "--clip"} & set(found):
                why += " and --data: the store records them"
            elif self.stage == "align" and self.model is not None and {"--clip", "--prior"} & set(found):
                why = "with --model, whose text encoders the adapter learns from"
            elif found == ["--prior"]:
                why = "with --decoder, which replaces it"
            have = "has" if len(found) == 1 else "have"
            raise UserError(
                f"{' and '.join(found)} {have} no effect {why}. Leave {'it' if have == 'has' else 'them'} out."
            )

    def _useless(self) -> set[str]:
        """The options that have no effect with this stage and the others."""
        if self.stage == "align":
            useless = {"--data", "--store", "--features", "--filter", "--from", "--decoder", "--autoencoder"}
            return useless if self.model is None else useless | {"--clip", "--prior"}
        if self.model is not None:
            useless = {"--corpus", "--clip", "--prior", "--filter", "--decoder", "--autoencoder"}
            return useless | ({"--features"} if self.store is None else {"--llm", "--cache", "--cache-folder"})
        useless = {"--corpus", "--cache", "--cache-folder", "--store"}
        useless |= {"--features"} if self.data is None else {"--llm", "--clip"}
        if self.stage != "image" or self.data is not None:
            return useless | {"--decoder", "--autoencoder"}
        return useless | ({"--autoencoder"} if self.decoder is None else {"--prior"})


@click.command(epilog=EPILOG + ORDER)
@click.option(
    "--stage",
    type=click.Choice(["align", "image", "quality"]),
    required=True,
    help="The stage to train; they are described below.",
)
@click.option(
    "--model",
    metavar="NAME|FOLDER|HUB-ID",
    help="Train for this Stable Diffusion (1.x, 2.x or XL) instead of for a CLIP and a prior. The default preset is then that of its "
    "family: stable-diffusion-1, stable-diffusion-2 or stable-diffusion-xl.",
)
@click.option(
    "--llm",
    metavar="RUN|FOLDER|HUB-ID|FILE.gguf",
    help="The frozen language model. In later stages, its new place if it was moved.",
)
@click.option("--clip", metavar="FOLDER|MODEL|HUB-ID", help=f"The frozen CLIP.  [default: {STARTER}]")
@click.option(
    "--prior",
    metavar="RUN|FOLDER|MODEL|HUB-ID",
    help=f"ECLIPSE or residual prior: frozen in stage align, trained in later stages.  [default: {STARTER}'s, later that of --from]",
)
@click.option(
    "--corpus",
    type=FOLDER,
    metavar="FILE",
    help="Align on these parallel captions (JSON Lines) instead of the embedded world's.",
)
@click.option(
    "--cache",
    is_flag=True,
    default=None,
    help="Compute the features of the captions once, before the first step, instead of at each step, and keep them in RUN/features.",
)
@click.option(
    "--cache-folder",
    type=FOLDER,
    metavar="FOLDER",
    help="The same, but keep them in this folder, which several runs may share.",
)
@click.option(
    "--data",
    metavar="STORE|SOURCE",
    help="Train on this embedding store; with --model, on these images with captions (a folder, tars or parquet, as in syzygy embed).",
)
@click.option(
    "--store",
    type=FOLDER,
    metavar="STORE",
    help="With --model, read the language model's features of the captions from this embedding store of the same images (syzygy store add) "
    "instead of computing them.",
)
@click.option("--features", metavar="NAME", help="The store's set of the language model's features.  [default: llm]")
@click.option("--filter", metavar="EXPRESSION", help="Train only on images for which this is true.")
@click.option(
    "--decoder",
    metavar="MODEL|RUN",
    help="In stage image, use the denoising loss of this decoder instead of the prior's loss.",
)
@click.option("--autoencoder", metavar="MODEL|RUN", help=f"The decoder's frozen autoencoder.  [default: {STARTER}]")
@click.option("--from", "previous", metavar="RUN", help="The finished run of the stage before.")
@train_options(STARTER)
def adapter(**options: Any) -> None:
    """Train an adapter from a language model to CLIP or to Stable Diffusion, for prompts in other languages and of more than 77 tokens."""
    choice = _Choice(**{field.name: options.pop(field.name) for field in fields(_Choice)})
    if not options["show_settings"]:
        choice.check()
    options["overrides"] = as_setting({"filter": choice.filter}, options["overrides"])
    overrides = options["overrides"]
    if choice.stage == "align" and {"timestep_aware", "adapter.timestep_aware"} & set_names(overrides):
        raise UserError(
            "timestep_aware has no effect with stage 'align', which has no timesteps: set it in stage image, with --model."
        )

    def body(run: Any, out: Path, device: "torch.device") -> Trained:
        from syzygy.training.parallel import process_group

        with process_group(device) as world:
            result = _body(choice)(choice, run, out, world, overrides)
        return Trained(result.folder, result.metrics, _following(choice, out))

    presets = f"syzygy.text_encoders.presets:{choice.stage.upper()}_PRESETS"
    if choice.model is not None:
        presets = (
            "syzygy.text_encoders.presets:PROMPT_PRESETS"
            if choice.stage == "align"
            else f"syzygy.pretrained.presets:{choice.stage.upper()}_PRESETS"
        )
        source = click.get_current_context().get_parameter_source("preset")
        if source is ParameterSource.DEFAULT:
            options["preset"] = _family(choice.model)
    if choice.decoder is not None:
        presets = "syzygy.lab.starter.presets:ADAPTER_DECODER"
    run_training(presets, body, **options)


def _body(choice: _Choice) -> Any:
    """The function that trains."""
    if choice.model is not None:
        return _align_prompts if choice.stage == "align" else _image_prompts
    return _align if choice.stage == "align" else _image if choice.decoder is None else _image_with_decoder


def _following(choice: _Choice, out: Path) -> tuple[str, ...]:
    """Commands to try next."""
    run = quote(str(out))
    if choice.model is None:
        return (f"syzygy train adapter --stage image --from {run} --out RUN",) if choice.stage == "align" else ()
    model = f"--model {quote(choice.model)}"
    generate = f'syzygy generate "…" {model} --text-encoder {run}'
    later = {"align": "image", "image": "quality"}.get(choice.stage)
    if later is None:
        return (generate,)
    return generate, f"syzygy train adapter --stage {later} {model} --from {run} --data PAIRS --out RUN"


def _family(model: str) -> str:
    """The preset of a Stable Diffusion."""
    from syzygy.pretrained.prompt_teacher import target_of
    from syzygy.pretrained.repositories import find_decoder

    return target_of(find_decoder(model).at.folder).family


def _align_prompts(choice: _Choice, run: Any, out: Path, world: Any, overrides: tuple[str, ...]) -> Any:
    from syzygy.pretrained.prompt_teacher import PromptTeacher
    from syzygy.text_encoders.prompt_training import align_prompts
    from syzygy.text_encoders.training import language_model

    teacher = PromptTeacher.from_pretrained(str(choice.model), run.adapter.queries, device=world.device)
    if choice.corpus is not None and "lengths" not in set_names(overrides):
        run = run.model_copy(update={"lengths": None})
    llm, cache = language_model(run, str(choice.llm)), _cache_folder(choice, out)
    return align_prompts(
        run, llm, teacher, out, world, corpus=choice.corpus, cache=cache, fitting=fitting_of(overrides)
    )


def _image_prompts(choice: _Choice, run: Any, out: Path, world: Any, overrides: tuple[str, ...]) -> Any:
    from syzygy.pretrained.prompt_image_training import train_on_images
    from syzygy.pretrained.prompt_teacher import target_of
    from syzygy.pretrained.repositories import find_decoder
    from syzygy.text_encoders.adapter_folders import PreviousStage
    from syzygy.text_encoders.store_features import StoredFeatures

    model = find_decoder(str(choice.model))
    target = target_of(model.at.folder)
    previous = PreviousStage.load(str(choice.previous), choice.stage, target, str(choice.model))
    cache, fitting = _cache_folder(choice, out), fitting_of(overrides)
    stored = None if choice.store is None else StoredFeatures(choice.store, choice.features or "llm")
    llm = stored or previous.language_model(choice.llm)
    return train_on_images(run, previous, llm, model, str(choice.data), out, world, cache=cache, fitting=fitting)


def _align(choice: _Choice, run: Any, out: Path, world: Any, overrides: tuple[str, ...]) -> Any:
    from syzygy.clip.clip_model import Clip
    from syzygy.core.model_parts import part_or_id
    from syzygy.text_encoders import training

    if choice.prior is not None and not run.task.prior:
        raise UserError("--prior has no effect with task.prior=0. Leave it out.")
    # No image is encoded, and published image towers are large. Only the whole CLIP has its own temperature.
    clip = Clip.from_pretrained(part_or_id(choice.clip or STARTER, "clip"), text_first=run.task.temperature != "clip")
    prior = training.frozen_prior(choice.prior or STARTER, clip.fingerprint()) if run.task.prior else None
    if choice.corpus is not None and "lengths" not in set_names(overrides):
        run = run.model_copy(update={"lengths": None})
    llm = training.language_model(run, str(choice.llm))
    fitting, cache = fitting_of(overrides), _cache_folder(choice, out)
    return training.align(run, llm, clip, prior, out, world, corpus=choice.corpus, cache=cache, fitting=fitting)


def _cache_folder(choice: _Choice, out: Path) -> Any:
    """Where the features of the captions are kept, if they are."""
    from syzygy.text_encoders.feature_cache import CacheFolder

    if choice.cache is None and choice.cache_folder is None:
        return None
    if choice.stage == "align" and choice.corpus is None:
        raise UserError(
            "a cache has no effect without --corpus: no caption of the embedded world comes twice. Leave it out."
        )
    return CacheFolder(choice.cache_folder or out / "features", progress_bar)


def _image(choice: _Choice, run: Any, out: Path, world: Any, overrides: tuple[str, ...]) -> Any:
    from syzygy.clip.clip_model import Clip
    from syzygy.core.model_parts import part_or_id
    from syzygy.text_encoders import training

    previous = training.PreviousStage.load(str(choice.previous), choice.stage)
    own = previous.run if (previous.run / "prior").is_dir() else STARTER
    prior = training.frozen_prior(choice.prior or own, previous.record["clip"])
    if choice.data is None:
        clip = Clip.from_pretrained(part_or_id(choice.clip or STARTER, "clip"))
        llm, world_images = (
            previous.language_model(choice.llm),
            imported("syzygy.lab.starter.world_captions:world_images"),
        )
        data = world_images(run, previous, llm, clip, world.device, progress_bar)
    else:
        unset = {"scenes", "languages", "lengths", "filter"} - set_names(overrides)
        run, features = run.model_copy(update=dict.fromkeys(unset)), choice.features or "llm"
        fitting, processes = fitting_of(overrides), world.size
        run, data = training.store_images(
            run, previous, Path(choice.data), features, processes=processes, fitting=fitting
        )
    return training.image(run, previous, data, prior, out, world)


def _image_with_decoder(choice: _Choice, run: Any, out: Path, world: Any, overrides: tuple[str, ...]) -> Any:
    from syzygy.clip.clip_model import Clip
    from syzygy.core.model_parts import part_folder
    from syzygy.decoder.autoencoder import Autoencoder
    from syzygy.text_encoders.training import PreviousStage

    previous = PreviousStage.load(str(choice.previous), choice.stage)
    clip = Clip.from_pretrained(part_folder(choice.clip or STARTER, "clip"))
    latents = Autoencoder.from_pretrained(part_folder(choice.autoencoder or STARTER, "autoencoder"))
    llm, decoder = previous.language_model(choice.llm), part_folder(str(choice.decoder), "decoder")
    train = imported("syzygy.lab.starter.adapted_decoder_training:train")
    return train(run, previous, llm, clip, latents, decoder, out, world)
