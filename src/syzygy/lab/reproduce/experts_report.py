"""The comparison of `runs/reproduce_experts.py` as JSON, as Markdown with plots, and as a page."""

import html
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.experts.training import node_trainings
from syzygy.lab.evaluate import report
from syzygy.lab.evaluate.bootstrap import interval
from syzygy.lab.evaluate.composition import REFERENCE
from syzygy.lab.reproduce import score_files
from syzygy.lab.reproduce.experts_candidates import (
    FULL,
    LORA,
    REWEIGHTED,
    SHARED,
    START,
    TRAINED,
    Bench,
    Job,
    ReproduceExpertsRun,
    leaves,
    mixture,
    settings,
)
from syzygy.lab.reproduce.experts_experiment import LOSS_BATCH, losses_file
from syzygy.lab.reproduce.score_files import CATEGORIES, SIDES, Shown, agreement, gained, percent, pictures_table

GROUPS = 4
"""Points of an expert's noise levels in the plot."""
AGAINST = {SHARED: (START, REWEIGHTED, FULL, LORA), REWEIGHTED: (FULL, LORA)}
"""Whom each is compared with."""
WHOLE = "all of p(σ)"
COMMAND = "`syzygy reproduce experts`"
SHEET, LOSS_PLOT, AGREEMENT_PLOT = "experts.jpg", "experts-loss.svg", "experts-agreement.svg"
SHEET_TEXT = "Prompts, and what each candidate paints of them; a green frame where everything named is right"
LIMITS = (
    "What this cannot show: the decoder has a few million parameters and goes on for minutes; the paper's experts were trained for "
    "weeks, and gains that need long trainings are not seen here. Where the shared model is no better than the start, its training was too "
    "short or its rate too high, and a candidate that moved less looks better for that alone. Learning rates were not tuned for any "
    "candidate. Each training of the tree warms up and cools down anew, where one model does so once over the same total. The samples that "
    "nodes on the way to a leaf saw are counted, though their networks are thrown away. Experts hold more weights than one model, at equal "
    "cost of an evaluation: one network with as many weights is not among the candidates. Low-rank experts are evaluated beside the frozen "
    "weights, not merged into them, which is what their evaluation costs more. The world has 8 shapes, 8 colours, 3 textures and a grammar "
    "of its own, and beauty is not measured."
)
Table = tuple[list[str], list[list[str]]]


def results(run: ReproduceExpertsRun, bench: Bench) -> dict[str, Any]:
    """All numbers, as JSON values."""
    out = bench.out
    judged = {name: [score_files.read(out, one) for one in names] for name, names in _names(run).items()}
    sides = [(title, held_out, c) for held_out, title in SIDES for c in (*CATEGORIES, "all")]
    losses = {
        name: [artifacts.read_tensors(losses_file(out, one)) for one in names]
        for name, names in _names(run).items()
        if name != REFERENCE
    }
    return {
        "run": run.model_dump(mode="json"),
        **artifacts.read_json(out / "time.json"),
        "prompts": len(bench.wanted),
        "samples_seen": _seen(run),
        "agreement": {
            name: _nested((t, c, agreement(some, c, held)) for t, held, c in sides) for name, some in judged.items()
        },
        "gained": {
            base: {
                name: _nested((t, c, gained(judged[name], judged[base], c, held)) for t, held, c in sides)
                for name in names
            }
            for base, names in AGAINST.items()
        },
        "frechet": {
            name: [artifacts.read_json(score_files.painted_file(out, one))["frechet"] for one in names]
            for name, names in _names(run).items()
            if name != REFERENCE
        },
        "losses": {name: {leaf: score_files.row(interval(values, trainings=True)) for leaf, values in _by_leaf(run, some).items()}
                   for name, some in losses.items()},
        "losses_gained": {base: {name: _relative(run, losses[name], losses[base]) for name in names} for base, names in AGAINST.items()},
        "curves": {name: _curve(run, losses[name], losses[SHARED]) for name in AGAINST[SHARED]},
        "cost": _costs(run, bench),
    }  # fmt: skip


def _names(run: ReproduceExpertsRun) -> dict[str, list[str]]:
    """Candidate → its trainings' names."""
    trained = {candidate: [Job(candidate, seed).name for seed in range(run.seeds)] for candidate in TRAINED}
    return {REFERENCE: [REFERENCE], START: [START], **trained}


def _nested(rows: Any) -> dict[str, dict[str, Any]]:
    """(side, category, value) → side → category → value."""
    found: dict[str, dict[str, Any]] = {}
    for side, category, value in rows:
        found.setdefault(side, {})[category] = value
    return found


def _seen(run: ReproduceExpertsRun) -> dict[str, Any]:
    """Samples of a candidate's training, how many of them went into networks that are not kept, and where all of them fell."""
    each = run.experts.loop.steps * run.experts.task.batch_size
    trainings = node_trainings(run.experts)
    thrown = sum(one.name not in run.experts.leaves for one in trainings)
    parts, weights = mixture(trainings)
    return {
        "trainings": len(trainings),
        "each": each,
        "total": each * len(trainings),
        "thrown_away": each * thrown,
        "parts": [[*part, round(weight, 6)] for part, weight in zip(parts, weights, strict=True)],
    }


def _by_leaf(run: ReproduceExpertsRun, trainings: Sequence[Mapping[str, Tensor]]) -> dict[str, list[list[float]]]:
    """Leaf → a row a picture, a column a training; and the mean over p(σ), where each leaf counts as much as it serves."""
    own = {one.name: torch.stack([found[one.name] for found in trainings], 1) for one in leaves(run)}
    widths = {one.name: sum(high - low for low, high in one.shares) for one in leaves(run)}
    whole = sum((widths[name] * values.double() for name, values in own.items()), torch.zeros(()))
    return {name: values.tolist() for name, values in (own | {WHOLE: whole}).items()}


def _differences(first: list[list[float]], second: list[list[float]]) -> list[list[float]]:
    """First less second, picture by picture, in per cent of the second's mean."""
    base = mean(value for row in second for value in row)
    pairs = zip(score_files.paired(first, second), score_files.paired(second, first), strict=True)
    return [[100 * (x - y) / base for x, y in zip(a, b, strict=True)] for a, b in pairs]


def _relative(
    run: ReproduceExpertsRun, first: Sequence[Mapping[str, Tensor]], second: Sequence[Mapping[str, Tensor]]
) -> dict[str, Any]:
    a, b = _by_leaf(run, first), _by_leaf(run, second)
    return {leaf: score_files.row(interval(_differences(a[leaf], b[leaf]), trainings=True)) for leaf in a}


def _curve(
    run: ReproduceExpertsRun, first: Sequence[Mapping[str, Tensor]], second: Sequence[Mapping[str, Tensor]]
) -> list[list[float]]:
    """[σ, difference to the second in per cent, half its interval], from the least noise: `GROUPS` a leaf."""
    points, size = [], LOSS_BATCH // GROUPS
    a, b = _by_leaf(run, first), _by_leaf(run, second)
    for leaf in leaves(run):
        noise = run.experts.task.noise.model_copy(update={"shares": leaf.shares, "weights": None})
        for group in range(GROUPS):
            rows = [i for i in range(run.pictures) if i % LOSS_BATCH // size == group]
            some = interval(
                _differences([a[leaf.name][i] for i in rows], [b[leaf.name][i] for i in rows]), trainings=True
            )
            sigma = noise.spread(torch.tensor([(group + 0.5) / GROUPS]))[0].item()
            points.append([round(x, 4) for x in (sigma, some.mean, (some.high - some.low) / 2)])
    return sorted(points)


def _costs(run: ReproduceExpertsRun, bench: Bench) -> dict[str, dict[str, float | int]]:
    """What each candidate takes: weights, time of an evaluation, time of the training."""
    timed = artifacts.read_json(bench.out / "cost.json")["seconds"]
    found = {}
    for candidate in (START, *TRAINED):
        folder = bench.root if candidate == START else bench.folder(Job(candidate, 0))
        files = sorted(folder.rglob(artifacts.WEIGHTS_FILE))
        sizes = [sum(x.numel() for x in artifacts.read_tensors(file).values()) for file in files]
        # Full experts serve one at a time; low-rank ones beside the frozen decoder, the largest of the files.
        at_work = sum(sorted(sizes)[-2:]) if candidate == LORA else max(sizes)
        found[candidate] = {
            "weights": sum(sizes),
            "at_work": at_work,
            "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
            "milliseconds": round(1000 * timed[candidate], 1),
            "ratio": round(timed[candidate] / timed[SHARED], 3),
        } | ({} if candidate == START else _trained(run, bench, candidate))
    return found


def _trained(run: ReproduceExpertsRun, bench: Bench, candidate: str) -> dict[str, float | int]:
    """Length of a candidate's trainings, a training of it each."""
    records = [artifacts.read_json(file) for seed in range(run.seeds) for file in bench.records(Job(candidate, seed))]
    return {
        "samples": sum(one["samples"] for one in records) / run.seeds,
        "minutes": round(sum(one["seconds"] for one in records) / 60 / run.seeds, 1),
        "peak_lr": settings(Job(candidate, 0), run).loop.lr,
    }


def tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """Title → header and lines, plain text."""
    shares, cost = found["agreement"], found["cost"]
    asked = [(s, c) for _, s in SIDES for c in (*CATEGORIES, "all") if shares[REFERENCE][s][c]]
    by_leaf = found["losses"][SHARED]
    made: dict[str, Table] = {
        "Loss on unseen pictures at each expert's noise levels": (
            ["", *by_leaf],
            [[name, *(f"{one['mean']:.4f}" for one in rows.values())] for name, rows in found["losses"].items()],
        )
    }
    for base, rows in found["losses_gained"].items():
        made[f"Loss against {base}, in per cent of its loss (less is better)"] = (
            ["", *by_leaf],
            [[name, *(_signed(one) for one in row.values())] for name, row in rows.items()],
        )
    made["Pictures: agreement in per cent (reference: renders, as the reader reads them)"] = (
        ["", *shares],
        [[f"{c}, {s}", *(percent(sides[s][c]) for sides in shares.values())] for s, c in asked],
    )
    for base, rows in found["gained"].items():
        made[f"Pictures: agreement less that of {base}, in points"] = (
            ["", *rows],
            [[f"{c}, {s}", *(percent(sides[s][c], signed=True) for sides in rows.values())] for s, c in asked],
        )
    kinds = list(next(iter(found["frechet"].values()))[0])
    if kinds:
        made["Pictures: Fréchet distance to renders of the same prompts (lowest to highest of the trainings)"] = (
            ["", *(f"{kind}'s features" for kind in kinds)],
            [
                [name, *(_span([one[kind] for one in some]) for kind in kinds)]
                for name, some in found["frechet"].items()
            ],
        )
    made["Cost"] = (
        [
            "",
            "weights",
            "at work in an evaluation",
            "MB (fp16)",
            "ms an evaluation",
            "ratio",
            "samples",
            "minutes",
            "peak rate",
        ],
        [[name, *_cost_line(one)] for name, one in cost.items()],
    )
    return made


def _signed(one: Mapping[str, float | int]) -> str:
    return f"{one['mean']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{mean(values):.3f}" if low == high else f"{mean(values):.3f} ({low:.3f} to {high:.3f})"


def _cost_line(one: Mapping[str, float | int]) -> list[str]:
    fixed = [
        f"{one['weights']:,}",
        f"{one['at_work']:,}",
        f"{one['megabytes']:.1f}",
        f"{one['milliseconds']:.0f}",
        f"{one['ratio']:.2f}",
    ]
    trained = (
        [f"{one['samples']:,.0f}", f"{one['minutes']:.1f}", f"{one['peak_lr']:g}"] if "samples" in one else ["", "", ""]
    )
    return [*fixed, *trained]


def markdown(found: Mapping[str, Any]) -> str:
    """The tables with what was done, for `docs/results`."""
    parts = ["# Experts in small", "", _done(found), "", f"![{SHEET_TEXT}]({SHEET})", ""]
    parts += [f"![loss against σ]({LOSS_PLOT})", "", f"![agreement]({AGREEMENT_PLOT})", ""]
    for title, (header, lines) in tables(found).items():
        parts += [f"## {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        parts += ["| " + " | ".join(line) + " |" for line in lines] + [""]
    return "\n".join([*parts, "## What this does not show", "", LIMITS, ""])


def _done(found: Mapping[str, Any]) -> str:
    run, seen = found["run"], found["samples_seen"]
    experts, loop = run["experts"], run["experts"]["loop"]
    parts = ", ".join(f"{100 * weight:.1f} % in {low:g}–{high:g}" for low, high, weight in seen["parts"])
    thrown = f", {seen['thrown_away']:,} of them into nodes that are not kept" if seen["thrown_away"] else ""
    noise, total = experts["task"]["noise"], seen["total"]
    return (
        f"{COMMAND}: {found['seconds'] / 60:.0f} minutes on {found['machine']}. Experts {', '.join(experts['leaves'])} cut from ln σ ~ "
        f"N({noise['p_mean']:g}, {noise['p_std']:g}²) and grown from the model's decoder ({START}) in {seen['trainings']} trainings of "
        f"{loop['steps']} steps of {experts['task']['batch_size']}, {total:,} samples in all{thrown}; {SHARED}: that decoder trained on for "
        f"as many samples of the same p(σ); {REWEIGHTED}: likewise, with p(σ) as the experts' trainings saw it together ({parts}, in "
        "quantiles of p(σ)). Every training's rate falls to zero by a cosine over its own length, with the same part of it as warm-up. "
        f"{run['seeds']} training{'s' * (run['seeds'] > 1)} a candidate; {found['prompts']} prompts painted in {run['steps']} steps, guidance "
        f"{run['guidance_scale']:g}, the decoder reading all that it can, from the same noise for all. Losses on {run['pictures']:,} unseen "
        "pictures an expert, same noise, σ and conditions for all. Brackets: 95 % bootstrap over prompts or pictures, and over trainings; "
        "differences are paired."
    )


def plots(found: Mapping[str, Any]) -> dict[str, str]:
    """File → a plot as HTML."""
    lines: dict[str, list[report.Point]] = {SHARED: [(point[0], 0.0) for point in found["curves"][START]]}
    lines |= {name: [(x, y, half) for x, y, half in points] for name, points in found["curves"].items()}
    title = f"loss less {SHARED}'s, in per cent of it, against σ"
    values = {
        f"{name}, {side}": (row["mean"], row["low"], row["high"])
        for _, side in SIDES
        for name, sides in found["agreement"].items()
        if name != REFERENCE and (row := sides[side]["all"])
    }
    return {
        LOSS_PLOT: report.curves(title, lines, x="σ", log=True, size=(640, 320)),
        AGREEMENT_PLOT: report.bars("agreement of the pictures", values),
    }


def svg(figure: str) -> bytes:
    """A plot of the page as a file of its own, on white."""
    inner = figure.removeprefix("<figure>").removesuffix("</figure>")
    own = "<svg xmlns='http://www.w3.org/2000/svg' font-family='sans-serif' font-size='12' style='background:#fff' "
    return inner.replace("<svg ", own, 1).encode()


def shown(bench: Bench) -> list[Shown]:
    """The kept pictures of the start and of every candidate's first training."""
    names = {START: START} | {candidate: Job(candidate, 0).name for candidate in TRAINED}
    return score_files.shown(bench.out, names, bench.wanted)


def page(found: Mapping[str, Any], bench: Bench) -> str:
    """The same with plots and pictures, self-contained."""
    done = html.escape(_done(found)).replace(COMMAND, f"<code>{COMMAND.strip('`')}</code>")
    body = [f"<h1>Experts in small</h1><p>{done}</p>", *plots(found).values()]
    for title, (header, lines) in tables(found).items():
        escaped = [[html.escape(cell) for cell in line] for line in lines]
        body.append(f"<h2>{html.escape(title)}</h2>{report.rows(header, escaped, numbers_from=1)}")
    body.append(f"<h2>Pictures</h2><p>{SHEET_TEXT}.</p>{pictures_table(shown(bench))}")
    body.append(f"<h2>What this does not show</h2><p>{html.escape(LIMITS)}</p>")
    return report.page("Experts in small", "\n".join(body))


def write(run: ReproduceExpertsRun, bench: Bench) -> dict[str, Any]:
    """results.json, report.md with its plots and pictures, index.html."""
    found = results(run, bench)
    artifacts.write_json(bench.out / "results.json", found)
    artifacts.write_bytes(bench.out / "report.md", markdown(found).encode())
    for file, figure in plots(found).items():
        artifacts.write_bytes(bench.out / file, svg(figure))
    score_files.save_sheet(bench.out / SHEET, shown(bench))
    artifacts.write_bytes(bench.out / "index.html", page(found, bench).encode())
    return found
