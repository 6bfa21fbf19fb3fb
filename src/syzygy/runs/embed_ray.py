"""Embedding on a Ray cluster, or on this machine by Ray Data's local mode. Needs the extra `ray`.

Workers write into the store themselves, so on a cluster source, store and encoder are on a file system that all machines share.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

from syzygy.data import layout
from syzygy.data.embed import embed_shard
from syzygy.errors import UserError
from syzygy.runs.embed_work import Job, Report, Tally


class Worker:
    """An actor: loads the encoder once, then embeds the shards that it is given."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.encoder = job.spec.load(local_files_only=True)  # of a machine's GPUs, Ray shows each actor its own

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The shards' numbers, and what the user should mend: of an exception, Ray would send the text of its traceback."""
        mistakes = []
        for number in batch["number"].tolist():
            try:
                embed_shard(self.job.shards[number], number, self.encoder, self.job.settings, self.job.store)
                mistakes.append("")
            except UserError as error:
                mistakes.append(str(error))
        return {"number": batch["number"], "mistake": mistakes}


def run_ray(job: Job, todo: Sequence[int], workers: int, tally: Tally, report: Report) -> None:
    """Embed the shards of these numbers in a pool of actors.

    Raises:
        UserError: Ray is not installed or has too few processors; or a worker met one.
    """
    ray, data = _ray()
    begun = not ray.is_initialized()
    if begun:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        _check_resources(ray.cluster_resources(), workers, job)
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it announces each plan and each end
        rows = data.from_items([{"number": number} for number in todo], override_num_blocks=len(todo)).map_batches(
            Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(workers, len(todo))),
            num_cpus=job.settings.threads,
            num_gpus=1 if job.settings.device == "cuda" else 0,
        )
        for row in rows.iter_rows():
            if row["mistake"]:
                raise UserError(row["mistake"])
            tally.finish(layout.read_checked(layout.record_path(job.store, int(row["number"]))))
            report.update()
    finally:
        if begun:
            ray.shutdown()


def _check_resources(found: dict[str, float], workers: int, job: Job) -> None:
    """Ray would wait for ever for what there is not."""
    needed = {"CPU": workers * job.settings.threads}
    if job.settings.device == "cuda":
        needed["GPU"] = workers
    for name, number in needed.items():
        if found.get(name, 0) < number:
            raise UserError(
                f"{workers} workers with {job.settings.threads} threads need {number} {name}s; this Ray cluster has "
                f"{found.get(name, 0):g}. Use fewer --workers, or fewer --threads in a new store."
            )


def _ray() -> tuple[Any, Any]:
    """The modules `ray` and `ray.data`.

    Raises:
        UserError: they are not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--runner ray needs Ray Data: pip install 'syzygy[ray]' (or 'ray[data]').") from None
    return ray, ray.data
