"""The state of a run on disk: exact to the bit, written as one folder or not at all, safetensors and JSON only.

A run's folder holds `run.json` (the resolved settings), `metrics.jsonl` (one line every few steps), `checkpoint/`, and
where asked for `checkpoint-STEP/` (older ones) and `best/`.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from syzygy.core.artifacts import (
    WEIGHTS_FILE,
    folder_written,
    load_strictly,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
    writing,
)
from syzygy.core.errors import UserError
from syzygy.training.ema import Ema
from syzygy.training.optimizers import Optimizers, check_same_tensors

FOLDER = "checkpoint"
BEST = "best"
STATE_FILE = "state.json"
EMA_FILE = "ema.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


@dataclass
class TrainingState:
    """All that a run needs to continue as if it had never stopped."""

    modules: Mapping[str, nn.Module]
    optimizers: Optimizers
    ema: Ema | None
    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Time spent on them, also before interruptions."""
    window: list[dict[str, float]] = field(default_factory=list)
    """Losses of the steps since the last line of metrics."""

    def weights(self) -> dict[str, Tensor]:
        """All weights, by `module.parameter`."""
        return {f"{name}.{k}": v for name, m in self.modules.items() for k, v in m.state_dict().items()}


def save(out: Path, state: TrainingState, keep: int = 1) -> None:
    """Replace the checkpoint of the run in `out`. If that fails (a full disk), raises UserError and keeps the old one.

    With `keep` above 1, the latest `keep` − 1 replaced ones are kept as `checkpoint-STEP`.
    """
    if keep > 1 and (out / FOLDER).is_dir():
        _set_aside(out, keep - 1)
    with folder_written(out / FOLDER, "a checkpoint") as folder:
        write_tensors(folder / WEIGHTS_FILE, state.weights())
        write_tensors(folder / OPTIMIZER_FILE, state.optimizers.tensors())
        if state.ema:
            write_tensors(folder / EMA_FILE, state.ema.averages)
        write_json(folder / STATE_FILE, {"step": state.step, "seconds": state.seconds, "window": state.window})


def _set_aside(out: Path, keep: int) -> None:
    """Copy the checkpoint under its step's name (hard links: no byte is written twice); drop the oldest beyond `keep`."""
    step = int(read_json(out / FOLDER / STATE_FILE)["step"])
    with folder_written(out / f"{FOLDER}-{step:08d}", "a checkpoint") as folder:
        for file in (out / FOLDER).iterdir():
            try:
                os.link(file, folder / file.name)
            except OSError:  # a file system without links
                shutil.copy2(file, folder / file.name)
    for old in sorted(out.glob(f"{FOLDER}-????????"))[:-keep]:
        shutil.rmtree(old)


def save_best(out: Path, state: TrainingState, metric: str, value: float) -> None:
    """Save the current weights (the averaged ones, if there is an average) as the best of the run, in `out/best`."""
    with folder_written(out / BEST, "the best weights") as folder:
        write_tensors(folder / WEIGHTS_FILE, state.weights() | (state.ema.averages if state.ema else {}))
        write_json(folder / STATE_FILE, {"step": state.step, "metric": metric, "value": value})


def best_so_far(out: Path) -> float | None:
    """The metric of the best weights; None before the first ones."""
    file = out / BEST / STATE_FILE
    return float(read_json(file)["value"]) if file.is_file() else None


def load_best(out: Path, modules: Mapping[str, nn.Module]) -> None:
    """Overwrite the modules' weights by the best ones.

    Raises:
        UserError: the run has none.
    """
    file = out / BEST / WEIGHTS_FILE
    if not file.is_file():
        raise UserError(f"{out} kept no best weights: it was trained without loop.best. Export the last ones.")
    _load_modules(modules, file)


def _load_modules(modules: Mapping[str, nn.Module], file: Path) -> None:
    weights = read_tensors(file)
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}."): x for key, x in weights.items() if key.startswith(f"{name}.")}
        load_strictly(module, own, file)


def load(out: Path, state: TrainingState) -> None:
    """Continue from the checkpoint of the run in `out`: everything in `state` is overwritten."""
    folder = out / FOLDER
    _load_modules(state.modules, folder / WEIGHTS_FILE)
    state.optimizers.load(read_tensors(folder / OPTIMIZER_FILE), folder / OPTIMIZER_FILE)
    if state.ema:
        averages = read_tensors(folder / EMA_FILE)
        check_same_tensors(averages, state.ema.averages, folder / EMA_FILE)
        for name, average in state.ema.averages.items():
            average.copy_(averages[name])
    values = read_json(folder / STATE_FILE)
    try:
        state.step, state.seconds, state.window = int(values["step"]), float(values["seconds"]), list(values["window"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / STATE_FILE} is not the state of a run. Train in a new folder.") from None


def exists(out: Path) -> bool:
    """Whether there is a checkpoint to continue from."""
    return (out / FOLDER).exists()


def open_run(out: Path, run: Mapping[str, Any]) -> bool:
    """Make `out` the folder of this run; returns whether it has a checkpoint to continue from.

    `run` holds all settings as plain JSON values. Without a checkpoint the run starts from the beginning.
    Raises UserError if the checkpoint belongs to other settings.
    """
    _recover(out)
    new = json.loads(json.dumps(run))
    if not exists(out):
        write_json(out / RUN_FILE, new)
        write_bytes(out / METRICS_FILE, b"")
        return False
    check_settings(out, new)
    return True


def check_settings(out: Path, run: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: the run in `out` has other settings than `run`, which holds plain JSON values.
    """
    if difference := _first_difference(read_json(out / RUN_FILE), run):
        raise UserError(
            f"{out} holds a run with other settings: {difference}. "
            "Repeat its settings to continue it, or choose another --out."
        )


def read_metrics(out: Path, step: int) -> list[dict[str, Any]]:
    """The lines of metrics up to `step`. Later lines, which were written after the last checkpoint, are removed from the file."""
    path = out / METRICS_FILE
    rows = [row for row in read_lines(path) if row["step"] <= step]
    lines = path.read_bytes().splitlines(keepends=True)
    write_bytes(path, b"".join(lines[: len(rows)]))
    return rows


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, up to the first incomplete one: a run may have been killed while it wrote it.

    Raises:
        UserError: the file cannot be read.
    """
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Restore it or choose another --out.") from None
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def append_metrics(out: Path, row: Mapping[str, Any]) -> None:
    """Add one line to the metrics."""
    path = out / METRICS_FILE
    with writing("metrics", path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _recover(out: Path) -> None:
    """Clean up after a killed process: restore a checkpoint that was set aside, remove an incomplete one."""
    with writing("a checkpoint", out):
        for name in (FOLDER, BEST):
            for left in out.glob(f".{name}.*"):
                if not (out / name).exists() and (left / name).is_dir():
                    os.replace(left / name, out / name)
                shutil.rmtree(left)
        for left in out.glob(f".{FOLDER}-*"):
            shutil.rmtree(left)


def _first_difference(old: Any, new: Any, key: str = "") -> str | None:
    """A sentence about the first setting in which two runs differ. A setting that is null may be missing, as in runs of older versions."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{key}.{name}" if key else name
            if old.get(name) is None and new.get(name) is None:
                continue
            if name not in old or name not in new:
                return f"{inner} is set only {'now' if name in new else 'there'}"
            if difference := _first_difference(old[name], new[name], inner):
                return difference
        return None
    return None if old == new else f"{key} is {json.dumps(old)} there and {json.dumps(new)} now"
