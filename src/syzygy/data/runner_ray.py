"""The Ray runner: embedding on a cluster, or on this machine in Ray's local mode. It needs the extra `ray`.

Workers write into the store themselves, so on a cluster source, store and encoder must be on a file system that all machines share.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from syzygy.clip.clip_model import Clip
from syzygy.core.errors import UserError, install
from syzygy.data.embed_shard import embed_shard
from syzygy.data.embedding_work import Job, Tally
from syzygy.data.store_files import read_checked, record_path

RETRIES = 3
"""How often Ray restarts a lost worker and its shard, since machines of a cluster come and go."""


class Worker:
    """An actor that loads the encoder once and embeds the shards that it is given."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.encoder: Clip | None = None

    def embed(self, number: int) -> str | None:
        """Embed the shard of this number.

        Returns:
            What the user has to correct, if anything. Ray would show a raised exception with its traceback.
        """
        try:
            if self.encoder is None:  # Ray shows each actor its own of the machine's GPUs
                self.encoder = self.job.spec.load(local_files_only=True)
            embed_shard(self.job.shards[number], number, self.encoder, self.job.settings, self.job.store)
        except UserError as error:
            return str(error)
        return None


def run_ray(job: Job, todo: Sequence[int], workers: int, tally: Tally) -> None:
    """Embed the shards of these numbers in a pool of actors, which ends when this returns or raises.

    Raises `UserError` if Ray is not installed or has too few processors; or a worker raised one, or died.
    """
    ray = _ray()
    begun = not ray.is_initialized()
    if begun:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    actors: list[Any] = []
    try:
        _check_resources(ray.cluster_resources(), workers, job)
        actor = ray.remote(
            num_cpus=job.settings.threads,
            num_gpus=1 if job.settings.device == "cuda" else 0,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )(Worker)
        actors += [actor.remote(job) for _ in range(min(workers, len(todo)))]
        for number in _finished(ray, actors, todo):
            tally.finish(read_checked(record_path(job.store, number)))
    finally:
        for one in actors:
            ray.kill(one)
        if begun:
            ray.shutdown()


def _finished(ray: Any, actors: Sequence[Any], todo: Sequence[int]) -> Iterator[int]:
    """The numbers of the shards in the order in which they are finished. An actor that is free takes the next one.

    Raises `UserError` if a worker raised one, or died.
    """
    left = iter(todo)
    running = {actor.embed.remote(number): (actor, number) for actor, number in zip(actors, left, strict=False)}
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        actor, number = running.pop(ready)
        try:
            mistake = ray.get(ready)
        except ray.exceptions.RayTaskError:  # a bug of this program
            raise
        except ray.exceptions.RayError as error:
            raise UserError(
                f"a Ray worker died ({type(error).__name__}), possibly because memory ran out: try fewer --workers, or a smaller "
                "--batch-size in a new store. Finished shards are kept."
            ) from None
        if mistake is not None:
            raise UserError(mistake)
        yield number
        following = next(left, None)
        if following is not None:
            running[actor.embed.remote(following)] = actor, following


def _check_resources(found: dict[str, float], workers: int, job: Job) -> None:
    """Refuse more processors than there are, because Ray would wait for them forever."""
    needed = {"CPU": workers * job.settings.threads}
    if job.settings.device == "cuda":
        needed["GPU"] = workers
    for name, number in needed.items():
        if found.get(name, 0) < number:
            raise UserError(
                f"{workers} workers with {job.settings.threads} threads need {number} {name}s; this Ray cluster has "
                f"{found.get(name, 0):g}. Use fewer --workers, or fewer --threads in a new store."
            )


def _ray() -> Any:
    """The module `ray`. Raises `UserError` if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
    except ImportError:
        raise UserError(f"--runner ray needs Ray: {install('ray')}.") from None
    return ray
