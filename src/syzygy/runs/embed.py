"""Embedding pairs into a store: the command's own work, and the runners that share it out.

Every runner calls `embed_shard` for each unfinished shard; they differ in who does which, and none in a byte.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from syzygy.api import BUNDLED, part_folder
from syzygy.config import parse
from syzygy.data import building
from syzygy.data.encoder import EmbedSettings
from syzygy.data.sources import SourceOptions, open_source
from syzygy.runs.embed_local import run_here, run_processes
from syzygy.runs.embed_work import EncoderSpec, Job, Report, SilentReport, Tally

Runner = Literal["auto", "local", "torchrun", "ray"]
COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_THREADS = 16
"""A process decodes with no more by default."""


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


def embed(request: EmbedRequest, report: Report | None = None) -> EmbedResult:
    """Embed every shard of the source that is not finished, and finish the store.

    Raises:
        UserError: anything that a user can mend; finished shards are kept.
    """
    report = report or SilentReport()
    plan = building.read_plan(request.out)
    options = _options(request, plan)
    source = open_source(request.source, options)
    spec = _spec(request, plan)
    clip = spec.load()
    settings = _settings(request, plan)
    command = building.command_for(request.source, request.encoder, request.out)
    plan = building.begin(request.out, source, options, settings, clip.identity().to_config(), command)
    records = list(building.finished(request.out, plan))
    done = {record["number"] for record in records}
    todo = [number for number in range(len(source.shards)) if number not in done]
    tally = Tally(source.shards, records, request.max_bad)
    job = Job(request.out, source.shards, spec, settings)
    with report.running(tally):
        if (request.workers or 1) > 1:
            run_processes(job, todo, request.workers or 1, tally, report)
        else:
            run_here(job, todo, clip, tally, report)
    return EmbedResult(request.out, building.finish(request.out, plan, request.max_bad), len(todo))


def _options(request: EmbedRequest, plan: building.Plan | None) -> SourceOptions:
    before = plan.options if plan else SourceOptions()
    given = {name: getattr(request, name) for name in SourceOptions.model_fields}
    changes = {name: value for name, value in given.items() if value is not None}
    return parse(SourceOptions, before.model_dump() | changes, "embed")


def _settings(request: EmbedRequest, plan: building.Plan | None) -> EmbedSettings:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = EmbedSettings(
        batch_size=256 if request.device == "cuda" else 32,
        threads=max(min(processors // (request.workers or 1), MOST_THREADS), 1),
    )
    before = plan.settings if plan else default
    given = {name: getattr(request, name) for name in ("dtype", "batch_size", "threads")}
    changes = {name: value for name, value in given.items() if value is not None} | {"device": request.device}
    return EmbedSettings.model_validate(before.model_dump() | changes)


def _spec(request: EmbedRequest, plan: building.Plan | None) -> EncoderSpec:
    folder = Path(request.encoder)
    local = request.encoder in BUNDLED or folder.is_dir()
    source = str(part_folder(request.encoder, "clip")) if local else request.encoder
    names = {str(dtype).removeprefix("torch."): name for name, dtype in COMPUTE.items()}
    default = "bf16" if request.device == "cuda" else "fp32"
    compute = request.compute or (names[plan.values["encoder"]["dtype"]] if plan else default)
    return EncoderSpec(source, request.revision, COMPUTE[compute], request.device)
