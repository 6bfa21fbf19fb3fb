"""Embedding on this machine: in this process, or in several."""

from collections.abc import Sequence

from syzygy.data.embed import Progress, embed_shard
from syzygy.data.encoder import PairEncoder
from syzygy.runs.embed_work import Job, Report, Tally


def run_here(job: Job, todo: Sequence[int], encoder: PairEncoder, tally: Tally, report: Report) -> None:
    """Embed the shards of these numbers one after another."""

    def watch(progress: Progress) -> None:
        tally.update(progress)
        report.update()

    for number in todo:
        tally.finish(embed_shard(job.shards[number], number, encoder, job.settings, job.store, watch))
        report.update()


def run_processes(job: Job, todo: Sequence[int], workers: int, tally: Tally, report: Report) -> None:
    raise NotImplementedError
