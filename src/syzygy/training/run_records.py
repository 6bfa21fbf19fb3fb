"""What every run shares: its place, its device, its provenance."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.training.loop import FitResult
from syzygy.training.progress import ConsoleReporter, Reporter

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(title, total) → a progress bar whose value is told how many more are done."""


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
