"""The generation thread: who shares a batch, who waits, who is dropped."""

import io
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from syzygy.core.contracts import Region, Sampling
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.generation.request import GenerationRequest
from syzygy.server.engine import Description, Engine, preview_at
from syzygy.server.metrics import Metrics
from syzygy.server.problems import Problem, field_errors, problem_of
from syzygy.server.requests import ImageRequest
from syzygy.server.worker import Event, Finished, ImageReady, Job, PreviewReady, Queued, StepDone, Worker
from tests.tiny_server import PATIENCE, Held, tiny_engine, waited

HOW = Sampling(steps=3, guidance_scale=2.0, sampler="euler")
SLOW = 100.0
"""Expected seconds of a step, so that the order does not depend on how fast the test submits its requests."""


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return tiny_engine(tiny_model)


@pytest.fixture
def held(engine: Engine) -> Held:
    return Held(engine)


@pytest.fixture
def worker(held: Held) -> Iterator[Worker]:
    worker = Worker(held, Metrics(), batch_size=4)
    worker.start()
    yield worker
    held.go.set()
    worker.close()


def request(
    prompt: str = "a red circle", *seeds: int, exact: bool = False, previews: int = 0, **changes: Any
) -> ImageRequest:
    generation = GenerationRequest(**{"prompts": [prompt], "sampling": HOW, **changes})
    return ImageRequest(generation, seeds or (1,), exact, previews=previews)


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


class Client:
    """A job, and what it was told."""

    def __init__(self, worker: Worker, asked: ImageRequest) -> None:
        self.told: queue.Queue[Event] = queue.Queue()
        self.job = Job(asked, self.told.put)
        worker.submit(self.job)

    def events(self) -> list[Event]:
        found: list[Event] = []
        while not found or not isinstance(found[-1], Finished):
            found.append(self.told.get(timeout=PATIENCE))
        return found

    def pngs(self) -> list[bytes]:
        return [event.file for event in self.events() if isinstance(event, ImageReady)]

    def error(self) -> Exception | None:
        *_, last = self.events()
        assert isinstance(last, Finished)
        return last.error


def test_requests_of_one_shape_share_a_batch_and_the_shortest_goes_first(worker: Worker, held: Held) -> None:
    worker._seconds = SLOW
    first = Client(worker, request("a"))
    assert held.begun.wait(PATIENCE)
    others = [
        Client(worker, request("b", 1, 2)),
        Client(worker, request("c", sampling=replace(HOW, steps=2))),
        Client(worker, request("d")),
    ]
    held.go.set()
    assert [len(one.pngs()) for one in (first, *others)] == [1, 2, 1, 1]
    assert held.batches == [["a"], ["c"], ["d", "b", "b"]]


def test_a_seed_gives_equal_bytes_whatever_else_is_generated(worker: Worker, held: Held) -> None:
    worker._seconds = SLOW
    asked = request("a red circle", 5, 6, exact=True)
    first = Client(worker, asked)
    assert held.begun.wait(PATIENCE)
    beside = [Client(worker, request("a blue star")), Client(worker, asked), Client(worker, request("a green ring"))]
    held.go.set()
    both = first.pngs()
    assert both == beside[1].pngs()
    (alone,) = Client(worker, request("a red circle", 6, exact=True)).pngs()
    assert pixels(alone) == pixels(both[1]) != pixels(both[0])
    assert [len(one) for one in held.batches] == [1, 2, 1, 1, 1, 1]


def test_a_client_that_leaves_frees_its_place(worker: Worker, held: Held) -> None:
    Client(worker, request())
    assert held.begun.wait(PATIENCE)
    waiting = [Client(worker, request(str(number), exact=True)) for number in range(3)]
    assert (worker.waiting, worker.running) == (3, 1)
    worker.cancel(waiting[1].job)
    assert worker.waiting == 2
    held.go.set()
    assert waiting[2].pngs()
    assert [one[0] for one in held.batches] == ["a red circle", "0", "2"]


def test_short_requests_overtake_long_ones_between_their_images_but_not_for_ever(worker: Worker, held: Held) -> None:
    """The long one has three images, one at a time; a short one waits for one of them only."""
    worker._seconds = SLOW
    long = Client(worker, request("long", 1, 2, 3, exact=True))
    assert held.begun.wait(PATIENCE)
    short = Client(worker, request("short", exact=True))
    late = Client(worker, request("late", exact=True))
    late.job.due = long.job.due + 1  # it came so much later that it may not overtake
    held.go.set()
    assert len(long.pngs()) == 3
    assert short.pngs()
    assert late.pngs()
    assert [one[0] for one in held.batches] == ["long", "short", "long", "long", "late"]


def test_a_long_request_tells_all_its_steps_though_others_come_between(worker: Worker, held: Held) -> None:
    worker._seconds = SLOW
    long = Client(worker, request("long", 1, 2, exact=True))
    assert held.begun.wait(PATIENCE)
    short = Client(worker, request("short", exact=True, sampling=replace(HOW, steps=1)))
    held.go.set()
    steps = [(event.step, event.steps) for event in long.events() if isinstance(event, StepDone)]
    assert steps == [(step, 6) for step in range(1, 7)]
    assert short.pngs()


def test_those_who_wait_are_told_their_place_and_time(worker: Worker, held: Held) -> None:
    worker._seconds = SLOW
    image = 3 * SLOW
    first = Client(worker, request("first", 1, 2, exact=True))
    assert held.begun.wait(PATIENCE)
    long = Client(worker, request("long", 1, 2, 3, exact=True))
    short = Client(worker, request("short", exact=True))  # overtakes both
    about = image / 3
    assert worker.starts() == pytest.approx([image, 3 * image], abs=about)
    worker.cancel(short.job)
    assert worker.starts() == pytest.approx([2 * image], abs=about)
    held.go.set()

    def told(client: Client) -> list[tuple[int, float]]:
        return [(event.position, event.seconds) for event in client.events() if isinstance(event, Queued)]

    assert told(short) == [(1, pytest.approx(image, abs=about))]
    near = [pytest.approx(images * image, abs=about) for images in (2, 3, 2)]
    assert told(long) == [*zip((1, 2, 1), near, strict=True)]
    assert told(first) == []
    assert worker.starts() == []


def test_sampling_ends_at_the_next_step_when_all_have_left_and_goes_on_while_one_stays(
    worker: Worker, held: Held
) -> None:
    alone = Client(worker, request("a"))
    assert held.begun.wait(PATIENCE)
    both = [Client(worker, request("b")), Client(worker, request("c"))]
    worker.cancel(alone.job)
    worker.cancel(both[0].job)
    held.go.set()
    assert both[1].pngs()
    assert not both[0].pngs()
    assert held.batches == [["a"], ["c"]]
    assert held.steps == 1 + 3


def test_a_batch_goes_on_while_one_of_its_clients_stays(held: Held) -> None:
    worker = Worker(held, Metrics(), batch_size=4)
    left, stays = (Client(worker, request(prompt)) for prompt in "bc")
    worker.start()
    assert held.begun.wait(PATIENCE)
    worker.cancel(left.job)
    held.go.set()
    assert stays.pngs()
    assert not left.pngs()
    assert held.batches == [["b", "c"]]
    worker.close()


def test_two_lanes_compute_two_batches_at_a_time(held: Held) -> None:
    held.lanes = 2
    worker = Worker(held, Metrics(), batch_size=4)
    worker._seconds = SLOW
    image = 3 * SLOW
    clients = [Client(worker, request(prompt, 1, 2, exact=True)) for prompt in "abc"]
    worker.start()
    assert waited(lambda: len(held.batches) == 2)
    assert (worker.waiting, worker.running) == (1, 2)
    # Both lanes are free after an image. Those of a and b are due first and go on there.
    assert worker.starts() == pytest.approx([2 * image], abs=image / 3)
    held.go.set()
    assert [len(client.pngs()) for client in clients] == [2, 2, 2]
    assert sorted(prompt for (prompt,) in held.batches) == [*"aabbcc"]
    worker.close()


def test_a_mistake_in_one_request_is_not_paid_by_its_neighbours(worker: Worker, held: Held) -> None:
    Client(worker, request())
    assert held.begun.wait(PATIENCE)
    regions = [[Region("star", torch.ones(2, 2))]]
    bad = Client(worker, request("a ring", regions=regions))
    good = Client(worker, request("a star", regions=regions))
    held.go.set()
    assert isinstance(bad.error(), UserError)
    assert good.pngs()
    assert held.batches[1:] == [["a ring", "a star"], ["a ring"], ["a star"]]


def test_a_bug_ends_its_request_and_not_the_worker(worker: Worker, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    held.go.set()
    monkeypatch.setattr(Description, "file", lambda *_: 1 / 0)
    assert isinstance(Client(worker, request()).error(), ZeroDivisionError)
    monkeypatch.undo()
    assert Client(worker, request()).pngs()


def test_what_is_told_on_the_way(worker: Worker, held: Held) -> None:
    held.go.set()
    events = Client(worker, request("a", 1, 2, exact=True, previews=1)).events()
    steps = [(event.step, event.steps) for event in events if isinstance(event, StepDone)]
    assert steps == [(step, 6) for step in range(1, 7)]
    assert [(one.picture, one.number) for one in events if isinstance(one, PreviewReady)] == [(0, 0), (1, 0)]


def test_close_drops_what_waits_and_what_is_running(worker: Worker, held: Held) -> None:
    painted = Client(worker, request())
    assert held.begun.wait(PATIENCE)
    waiting = Client(worker, request())
    closing = threading.Thread(target=worker.close)
    closing.start()
    assert isinstance(waiting.error(), Problem)
    held.go.set()
    closing.join(PATIENCE)
    error = painted.error()
    assert isinstance(error, Problem)
    assert error.status == 503
    with pytest.raises(Problem, match="shutting down"):
        Client(worker, request())


@given(steps=st.integers(1, 60), previews=st.integers(0, 8))
def test_previews_come_in_order_before_the_last_step(steps: int, previews: int) -> None:
    numbers = [preview_at(step, steps, previews) for step in range(1, steps + 1)]
    assert numbers[-1] is None
    assert [number for number in numbers if number is not None] == list(range(min(previews, steps - 1)))


class Overflowing(Held):
    """Fails at one prompt, as a model in half precision may."""

    def generate(self, requests: Any, seeds: Any, on_step: Any) -> Any:
        images = super().generate(requests, seeds, on_step)
        if rows := [row for row, request in enumerate(requests) if request.prompt == "bright"]:
            raise NonFiniteError("images", rows, ["one"] * len(rows))
        return images


def test_an_image_that_is_not_finite_fails_its_own_request_alone(engine: Engine) -> None:
    held = Overflowing(engine)
    worker = Worker(held, Metrics(), batch_size=4)
    worker.start()
    first = Client(worker, request("a"))
    assert held.begun.wait(30)
    others = [Client(worker, request(prompt)) for prompt in ("b", "bright", "c")]
    held.go.set()
    b, bright, c = others
    assert [len(one.pngs()) for one in (first, b, c)] == [1, 1, 1]
    assert isinstance(bright.error(), NonFiniteError)
    assert held.batches == [["a"], ["b", "bright", "c"], ["b"], ["bright"], ["c"]]
    worker.close()


def test_the_log_has_no_prompt(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Messages of errors may quote it, also those of the errors that led to another."""

    class Quoting(Held):
        def generate(self, requests: Any, seeds: Any, on_step: Any) -> Any:
            if requests[0].prompt == "a secret, not finite":
                raise NonFiniteError("text features", [0], [repr(requests[0].prompt)])
            try:
                raise KeyError(requests[0].prompt)
            except KeyError as error:
                raise ValueError(f"no {requests[0].prompt}") from error

    worker = Worker(Quoting(engine), Metrics(), batch_size=4)
    worker.start()
    assert isinstance(Client(worker, request("a secret")).error(), ValueError)
    assert isinstance(Client(worker, request("a secret, not finite")).error(), NonFiniteError)
    worker.close()
    assert "secret" not in caplog.text
    assert "KeyError" in caplog.text
    assert "ValueError" in caplog.text
    assert "text features hold values that are not finite" in caplog.text
    assert "in generate" in caplog.text


def test_a_failure_of_the_model_is_no_mistake_in_a_field() -> None:
    failure = NonFiniteError("text features", [0], ["'a star'"])
    with pytest.raises(NonFiniteError), field_errors("sources"):
        raise failure
    found = problem_of(failure)
    assert (found.status, found.body["error"]["code"], found.body["error"]["param"]) == (500, "non_finite_values", None)
