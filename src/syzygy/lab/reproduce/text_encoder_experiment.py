"""The stages of an adapter (arXiv 2405.12914) and the layers of its language model (arXiv 2506.08210): experiment, results, report."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.wording import counted
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.evaluate.text_encoder import ENGLISH
from syzygy.lab.evaluate.text_encoder_images import language_cases
from syzygy.lab.report import Gallery, Report, Section, Table, require_lab
from syzygy.lab.reproduce.experiment import (
    ALL,
    ExperimentFolder,
    Findings,
    Score,
    gain_score,
    judge_lines,
    judged,
    mean_score,
    percent,
    score_plot,
)
from syzygy.lab.reproduce.text_encoder_candidates import (
    AGAINST,
    CANDIDATES,
    KINDS,
    MEAN,
    NUMBERS,
    TAIL,
    ReproduceTextRun,
    TextEncoderContext,
    Training,
    all_trainings,
    language_model_of,
    minutes,
    samples,
    seconds,
    settings,
    train,
)
from syzygy.lab.reproduce.text_encoder_measures import CLIP, MEAN_VECTOR, SHUFFLED, images_name, measure_all
from syzygy.lab.world.language import language
from syzygy.text_encoders.adapter_folders import PART
from syzygy.training.run_records import Bar, no_bar

OTHERS = "others"
"""All languages but English."""
FOUND_PLOT, TAIL_PLOT, ACCURACY_PLOT = "text-encoder-found.svg", "text-encoder-tail.svg", "text-encoder-agreement.svg"
SHEET = "text-encoder.jpg"


def _is_nearest(ranks: Tensor) -> Tensor:
    return (ranks == 0).double()


MEASURES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "predicted": ("Image found (R@1) by the prior's prediction", _is_nearest),
    "probe": ("Named combinations that the probe finds in the prior's prediction", torch.clone),
    "image": ("Image found (R@1) by the pooled embedding", _is_nearest),
    "text": ("CLIP's short English caption found (R@1) by the pooled embedding", _is_nearest),
    "cosine": ("Cosine of the pooled embedding to CLIP's of the short English caption", torch.clone),
    "norm": ("Norm of the pooled embedding, divided by CLIP's", torch.clone),
}
"""Measure of a caption → title, and the value that is averaged."""
SHARES = ("predicted", "probe", "image", "text")
"""The measures in per cent."""
UNMOVED = "unmoved"
LIMITS = (
    "The language model has a few million parameters and was trained only on this world's captions, so that its last layer has little else to "
    "predict than their next word, and the mean of the layers has few to choose from. What the layers of a published model hold is another "
    "question. Trainings take minutes; the paper's stage 2 sees 43 million images, and what pays off late is not seen here. No learning rate "
    "and no length of a stage was tuned for any candidate. Samples are equal, tokens and time are not: without stage 1 long captions occur in "
    "all steps, otherwise only in those of stages 2 and 3 (see the cost). Only stage 1 asks for a pooled embedding near CLIP's. Without it, "
    "neither the text nor the image can be expected to be found by it, and a decoder that reads it cannot be expected to work. Stage 3 selects "
    "images whose captions say more, which is what is measured here; beauty, for which the paper selects, is not. The captions come from one "
    "grammar in each language, without errors or names, and one small CLIP measures retrieval with its own features."
)
FROZEN = "The prior is frozen, so that what stages 2 and 3 gain is the adapter's alone; both together might gain more."
TRAINED = (
    "The prior is trained too, so that what stages 2 and 3 gain is not the adapter's alone, while CLIP's features go through the model's "
    "own prior."
)
Measured = Sequence[Mapping[str, Tensor]]
"""For each training of a candidate: language/kind/measure → a value for each caption."""


def reproduce(
    run: ReproduceTextRun,
    out: Path,
    *,
    model: str,
    llm: str | None,
    device: str,
    say: Callable[[str], None],
    bar: Bar = no_bar,
) -> Findings:
    """Train, score, generate and write the report. Steps whose files are in `out` are not repeated.

    Args:
        llm: where the language model is; None: in the model's folder.

    Raises:
        UserError: no language model, `out` holds an experiment with other settings, what the trainings raise, or the extra "lab" is missing.
    """
    require_lab()
    loaded = TextToImage.from_pretrained(model, device=device)
    judge_of(loaded)  # fails before the work, not after it
    loaded.pipeline.chosen(run.scoring.conditions)
    for code in (*run.languages, *run.scoring.languages):
        language(code)
    place, folder = language_model_of(loaded, llm), ExperimentFolder(out)
    context = TextEncoderContext(run, folder, loaded, place, language_cases(run.scoring))
    fingerprints = loaded.fingerprints() | {"llm": context.llms[MEAN].fingerprint()}
    folder.claim(run.model_dump(mode="json") | {"model": model, "fingerprints": fingerprints})
    with folder.timed():
        trainings, texts = all_trainings(run), len(context.texts) * len(context.pairs)
        estimate = minutes(run, len(context.cases))
        say(
            f"about {estimate:.0f} minutes with one thread on one core if nothing is there yet; twice that on a busy one"
        )
        say(f"1/3  probe on {counted(run.probe_scenes, 'scene')}")
        context.probe  # noqa: B018  trained here, so that the next steps show their own progress
        say(f"2/3  {counted(len(trainings), 'training')}")
        _train_all(trainings, context, say, bar)
        prompts = counted(len(context.cases), "prompt")
        say(f"3/3  encoding {counted(texts, 'text')} and generating images of {prompts} with each candidate")
        measure_all(trainings, context, say, bar)
    found = judged(results(context))
    gallery = _gallery(found, context) if context.cases else None
    return folder.finish(found, report(found, gallery))


def _train_all(trainings: list[Training], context: TextEncoderContext, say: Callable[[str], None], bar: Bar) -> None:
    left, spent, estimated = sum(seconds(one, context.run) for one in trainings), 0.0, 0.0
    for number, training in enumerate(trainings, 1):
        pace = spent / estimated if estimated else 1.0
        say(f"{number}/{len(trainings)}  {training.name}: about {left * pace / 60:.0f} minutes of training left")
        began = time.perf_counter()
        train(training, context, bar)
        took, own = time.perf_counter() - began, seconds(training, context.run)
        left -= own
        if took > own / 10:  # finished ones say nothing about the pace
            spent, estimated = spent + took, estimated + own


def values(trainings: Measured, codes: Sequence[str], kind: str, measure: str) -> list[list[float]]:
    """A row for each caption, a column for each training: the mean over the languages. Captions without a value are left out."""
    of = MEASURES[measure][1] if measure in MEASURES else torch.clone
    columns = [
        torch.stack([of(one[f"{code}/{kind}/{measure}"]) for code in codes]).double().mean(0) for one in trainings
    ]
    found = torch.stack(columns, 1)
    return found[~found.isnan().any(1)].tolist()


def groups(run: ReproduceTextRun) -> dict[str, tuple[str, ...]]:
    """Title → languages: each, all but English, all."""
    codes = run.scoring.languages
    others = tuple(code for code in codes if code != ENGLISH)
    return {code: (code,) for code in codes} | ({OTHERS: others} if others else {}) | {ALL: codes}


def results(context: TextEncoderContext) -> dict[str, Any]:
    """All numbers, as JSON values."""
    run, folder = context.run, context.folder

    def measured(names: Sequence[str]) -> Measured:
        return [artifacts.read_tensors(folder.tensors("scores", name)) for name in names]

    names = {CLIP: [CLIP]}
    names |= {one.title: [Training(one, seed).name for seed in range(run.seeds)] for one in CANDIDATES}
    scores = {name: measured(some) for name, some in names.items()}

    def by_group(some: Measured, kind: str, measure: str) -> dict[str, Score | None]:
        return {title: mean_score(values(some, codes, kind, measure)) for title, codes in groups(run).items()}

    def gained(first: Measured, second: Measured) -> dict[str, dict[str, Score | None]]:
        codes = run.scoring.languages
        return {
            measure: {
                kind: gain_score(*(values(some, codes, kind, measure) for some in (first, second))) for kind in KINDS
            }
            for measure in SHARES
        }

    return {
        "run": run.model_dump(mode="json"),
        **folder.time(),
        "captions": len(context.pairs),
        "prompts": len(context.cases),
        "scores": {
            name: {measure: {kind: by_group(some, kind, measure) for kind in KINDS} for measure in MEASURES}
            for name, some in scores.items()
        },
        "controls": {
            name: {key: mean_score(values(measured([name]), (ENGLISH,), "short", key)) for key in MEASURES}
            for name in (SHUFFLED, MEAN_VECTOR)
        },
        "unmoved": {name: by_group(some, TAIL, UNMOVED) for name, some in scores.items()},
        "gained": {f"{a.title} less {b.title}": gained(scores[a.title], scores[b.title]) for a, b in AGAINST},
        **(_accuracies(context, names) if context.cases else {"agreement": {}, "agreement_gained": {}}),
        "cost": {one.title: _cost(context, [Training(one, seed) for seed in range(run.seeds)]) for one in CANDIDATES},
    }


def _accuracies(context: TextEncoderContext, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Prompt accuracy of the images, and its differences."""
    folder, codes = context.folder, context.run.scoring.languages

    def correct(candidate: str, some: Sequence[str]) -> list[list[float]]:
        """A row for each prompt, a column for each training: the share of languages whose image is correct."""
        columns = []
        for name in names[candidate]:
            by_language = folder.predictions(images_name(name, code) for code in some)
            columns.append(
                [sum(one["agrees"] for one in prompt) / len(some) for prompt in zip(*by_language, strict=True)]
            )
        return [list(row) for row in zip(*columns, strict=True)]

    # Chance: CLIP's images compared with other prompts.
    first = folder.images(images_name(CLIP, ENGLISH if ENGLISH in codes else codes[0]))
    by_chance = [[float(one)] for one in first["by_chance"] if one is not None]
    found = {
        name: {title: mean_score(correct(name, some)) for title, some in groups(context.run).items()} for name in names
    }
    return {
        "agreement": {SHUFFLED: {ALL: mean_score(by_chance)}} | found,
        "agreement_gained": {
            f"{a.title} less {b.title}": gain_score(correct(a.title, codes), correct(b.title, codes))
            for a, b in AGAINST
        },
    }


def _cost(context: TextEncoderContext, trainings: Sequence[Training]) -> dict[str, Any]:
    """What the training of a candidate needs, the stages before included."""
    records = []
    for training in trainings:
        one: Training | None = training
        while one is not None:
            records.append(artifacts.read_json(context.place(one) / PART / artifacts.PROVENANCE_FILE))
            one = one.previous
    seen = samples(trainings[0], context.run)
    return {
        "samples": {NUMBERS[stage]: number for stage, number in seen.items()},
        "total": sum(seen.values()),
        "minutes": round(sum(one["seconds"] for one in records) / 60 / len(trainings), 1),
        "peak_lr": settings(trainings[0], context.run).loop.lr,
    }


def _gallery(found: Mapping[str, Any], context: TextEncoderContext) -> Gallery:
    """The kept images of CLIP and of every candidate's first training in one language."""
    codes = context.run.scoring.languages
    code = shown_language(codes)
    names = {f"{CLIP}, {one}": images_name(CLIP, one) for one in dict.fromkeys((codes[0], code))}
    names |= {one.title: images_name(Training(one, 0).name, code) for one in CANDIDATES}
    caption = (
        f"Prompts and the images of each candidate's first training, with prompts in {code!r}. A green frame: every fact that the prompt names "
        "is right."
    )
    return context.folder.gallery(names, context.prompts, caption, SHEET)


def shown_language(codes: Sequence[str]) -> str:
    """The first language that is not English, which CLIP reads, if there is one."""
    return next((code for code in codes if code != ENGLISH), codes[0])


def report(found: Mapping[str, Any], gallery: Gallery | None) -> Report:
    """The report of results, also of earlier ones from their JSON."""
    frozen = all(found["run"][stage]["task"]["frozen"] == "prior" for stage in ("image", "quality"))
    scores, accuracies = found["scores"], found["agreement"]
    plots = [
        score_plot(title, {name: by["predicted"][kind][ALL] for name, by in scores.items()}, file)
        for title, kind, file in (
            ("image found by the prior's prediction, short captions, all languages", "short", FOUND_PLOT),
            ("image found if the decisive sentence comes last, all languages", TAIL, TAIL_PLOT),
        )
    ]
    if accuracies:
        overall = {name: by[ALL] for name, by in accuracies.items()}
        plots.append(score_plot("prompt accuracy, all languages", overall, ACCURACY_PLOT))
    tables = _measure_tables(found) | _language_tables(found) | {"Cost": _cost_table(found["cost"])}
    return Report(
        "Text encoders at small scale",
        [_lead(found), *judge_lines(found)],
        [
            Section("", [*([gallery] if gallery else []), *plots]),
            *(Section(title, [table]) for title, table in tables.items()),
        ],
        limits=f"{LIMITS} {FROZEN if frozen else TRAINED}",
    )


def _measure_tables(found: Mapping[str, Any]) -> dict[str, Table]:
    codes, controls = found["run"]["scoring"]["languages"], found["controls"]
    columns = [ALL] if len(codes) == 1 else [*[ENGLISH] * (ENGLISH in codes), OTHERS]
    tables = {}
    for measure, (title, _) in MEASURES.items():
        show = percent if measure in SHARES else _plain
        lines = [
            [name, *(show(by[measure][kind][column]) for kind in KINDS for column in columns)]
            for name, by in found["scores"].items()
        ]
        empty = [""] * (len(KINDS) * len(columns) - 1)
        lines += [[name, show(by[measure]), *empty] for name, by in controls.items()]
        tables[title] = Table(["", *(f"{kind}, {column}" for kind in KINDS for column in columns)], lines)
        if measure in SHARES:
            gained = found["gained"].items()
            lines = [[_pair(pair), *(percent(by[measure][kind], signed=True) for kind in KINDS)] for pair, by in gained]
            tables[f"{title}: differences in points, all languages"] = Table(["", *KINDS], lines)
    lines = [[name, *(_plain(by[column]) for column in columns)] for name, by in found["unmoved"].items()]
    title = "Cosine of a long prompt's embedding to that with another last sentence (1: not read)"
    return tables | {title: Table(["", *columns], lines)}


def _language_tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """What is measured last, in each language."""
    titles = list(found["unmoved"][CLIP])
    tables = {}
    for kind in ("short", TAIL):
        scores = {name: by["predicted"][kind] for name, by in found["scores"].items()}
        lines = [[name, *(percent(by[title]) for title in titles)] for name, by in scores.items()]
        tables[f"{MEASURES['predicted'][0]}, {kind}"] = Table(["", *titles], lines)
    if accuracies := found["agreement"]:
        lines = [[name, *(percent(by.get(title)) for title in titles)] for name, by in accuracies.items()]
        tables["Prompt accuracy in per cent"] = Table(["", *titles], lines)
        lines = [[_pair(pair), percent(row, signed=True)] for pair, row in found["agreement_gained"].items()]
        tables["Differences of prompt accuracy in points, all languages"] = Table(["", ALL], lines)
    return tables


def _cost_table(costs: Mapping[str, Any]) -> Table:
    lines = [
        [
            name,
            *(f"{one['samples'].get(stage, 0):,}" for stage in NUMBERS.values()),
            f"{one['total']:,}",
            f"{one['minutes']:.1f}",
            f"{one['peak_lr']:g}",
        ]
        for name, one in costs.items()
    ]
    header = ["", "captions of stage 1", "of stage 2", "of stage 3", "together", "minutes", "last peak learning rate"]
    return Table(header, lines)


def _pair(name: str) -> str:
    return name.replace(" less ", " minus ")


def _plain(one: Mapping[str, float | int] | None) -> str:
    return "" if one is None else f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _frozen(which: str) -> str:
    return "nothing frozen" if which == "none" else f"{which} frozen"


def _lead(found: Mapping[str, Any]) -> str:
    run, cost = found["run"], found["cost"]
    align, image, quality, scoring = run["align"], run["image"], run["quality"], run["scoring"]
    recipe = align["recipe"]
    layers = "all" if recipe["layers"] == "all" else ", ".join(map(str, recipe["layers"]))
    normalised = "normalised" if recipe["normalise"] else "not normalised"
    images = (
        f" Images of {found['prompts']} prompts in each language in {scoring['steps']} steps, guidance {scoring['guidance_scale']:g}, by a "
        f"decoder that reads {', '.join(scoring['conditions'])}, from the same noise for all."
        if found["prompts"]
        else ""
    )
    return (
        f"`syzygy reproduce text-encoder`: {found['seconds'] / 60:.0f} minutes on {found['machine']}. Stage 1, on texts: "
        f"{cost['1']['total']:,} captions at a learning rate of {align['loop']['lr']:g}. Stage 2, on images, "
        f"{_frozen(image['task']['frozen'])}: {cost['1+2']['samples']['2']:,} at {image['loop']['lr']:g}; without stage 1 "
        f"{cost['2']['total']:,} at {run['untrained_lr']:g}. Stage 3, on images with {quality['filter']}, "
        f"{_frozen(quality['task']['frozen'])}: {cost['1+2+3']['samples']['3']:,} at {quality['loop']['lr']:g}. Features: the mean of layers "
        f"({layers}, {normalised}), or the last layer. {counted(run['seeds'], 'training')} of each candidate, in "
        f"{', '.join(scoring['languages'])}. {found['captions']} unseen captions for each language and length, which are also the candidates "
        f"in retrieval. {TAIL}: prompts whose decisive sentence comes last, after a paragraph (80 to 220 words, Chinese 120 to 240 "
        f"characters).{images} {CLIP}: the model's own, with its prior. Controls: {SHUFFLED} (CLIP's features of other captions) and "
        f"{MEAN_VECTOR}. Brackets: 95 %, by bootstrap over captions or prompts, the same in all languages, and by Student's t over "
        "trainings; differences are paired."
    )
