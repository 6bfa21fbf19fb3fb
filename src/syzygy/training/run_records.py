"""The pattern of every run: settings are recorded, a task is trained, the artefact is saved with its provenance."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.training.checkpoints import METRICS_FILE, read_lines
from syzygy.training.loop import FitResult, Task, fit
from syzygy.training.parallel import Ranks
from syzygy.training.progress import ConsoleReporter, Reporter

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(title, total) → a progress bar: a function that takes how many more are done."""


@contextmanager
def no_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows nothing."""
    yield lambda done: None


@dataclass(frozen=True)
class RunResult:
    """A finished run: where its artefact is, and the metrics that go into its provenance."""

    folder: Path
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    """The lines of metrics.jsonl."""


def train_part(
    run: Any,
    task: Task,
    out: Path,
    save: Callable[[Path, dict[str, Any]], None],
    *,
    kind: str,
    folder: str = "",
    measure: Callable[[FitResult], dict[str, float]] | None = None,
    recorded: Mapping[str, Any] | None = None,
    report: Reporter | str = "",
    world: Ranks | None = None,
) -> RunResult:
    """Train a part of a model in `out`, or continue there, then save it with its provenance.

    Args:
        run: all settings, among them `task.batch_size` and `loop`.
        save: writes the artefact, from its folder and its provenance. Only the first rank saves.
        kind: what the provenance calls the artefact.
        folder: its folder in `out`; `kind` if omitted.
        measure: metrics of the trained part; if omitted, those of the last validation.
        recorded: facts besides the settings, such as the fingerprints of frozen parts. A run is continued with the same ones only.
        report: shows the progress; a text is the title of a `ConsoleReporter`, `kind` if omitted.
    """
    world, recorded = world or Ranks(torch.device("cpu")), dict(recorded or {})
    if isinstance(report, str):
        report = reporter(report or kind, run.task.batch_size)
    settings = run.model_dump(mode="json") | recorded
    result = fit(task, run.loop, out, reporter=report, run=settings, world=world)
    metrics = result.metrics if measure is None else measure(result)
    place = out / (folder or kind)
    if world.first:
        save(place, provenance(kind, run, result, result.steps * run.task.batch_size, metrics) | recorded)
    world.wait()
    return RunResult(place, metrics, result.history)


def finished_before(
    run: Config, folder: Path, recorded: Mapping[str, Any], ignored: tuple[str, ...] = ()
) -> RunResult | None:
    """The result of a run whose artefact is in `folder`; None if it is not finished.

    Args:
        recorded: as of `train_part`.
        ignored: names of settings that may differ.

    Raises:
        UserError: it was trained with other settings, or with other models or data.
    """
    if not folder.is_dir():
        return None
    record = artifacts.read_json(folder / artifacts.PROVENANCE_FILE)
    before, now = record["recipe"], run.model_dump(mode="json")
    other = [name for name in now if name not in ignored and before.get(name) != now[name]]
    other += [name for name in recorded if record.get(name) != recorded[name]]
    if other:
        raise UserError(
            f"{folder.parent} was trained with other settings ({', '.join(other)}). Choose another --out, or the same settings."
        )
    return RunResult(folder, record["metrics"], read_lines(folder.parent / METRICS_FILE))


def reporter(title: str, samples_per_step: int) -> Reporter:
    """Live progress on the terminal."""
    return ConsoleReporter(title, samples_per_step=samples_per_step)


def provenance(kind: str, run: Config, result: FitResult, samples: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """How an artefact came to be: recipe, seed, steps, machine, metrics, versions."""
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "kind": kind,
        "date": date.today().isoformat(),
        "recipe": run.model_dump(mode="json"),
        "steps": result.steps,
        "samples": samples,
        "seconds": round(result.seconds),
        "machine": artifacts.machine(),
        "threads": torch.get_num_threads(),
        "versions": artifacts.versions(),
        "metrics": {name: round(float(value), 4) for name, value in metrics.items()},
    }
