"""Embedding on this machine: in this process, or in several."""

import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from syzygy.core.errors import UserError
from syzygy.data.embed_shard import Progress, embed_shard
from syzygy.data.embedding_work import Job, Report, Tally
from syzygy.data.pair_encoder import PairEncoder

PATIENCE = 30.0
"""Seconds that workers have to end, once they are told to."""


def run_here(job: Job, todo: Sequence[int], encoder: PairEncoder, tally: Tally, report: Report) -> None:
    """Embed the shards of these numbers one after another."""

    def watch(progress: Progress) -> None:
        tally.update(progress)
        report.update()

    for number in todo:
        tally.finish(embed_shard(job.shards[number], number, encoder, job.settings, job.store, watch))
        report.update()


def run_processes(job: Job, todo: Sequence[int], workers: int, tally: Tally, report: Report) -> None:
    """Embed the shards of these numbers in several processes, each with an encoder of its own; whoever is free takes the next.

    Raises:
        UserError: a worker met one, or died.
    """
    context = multiprocessing.get_context("spawn")
    messages, stop, taken = context.Queue(), context.Event(), context.Value("q", 0)
    processes = [
        context.Process(target=_work, args=(worker, job, list(todo), taken, stop, messages, os.getpid()), daemon=True)
        for worker in range(min(workers, len(todo)))
    ]
    try:
        for process in processes:
            process.start()
        _listen(len(todo), processes, messages, tally, report)
    finally:
        stop.set()
        for process in processes:
            if process.pid is not None:
                process.join(PATIENCE)
                process.terminate()


def _listen(left: int, processes: Sequence[Any], messages: Any, tally: Tally, report: Report) -> None:
    """Count what the workers tell until all shards are done."""
    while left:
        alive = any(process.is_alive() for process in processes)
        failed = next((process.exitcode for process in processes if process.exitcode), None)
        try:
            message = messages.get(timeout=0.2)
        except queue.Empty:
            if failed is not None or not alive:
                raise UserError(
                    f"a worker died (exit code {failed}), perhaps for lack of memory: try fewer --workers or a smaller "
                    "--batch-size (the latter in a new store). Finished shards are kept."
                ) from None
            continue
        if isinstance(message, UserError):
            raise message
        if isinstance(message, str):
            raise RuntimeError(f"a worker failed:\n{message}")
        if isinstance(message, Progress):
            tally.update(message)
        else:
            left -= 1
            tally.finish(message)
        report.update()


class _Stopped(Exception):
    """This worker is not wanted any more."""


def _work(worker: int, job: Job, todo: list[int], taken: Any, stop: Any, messages: Any, parent: int) -> None:
    """A worker's life. It tells a `Progress` after each batch, a record after each shard, and an error at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and tells

    def watch(progress: Progress) -> None:
        if stop.is_set() or os.getppid() != parent:
            raise _Stopped
        messages.put(replace(progress, first=list(progress.first)))  # it is sent later, by a thread

    try:
        encoder = job.spec.load(worker, local_files_only=True)
        while not stop.is_set():
            with taken.get_lock():
                position = taken.value
                taken.value += 1
            if position >= len(todo):
                break
            number = todo[position]
            messages.put(embed_shard(job.shards[number], number, encoder, job.settings, job.store, watch))
    except _Stopped:
        pass
    except UserError as error:
        messages.put(error)
    except BaseException:
        messages.put(traceback.format_exc())
