"""What is done with Ray's answers; Ray itself is replaced. That it gives them, the end-to-end test shows."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from syzygy.data.encoder import EmbedSettings
from syzygy.errors import UserError
from syzygy.runs import embed_ray
from syzygy.runs.embed_work import EncoderSpec, Job, SilentReport, Tally

SHARDS = [SimpleNamespace(name=f"{i}.tar", fingerprint=1, read=lambda: []) for i in range(3)]


class Rows:
    """Ray Data's rows, mapped in this process."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def map_batches(self, kind: Any, *, fn_constructor_args: tuple[Any, ...], **_: Any) -> "Rows":
        worker, found = kind(*fn_constructor_args), []
        for row in self.rows:
            answer = worker({name: np.array([value]) for name, value in row.items()})
            found.append({name: values[0] for name, values in answer.items()})
        return Rows(found)

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    data = SimpleNamespace(
        from_items=lambda rows, override_num_blocks: Rows(rows),
        ActorPoolStrategy=lambda size: size,
        DataContext=SimpleNamespace(get_current=SimpleNamespace),
    )
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 2.0})
    monkeypatch.setattr(embed_ray, "_ray", lambda: (ray, data))
    monkeypatch.setattr(EncoderSpec, "load", lambda *_, **__: None)
    settings = EmbedSettings(threads=1, device="cpu")
    return Job(tmp_path, SHARDS, EncoderSpec("x", None, torch.float32, "cpu"), settings)


def run(job: Job, workers: int) -> None:
    embed_ray.run_ray(job, [0, 1, 2], workers, Tally(SHARDS, [], 0.05), SilentReport())


def test_a_workers_mistake_is_told_in_its_own_words(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(*_: Any) -> None:
        raise UserError("cannot write a shard: the disk is full.")

    monkeypatch.setattr(embed_ray, "embed_shard", embed)
    with pytest.raises(UserError, match=r"^cannot write a shard: the disk is full\.$"):
        run(job, 2)


def test_more_workers_than_processors_are_refused(job: Job) -> None:
    with pytest.raises(UserError, match="3 workers with 1 threads need 3 CPUs; this Ray cluster has 2"):
        run(job, 3)
