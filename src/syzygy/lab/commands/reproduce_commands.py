"""`syzygy reproduce …`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from syzygy.cli.common import device_option, json_option, note, progress_bar, stacked, writable_folder

F = TypeVar("F", bound=Callable[..., Any])
PRESETS = "syzygy.lab.reproduce.presets"


def comparison_options(*own: Callable[[F], F], model: str, out: str, quick: str) -> Callable[[F], F]:
    """What every comparison takes; `model` and `quick` say what those options mean, `own` are the command's, after --model."""
    options = (
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…"),
        click.option("--model", default="starter", show_default=True, help=model),
        *own,
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=Path(out),
            show_default=True,
            help="Folder of the comparison.",
        ),
        click.option("--quick", is_flag=True, help=quick),
        device_option,
        json_option,
    )

    return stacked(*options)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _tell(found: Mapping[str, Any], text: str, out: Path, as_json: bool) -> None:
    import json

    click.echo(json.dumps(found) if as_json else f"{text}\nLook at {out / 'index.html'}")


@click.command()
@comparison_options(
    model="The frozen CLIP, decoder and reader.",
    out="out/eclipse",
    quick="Fewer pairs, seeds and prompts: sooner, wide intervals.",
)
def eclipse(overrides: tuple[str, ...], model: str, out: Path, quick: bool, device: str, as_json: bool) -> None:
    """ECLIPSE's comparison, in small.

    Projection, diffusion baseline and ECLIPSE with the same size, pairs, steps and hyperparameters, beside text-identity and the
    reference: scored on embeddings and on pictures, on compositions seen and held out; sweeps over λ, data, steps and noise.
    The same command continues an interrupted comparison. Writes index.html, results.json, report.md and its eclipse.jpg.
    """
    from syzygy.core import artifacts
    from syzygy.core.config import override
    from syzygy.core.registry import preset
    from syzygy.lab.reproduce import eclipse_experiment, score_files
    from syzygy.lab.reproduce.eclipse_report import SHEET, markdown, page, results, shown

    run = override(preset(f"{PRESETS}:ECLIPSE", "quick" if quick else "full"), overrides, note)
    writable_folder(out)
    bench = eclipse_experiment.reproduce(run, out, model=model, device=device, say=_say, bar=progress_bar)
    found = results(run, out)
    artifacts.write_json(out / "results.json", found)
    artifacts.write_bytes(out / "report.md", markdown(found).encode())
    score_files.save_sheet(out / SHEET, shown(out, bench.wanted))
    artifacts.write_bytes(out / "index.html", page(found, out, bench.wanted).encode())
    _tell(found, markdown(found), out, as_json)


@click.command()
@comparison_options(
    model="The model whose decoder is grown, and its reader.",
    out="out/experts",
    quick="Short trainings and few prompts: shows that it works, and nothing else.",
)
def experts(overrides: tuple[str, ...], model: str, out: Path, quick: bool, device: str, as_json: bool) -> None:
    """eDiff-I's experts, in small.

    A model's decoder trained on for equal total samples as one model, as one model that sees each noise level as often as the experts
    do, and as experts, whole and low-rank: loss at each expert's noise levels, agreement and Fréchet distance of the pictures, cost.
    The tree is cut from the noise that the decoder was trained with, and sees the conditions that it saw.
    The same command continues an interrupted comparison. Writes index.html, results.json, report.md and its pictures.

    \b
    Another tree, or longer trainings:
      syzygy reproduce experts 'experts.leaves=["E1_0", "E1_1"]' experts.loop.steps=600 --out out/two
    """
    from syzygy.core.config import override
    from syzygy.core.model_parts import part_folder
    from syzygy.core.registry import preset
    from syzygy.lab.reproduce import experts_experiment
    from syzygy.lab.reproduce.experts_report import markdown, write
    from syzygy.lab.starter.experts_training import as_trained

    wanted = preset(f"{PRESETS}:EXPERTS", "quick" if quick else "full")
    wanted = wanted.model_copy(update={"experts": as_trained(wanted.experts, part_folder(model, "decoder"))})
    run = override(wanted, overrides, note)
    writable_folder(out)
    bench = experts_experiment.reproduce(run, out, model=model, device=device, say=_say, bar=progress_bar)
    found = write(run, bench)
    _tell(found, markdown(found), out, as_json)


@click.command()
@comparison_options(
    click.option("--llm", metavar="RUN|FOLDER", help="The frozen language model.  [default: the model's own]"),
    model="The frozen CLIP, prior, decoder and reader.",
    out="out/text-encoders",
    quick="Short trainings and few captions: shows that it works, and nothing else.",
)
def text_encoder(
    overrides: tuple[str, ...], model: str, llm: str | None, out: Path, quick: bool, device: str, as_json: bool
) -> None:
    """An adapter's stages and a language model's layers, in small.

    Stage 1 (texts), 1+2 (and pictures), 1+2+3 (and chosen ones); 2 and 2+3 without stage 1 for equal total samples; the first three once
    more on the last layer in place of the mean of layers: by language and length, with the measures of syzygy evaluate text-encoder, a
    probe, and pictures that are read exactly. Beside them CLIP itself, shuffled captions and the mean vector.
    Each training is a run of syzygy train adapter in a folder of its own; the same command continues an interrupted comparison.
    Writes index.html, results.json, report.md and its pictures.

    \b
    With a language model of your own, or longer trainings:
      syzygy reproduce text-encoder --llm RUN --out out/mine
      syzygy reproduce text-encoder align.loop.steps=900 image.loop.steps=400 seeds=3 --out out/long
    """
    from syzygy.core.config import override
    from syzygy.core.registry import preset
    from syzygy.lab.reproduce import text_encoder_experiment
    from syzygy.lab.reproduce.text_encoder_report import markdown, write

    run = override(preset(f"{PRESETS}:TEXT_ENCODER", "quick" if quick else "full"), overrides, note)
    writable_folder(out)
    bench = text_encoder_experiment.reproduce(run, out, model=model, llm=llm, device=device, say=_say, bar=progress_bar)
    found = write(bench)
    _tell(found, markdown(found), out, as_json)
