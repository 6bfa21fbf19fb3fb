"""Learning curves of priors and sweeps over their settings, on embeddings first: the experiment, its results and its report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from syzygy.core.wording import counted
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.composition import IDENTITY, LINEAR, REFERENCE, SHIFTED
from syzygy.lab.plots import Point as Dot
from syzygy.lab.plots import line_plot
from syzygy.lab.report import Figure, Report, Section, Table, require_lab
from syzygy.lab.reproduce.eclipse_candidates import ECLIPSE, PROJECTION, RESIDUAL
from syzygy.lab.reproduce.eclipse_experiment import SCORES, Spread, score_table, spread
from syzygy.lab.reproduce.embedding_scores import PROMPTS
from syzygy.lab.reproduce.experiment import (
    ExperimentFolder,
    Findings,
    accuracy,
    by_side,
    judge_lines,
    judged,
    side_table,
)
from syzygy.lab.reproduce.prior_sweep_points import (
    PriorSweepRun,
    all_points,
    control_name,
    curves,
    sweeps,
)
from syzygy.lab.reproduce.prior_sweep_trainings import (
    SweepContext,
    estimate,
    estimate_line,
    generate_images,
    image_names,
    score_controls,
    train_and_score,
)
from syzygy.training.run_records import Bar, no_bar

TITLES = {
    "contrast": "λ",
    "penalty": "penalty",
    "steps": "training steps",
    "temperature": "temperature",
    "muon_lr": "learning rate of Muon (0: AdamW)",
    "heads": "attention heads",
}
PLOTTED = (
    "cosine",
    "recall_at_1",
    "frechet",
    "probe_seen_one",
    "probe_seen_two",
    "probe_held_out_one",
    "probe_held_out_two",
)
"""Scores with a learning curve."""
AGAINST = (ECLIPSE, PROJECTION, LINEAR, SHIFTED)
"""The candidates with which the residual prior is compared."""
LIMITS = (
    "The world has 8 shapes, 8 colours, 3 textures and a grammar of its own. CLIP is tiny and trained on this world alone, and the priors are "
    "50 times smaller than published ones: which prior is better with how many pairs need not be the same there. Settings are swept one at a "
    "time around the presets, so a better combination may exist. The probe and R@1 measure CLIP's space with CLIP's own features. Intervals "
    "cover the trainings and, as long as there are enough pairs for each training to have its own, the choice of pairs."
)


def forecast(run: PriorSweepRun, out: Path, *, model: str, device: str) -> dict[str, float | int]:
    """The estimate of what is left to do in `out`, without writing there.

    Raises:
        UserError: settings that contradict each other.
    """
    run.check()
    return estimate(run, ExperimentFolder(out), TextToImage.from_pretrained(model, device=device))


def reproduce(
    run: PriorSweepRun, out: Path, *, model: str, device: str, say: Callable[[str], None], bar: Bar = no_bar
) -> Findings:
    """Train, score, perhaps generate, and write the report. Steps whose files are in `out` are not repeated.

    Raises:
        UserError: settings that contradict each other, `out` holds an experiment with others, or the extra "lab" is missing.
    """
    require_lab()
    run.check()
    folder, points = ExperimentFolder(out), all_points(run)
    loaded = TextToImage.from_pretrained(model, device=device)
    folder.claim(run.claimed() | {"clip": loaded.clip.fingerprint()})
    say(estimate_line(estimate(run, folder, loaded)))
    with folder.timed():
        say(f"1/4  embedding {counted(max(run.pairs), 'pair')} and training the probe")
        context = SweepContext.prepare(run, folder, loaded, bar)
        say(f"2/4  {counted(len(points) * run.seeds, 'training')}")
        for point in points:
            for seed in range(run.seeds):
                train_and_score(point, seed, context)
        say("3/4  controls")
        score_controls(context)
        say(
            f"4/4  generating images at {run.images_at} pairs"
            if run.images_at
            else "4/4  no images (images_at is empty)"
        )
        generate_images(context, bar)
    found = judged(results(run, folder))
    return folder.finish(found, report(found))


def results(run: PriorSweepRun, folder: ExperimentFolder) -> dict[str, Any]:
    """All numbers, as JSON values: means over trainings with half of their 95 % t interval."""
    seeds = range(run.seeds)

    def over(names: Sequence[str]) -> dict[str, Spread]:
        found = [folder.scores(name) for name in names]
        return {key: spread([one[key] for one in found]) for key in found[0]}

    names: dict[str, dict[int, list[str]]] = {
        method: {pairs: [point.name(seed) for seed in seeds] for pairs, point in points.items()}
        for method, points in curves(run).items()
    }
    for control, ridge in ((IDENTITY, None), (SHIFTED, None), (LINEAR, run.ridge)):
        names[control] = {pairs: [control_name(control, pairs, seed, ridge) for seed in seeds] for pairs in run.pairs}
    ridges = {
        pairs: {ridge: over([control_name(LINEAR, pairs, seed, ridge) for seed in seeds]) for ridge in run.ridges}
        for pairs in run.pairs
    }
    return {
        "run": run.model_dump(mode="json"),
        **folder.time(),
        "reference": {key: (value, 0.0) for key, value in folder.scores(REFERENCE).items()},
        "curves": {name: {pairs: over(some) for pairs, some in points.items()} for name, points in names.items()},
        "residual_minus": {
            other: {pairs: _differences(folder, names[RESIDUAL][pairs], names[other][pairs]) for pairs in run.pairs}
            for other in AGAINST
        },
        "sweeps": {
            key: {
                pairs: {
                    method: {value: over([point.name(seed) for seed in seeds]) for value, point in points.items()}
                    for method, points in methods.items()
                }
                for pairs, methods in by_pairs.items()
            }
            for key, by_pairs in sweeps(run).items()
        },
        "ridges": ridges,
        "images": {pairs: _images(folder, image_names(run, pairs)) for pairs in run.images_at},
    }


def _differences(folder: ExperimentFolder, ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Spread]:
    """Means of the paired differences of trainings on the same pairs."""
    pairs = [(folder.scores(a), folder.scores(b)) for a, b in zip(ours, theirs, strict=True)]
    return {key: spread([a[key] - b[key] for a, b in pairs]) for key in SCORES}


def _images(folder: ExperimentFolder, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    found = {candidate: folder.predictions(some) for candidate, some in names.items()}
    return {
        candidate: by_side(lambda *kind, some=some: accuracy(some, *kind), PROMPTS) for candidate, some in found.items()
    }


def report(found: Mapping[str, Any]) -> Report:
    """The report of results, also of earlier ones from their JSON."""
    by_candidate = found["curves"]
    sizes = list(next(iter(by_candidate.values())))
    sections = [Section("Learning curves", _curve_plots(by_candidate))]
    for pairs in sizes:
        rows = {name: points[pairs] for name, points in by_candidate.items()} | {REFERENCE: found["reference"]}
        differences = {f"− {other}": points[pairs] for other, points in found["residual_minus"].items()}
        tables = [
            score_table(rows),
            score_table(differences, "Residual minus the others, paired by the pairs they were trained on"),
        ]
        sections.append(Section(f"{int(pairs):,} pairs", tables))
    for key, by_pairs in found["sweeps"].items():
        for pairs, methods in by_pairs.items():
            title = f"{TITLES[key]} with {int(pairs):,} pairs"
            rows = {f"{method}, {value}": one for method, points in methods.items() for value, one in points.items()}
            sections.append(Section(f"Sweep: {title}", [*_sweep_plots(title, methods), score_table(rows)]))
    ridges = {
        f"{int(pairs):,} pairs, {ridge}": one
        for pairs, points in found["ridges"].items()
        for ridge, one in points.items()
    }
    sections.append(Section("Regularisation of the linear map", [score_table(ridges)]))
    for pairs, candidates in found["images"].items():
        tables: list[Table] = [side_table(candidates)]
        sections.append(Section(f"Prompt accuracy of images with {int(pairs):,} pairs, in per cent", tables))
    return Report(
        "Priors by the number of their training pairs", [_lead(found), *judge_lines(found)], sections, limits=LIMITS
    )


def _lead(found: Mapping[str, Any]) -> str:
    run, prior, residual = found["run"], found["run"]["prior"], found["run"]["residual"]
    size = f"{prior['num_layers']} layers of {prior['num_attention_heads']} heads"
    return (
        f"`syzygy reproduce prior-sweep`: {found['seconds'] / 60:.0f} minutes on {found['machine']}. Unless a table says otherwise: "
        f"{prior['loop']['steps']} steps of {prior['task']['batch_size']}, {size}; ECLIPSE with "
        f"λ {prior['task']['lambda_contrastive']:g}; **residual**, which is the shifted text identity plus a learned correction, with "
        f"λ {residual['lambda_contrastive']:g} and penalty {residual['penalty']:g}; **linear map**, ridge regression with {run['ridge']:g}. "
        f"{run['seeds']} trainings of each point; ± is half of the 95 % t interval over them. Each has its own pairs as long as there are "
        f"enough of the {max(run['pairs']):,}, and otherwise the same. No training saw the unseen compositions. The "
        "probe's scores are the share of the named combinations that a linear probe finds in the predicted embedding."
    )


def _curve_plots(by_candidate: Mapping[str, Mapping[Any, Mapping[str, Sequence[float]]]]) -> list[Figure]:
    def line(points: Mapping[Any, Mapping[str, Sequence[float]]], key: str) -> list[Dot]:
        return [(float(pairs), one[key][0], one[key][1]) for pairs, one in points.items()]

    return [
        line_plot(
            SCORES[key],
            {name: line(points, key) for name, points in by_candidate.items()},
            x="training pairs",
            log=True,
            file=f"prior-sweep-{key.replace('_', '-')}.svg",
        )
        for key in PLOTTED
    ]


def _sweep_plots(title: str, methods: Mapping[str, Mapping[Any, Mapping[str, Sequence[float]]]]) -> list[Figure]:
    """The probe over the values; none where a value is a name."""
    if not all(_is_number(value) for points in methods.values() for value in points):
        return []
    sides = {"seen": "probe_seen", "unseen": "probe_held_out"}
    lines: dict[str, list[Dot]] = {
        f"{method}, {side}": [(float(value), one[key][0], one[key][1]) for value, one in points.items()]
        for method, points in methods.items()
        for side, key in sides.items()
    }
    return [line_plot(f"probe against {title}", lines, x=title.split(" with ", maxsplit=1)[0])]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
