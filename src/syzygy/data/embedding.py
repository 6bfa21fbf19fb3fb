"""`embed`: pairs into a store, with the runner that shares the work out.

Every runner calls `embed_shard` for each unfinished shard. They differ in who does which, and never in a byte of the store.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.config import parse
from syzygy.core.edge_maps import check_opencv
from syzygy.core.errors import UserError
from syzygy.core.model_parts import part_or_id
from syzygy.data import runner_torchrun, store_building
from syzygy.data.embedding_preview import Preview, preview
from syzygy.data.embedding_work import EncoderSpec, Job, Tally
from syzygy.data.encoding import EmbedSettings
from syzygy.data.runner_local import run_here, run_processes
from syzygy.data.runner_ray import run_ray
from syzygy.data.sources import SourceOptions, open_source
from syzygy.data.store_files import SUBJECTS

Runner = Literal["auto", "local", "torchrun", "ray"]
COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_THREADS = 16
"""Threads that a process decodes with at most, by default."""
SLOW_PART = 256
"""Captions of a part without a GPU. An interruption loses the work on one part, so a part takes some minutes at most."""


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What to embed, with what, and where to. None means the value with which the store in `out` was begun, else a default."""

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
    """The precision in which the encoder computes. Default: bf16 on a GPU, else fp32."""
    batch_size: int | None = None
    """Default: 256 on a GPU, else 32."""
    threads: int | None = None
    """Threads of each process. Default: the processors, divided by the number of workers."""
    workers: int | None = None
    """Processes. Default: 1."""
    runner: Runner = "auto"
    max_bad: float = 0.05
    """The share of the samples that may be unusable."""
    caption_columns: tuple[str, ...] | None = None
    image_column: str | None = None
    keep: tuple[str, ...] | None = None
    subjects: bool | None = None
    """Embed the subjects that the metadata name; see `data.source_subjects`. Default: no."""
    subject_column: str | None = None
    """The column with subjects. Default: "subjects"."""
    edges: bool | None = None
    """Embed the edges of each picture too; only with subjects. Default: no."""
    image_norm: float | None = None


@dataclass(frozen=True)
class EmbedResult:
    """A finished store."""

    store: Path
    manifest: Mapping[str, Any]
    embedded: int
    """Shards that this run embedded; the others were finished before."""


Showing = Callable[[Tally], AbstractContextManager[Any]]
"""Shows how the work goes while the context is open; see `Tally.on_change`."""


def embed(
    request: EmbedRequest,
    estimated: Callable[[Preview | None], None] = lambda preview: None,
    showing: Showing = nullcontext,
) -> EmbedResult | None:
    """Embed every shard of the source that is not finished, and finish the store. None on all ranks of torchrun but the first.

    Args:
        request: what to embed, with what, and where to.
        estimated: called before the work, if there is any, with what it will take.
        showing: see `Showing`.

    Raises:
        UserError: anything that a user can correct. Finished shards are kept.
    """
    runner = _runner(request)
    if runner == "torchrun":
        return _embed_ranks(request, showing)
    workers = request.workers or 1
    pool = run_ray if runner == "ray" else run_processes if workers > 1 else None
    begun = _begin(request, here=pool is None)
    if begun.todo:
        shards, keep = [begun.job.shards[i] for i in begun.todo], begun.plan.options.keep
        estimated(preview(shards, begun.encoder, begun.job.settings, workers, keep))
    with showing(begun.tally):
        try:
            if pool is None:
                run_here(begun.job, begun.todo, begun.encoder, begun.tally)
            elif begun.todo:
                pool(begun.job, begun.todo, workers, begun.tally)
        except store_building.TooManyBad:
            store_building.write_bad(request.out, list(store_building.finished(request.out, begun.plan)))
            raise
    return begun.finish(request)


def dry_run(request: EmbedRequest) -> Preview | None:
    """What `embed` would take, measured on the first pairs. Nothing is written. None if none of the first samples can be used.

    Raises:
        UserError: as `embed`, before its work.
    """
    if _runner(request) == "torchrun":
        raise UserError("--dry-run is for one process: start it without torchrun.")
    plan = store_building.read_plan(request.out)
    options, settings = _options(request, plan), _settings(request, plan)
    source = open_source(request.source, options)
    encoder = _spec(request, plan).load()
    return preview(source.shards, encoder, settings, request.workers or 1, options.keep)


def _embed_ranks(request: EmbedRequest, showing: Showing) -> EmbedResult | None:
    with runner_torchrun.group() as (rank, ranks):
        begun = _begin(request) if rank == 0 else None
        todo = runner_torchrun.shared(begun.todo if begun else None)
        mine = begun or _begin(request, join=True)
        with showing(mine.tally) if rank == 0 else nullcontext():
            run_here(mine.job, todo[rank::ranks], mine.encoder, mine.tally)
        runner_torchrun.wait()
        return begun.finish(request) if begun else None


@dataclass(frozen=True)
class _Begun:
    """A store that is being filled."""

    plan: store_building.Plan
    job: Job
    encoder: Clip
    todo: list[int]
    """Shards that were unfinished."""
    tally: Tally

    def finish(self, request: EmbedRequest) -> EmbedResult:
        return EmbedResult(request.out, store_building.finish(request.out, self.plan, request.max_bad), len(self.todo))


def _begin(request: EmbedRequest, *, here: bool = True, join: bool = False) -> _Begun:
    """Claim the store or continue it.

    Args:
        here: whether this process embeds; if not, its workers load the encoder for themselves.
        join: whether another rank has begun the store already.
    """
    plan = store_building.read_plan(request.out)
    options, settings = _options(request, plan), _settings(request, plan)
    source = open_source(request.source, options)
    spec = _spec(request, plan)
    rank = int(os.environ.get("LOCAL_RANK", "0")) if runner_torchrun.under_torchrun() else 0
    encoder = (spec if here else replace(spec, device="cpu")).load(rank, local_files_only=join)
    if join:
        assert plan is not None, "the first rank has begun it"
    else:
        identity = encoder.identity().to_config()
        flags = ["--subjects"] * settings.subjects + ["--edges"] * settings.edges
        if options.subject_column not in (None, SUBJECTS):
            flags += ["--subject-column", options.subject_column]
        at = request.source, request.encoder, request.revision, settings.device
        command = store_building.command_for(*at, flags)
        plan = store_building.begin(request.out, source, options, settings, identity, command)
    records = list(store_building.finished(request.out, plan))
    done = {record["number"] for record in records}
    todo = [number for number in range(len(source.shards)) if number not in done]
    job = Job(request.out, source.shards, replace(spec, revision=encoder.revision), settings)
    return _Begun(plan, job, encoder, todo, Tally(source.shards, records, request.max_bad))


def _runner(request: EmbedRequest) -> str:
    """The runner that `auto` means here, if it knows all options."""
    runner = request.runner
    if runner == "auto":
        runner = "torchrun" if runner_torchrun.under_torchrun() else "local"
    if runner == "torchrun" and request.workers is not None:
        raise UserError("--workers has no effect under torchrun: its --nproc-per-node sets the number of processes.")
    return runner


def _given(request: EmbedRequest, names: tuple[str, ...]) -> dict[str, Any]:
    """The values of the request that are not None."""
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _options(request: EmbedRequest, plan: store_building.Plan | None) -> SourceOptions:
    before = plan.options if plan else SourceOptions()
    wanted = before.subject_column is not None if request.subjects is None else request.subjects
    if request.subject_column is not None and not wanted:
        raise UserError("--subject-column has no effect without --subjects.")
    given = _given(request, (*SourceOptions.model_fields,))
    column = (request.subject_column or before.subject_column or SUBJECTS) if wanted else None
    return parse(SourceOptions, before.model_dump() | given | {"subject_column": column}, "embed")


def _settings(request: EmbedRequest, plan: store_building.Plan | None) -> EmbedSettings:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = EmbedSettings(
        batch_size=256 if request.device == "cuda" else 32,
        shard_size=10_000 if request.device == "cuda" else SLOW_PART,
        threads=max(min(processors // (request.workers or 1), MOST_THREADS), 1),
    )
    before = plan.settings if plan else default
    changes = _given(request, ("dtype", "batch_size", "threads", "device", "subjects", "edges"))
    found = EmbedSettings.model_validate(before.model_dump() | changes)
    if found.edges and not found.subjects:
        raise UserError("--edges has no effect without --subjects: λ-ECLIPSE priors, which read edges, read subjects.")
    if found.edges:
        check_opencv("images", "Or leave --edges out, and train with task.controlled=0.")
    return found


def _spec(request: EmbedRequest, plan: store_building.Plan | None) -> EncoderSpec:
    source = str(part_or_id(request.encoder, "clip"))
    before = plan.values["encoder"] if plan else {}
    names = {str(dtype).removeprefix("torch."): name for name, dtype in COMPUTE.items()}
    compute = request.compute or names.get(before.get("dtype", "")) or ("bf16" if request.device == "cuda" else "fp32")
    # A hub id without a revision stays at the commit with which the store was begun.
    revision = request.revision or (before.get("revision") if before.get("source") == source else None)
    return EncoderSpec(source, revision, COMPUTE[compute], request.device)
