"""ECLIPSE's comparison at small scale (arXiv 2312.04655): the experiment, its results and its report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from syzygy.core.wording import counted
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.bootstrap import student
from syzygy.lab.evaluate.composition import IDENTITY, LINEAR, REFERENCE, SHIFTED
from syzygy.lab.plots import Point, line_plot
from syzygy.lab.report import Figure, Gallery, Report, Section, Table, require_lab
from syzygy.lab.reproduce.eclipse_candidates import (
    DIFFUSION,
    ECLIPSE,
    FLOW,
    METHODS,
    PAPER,
    PROJECTION,
    RESIDUAL,
    EclipseContext,
    ReproduceRun,
    Training,
    all_trainings,
    generate_images,
    image_trainings,
    sampling_name,
    score_controls,
    sweep_sampling,
    train_and_score,
    varied_prompts,
)
from syzygy.lab.reproduce.embedding_scores import PROMPTS
from syzygy.lab.reproduce.experiment import (
    SIDES,
    TITLES,
    ExperimentFolder,
    Findings,
    accuracy,
    by_side,
    gain,
    judge_lines,
    judged,
    percent,
    preference,
    score_plot,
    side_table,
)
from syzygy.lab.reproduce.variety import RENDERS
from syzygy.lab.reproduce.variety import SCORES as VARIETY
from syzygy.training.run_records import Bar, no_bar

SCORES = {
    "cosine": "cosine to true",
    "recall_at_1": "R@1",
    "frechet": "Fréchet",
    "probe_seen": "probe, seen",
    "probe_held_out": "probe, unseen",
    "probe_seen_one": "probe, one object, seen",
    "probe_held_out_one": "one, unseen",
    "probe_seen_two": "two, seen",
    "probe_held_out_two": "two, unseen",
}
"""Heading of each score; earlier results have not all of them."""
COSTS = {
    "parameters": "parameters",
    "samples": "training samples",
    "seconds": "seconds, validation included",
    "evaluations": "evaluations",
}
CONTROLS = (IDENTITY, SHIFTED, LINEAR)
AGAINST = (PROJECTION, DIFFUSION, FLOW, SHIFTED, LINEAR, RESIDUAL)
"""The candidates with which ECLIPSE is compared."""
SWEPT = "± is half the range over the trainings of a point."
SHEET = "eclipse.jpg"
SHEET_TEXT = "Prompts and the images of each candidate. A green frame: every fact that the prompt names is right."
LIMITS = (
    "The world has 8 shapes, 8 colours, 3 textures and a grammar of its own. CLIP and decoder are tiny and trained on this world alone, and "
    "the priors are 50 times smaller than the paper's. A difference seen here need not exist at that scale, nor the other way round. Beauty, "
    "which people also judge, is not measured. The linear probe and R@1 measure CLIP's space with CLIP's own features."
)

Spread = tuple[float, float]
"""A middle, and the distance to either end."""


def reproduce(
    run: ReproduceRun, out: Path, *, model: str, device: str, say: Callable[[str], None], bar: Bar = no_bar
) -> Findings:
    """Train, score, sweep, generate and write the report. Steps whose files are in `out` are not repeated.

    Raises:
        UserError: `out` holds an experiment with other settings, budgets are not equal, or the extra "lab" is missing.
    """
    require_lab()
    folder, trainings = ExperimentFolder(out), all_trainings(run)
    loaded = TextToImage.from_pretrained(model, device=device)
    folder.claim(run.model_dump(mode="json") | {"model": model, "fingerprints": loaded.fingerprints()})
    with folder.timed():
        say(f"1/4  embedding pairs and training the probe on {counted(run.probe_scenes, 'scene')}")
        context = EclipseContext.prepare(run, folder, loaded, bar)
        say(f"2/4  {counted(len(trainings), 'training')}")
        for training in trainings:
            train_and_score(training, context)
        say("3/4  controls and the baseline's sampling")
        score_controls(context)
        sweep_sampling(context)
        say(f"4/4  generating images of {counted(len(context.scorer.prompts), 'prompt')} with each candidate")
        generate_images(context, bar)
    found = judged(results(run, folder)) | {"varied_prompts": len(varied_prompts(run, context.scorer.prompts))}
    names = [REFERENCE, *(f"{method}-seed0" for method in METHODS), *CONTROLS]
    gallery = folder.gallery({name: name for name in names}, context.scorer.prompts, SHEET_TEXT, SHEET)
    return folder.finish(found, report(found, gallery))


def spread(values: Sequence[float | int]) -> Spread:
    """The mean over trainings and half the width of its 95 % t interval (0 for a single one)."""
    if len(values) == 1:
        return float(values[0]), 0.0
    return float(mean(values)), student(len(values)) * stdev(values) / len(values) ** 0.5


def half_range(values: Sequence[float | int]) -> Spread:
    """The middle between the lowest and the highest value, and the distance to either."""
    return (max(values) + min(values)) / 2, (max(values) - min(values)) / 2


def results(run: ReproduceRun, folder: ExperimentFolder) -> dict[str, Any]:
    """All numbers, as JSON values."""
    contrast = run.contrast

    def over(names: Sequence[str], summarize: Callable[[Sequence[float]], Spread]) -> dict[str, Spread]:
        found = [folder.scores(name) for name in names]
        return {key: summarize([one[key] for one in found]) for key in found[0]}

    def swept(method: str, value: float = contrast, fraction: float = 1.0) -> dict[str, Spread]:
        return over([Training(method, seed, value, fraction).name for seed in range(run.sweep_seeds)], half_range)

    embeddings: dict[str, Any] = {
        method: over([Training(method, seed, contrast).name for seed in range(run.seeds)], spread) for method in METHODS
    }
    for name in (*CONTROLS, REFERENCE):
        embeddings[name] = {key: (value, 0.0) for key, value in folder.scores(name).items()}
    sweeps: dict[str, Any] = {
        "lambda": {value: swept(ECLIPSE if value else PROJECTION, value or contrast) for value in run.lambdas},
        "fraction": {method: {part: swept(method, fraction=part) for part in run.fractions} for method in PAPER},
    }
    for key, values in (("steps", run.sampling_steps), ("eta", run.etas)):
        seeds = range(run.sweep_seeds)
        sweeps[key] = {value: over([sampling_name(key, value, seed) for seed in seeds], half_range) for value in values}
    images = {name: folder.predictions([name]) for name in (REFERENCE, *CONTROLS)}
    images |= {method: folder.predictions(image_trainings(run, method)) for method in METHODS}
    ours = images[ECLIPSE]
    decoded = {name: [name] for name in (REFERENCE, *CONTROLS)}
    decoded |= {method: list(image_trainings(run, method)) for method in METHODS}
    variety = {name: _spread_of([folder.images(one)["variety"] for one in some]) for name, some in decoded.items()}
    return {
        "run": run.model_dump(mode="json"),
        **folder.time(),
        "embeddings": embeddings,
        "sweeps": sweeps,
        "variety": variety,
        "agreement": {
            name: by_side(lambda *kind, some=some: accuracy(some, *kind), PROMPTS) for name, some in images.items()
        },
        "eclipse_minus": {
            name: by_side(lambda *kind, name=name: gain(ours, images[name], *kind), PROMPTS) for name in AGAINST
        },
        "eclipse_preferred": {
            name: {side: preference(ours, images[name], unseen) for side, unseen in SIDES.items()} for name in AGAINST
        },
    }


def report(found: Mapping[str, Any], gallery: Gallery) -> Report:
    """The report of results, also of earlier ones from their JSON."""
    accuracies, embeddings, preferred = found["agreement"], found["embeddings"], found["eclipse_preferred"]
    overall = {side: {name: sides[side]["all"] for name, sides in accuracies.items()} for side in SIDES}
    preference_lines = [[TITLES[side], *(percent(sides[side]) for sides in preferred.values())] for side in SIDES]
    costs = [[name, *(f"{one[key][0]:,.0f}" for key in COSTS)] for name, one in embeddings.items() if "seconds" in one]
    return Report(
        "ECLIPSE at small scale",
        [_lead(found), *judge_lines(found)],
        [
            Section("", [score_plot(f"prompt accuracy, {TITLES[side]} compositions", overall[side]) for side in SIDES]),
            Section("Prompt accuracy in per cent", [side_table(accuracies)]),
            Section(
                "ECLIPSE's prompt accuracy minus the others', in points",
                [side_table({f"− {name}": sides for name, sides in found["eclipse_minus"].items()}, signed=True)],
            ),
            Section(
                "How often more facts are right in ECLIPSE's image, in per cent (a tie counts half; paper: 71.6 by PickScore)",
                [Table(["", *(f"against {name}" for name in preferred)], preference_lines)],
            ),
            Section("Embeddings", [score_table(embeddings)]),
            *_variety(found),
            Section("Cost of a prior (evaluations: passes for an image)", [Table(["", *COSTS.values()], costs)]),
            Section("Sweeps (embeddings)", [SWEPT, *_sweep_tables(found["sweeps"]), *_sweep_plots(found["sweeps"])]),
            Section("Images", [gallery]),
        ],
        limits=LIMITS,
    )


def _spread_of(scores: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {key: spread([one[key] for one in scores]) for key in scores[0]}


def _variety(found: Mapping[str, Any]) -> list[Section]:
    """How much the images of a prompt differ; earlier results lack it."""
    if "variety" not in found:
        return []
    rows = {RENDERS: {"images": found["variety"][REFERENCE][RENDERS]}} | found["variety"]
    lines = [[name, *(_plus_minus(one.get(key)) for key in VARIETY)] for name, one in rows.items()]
    text = (
        f"The mean distance between two of the {found['run']['variations']} images of a prompt, each from its own noise, of "
        f"{found['varied_prompts']} prompts with one or two objects. Renders differ in all that a prompt leaves open; an image that is wrong "
        "differs too, so compare this with the prompt accuracy."
    )
    return [Section("Variety of the images of one prompt", [text, Table(["", *VARIETY.values()], lines)])]


def _lead(found: Mapping[str, Any]) -> str:
    run, prior = found["run"], found["run"]["prior"]
    return (
        f"`syzygy reproduce eclipse`: {found['seconds'] / 60:.0f} minutes on {found['machine']}. {prior['scenes']:,} pairs, "
        f"{prior['loop']['steps']} steps of {prior['task']['batch_size']}, {prior['num_layers']} layers. {run['seeds']} trainings of each "
        f"method were scored on embeddings (± is the 95 % t interval over trainings). {min(run['painted_seeds'], run['seeds'])} of them were "
        f"decoded in {run['steps']} steps without guidance by a decoder that reads only the image embedding (brackets: 95 %, by bootstrap "
        "over prompts and by Student's t over trainings; the reference and each control are one training). Pairs, steps, batches and noise are "
        "the same for all methods."
    )


def score_table(rows: Mapping[str, Mapping[str, Sequence[float]]], caption: str = "") -> Table:
    """A line for each candidate, a column for each score that some of them have."""
    keys = [key for key in SCORES if any(key in one for one in rows.values())]
    lines = [[name, *(_plus_minus(one.get(key)) for key in keys)] for name, one in rows.items()]
    return Table(["", *(SCORES[key] for key in keys)], lines, caption)


def _plus_minus(value: Sequence[float | int] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.3f} ± {value[1]:.3f}" if value[1] else f"{value[0]:.3f}"


def _sweep_tables(sweeps: Mapping[str, Any]) -> list[Table]:
    fractions = {
        f"{method}, {part}": one for method, points in sweeps["fraction"].items() for part, one in points.items()
    }
    titles = {"λ (0: projection)": sweeps["lambda"], "Share of the training pairs": fractions}
    titles |= {"Sampling steps of the baseline": sweeps["steps"], "Noise that the baseline adds (η)": sweeps["eta"]}
    return [score_table({str(value): one for value, one in points.items()}, title) for title, points in titles.items()]


def _sweep_plots(sweeps: Mapping[str, Any]) -> list[Figure]:
    def line(points: Mapping[Any, Any], key: str) -> list[Point]:
        return [(float(value), *scores[key]) for value, scores in points.items()]

    plots = []
    for name, axis in (("lambda", "λ"), ("steps", "steps"), ("eta", "η")):
        both = {"seen": line(sweeps[name], "probe_seen"), "unseen": line(sweeps[name], "probe_held_out")}
        plots.append(line_plot(f"probe against {axis}", both, x=axis))
        plots.append(line_plot(f"Fréchet distance against {axis}", {"": line(sweeps[name], "frechet")}, x=axis))
    for key in ("probe_seen", "probe_held_out", "recall_at_1"):
        lines = {method: line(points, key) for method, points in sweeps["fraction"].items()}
        plots.append(line_plot(f"{SCORES[key]} against share of the pairs", lines, x="share", log=True))
    return plots
