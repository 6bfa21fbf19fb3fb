"""`syzygy evaluate …`: each command reads its options, loads what it measures and calls one evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from syzygy.cli.common import Whole, device_option, json_option, progress_bar, seed_option
from syzygy.cli.generation_options import text_encoder_options
from syzygy.core.errors import UserError
from syzygy.lab.commands.evaluation_options import (
    EvaluationRequest,
    Names,
    Numbers,
    evaluation,
    named_runs,
    sampling_options,
    setting,
)

if TYPE_CHECKING:
    from syzygy.lab.evaluate.harness import Outcome

CATEGORIES = setting(
    "--categories", "Only prompts of these categories, such as single,colour.", type=Names(), metavar="NAMES"
)
COMPOSITION = (
    *sampling_options(200, 10, least=1),
    CATEGORIES,
    setting("--draws", "Images for each prompt.", 1, type=Whole(1)),
)
QUICK = {"prompts": 8, "pairs": 1000, "linear_pairs": 2000}
CONDITIONS = setting(
    "--conditions",
    "Conditions that the decoder uses, such as image,text. Default: the model's own.",
    type=Names(),
    metavar="NAMES",
)


@evaluation(
    *COMPOSITION,
    text_encoder_options,
    click.option(
        "--prior",
        "priors",
        multiple=True,
        metavar="[NAME=]RUN",
        help="Prior to score; may be repeated. Default: the model's own.",
    ),
    setting(
        "--pairs", "Pairs on which predicted embeddings are compared with true ones; 0 skips this.", 5000, type=Whole(0)
    ),
    setting(
        "--linear-pairs", "Pairs that the linear map, a control, is fitted on; 0 leaves it out.", 20_000, type=Whole(0)
    ),
    click.option(
        "--with-text",
        is_flag=True,
        help="Generate a second time with a decoder that also reads the text, which gives it the text without the prior.",
    ),
    quick=QUICK,
)
def composition(request: EvaluationRequest) -> "Outcome":
    """Measure how often images show what their prompt names.

    Generates images from prompts of the embedded world and classifies what they show. Each prior is compared with the reference (the true
    embedding of a scene that shows exactly what the prompt names), text identity (the text embedding itself, also moved to the images'
    mean), a linear map from text to image embeddings, and the first prior's images of shuffled prompts. Unseen compositions, which no prior
    was trained on, are scored separately.

    \b
      syzygy evaluate composition --out out/composition
    """
    from syzygy.lab.evaluate import composition as run

    sources, linear_pairs = (request.settings.pop(name) for name in ("priors", "linear_pairs"))
    context = request.context("composition", run.CompositionConfig)
    if (own := context.model.pipeline.prior) is None:
        raise UserError(f"{request.model} generates images from texts alone: it has no prior to evaluate.")
    priors = request.priors(context.model, run.CONTROLS, sources) or {"prior": own}
    return run.evaluate(context, priors, progress_bar, linear_pairs)


@evaluation(
    *COMPOSITION,
    text_encoder_options,
    click.option(
        "--prior",
        "priors",
        multiple=True,
        metavar="[NAME=]RUN",
        help="Give two: the first is compared with the second.",
    ),
    setting(
        "--pickscore",
        "A PickScore checkpoint (or any CLIP) on disk, as a further criterion.",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="FOLDER",
    ),
    quick={"prompts": 8},
)
def preference(request: EvaluationRequest) -> "Outcome":
    """Measure how often one prior's image is preferred to another's.

    Both generate from the same prompts and noise. They are compared by the judge (which image shows more of the prompt's facts) and by the
    model's CLIP (which image is nearer to the prompt). A tie counts half for each.

    \b
      syzygy evaluate preference --prior runs/a --prior runs/b
    """
    from syzygy.clip.clip_model import Clip
    from syzygy.lab.evaluate import preference as run
    from syzygy.lab.evaluate.composition import CONTROLS, CompositionConfig

    sources, folder = (request.settings.pop(name) for name in ("priors", "pickscore"))
    if len(sources) != 2:
        raise UserError(f"give --prior twice, the two to compare; got {len(sources)}.")
    pickscore = None if folder is None else Clip.from_pretrained(folder).to(request.parts["device"])
    context = request.context("preference", CompositionConfig)
    return run.evaluate(context, request.priors(context.model, CONTROLS, sources), pickscore)


@evaluation(
    *sampling_options(100, 10),
    setting(
        "--strengths",
        "Region strengths, w'; images without regions are always measured.",
        "0.5,1,2",
        type=Numbers(),
        metavar="W,…",
    ),
    CONDITIONS,
    setting("--experts", "Expert denoisers instead of the model's decoder.", metavar="RUN|FOLDER"),
)
def regions(request: EvaluationRequest) -> "Outcome":
    """Measure how often objects appear inside their regions.

    Prompts name one object or two coloured ones, and each object has a region in one half of the image. Measured are the objects that appear
    in their region with all named attributes, and the images that show all that is named, compared with the same noise without regions and,
    for two objects, with exchanged masks, when the objects should change places.

    \b
      syzygy evaluate regions --out out/regions       # the grid of images is out/regions/grid.png
    """
    from syzygy.lab.evaluate import region_accuracy as run

    return run.evaluate(request.context("regions", run.RegionsConfig))


@evaluation(
    *sampling_options(16, 10),
    click.option(
        "--style-guidance",
        "weights",
        type=Numbers(),
        default="1,2",
        show_default=True,
        metavar="W,…",
        help="Guidance of the style apart from the text; that of the text is always measured too (joint guidance of both).",
    ),
    setting("--references", "Style references for each prompt, each in another style.", 1, type=Whole(1, 4)),
)
def style(request: EvaluationRequest) -> "Outcome":
    """Measure whether images take the style of a reference, and only that.

    Prompts that name no style are used with an image of another scene as style reference (as with --style of syzygy generate), in each of
    four styles in turn: as it is, and with words for its content (--style-content). From the same noise: the text alone, the text with the
    prior's embedding, and the style in the prompt's words. Measured are style, prompt accuracy, and how often the reference's objects appear.

    \b
      syzygy evaluate style --out out/style       # the grid of images is out/style/grid.png
    """
    from syzygy.lab.evaluate import style as run

    return run.evaluate(request.context("style", run.StyleConfig))


@evaluation(
    *sampling_options(
        34, 10, help="Prompts of each kind (a subject alone, with an object, in a relation), seen and unseen each."
    ),
    click.option("--prior", required=True, metavar="RUN|FOLDER", help="A prior that reads subjects (λ-ECLIPSE)."),
    setting(
        "--best-of",
        "Images of each prompt, of which the one nearest to the prediction is scored.",
        1,
        type=Whole(1, 64),
    ),
    CONDITIONS,
)
def subjects(request: EvaluationRequest) -> "Outcome":
    """Measure whether images show the subject of a picture, and the rest of the prompt.

    In prompts of the embedded world, such as "a thing left of a blue ring", a word stands for the object in a picture. Measured are the
    object's shape, colour and texture, which the prompt does not name, and the rest of the prompt, compared with the same prompt in words,
    without a subject, and with another prompt's.

    \b
      syzygy train prior --preset lambda-eclipse-residual --out runs/subjects
      syzygy evaluate subjects --prior runs/subjects --out out/subjects
    """
    from syzygy.lab.evaluate import subject_accuracy as run

    return run.evaluate(request.context("subjects", run.SubjectsConfig))


@evaluation(
    *sampling_options(50, 25),
    setting(
        "--swaps",
        "Per cent of the steps after which the prompt is swapped; 0, 40, 93 and 100 are added.",
        "20,60,80",
        type=Numbers(),
        metavar="K,…",
    ),
    CONDITIONS,
)
def temporal(request: EvaluationRequest) -> "Outcome":
    """Measure when in sampling the prompt is read.

    Each image begins with one prompt and ends with another, which shares no shape and no colour with it. Measured is the accuracy for both,
    by the part of the steps before the swap. eDiff-I states that a swap in the last 7 % of the steps changes nothing, and that after one in
    the first 40 % the image follows the new prompt fully: the evaluation confirms or refutes this.

    \b
      syzygy evaluate temporal --out out/temporal       # the plot is out/temporal/prompt_accuracy.svg
    """
    from syzygy.lab.evaluate import temporal as run

    return run.evaluate(request.context("temporal", run.TemporalConfig))


@evaluation(*sampling_options(16, 10), CATEGORIES)
def encoders(request: EvaluationRequest) -> "Outcome":
    """Measure what a decoder reads from CLIP and T5, in short and long prompts.

    The decoder reads T5's states alone, CLIP's alone, both, the prior's image embedding alone, and everything, of prompts as they are and
    after 100 to 220 words that say nothing about the image (CLIP reads 77 tokens). The control is a decoder that reads nothing. A decoder
    without T5 is measured on what it reads.

    \b
      syzygy evaluate encoders --model RUN --out out/encoders
    """
    from syzygy.lab.evaluate import encoders as run

    return run.evaluate(request.context("encoders", run.EncodersConfig))


@evaluation(
    click.option(
        "--data",
        "store",
        type=click.Path(path_type=Path),
        metavar="STORE",
        required=True,
        help="Embedding store to measure on.",
    ),
    click.option(
        "--prior",
        "priors",
        multiple=True,
        metavar="[NAME=]RUN|FOLDER|HUB-ID",
        help="Prior to measure; may be repeated. Without one, only the controls are measured.",
    ),
    setting(
        "--images",
        "Number of held-out images, chosen by --seed.  [default: all, at most 4096]",
        type=Whole(1),
        metavar="N",
    ),
)
def prior(request: EvaluationRequest) -> "Outcome":
    """Measure priors on pairs of an embedding store that they were not trained on.

    The images are those that the runs held out for validation; with several priors, those that all of them held out. Each prior is compared
    with controls that need no training: the text embedding itself (as it is, and moved to the images' mean), a linear map from text to image
    embeddings, the first prior's predictions for shuffled captions, and the mean image embedding.

    \b
      syzygy evaluate prior --data STORE --prior RUN
      syzygy evaluate prior --data STORE --prior mine=RUN --prior other=RUN2 --page prior.html
    """
    from syzygy.lab.evaluate.prior_retrieval import CONTROLS, evaluate

    priors = named_runs(request.settings.pop("priors"), CONTROLS)
    return evaluate(**request.settings, sources=priors, device=request.parts["device"], bar=progress_bar).outcome()


@click.command()
@setting(
    "--model", "The model whose reader is measured and whose images both classifiers read, or a folder.", "starter"
)
@setting("--num", "Number of unseen renders.", 2048, type=Whole(1), metavar="N")
@setting(
    "--prompts",
    "Prompts of each category, seen and unseen each, whose images both classifiers read; 0 skips this.",
    8,
    type=Whole(0),
)
@setting("--steps", "Sampling steps of these images.", 10, type=Whole(1))
@seed_option
@device_option
@json_option
def reader(model: str, num: int, prompts: int, steps: int, seed: int, device: str, as_json: bool) -> None:
    """Measure the accuracy of the two scene classifiers.

    The reader may guide trainings and selections; the judge scores images in all evaluations, and nothing is trained or chosen with it. For
    each: the part of attributes, counts and styles that it predicts correctly on unseen renders, as they are, with mild blur, noise, mottle and
    shift, and as the model's autoencoder reconstructs them; right counts by number of objects; and confusion matrices. Then how often the two
    agree on images that the model generates.
    """
    import json

    from syzygy.generation.text_to_image import TextToImage
    from syzygy.lab.evaluate.classifiers import evaluate, printed
    from syzygy.lab.evaluate.harness import SamplingConfig

    loaded = TextToImage.from_pretrained(model, device=device)
    found = evaluate(loaded, num, prompts, SamplingConfig(steps=steps, seed=seed), progress_bar)
    click.echo(json.dumps(found) if as_json else "\n".join(printed(found)))
