"""eDiff-I's experts (arXiv 2211.01324, section 4) against one model of equal total samples, at small scale: the experiment, results, report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.wording import counted
from syzygy.experts.training import node_trainings
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.bootstrap import interval
from syzygy.lab.evaluate.composition import REFERENCE
from syzygy.lab.plots import Point, line_plot
from syzygy.lab.report import Figure, Gallery, Report, Section, Table, require_lab
from syzygy.lab.reproduce.experiment import (
    ALL,
    SIDES,
    TITLES,
    ExperimentFolder,
    Findings,
    Score,
    accuracy,
    as_score,
    by_side,
    gain,
    judge_lines,
    judged,
    paired,
    score_plot,
    side_table,
)
from syzygy.lab.reproduce.experts_candidates import (
    FULL,
    LORA,
    LOSS_BATCH,
    REWEIGHTED,
    SHARED,
    START,
    TRAINED,
    ExpertsContext,
    ReproduceExpertsRun,
    Training,
    all_trainings,
    generate_images,
    leaves,
    measure_cost,
    measure_losses,
    mixture,
    settings,
    train,
)
from syzygy.training.run_records import Bar, no_bar

GROUPS = 4
"""Points for each expert's noise levels in the plot."""
AGAINST = {SHARED: (START, REWEIGHTED, FULL, LORA), REWEIGHTED: (FULL, LORA)}
"""Model → the candidates that are compared with it."""
WHOLE = "all of p(σ)"
SHEET, LOSS_PLOT, ACCURACY_PLOT = "experts.jpg", "experts-loss.svg", "experts-agreement.svg"
SHEET_TEXT = "Prompts and the images of each candidate. A green frame: every fact that the prompt names is right."
LIMITS = (
    "The decoder has a few million parameters and is trained for minutes. The paper's experts were trained for weeks, and gains that need "
    "long trainings are not seen here. If the shared model is no better than the start, its training was too short or its learning rate too "
    "high, and a candidate that moved less looks better for that reason alone. Learning rates were not tuned for any candidate. Each training "
    "of the tree warms up and cools down, while one model does so once over the same total. The samples of nodes on the way to a leaf are "
    "counted, although their networks are discarded. Experts have more weights than one model at equal cost of an evaluation; one network "
    "with as many weights is not among the candidates. Low-rank experts are evaluated next to the frozen weights instead of merged into them, "
    "which explains the higher cost of their evaluation. The world has 8 shapes, 8 colours, 3 textures and a grammar of its own, and beauty "
    "is not measured."
)

Losses = Sequence[Mapping[str, Tensor]]
"""For each training of a candidate: leaf → the loss of every image."""


def reproduce(
    run: ReproduceExpertsRun, out: Path, *, model: str, device: str, say: Callable[[str], None], bar: Bar = no_bar
) -> Findings:
    """Train, measure losses, generate and write the report. Steps whose files are in `out` are not repeated.

    Raises:
        UserError: leaves that do not form a tree, `out` holds an experiment with other settings, a model from which experts cannot be trained,
            or the extra "lab" is missing.
    """
    require_lab()
    nodes, trainings, folder = len(node_trainings(run.experts)), all_trainings(run), ExperimentFolder(out)
    loaded = TextToImage.from_pretrained(model, device=device)
    context = ExpertsContext.prepare(run, folder, loaded)
    folder.claim(run.model_dump(mode="json") | {"model": model, "fingerprints": loaded.fingerprints()})
    with folder.timed():
        say(f"1/3  {counted(len(trainings), 'training')} of {counted(nodes * run.experts.loop.steps, 'step')}")
        trained = {}
        for number, training in enumerate(trainings, 1):
            say(f"{number}/{len(trainings)}  {training.name}")
            trained[training] = train(training, context, say)
        say(f"2/3  loss on {counted(run.pictures, 'unseen image')} at {len(leaves(run))} experts' noise levels")
        measure_losses(context, None, context.root)
        for training, weights in trained.items():
            measure_losses(context, training, weights)
        measure_cost(context, {START: context.root} | {name: trained[Training(name, 0)] for name in TRAINED})
        say(f"3/3  generating images of {counted(len(context.prompts), 'prompt')} with each candidate")
        generate_images(context, trained, bar)
    found = judged(results(context))
    names = {START: START} | {candidate: Training(candidate, 0).name for candidate in TRAINED}
    return folder.finish(found, report(found, folder.gallery(names, context.prompts, SHEET_TEXT, SHEET)))


def results(context: ExpertsContext) -> dict[str, Any]:
    """All numbers, as JSON values."""
    run, folder = context.run, context.folder
    names = {REFERENCE: [REFERENCE], START: [START]}
    names |= {candidate: [Training(candidate, seed).name for seed in range(run.seeds)] for candidate in TRAINED}
    images = {name: folder.predictions(some) for name, some in names.items()}
    measured = {name: some for name, some in names.items() if name != REFERENCE}
    losses = {
        name: [artifacts.read_tensors(folder.tensors("losses", one)) for one in some] for name, some in measured.items()
    }
    return {
        "run": run.model_dump(mode="json"),
        **folder.time(),
        "prompts": len(context.prompts),
        "samples_seen": _samples(run),
        "agreement": {name: by_side(lambda *kind, some=some: accuracy(some, *kind)) for name, some in images.items()},
        "gained": {
            base: {
                name: by_side(lambda *kind, name=name, base=base: gain(images[name], images[base], *kind))
                for name in others
            }
            for base, others in AGAINST.items()
        },
        "frechet": {name: [folder.images(one)["frechet"] for one in some] for name, some in measured.items()},
        "losses": {name: _leaf_scores(_by_leaf(run, some)) for name, some in losses.items()},
        "losses_gained": {
            base: {name: loss_differences(run, losses[name], losses[base]) for name in others}
            for base, others in AGAINST.items()
        },
        "curves": {name: _curve(run, losses[name], losses[SHARED]) for name in AGAINST[SHARED]},
        "cost": _costs(context),
    }


def _samples(run: ReproduceExpertsRun) -> dict[str, Any]:
    """Samples of a candidate's training, how many of them trained networks that are discarded, and their distribution over noise levels."""
    each = run.experts.loop.steps * run.experts.task.batch_size
    nodes = node_trainings(run.experts)
    parts, weights = mixture(nodes)
    return {
        "trainings": len(nodes),
        "each": each,
        "total": each * len(nodes),
        "thrown_away": each * sum(one.name not in run.experts.leaves for one in nodes),
        "parts": [[*part, round(weight, 6)] for part, weight in zip(parts, weights, strict=True)],
    }


def _by_leaf(run: ReproduceExpertsRun, trainings: Losses) -> dict[str, list[list[float]]]:
    """Leaf → a row for each image, a column for each training; and the mean over p(σ), in which leaves count by the noise levels they serve."""
    own = {one.name: torch.stack([found[one.name] for found in trainings], 1) for one in leaves(run)}
    widths = {one.name: sum(high - low for low, high in one.shares) for one in leaves(run)}
    whole = sum((widths[name] * values.double() for name, values in own.items()), torch.zeros(()))
    return {name: values.tolist() for name, values in (own | {WHOLE: whole}).items()}


def _leaf_scores(values: Mapping[str, list[list[float]]]) -> dict[str, Score]:
    return {leaf: as_score(interval(one, trainings=True)) for leaf, one in values.items()}


def relative_differences(first: list[list[float]], second: list[list[float]]) -> list[list[float]]:
    """First − second for each image, in per cent of the second's mean."""
    base = mean(value for row in second for value in row)
    pairs = zip(paired(first, second), paired(second, first), strict=True)
    return [[100 * (x - y) / base for x, y in zip(a, b, strict=True)] for a, b in pairs]


def loss_differences(run: ReproduceExpertsRun, first: Losses, second: Losses) -> dict[str, Score]:
    """Leaf → the relative difference of the losses."""
    a, b = _by_leaf(run, first), _by_leaf(run, second)
    return _leaf_scores({leaf: relative_differences(a[leaf], b[leaf]) for leaf in a})


def _curve(run: ReproduceExpertsRun, first: Losses, second: Losses) -> list[list[float]]:
    """[σ, relative difference, half its interval] from the lowest noise, `GROUPS` points for each leaf."""
    points, size = [], LOSS_BATCH // GROUPS
    a, b = _by_leaf(run, first), _by_leaf(run, second)
    for leaf in leaves(run):
        noise = run.experts.task.noise.changed(shares=leaf.shares, weights=None)
        for group in range(GROUPS):
            rows = [i for i in range(run.pictures) if i % LOSS_BATCH // size == group]
            differences = relative_differences(*([one[leaf.name][i] for i in rows] for one in (a, b)))
            found = interval(differences, trainings=True)
            sigma = noise.spread(torch.tensor([(group + 0.5) / GROUPS]))[0].item()
            points.append([round(x, 4) for x in (sigma, found.mean, (found.high - found.low) / 2)])
    return sorted(points)


def _costs(context: ExpertsContext) -> dict[str, dict[str, float | int]]:
    """What each candidate needs: weights, time of an evaluation, time of the training."""
    timed = artifacts.read_json(context.folder.path / "cost.json")["seconds"]
    found = {}
    for candidate in (START, *TRAINED):
        folder = context.root if candidate == START else context.weights(Training(candidate, 0))
        files = sorted(folder.rglob(artifacts.WEIGHTS_FILE))
        sizes = [sum(x.numel() for x in artifacts.read_tensors(file).values()) for file in files]
        # Full experts serve one at a time, low-rank ones together with the frozen decoder, which is the largest file.
        in_use = sum(sorted(sizes)[-2:]) if candidate == LORA else max(sizes)
        found[candidate] = {
            "weights": sum(sizes),
            "at_work": in_use,
            "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
            "milliseconds": round(1000 * timed[candidate], 1),
            "ratio": round(timed[candidate] / timed[SHARED], 3),
        } | ({} if candidate == START else _training_cost(context, candidate))
    return found


def _training_cost(context: ExpertsContext, candidate: str) -> dict[str, float | int]:
    """The length of a candidate's training, on average."""
    seeds = context.run.seeds
    records = [
        artifacts.read_json(file) for seed in range(seeds) for file in context.records(Training(candidate, seed))
    ]
    return {
        "samples": sum(one["samples"] for one in records) / seeds,
        "minutes": round(sum(one["seconds"] for one in records) / 60 / seeds, 1),
        "peak_lr": settings(Training(candidate, 0), context.run).loop.lr,
    }


def report(found: Mapping[str, Any], gallery: Gallery) -> Report:
    """The report of results, also of earlier ones from their JSON."""
    leaf_names = ["", *found["losses"][SHARED]]
    losses = [[name, *(f"{one['mean']:.4f}" for one in rows.values())] for name, rows in found["losses"].items()]
    sections = [
        Section("", [gallery, *_plots(found)]),
        Section("Loss on unseen images at each expert's noise levels", [Table(leaf_names, losses)]),
    ]
    for base, rows in found["losses_gained"].items():
        lines = [[name, *map(_signed, row.values())] for name, row in rows.items()]
        sections.append(
            Section(f"Loss compared with {base}, in per cent of its loss (lower is better)", [Table(leaf_names, lines)])
        )
    title = "Prompt accuracy in per cent (reference: renders, as the judge reads them)"
    sections.append(Section(title, [side_table(found["agreement"])]))
    for base, columns in found["gained"].items():
        sections.append(Section(f"Prompt accuracy minus that of {base}, in points", [side_table(columns, signed=True)]))
    kinds = list(next(iter(found["frechet"].values()))[0])
    if kinds:
        lines = [
            [name, *(_range([one[kind] for one in some]) for kind in kinds)] for name, some in found["frechet"].items()
        ]
        title = "Fréchet distance of images to renders of the same prompts (lowest to highest of the trainings)"
        sections.append(Section(title, [Table(["", *(f"{kind}'s features" for kind in kinds)], lines)]))
    return Report(
        "Experts at small scale",
        [_lead(found), *judge_lines(found)],
        [*sections, Section("Cost", [_cost_table(found["cost"])])],
        LIMITS,
    )


def _cost_table(costs: Mapping[str, Mapping[str, float]]) -> Table:
    titles = {
        "weights": ("weights", ",.0f"),
        "at_work": ("in use in an evaluation", ",.0f"),
        "megabytes": ("MB (fp16)", ".1f"),
        "milliseconds": ("ms for an evaluation", ".0f"),
        "ratio": ("ratio", ".2f"),
        "samples": ("samples", ",.0f"),
        "minutes": ("minutes", ".1f"),
        "peak_lr": ("peak learning rate", "g"),
    }
    lines = [
        [name, *(format(one[key], style) if key in one else "" for key, (_, style) in titles.items())]
        for name, one in costs.items()
    ]
    return Table(["", *(title for title, _ in titles.values())], lines)


def _signed(one: Mapping[str, float | int]) -> str:
    return f"{one['mean']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{mean(values):.3f}" if low == high else f"{mean(values):.3f} ({low:.3f} to {high:.3f})"


def _lead(found: Mapping[str, Any]) -> str:
    run, seen = found["run"], found["samples_seen"]
    experts, loop = run["experts"], run["experts"]["loop"]
    parts = ", ".join(f"{100 * weight:.1f} % in {low:g}–{high:g}" for low, high, weight in seen["parts"])
    discarded = f", {seen['thrown_away']:,} of them for nodes that are discarded" if seen["thrown_away"] else ""
    noise = experts["task"]["noise"]
    return (
        f"`syzygy reproduce experts`: {found['seconds'] / 60:.0f} minutes on {found['machine']}. Experts {', '.join(experts['leaves'])}, cut "
        f"from ln σ ~ N({noise['p_mean']:g}, {noise['p_std']:g}²), were trained from the model's decoder ({START}) in {seen['trainings']} "
        f"trainings of {loop['steps']} steps of {experts['task']['batch_size']}: {seen['total']:,} samples in all{discarded}. {SHARED}: that "
        f"decoder trained for as many samples of the same p(σ). {REWEIGHTED}: the same, with p(σ) as the experts' trainings saw it together "
        f"({parts}, in quantiles of p(σ)). The learning rate of every training falls to zero by a cosine over its length, with the same part "
        f"of it as warm-up. {counted(run['seeds'], 'training')} of each candidate. Images of {found['prompts']} prompts in {run['steps']} "
        f"steps, guidance {run['guidance_scale']:g}, by a decoder that reads all of its conditions, from the same noise for all. Losses on "
        f"{run['pictures']:,} unseen images for each expert, with the same noise, σ and conditions for all. Brackets: 95 %, by bootstrap over "
        "prompts or images and by Student's t over trainings; differences are paired."
    )


def _plots(found: Mapping[str, Any]) -> list[Figure]:
    lines: dict[str, list[Point]] = {SHARED: [(point[0], 0.0) for point in found["curves"][START]]}
    lines |= {name: [(x, y, half) for x, y, half in points] for name, points in found["curves"].items()}
    title = f"loss minus {SHARED}'s, in per cent of it, against σ"
    scores = {
        f"{name}, {TITLES[side]}": sides[side][ALL]
        for side in SIDES
        for name, sides in found["agreement"].items()
        if name != REFERENCE
    }
    return [
        line_plot(title, lines, x="σ", log=True, size=(6.6, 3.6), file=LOSS_PLOT),
        score_plot("prompt accuracy", scores, ACCURACY_PLOT),
    ]
