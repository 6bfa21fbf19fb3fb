"""`syzygy evaluate text-encoder`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syzygy.cli.common import Whole
from syzygy.core.errors import UserError
from syzygy.lab.commands.evaluate_commands import CONDITIONS
from syzygy.lab.commands.evaluation_options import (
    EvaluationRequest,
    Names,
    evaluation,
    named_runs,
    sampling_options,
    setting,
)

if TYPE_CHECKING:
    from syzygy.lab.evaluate.harness import Outcome


@evaluation(
    setting(
        "--text-encoder",
        "The adapter to measure; adapter: the model's own.",
        "adapter",
        metavar="adapter|MODEL|RUN|FOLDER",
    ),
    setting("--llm", "Its language model, if that is not where it was during training.", metavar="FOLDER|ID|FILE.gguf"),
    *sampling_options(
        16,
        10,
        least=0,
        help="Prompts of each category, seen and unseen each, for images in each language; 0 generates no images, which a published model "
        "needs, as its images cannot be scored.",
    ),
    setting("--clip", "CLIP checkpoint to use instead of the published model's default.", metavar="FOLDER|ID"),
    setting("--prior", "Prior to use instead of the model's own.", metavar="RUN|FOLDER|ID"),
    setting(
        "--decoder",
        "Decoder to use instead of the model's own, such as one that was trained with the adapter.",
        metavar="RUN|FOLDER",
    ),
    setting(
        "--languages",
        "Such as en,de,es,fr,ru,zh. Default: those that the adapter was trained on.",
        type=Names(),
        metavar="CODES",
    ),
    setting(
        "--captions",
        "Captions for each language and length, which are also the candidates in retrieval.",
        512,
        type=Whole(2),
    ),
    CONDITIONS,
    setting(
        "--unseen-words",
        "Measure this instead: prompts of this file (JSON Lines) in words and languages that no training caption had.",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
    ),
    click.option(
        "--images",
        is_flag=True,
        help="With --unseen-words: also generate an image of each prompt, and score it by what its caption names.",
    ),
    click.option(
        "--against",
        multiple=True,
        metavar="[NAME=]RUN",
        help="With --unseen-words: another adapter of this CLIP to compare with; may be repeated.",
    ),
    click.option(
        "--download", is_flag=True, help="Download what is missing from the hub; else its cache must have it."
    ),
    quick={"captions": 64, "prompts": 2},
)
def text_encoder(request: EvaluationRequest) -> "Outcome":
    """Measure how well a language model's adapter replaces CLIP's text encoder.

    By language and length of captions: how near its embedding is to CLIP's of the English caption; how often that caption and the image are
    found by it, directly and through the prior; whether words after CLIP's 77 tokens are read; and how often images that are generated from
    it show what is named. Controls are the mean embedding, other captions' embeddings, and CLIP on the same texts.

    With --unseen-words only the file's prompts are measured: how often a prompt's own caption ("target") is the nearest of all captions of
    the file, by CLIP, by the adapter, and by those of --against; with --images also how often an image of it shows what that caption names.
    A line of the file is {"prompt": "a crimson disc", "target": "a red circle", "group": "synonym", "language": "en"}.

    \b
      syzygy evaluate text-encoder --out out/text-encoder
      syzygy evaluate text-encoder --text-encoder RUN --languages en,de --quick
      syzygy evaluate text-encoder --model kandinsky-2.2 --text-encoder RUN --prompts 0
      syzygy evaluate text-encoder --text-encoder RUN --unseen-words FILE --against starter
    """
    from syzygy.lab.evaluate import text_encoder as encoding
    from syzygy.lab.evaluate import text_encoder_images as run

    file, against, images = (request.settings.pop(name) for name in ("unseen_words", "against", "images"))
    if file is not None:
        return _unseen_words(request, file, against, images)
    for name, given in (("--against", against), ("--images", images)):
        if given:
            raise UserError(f"{name} has no effect without --unseen-words. Leave it out.")
    model = request.load()
    languages = encoding.checked_languages(model, request.settings["languages"])
    conditions = model.pipeline.chosen(request.settings["conditions"])
    more = {"languages": languages, "conditions": conditions}
    return run.evaluate(request.context("text-encoder", encoding.TextEncoderConfig, model, **more))


def _unseen_words(request: EvaluationRequest, file: Path, against: Sequence[str], images: bool) -> "Outcome":
    """Which captions are nearest to prompts in words that no training caption had."""
    from syzygy.core import artifacts
    from syzygy.core.model_parts import part_folder
    from syzygy.generation.replaced_text_encoder import llm_beside
    from syzygy.lab.evaluate import unseen_word_images
    from syzygy.lab.evaluate import unseen_words as run
    from syzygy.lab.evaluate.text_encoder import ADAPTER, CLIP, prompt_reader
    from syzygy.text_encoders.adapter_folders import PART, load_adapted

    given = click.get_current_context().get_parameter_source
    idle = {name: "" for name in ("prompts", "languages", "captions", "conditions", "quick")}
    idle |= {} if images else {name: " without --images" for name in ("steps", "guidance_scale", "seed")}
    if useless := [name for name in idle if given(name) == click.core.ParameterSource.COMMANDLINE]:
        option = useless[0].replace("_", "-")
        raise UserError(f"--{option} has no effect with --unseen-words{idle[useless[0]]}. Leave it out.")
    prompts, others = run.PromptFile.read(file), named_runs(against, (CLIP, ADAPTER), "adapter")
    model = request.load()
    encoders: dict[str, Any] = {ADAPTER: prompt_reader(model)}
    taught: dict[str, Sequence[str] | None] = {ADAPTER: model.languages}
    sources = {ADAPTER: request.parts["text_encoder"], **others}
    for name, source in others.items():
        folder, device = part_folder(source, PART), request.parts["device"]
        encoders[name] = load_adapted(folder, model.clip, llm=llm_beside(folder), device=device)
        taught[name] = artifacts.read_json(folder / artifacts.PROVENANCE_FILE).get("languages")
    about = {"model": model.name, "encoders": sources, "fingerprints": model.fingerprints()}
    found = run.evaluate(prompts, model.clip, encoders, taught, about)
    if images:
        sampling = {name: request.settings[name] for name in ("steps", "guidance_scale", "seed")}
        request.settings.clear()
        context = request.context("unseen words", unseen_word_images.UnseenWordsConfig, model, **sampling)
        found = replace(
            found, images=unseen_word_images.shown(context, prompts, {CLIP: model.clip, **encoders}, sources)
        )
    return found.outcome()
