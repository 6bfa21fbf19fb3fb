"""The count of what is done, and what a request means for a store that was begun."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from syzygy.data import embedding, store_building
from syzygy.data.embed_shard import Progress
from syzygy.data.embedding import EmbedRequest
from syzygy.data.embedding_work import Tally
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import SourceOptions


class Shard(SimpleNamespace):
    name: str
    size: int
    fingerprint: str
    samples: int | None

    def read(self) -> Any: ...


SHARDS = [Shard(name=f"{i}.tar", size=100, samples=None, fingerprint=f"{i}") for i in range(4)]


def record(number: int, seen: int, bad: int = 0) -> dict[str, Any]:
    faults = [{"key": f"{i}", "reason": "broken", "lost": "pair"} for i in range(bad)]
    return {"number": number, "seen": seen, "bad": [*faults, {"key": "x", "reason": "empty", "lost": "caption"}]}


def test_shards_in_work_count_until_their_record_does() -> None:
    tally = Tally(SHARDS, [record(2, 50, 1)], 0.05)
    assert (tally.seen, tally.seen_before, tally.bad, tally.shards_done, tally.expected) == (50, 50, 1, 1, 200)
    for seen in (10, 30):
        tally.update(Progress(0, seen, 1, ["a: broken"]))
        tally.update(Progress(1, seen))
    assert (tally.seen, tally.bad, tally.shards_done) == (110, 2, 1)
    tally.finish(record(0, 70, 2))
    assert (tally.seen, tally.bad, tally.shards_done, tally.expected) == (150, 3, 2, 240)
    assert Tally(SHARDS, [], 0.05).expected is None


def test_too_many_bad_samples_end_the_work_as_soon_as_a_thousand_were_seen() -> None:
    tally = Tally(SHARDS, [record(0, 600, 60)], 0.05)
    tally.update(Progress(1, 399))
    with pytest.raises(
        store_building.TooManyBad, match=r"60 of 1,000 samples cannot be used, .*: 0\.tar 0: broken; 0\.tar 1: broken; "
    ):
        tally.update(Progress(1, 400))
    with pytest.raises(store_building.TooManyBad):
        Tally(SHARDS, [record(0, 1000, 60)], 0.05)
    Tally(SHARDS, [record(0, 1000, 60)], 0.06)


def plan(**encoder: Any) -> store_building.Plan:
    settings = EmbedSettings(dtype="bf16", batch_size=7, threads=3, device="cuda")
    options = SourceOptions(keep=("url",), image_norm=2.0)
    identity = {"dtype": "bfloat16", "source": "org/clip", "revision": "abc", **encoder}
    values = {
        "settings": settings.model_dump(mode="json"),
        "options": options.model_dump(mode="json"),
        "encoder": identity,
    }
    return store_building.Plan(values)


def request(**given: Any) -> EmbedRequest:
    return EmbedRequest(**{"source": "x", "encoder": "org/clip", "out": Path("s"), "device": "cuda", **given})


def test_what_is_not_said_stays_as_the_store_was_begun() -> None:
    before = plan()
    assert embedding._settings(request(), before) == before.settings
    assert embedding._options(request(), before) == before.options
    assert embedding._spec(request(), before).compute == torch.bfloat16
    assert embedding._spec(request(), before).revision == "abc"
    assert embedding._spec(request(encoder="org/other"), before).revision is None
    assert embedding._settings(request(batch_size=8, device="cpu"), before).model_dump() == {
        **before.settings.model_dump(),
        "batch_size": 8,
        "device": "cpu",
    }
    assert embedding._options(request(keep=("a",)), before).keep == ("a",)
    assert embedding._spec(request(compute="fp32", revision="def"), before).compute == torch.float32
    assert embedding._spec(request(revision="def"), before).revision == "def"


def test_defaults_of_a_new_store() -> None:
    settings = embedding._settings(request(device="cpu"), None)
    assert (settings.dtype, settings.batch_size, settings.device) == ("fp16", 32, "cpu")
    assert 1 <= settings.threads <= embedding.MOST_THREADS
    assert embedding._settings(request(device="cpu", workers=10_000), None).threads == 1
    assert embedding._settings(request(), None).batch_size == 256
    assert embedding._spec(request(), None).compute == torch.bfloat16
    assert embedding._spec(request(device="cpu"), None).compute == torch.float32


def test_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedding._runner(request()) == "local"
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    assert embedding._runner(request()) == "torchrun"
    assert embedding._runner(request(runner="ray")) == "ray"
    with pytest.raises(embedding.UserError, match=r"--workers has no effect under torchrun"):
        embedding._runner(request(workers=2))
