"""The comparison of `runs/reproduce.py` as JSON, as Markdown and as a page."""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from syzygy.core import artifacts
from syzygy.lab.evaluate import report
from syzygy.lab.evaluate.composition import IDENTITY, REFERENCE, SHIFTED
from syzygy.lab.reproduce import score_files
from syzygy.lab.reproduce.eclipse_experiment import DIFFUSION, ECLIPSE, METHODS, PROJECTION, Job, ReproduceRun
from syzygy.lab.reproduce.score_files import (
    CATEGORIES,
    SIDES,
    Shown,
    agreement,
    gained,
    percent,
    pictures_table,
    preferred,
)
from syzygy.lab.world.prompts import Prompt
from syzygy.prior.eclipse import PriorTaskConfig

SCORES = ("cosine", "recall_at_1", "frechet", "probe_seen", "probe_held_out")
TITLES = {
    "cosine": "cosine to true",
    "recall_at_1": "R@1",
    "frechet": "Fréchet",
    "probe_seen": "probe, seen",
    "probe_held_out": "probe, held out",
}
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""97.5 % quantile of Student's t for n − 1 degrees of freedom."""
AGAINST = (PROJECTION, DIFFUSION, SHIFTED)
"""What ECLIPSE is compared with."""
COMMAND = "`syzygy reproduce eclipse`"
SWEPT = "± : half the range over the trainings of a point."
LIMITS = (
    "What this cannot show: the world has 8 shapes, 8 colours, 3 textures and a grammar of its own; CLIP and decoder are tiny "
    "and trained on it alone; the priors are 50 times smaller than the paper's. A difference seen here need not be there at "
    "scale, nor the other way round. Beauty, which people judge too, is not measured at all. A linear probe and R@1 look at "
    "CLIP's space with CLIP's own eyes."
)
SHEET = "eclipse.jpg"
SHEET_TEXT = "Prompts, and what each candidate paints of them; a green frame where everything named is right"
Table = tuple[list[str], list[list[str]]]


def spread(values: Sequence[float | int]) -> tuple[float, float]:
    """Mean over trainings and half the width of its 95 % t interval (0 for a single one)."""
    if len(values) == 1:
        return float(values[0]), 0.0
    return float(mean(values)), STUDENT.get(len(values), 1.96) * stdev(values) / len(values) ** 0.5


def _scores(out: Path, name: str) -> dict[str, Any]:
    return artifacts.read_json(out / "scores" / f"{name}.json")


def half_range(values: Sequence[float | int]) -> tuple[float, float]:
    """Middle between the lowest and the highest, and the distance to either."""
    return (max(values) + min(values)) / 2, (max(values) - min(values)) / 2


def _over_seeds(
    out: Path, seeds: int, name: Callable[[int], str], about: Callable[[Sequence[float]], tuple[float, float]]
) -> dict[str, Any]:
    found = [_scores(out, name(seed)) for seed in range(seeds)]
    return {key: about([one[key] for one in found]) for key in found[0]}


def results(run: ReproduceRun, out: Path) -> dict[str, Any]:
    """All numbers, as JSON values."""
    assert isinstance(run.prior.task, PriorTaskConfig)
    contrast = run.prior.task.lambda_contrastive

    def swept(method: str, value: float = contrast, fraction: float = 1.0) -> dict[str, tuple[float, float]]:
        return _over_seeds(out, run.sweep_seeds, lambda seed: Job(method, seed, value, fraction).name, half_range)

    embeddings: dict[str, Any] = {
        method: _over_seeds(out, run.seeds, lambda seed, method=method: Job(method, seed, contrast).name, spread)
        for method in METHODS
    }
    for name in (IDENTITY, SHIFTED, REFERENCE):
        embeddings[name] = {key: (value, 0.0) for key, value in _scores(out, name).items()}
    sweeps: dict[str, Any] = {
        "lambda": {value: swept(ECLIPSE if value else PROJECTION, value or contrast) for value in run.lambdas},
        "fraction": {m: {f: swept(m, fraction=f) for f in run.fractions} for m in METHODS},
    }
    for key, values in (("steps", run.sampling_steps), ("eta", run.etas)):
        sweeps[key] = {
            value: _over_seeds(
                out,
                run.sweep_seeds,
                lambda seed, key=key, value=value: f"sampling-{key}{value:g}-seed{seed}",
                half_range,
            )
            for value in values
        }
    judged = _judgements(run, out)
    pictures = {
        name: {title: {c: agreement(seeds, c, side) for c in (*CATEGORIES, "all")} for side, title in SIDES}
        for name, seeds in judged.items()
    }
    against = {
        other: {
            title: {c: gained(judged[ECLIPSE], judged[other], c, side) for c in (*CATEGORIES, "all")}
            for side, title in SIDES
        }
        for other in AGAINST
    }
    return {
        "run": run.model_dump(mode="json"),
        **artifacts.read_json(out / "time.json"),
        "embeddings": embeddings,
        "sweeps": sweeps,
        "agreement": pictures,
        "eclipse_minus": against,
        "eclipse_preferred": {
            other: {title: preferred(judged[ECLIPSE], judged[other], side) for side, title in SIDES}
            for other in AGAINST
        },
    }


def _judgements(run: ReproduceRun, out: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """Candidate → a list of judged prompts a training."""
    found = {name: [score_files.read(out, name)] for name in (REFERENCE, IDENTITY, SHIFTED)}
    for method in METHODS:
        found[method] = [
            score_files.read(out, f"{method}-seed{seed}") for seed in range(min(run.painted_seeds, run.seeds))
        ]
    return found


def tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """Title → header and lines, plain text."""
    shares, minus, embeddings = found["agreement"], found["eclipse_minus"], found["embeddings"]
    asked = [(s, c) for _, s in SIDES for c in (*CATEGORIES, "all") if shares[REFERENCE][s][c]]
    cost = {
        "parameters": "parameters",
        "samples": "training samples",
        "seconds": "seconds, validation included",
        "evaluations": "evaluations",
    }
    return {
        "Pictures: agreement in per cent": (
            ["", *shares],
            [[f"{c}, {s}", *(percent(sides[s][c]) for sides in shares.values())] for s, c in asked],
        ),
        "Pictures: ECLIPSE's agreement less the others', in points": (
            ["", *(f"− {other}" for other in minus)],
            [[f"{c}, {s}", *(percent(sides[s][c], signed=True) for sides in minus.values())] for s, c in asked],
        ),
        "Pictures: how often ECLIPSE's bears out more of the prompt, in per cent (a tie counts half; paper: 71.6 by PickScore)": (
            ["", *(f"against {other}" for other in found["eclipse_preferred"])],
            [[s, *(percent(sides[s]) for sides in found["eclipse_preferred"].values())] for _, s in SIDES],
        ),
        "Embeddings": (
            ["", *TITLES.values()],
            [[name, *(_pm(scores.get(key)) for key in SCORES)] for name, scores in embeddings.items()],
        ),
        "Cost of a prior (evaluations: passes a picture)": (
            ["", *cost.values()],
            [[m, *(f"{embeddings[m][key][0]:,.0f}" for key in cost)] for m in METHODS],
        ),
    }


def _pm(value: Sequence[float | int] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.3f} ± {value[1]:.3f}" if value[1] else f"{value[0]:.3f}"


def markdown(found: Mapping[str, Any]) -> str:
    """The tables with what was done, for `docs/results`."""
    parts = ["# ECLIPSE in small", "", _done(found), "", LIMITS, "", f"![{SHEET_TEXT}]({SHEET})", ""]
    for title, (header, lines) in tables(found).items():
        parts += [f"## {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        parts += ["| " + " | ".join(line) + " |" for line in lines] + [""]
    parts += ["## Sweeps (embeddings)", "", SWEPT, ""]
    for title, lines in _sweep_lines(found).items():
        header = ["", *(TITLES[key] for key in SCORES)]
        parts += [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        parts += ["| " + " | ".join(line) + " |" for line in lines] + [""]
    return "\n".join(parts)


def _done(found: Mapping[str, Any]) -> str:
    run, prior = found["run"], found["run"]["prior"]
    return (
        f"{COMMAND}: {found['seconds'] / 60:.0f} minutes on {found['machine']}. {prior['scenes']:,} pairs, "
        f"{prior['loop']['steps']} steps of {prior['task']['batch_size']}, {prior['num_layers']} layers; {run['seeds']} trainings a "
        f"method scored on embeddings (± : 95 % t interval over trainings), {min(run['painted_seeds'], run['seeds'])} decoded in "
        f"{run['steps']} steps, unguided, the decoder reading the image embedding alone (brackets: 95 % bootstrap over prompts and "
        "trainings; the reference and the controls are one each). Same pairs, steps, batches, noise for all methods."
    )


def _sweep_lines(found: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    sweeps = found["sweeps"]

    def lines(points: Mapping[Any, Any], prefix: str = "") -> list[list[str]]:
        return [[f"{prefix}{value}", *(_pm(scores[key]) for key in SCORES)] for value, scores in points.items()]

    fractions = [line for method, points in sweeps["fraction"].items() for line in lines(points, f"{method}, ")]
    return {
        "λ (0: projection)": lines(sweeps["lambda"]),
        "Share of the training pairs": fractions,
        "Steps of the baseline": lines(sweeps["steps"]),
        "Noise that the baseline adds (η)": lines(sweeps["eta"]),
    }


def page(found: Mapping[str, Any], out: Path, wanted: list[Prompt]) -> str:
    """The same with plots and pictures, self-contained."""
    done = html.escape(_done(found)).replace(COMMAND, f"<code>{COMMAND.strip('`')}</code>")
    body = [f"<h1>ECLIPSE in small</h1><p>{done}</p><p>{html.escape(LIMITS)}</p>"]
    for _, side in SIDES:
        shares = {name: sides[side]["all"] for name, sides in found["agreement"].items()}
        values = {name: (row["mean"], row["low"], row["high"]) for name, row in shares.items() if row}
        body.append(report.bars(f"agreement, {side}", values) if values else "")
    for title, (header, lines) in tables(found).items():
        escaped = [[html.escape(cell) for cell in line] for line in lines]
        body.append(f"<h2>{html.escape(title)}</h2>{report.rows(header, escaped, numbers_from=1)}")
    body.append(f"<h2>Sweeps, scored on embeddings</h2><p>{SWEPT}</p>{_plots(found)}")
    body.append(f"<h2>Pictures</h2>{pictures_table(shown(out, wanted))}")
    return report.page("ECLIPSE in small", "\n".join(body))


def _plots(found: Mapping[str, Any]) -> str:
    sweeps = found["sweeps"]

    def line(points: Mapping[Any, Any], key: str) -> list[report.Point]:
        return [(float(value), *scores[key]) for value, scores in points.items()]

    plots = ""
    for name, axis in (("lambda", "λ"), ("steps", "steps"), ("eta", "η")):
        both = {"seen": line(sweeps[name], "probe_seen"), "held out": line(sweeps[name], "probe_held_out")}
        plots += report.curves(f"probe against {axis}", both, x=axis)
        plots += report.curves(f"Fréchet distance against {axis}", {"": line(sweeps[name], "frechet")}, x=axis)
    for key in ("probe_seen", "probe_held_out", "recall_at_1"):
        series = {method: line(points, key) for method, points in sweeps["fraction"].items()}
        plots += report.curves(f"{TITLES[key]} against share of the pairs", series, x="share", log=True)
    return plots


def shown(out: Path, wanted: list[Prompt]) -> list[Shown]:
    """The kept pictures of every candidate's first training."""
    names = [REFERENCE, *(f"{m}-seed0" for m in METHODS), IDENTITY, SHIFTED]
    return score_files.shown(out, {name: name for name in names}, wanted)
