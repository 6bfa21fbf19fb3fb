"""Embedding pairs into a store: the command's own work, and the runners that share it out.

Every runner calls `embed_shard` for each unfinished shard; they differ in who does which, and none in a byte.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.config import parse
from syzygy.core.errors import UserError
from syzygy.core.model_parts import part_or_id
from syzygy.data import building
from syzygy.data import runner_torchrun as torchrun
from syzygy.data.embedding_preview import Preview, preview
from syzygy.data.embedding_work import EncoderSpec, Job, Report, SilentReport, Tally
from syzygy.data.pair_encoder import EmbedSettings
from syzygy.data.runner_local import run_here, run_processes
from syzygy.data.runner_ray import run_ray
from syzygy.data.sources import SourceOptions, open_source

Runner = Literal["auto", "local", "torchrun", "ray"]
COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_THREADS = 16
"""A process decodes with no more by default."""
SLOW_PART = 256
"""Captions of a part without a GPU: an interruption loses the work on one part, so a part takes some minutes at most."""


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What to embed, with what, and where to. None: as the store in `out` was begun, else a default."""

    source: str
    encoder: str
    """A folder, a hub id, or a model that comes with the package ("starter")."""
    out: Path
    device: str = "cpu"
    revision: str | None = None
    """Of a hub id."""
    dtype: Literal["fp16", "bf16"] | None = None
    """How features are stored. Default: fp16."""
    compute: Literal["fp32", "bf16", "fp16"] | None = None
    """What the encoder computes in. Default: bf16 on a GPU, else fp32."""
    batch_size: int | None = None
    """Default: 256 on a GPU, else 32."""
    threads: int | None = None
    """Of each process. Default: the processors shared out among the workers."""
    workers: int | None = None
    """Processes. Default: 1."""
    runner: Runner = "auto"
    max_bad: float = 0.05
    caption_columns: tuple[str, ...] | None = None
    image_column: str | None = None
    keep: tuple[str, ...] | None = None
    image_norm: float | None = None


@dataclass(frozen=True)
class EmbedResult:
    """A finished store."""

    store: Path
    manifest: Mapping[str, Any]
    embedded: int
    """Shards that this run embedded; the others were finished before."""


def embed(request: EmbedRequest, report: Report | None = None) -> EmbedResult | None:
    """Embed every shard of the source that is not finished, and finish the store. None on all but the first rank of torchrun.

    Raises:
        UserError: anything that a user can mend; finished shards are kept.
    """
    report = report or SilentReport()
    runner = _runner(request)
    if runner == "torchrun":
        return _embed_ranks(request, report)
    workers = request.workers or 1
    pool = run_ray if runner == "ray" else run_processes if workers > 1 else None
    begun = _begin(request, here=pool is None)
    if begun.todo:
        report.expects(preview([begun.job.shards[i] for i in begun.todo], begun.encoder, begun.job.settings, workers))
    with report.running(begun.tally):
        try:
            if pool is None:
                run_here(begun.job, begun.todo, begun.encoder, begun.tally, report)
            elif begun.todo:
                pool(begun.job, begun.todo, workers, begun.tally, report)
        except building.TooManyBad:
            building.write_bad(request.out, list(building.finished(request.out, begun.plan)))
            raise
    return begun.finish(request)


def dry_run(request: EmbedRequest) -> Preview | None:
    """What `embed` would take, measured on the first pairs; nothing is written. None if no pair among the first samples can be used.

    Raises:
        UserError: as `embed`, before its work.
    """
    if _runner(request) == "torchrun":
        raise UserError("--dry-run is for one process: start it without torchrun.")
    plan = building.read_plan(request.out)
    source = open_source(request.source, _options(request, plan))
    encoder, settings = _spec(request, plan).load(), _settings(request, plan)
    return preview(source.shards, encoder, settings, request.workers or 1)


def _embed_ranks(request: EmbedRequest, report: Report) -> EmbedResult | None:
    with torchrun.group() as (rank, ranks):
        begun = _begin(request) if rank == 0 else None
        todo = torchrun.shared(begun.todo if begun else None)
        mine = begun or _begin(request, join=True)
        with (report if rank == 0 else SilentReport()).running(mine.tally):
            run_here(mine.job, todo[rank::ranks], mine.encoder, mine.tally, report if rank == 0 else SilentReport())
        torchrun.wait()
        return begun.finish(request) if begun else None


@dataclass(frozen=True)
class _Begun:
    """A store that is being filled."""

    plan: building.Plan
    job: Job
    encoder: Clip
    todo: list[int]
    """Shards that were unfinished."""
    tally: Tally

    def finish(self, request: EmbedRequest) -> EmbedResult:
        return EmbedResult(request.out, building.finish(request.out, self.plan, request.max_bad), len(self.todo))


def _begin(request: EmbedRequest, *, here: bool = True, join: bool = False) -> _Begun:
    """Claim the store or continue it.

    Args:
        here: whether this process will embed; other ones load the encoder for themselves.
        join: whether another rank has begun the store already.
    """
    plan = building.read_plan(request.out)
    options = _options(request, plan)
    source = open_source(request.source, options)
    spec = _spec(request, plan)
    encoder = (spec if here else replace(spec, device="cpu")).load(_local_rank(), local_files_only=join)
    settings = _settings(request, plan)
    if join:
        assert plan is not None, "the first rank has begun it"
    else:
        identity = encoder.identity().to_config()
        command = building.command_for(request.source, request.encoder, request.revision, settings.device)
        plan = building.begin(request.out, source, options, settings, identity, command)
    records = list(building.finished(request.out, plan))
    done = {record["number"] for record in records}
    todo = [number for number in range(len(source.shards)) if number not in done]
    job = Job(request.out, source.shards, replace(spec, revision=encoder.revision), settings)
    return _Begun(plan, job, encoder, todo, Tally(source.shards, records, request.max_bad))


def _runner(request: EmbedRequest) -> str:
    """Which one `auto` means, and whether it knows all options."""
    runner = request.runner
    if runner == "auto":
        runner = "torchrun" if torchrun.under_torchrun() else "local"
    if runner == "torchrun" and request.workers is not None:
        raise UserError(
            "--workers has no effect under torchrun: its --nproc-per-node says how many processes there are."
        )
    return runner


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0")) if torchrun.under_torchrun() else 0


def _options(request: EmbedRequest, plan: building.Plan | None) -> SourceOptions:
    before = plan.options if plan else SourceOptions()
    given = {name: getattr(request, name) for name in SourceOptions.model_fields}
    changes = {name: value for name, value in given.items() if value is not None}
    return parse(SourceOptions, before.model_dump() | changes, "embed")


def _settings(request: EmbedRequest, plan: building.Plan | None) -> EmbedSettings:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = EmbedSettings(
        batch_size=256 if request.device == "cuda" else 32,
        shard_size=10_000 if request.device == "cuda" else SLOW_PART,
        threads=max(min(processors // (request.workers or 1), MOST_THREADS), 1),
    )
    before = plan.settings if plan else default
    given = {name: getattr(request, name) for name in ("dtype", "batch_size", "threads")}
    changes = {name: value for name, value in given.items() if value is not None} | {"device": request.device}
    return EmbedSettings.model_validate(before.model_dump() | changes)


def _spec(request: EmbedRequest, plan: building.Plan | None) -> EncoderSpec:
    source = str(part_or_id(request.encoder, "clip"))
    before = plan.values["encoder"] if plan else {}
    names = {str(dtype).removeprefix("torch."): name for name, dtype in COMPUTE.items()}
    compute = request.compute or names.get(before.get("dtype", "")) or ("bf16" if request.device == "cuda" else "fp32")
    # A hub id without a revision stays at the commit that the store was begun with.
    revision = request.revision or (before.get("revision") if before.get("source") == source else None)
    return EncoderSpec(source, revision, COMPUTE[compute], request.device)
