"""One run in several processes with one device each, as `torchrun` starts them; a single process is the case of one rank."""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syzygy.core.errors import UserError

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: they wait while the first one writes checkpoints."""


@dataclass(frozen=True)
class Ranks:
    """The position of this process among all ranks. Ranks hold equal weights, and each takes a slice of each batch."""

    device: torch.device
    """The device of this rank."""
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This rank's part of a batch.

        Raises:
            UserError: the batch cannot be shared evenly.
        """
        if batch % self.size:
            raise UserError(
                f"a batch of {batch} cannot be shared evenly among {self.size} processes: "
                f"choose a batch_size that {self.size} divides."
            )
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the ranks as they are computed."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def mean(self, scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the ranks."""
        if self.size == 1:
            return dict(scalars)
        together = torch.stack([value.double() for value in scalars.values()])
        dist.all_reduce(together)
        return dict(zip(scalars, together / self.size, strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
        if self.size == 1:
            return flag
        up = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(up, dist.ReduceOp.MAX)
        return bool(up)

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.size > 1:
            dist.barrier()


def apart(module: nn.Module) -> AbstractContextManager[None]:
    """Inside the block, gradients stay on their rank and are averaged with the next ones: for all parts of a batch but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that `torchrun` started (it sets RANK, WORLD_SIZE and LOCAL_RANK); a single process is alone.

    `device` is the device of a single process; with CUDA, each of several processes takes the GPU of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(device, dist.get_rank(), size)
        # Without these two the tear-down aborts now and then: a wrapped module must be gone, on every rank, before its group.
        gc.collect()
        dist.barrier()
    finally:
        dist.destroy_process_group()
