"""`syzygy reproduce …`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from syzygy.cli.common import device_option, json_option, note, progress_bar, stacked, writable_folder

if TYPE_CHECKING:
    from syzygy.lab.reproduce.experiment import Findings

F = TypeVar("F", bound=Callable[..., Any])


def experiment_options(*own: Callable[[F], F], model: str, out: str, quick: str) -> Callable[[F], F]:
    """The options of every experiment; `model` and `quick` are the help of these options, `own` are further options."""
    options = (
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…"),
        click.option("--model", default="starter", show_default=True, help=model),
        *own,
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=Path(out),
            show_default=True,
            help="Folder of the experiment.",
        ),
        click.option("--quick", is_flag=True, help=quick),
        device_option,
        json_option,
    )

    return stacked(*options)


def _run(
    reproduce: "Callable[..., Findings]",
    settings: Any,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    **how: Any,
) -> None:
    """Run an experiment with overridden settings, and print its results or its report."""
    import json

    from syzygy.core.config import override

    run = override(settings, overrides, note)
    writable_folder(out)
    found = reproduce(run, out, say=lambda line: click.echo(line, err=True), bar=progress_bar, **how)
    click.echo(json.dumps(found.results) if as_json else f"{found.report.markdown()}\nOpen {out / 'index.html'}")


@click.command()
@experiment_options(
    model="Model with the frozen CLIP and decoder.",
    out="out/eclipse",
    quick="Use fewer pairs, seeds and prompts: sooner, with wide intervals.",
)
def eclipse(overrides: tuple[str, ...], out: Path, quick: bool, as_json: bool, **how: Any) -> None:
    """Repeat ECLIPSE's comparison at small scale.

    Projection, the diffusion and flow-matching baselines, ECLIPSE and the residual prior are trained with the same size, pairs, steps and
    hyperparameters, and scored with the controls (text identity, linear map) and the reference on embeddings and images, on seen and unseen
    compositions, and by how much the images of one prompt differ. ECLIPSE is swept over λ, the paper's methods over the data, and the
    diffusion baseline over its sampling steps and noise.
    Run the same command again to continue an interrupted experiment. Writes index.html, results.json, report.md and its eclipse.jpg.
    """
    from syzygy.lab.reproduce.eclipse_experiment import reproduce

    _run(reproduce, _preset("ECLIPSE", quick), overrides, out, as_json, **how)


@click.command()
@experiment_options(
    click.option("--dry-run", is_flag=True, help="Estimate the time of what is left to do, then exit without writing."),
    model="Model with the frozen CLIP, decoder and scene classifier.",
    out="out/prior-sweep",
    quick="Use few points, short trainings and few prompts, which only shows that everything works.",
)
def prior_sweep(
    overrides: tuple[str, ...], out: Path, quick: bool, as_json: bool, dry_run: bool, model: str, device: str
) -> None:
    """Compare priors by the number of their training pairs.

    Projection, ECLIPSE and the residual prior are trained on 200 to 200,000 pairs, several times each, and scored on embeddings with text
    identity, the linear map and the reference, on seen and unseen compositions. λ, penalty, steps, temperature, optimizer and size are swept at
    two of the numbers of pairs, one at a time. Images are generated only at the numbers of pairs in images_at, which may be given later.
    Prints an estimate before it starts. Run the same command again to continue an interrupted experiment. Writes index.html, results.json,
    report.md and its figures.

    \b
      syzygy reproduce prior-sweep --dry-run
      syzygy reproduce prior-sweep 'images_at=[1000, 20000]'
    """
    import json

    from syzygy.lab.reproduce import prior_sweep as sweep
    from syzygy.lab.reproduce.prior_sweep_trainings import estimate_line

    preset, how = _preset("PRIOR_SWEEP", quick), {"model": model, "device": device}
    if not dry_run:
        _run(sweep.reproduce, preset, overrides, out, as_json, **how)
        return
    from syzygy.core.config import override

    found = sweep.forecast(override(preset, overrides, note), out, **how)
    click.echo(json.dumps(found) if as_json else f"{estimate_line(found)} Nothing was written.")


@click.command()
@experiment_options(
    model="Model whose decoder is the start of all trainings.",
    out="out/experts",
    quick="Use short trainings and few prompts, which only shows that everything works.",
)
def experts(overrides: tuple[str, ...], model: str, out: Path, quick: bool, as_json: bool, **how: Any) -> None:
    """Repeat eDiff-I's comparison of experts with one model, at small scale.

    A model's decoder is trained further for equal total samples: as one model, as one model that sees each noise level as often as the
    experts do, and as full and low-rank experts. Measures the loss at each expert's noise levels, prompt accuracy and Fréchet distance of
    images, and cost. The tree divides the noise levels of the decoder's own training, and experts see the conditions that it saw.
    Run the same command again to continue an interrupted experiment. Writes index.html, results.json, report.md and its images.

    \b
    Another tree, or longer trainings:
      syzygy reproduce experts 'experts.leaves=["E1_0", "E1_1"]' experts.loop.steps=600 --out out/two
    """
    from syzygy.core.model_parts import part_folder
    from syzygy.lab.reproduce.experts_experiment import reproduce
    from syzygy.lab.starter.experts_training import as_trained

    preset = _preset("EXPERTS", quick)
    preset = preset.changed(experts=as_trained(preset.experts, part_folder(model, "decoder")))
    _run(reproduce, preset, overrides, out, as_json, model=model, **how)


@click.command()
@experiment_options(
    click.option("--llm", metavar="RUN|FOLDER", help="Frozen language model.  [default: the model's own]"),
    model="Model with the frozen CLIP, prior and decoder.",
    out="out/text-encoders",
    quick="Use short trainings and few captions, which only shows that everything works.",
)
def text_encoder(overrides: tuple[str, ...], out: Path, quick: bool, as_json: bool, **how: Any) -> None:
    """Compare an adapter's stages and a language model's layers, at small scale.

    The candidates are stage 1 (texts), 1+2 (and images), 1+2+3 (and selected images); 2 and 2+3 without stage 1 for equal total samples; and
    the first three on the last layer instead of the mean of layers. They are measured by language and length as in syzygy evaluate
    text-encoder, with a linear probe, and on images. Controls are CLIP itself, shuffled captions and the mean vector.
    Each training is a run of syzygy train adapter in its own folder. Run the same command again to continue an interrupted experiment.
    Writes index.html, results.json, report.md and its images.

    \b
    With your own language model, or longer trainings:
      syzygy reproduce text-encoder --llm RUN --out out/mine
      syzygy reproduce text-encoder align.loop.steps=900 image.loop.steps=400 seeds=3 --out out/long
    """
    from syzygy.lab.reproduce.text_encoder_experiment import reproduce

    _run(reproduce, _preset("TEXT_ENCODER", quick), overrides, out, as_json, **how)


def _preset(table: str, quick: bool) -> Any:
    from syzygy.core.registry import preset

    return preset(f"syzygy.lab.reproduce.presets:{table}", "quick" if quick else "full")
