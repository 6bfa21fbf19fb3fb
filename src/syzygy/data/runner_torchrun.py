"""The torchrun runner: every rank embeds its share, and the first one begins and finishes the store.

All ranks must see the store's folder and the source, so on several machines both are on a shared file system.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from syzygy.core.errors import UserError

PATIENCE = timedelta(days=7)
"""How long ranks wait for the slowest one: shards take hours."""


def under_torchrun() -> bool:
    """Whether this process was started by `torchrun`."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def group() -> Iterator[tuple[int, int]]:
    """Connect the ranks while the context is open. Gives (this rank, number of ranks).

    Raises `UserError` if this process was not started by `torchrun`.
    """
    if not under_torchrun():
        raise UserError(
            "--runner torchrun is for processes that torchrun starts: torchrun --nproc-per-node 2 -m syzygy.cli embed …"
        )
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def shared(numbers: Sequence[int] | None) -> list[int]:
    """The first rank's list on all ranks (the others pass None), since they may not see the same shards as finished."""
    length = torch.tensor([0 if numbers is None else len(numbers)])
    dist.broadcast(length, 0)
    values = (
        torch.zeros(int(length), dtype=torch.int64) if numbers is None else torch.tensor(numbers, dtype=torch.int64)
    )
    if len(values):
        dist.broadcast(values, 0)
    return values.tolist()


def wait() -> None:
    """Wait until all ranks are here."""
    dist.barrier()
