"""The local runner: embedding in this process, or in several on this machine."""

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
from syzygy.data.embedding_work import Job, Tally
from syzygy.data.encoding import PairEncoder

PATIENCE = 30.0
"""Seconds that workers have to end once they are asked to."""


def run_here(job: Job, todo: Sequence[int], encoder: PairEncoder, tally: Tally) -> None:
    """Embed the shards of these numbers one after another."""
    for number in todo:
        tally.finish(embed_shard(job.shards[number], number, encoder, job.settings, job.store, tally.update))


def run_processes(job: Job, todo: Sequence[int], workers: int, tally: Tally) -> None:
    """Embed the shards of these numbers in several processes, each with its own encoder. A process that is free takes the next shard.

    Raises `UserError` if a worker raised one, or died.
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
        _listen(len(todo), processes, messages, tally)
    finally:
        stop.set()
        for process in processes:
            if process.pid is not None:
                process.join(PATIENCE)
                process.terminate()


def _listen(left: int, processes: Sequence[Any], messages: Any, tally: Tally) -> None:
    """Count what the workers report until all shards are done."""
    while left:
        alive = any(process.is_alive() for process in processes)
        failed = next((process.exitcode for process in processes if process.exitcode), None)
        try:
            message = messages.get(timeout=0.2)
        except queue.Empty:
            if failed is not None or not alive:
                raise UserError(
                    f"a worker died (exit code {failed}), possibly because memory ran out: try fewer --workers, or a smaller "
                    "--batch-size in a new store. Finished shards are kept."
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


class _Stopped(Exception):
    """The parent has ended, or stops its workers."""


def _work(worker: int, job: Job, todo: list[int], taken: Any, stop: Any, messages: Any, parent: int) -> None:
    """The work of one process. It sends a `Progress` after each batch, a record after each shard, and an error if there is one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and stops this process

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
