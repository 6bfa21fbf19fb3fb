"""Samples of the embedded world, rendered and encoded once and read many times: columns of numbers in memory-mapped files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.training.run_records import Bar, no_bar

PART = 1024
"""Samples that are computed at a time; an interrupted build repeats at most so many."""
RECORD = "store.json"

Columns = Mapping[str, Tensor]
"""Column → values [N ...] of the same N samples."""


class SampleStore:
    """N samples as columns. `store[rows]` reads some of them.

    `build` computes what is missing, so a stopped build continues.
    """

    def __init__(self, folder: Path) -> None:
        """Open a finished store.

        Raises:
            UserError: it is missing or unfinished.
        """
        record = artifacts.read_json(folder / RECORD)
        if record["done"] < record["samples"]:
            raise UserError(
                f"{folder} holds {record['done']} of {record['samples']} samples: build it to the end first."
            )
        self._length = int(record["samples"])
        self._columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in record["columns"]}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: Int[Tensor, "B"]) -> dict[str, Tensor]:
        """The samples with these numbers, in their order."""
        at = rows.numpy()
        return {name: torch.from_numpy(column[at]) for name, column in self._columns.items()}

    def column(self, name: str) -> Tensor:
        """One column of all samples."""
        return torch.from_numpy(np.array(self._columns[name]))

    @classmethod
    def build(
        cls,
        folder: Path,
        samples: int,
        compute: Callable[[int, int], Columns],
        settings: Mapping[str, Any],
        bar: Bar = no_bar,
    ) -> "SampleStore":
        """Compute the samples that `folder` lacks, then open it.

        Args:
            compute: (first number, how many) → their columns. The same numbers always give the same samples.
            settings: all that they depend on, as JSON values.

        Raises:
            UserError: the folder holds samples of other settings.
        """
        wanted = {"samples": samples, "settings": dict(settings)}
        record: dict[str, Any] = wanted | {"done": 0, "columns": []}
        if (folder / RECORD).is_file():
            record = artifacts.read_json(folder / RECORD)
            if {name: record[name] for name in wanted} != wanted:
                raise UserError(f"{folder} holds samples of other settings: remove it, or choose another folder.")
        columns: dict[str, np.ndarray] = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in record["columns"]
        }
        with bar("samples of the world", samples - record["done"]) as advance:
            for start in range(record["done"], samples, PART):
                number = min(PART, samples - start)
                made = compute(start, number)
                columns = columns or _created(folder, samples, made)
                for name, values in made.items():
                    columns[name][start : start + number] = values.numpy()
                for column in columns.values():
                    column.flush()  # pyright: ignore[reportAttributeAccessIssue] (a memory map)
                record |= {"done": start + number, "columns": sorted(columns)}
                artifacts.write_json(folder / RECORD, record)
                advance(number)
        return cls(folder)


def _created(folder: Path, samples: int, like: Columns) -> dict[str, np.ndarray]:
    """Empty columns on disk for so many samples like these."""
    with artifacts.writing("a store of samples", folder):
        folder.mkdir(parents=True, exist_ok=True)
        return {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy", "w+", values.numpy().dtype, (samples, *values.shape[1:])
            )
            for name, values in like.items()
        }
