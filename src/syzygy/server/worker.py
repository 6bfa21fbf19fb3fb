"""One thread that paints, and the bounded queue before it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from syzygy.core.contracts import Progress
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.server.engine import Studio, plain_png
from syzygy.server.metrics import Metrics
from syzygy.server.problems import BUSY, Problem, closing
from syzygy.server.requests import Order

FIRST_GUESS_SECONDS, NEWEST = 1.0, 0.3
LONGEST_WAIT_SECONDS = 60.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stepped:
    """A sampling step is taken."""

    step: int
    steps: int
    """In all, of all pictures of the order that are not painted at once."""


@dataclass(frozen=True)
class Previewed:
    """What a picture looks like so far."""

    picture: int
    number: int
    """Of this picture's previews, from 0."""
    png: bytes


@dataclass(frozen=True)
class Painted:
    """A picture is done."""

    picture: int
    seed: int
    png: bytes


@dataclass(frozen=True)
class Ended:
    """Nothing more will be told: all pictures are done, or an error says why not."""

    error: Exception | None = None


Event = Stepped | Previewed | Painted | Ended


@dataclass(eq=False)
class Job:
    """An order on its way through the worker."""

    order: Order
    tell: Callable[[Event], None]
    """Called in the worker's thread."""
    left: threading.Event = field(default_factory=threading.Event)
    """Nobody waits for it any more."""


class _AllLeft(Exception):
    """Ends a sampling that nobody waits for."""


class Worker:
    """Paints jobs in the order in which they came, jobs of the same shape together."""

    def __init__(self, studio: Studio, metrics: Metrics, *, queue: int, batch_size: int) -> None:
        self.studio, self.metrics = studio, metrics
        self.queue, self.batch_size = queue, batch_size
        self._waiting: deque[Job] = deque()
        self._painting: list[Job] = []
        self._change = threading.Condition()
        self._stopping = False
        self._seconds = FIRST_GUESS_SECONDS
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Drop what waits and what is painted, between two steps; returns when the thread has ended."""
        with self._change:
            self._stopping = True
            dropped = [*self._waiting]
            self._waiting.clear()
            for job in self._painting:
                job.left.set()
            self._change.notify_all()
        for job in dropped:
            job.tell(Ended(closing()))
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def painting(self) -> int:
        return len(self._painting)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Problem: 429 when the queue is full, 503 when the server stops.
        """
        with self._change:
            if self._stopping:
                raise closing()
            if len(self._waiting) >= self.queue:
                pictures = sum(len(one.order.seeds) for one in self._waiting)
                raise Problem(
                    429,
                    f"{self.queue} requests are waiting already: try again after the time that Retry-After gives.",
                    kind=BUSY,
                    code="queue_full",
                    retry_after=min(pictures * self._seconds, LONGEST_WAIT_SECONDS),
                )
            self._waiting.append(job)
            self._change.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more: its place in the queue is free at once, its sampling ends at the next step."""
        with self._change:
            job.left.set()
            if job in self._waiting:
                self._waiting.remove(job)

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopping or self._waiting)
                if self._stopping:
                    return
                self._painting = self._next()
            self._serve(self._painting)
            with self._change:
                self._painting = []

    def _next(self) -> list[Job]:
        """The oldest job, and with it others of its shape while they fit a batch."""
        first = self._waiting.popleft()
        jobs = [first]
        if first.order.exact:
            return jobs
        room = self.batch_size - len(first.order.seeds)
        for job in list(self._waiting):
            number = len(job.order.seeds)
            if not job.order.exact and number <= room and job.order.shape == first.order.shape:
                self._waiting.remove(job)
                jobs.append(job)
                room -= number
        return jobs

    def _serve(self, jobs: Sequence[Job]) -> None:
        try:
            self._paint(jobs)
        except _AllLeft:
            error = closing() if self._stopping else None
        except (UserError, Problem) as mistake:
            if len(jobs) > 1:  # one of them is to blame: the others shall not pay for it
                for job in jobs:
                    self._serve([job])
                return
            if isinstance(mistake, NonFiniteError):
                log.error("a request failed: %s", mistake)
            error = mistake
        except Exception as bug:
            log.exception("a batch of %d requests failed", len(jobs))
            error = bug
        else:
            error = None
        for job in jobs:
            job.tell(Ended(error))

    def _paint(self, jobs: Sequence[Job]) -> None:
        at_once = 1 if jobs[0].order.exact else self.batch_size
        rows = [(job, picture) for job in jobs for picture in range(len(job.order.seeds))]
        parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
        for number, part in enumerate(parts):
            began = time.monotonic()
            self._paint_part(part, number, len(parts))
            spent = (time.monotonic() - began) / len(part)
            self._seconds += NEWEST * (spent - self._seconds)

    def _paint_part(self, rows: Sequence[tuple[Job, int]], part: int, parts: int) -> None:
        orders = [job.order for job, _ in rows]
        seeds = [job.order.seeds[picture] for job, picture in rows]
        jobs = list(dict.fromkeys(job for job, _ in rows))

        def on_step(progress: Progress) -> None:
            if all(job.left.is_set() for job in jobs):
                raise _AllLeft
            for job in jobs:
                job.tell(Stepped(part * progress.steps + progress.step, parts * progress.steps))
            self._preview(rows, progress)

        if all(job.left.is_set() for job in jobs):
            raise _AllLeft
        images = self.studio.paint(orders, seeds, on_step)
        self.metrics.count("batches")
        for (job, picture), image, seed in zip(rows, images, seeds, strict=True):
            if not job.left.is_set():
                job.tell(Painted(picture, seed, self.studio.png(image, job.order, picture)))
                self.metrics.count("pictures")

    def _preview(self, rows: Sequence[tuple[Job, int]], progress: Progress) -> None:
        wanted = [
            (row, number)
            for row, (job, _) in enumerate(rows)
            if (number := preview_at(progress.step, progress.steps, job.order.previews)) is not None
            and not job.left.is_set()
        ]
        if not wanted or progress.denoised is None:
            return
        images = self.studio.preview(progress.denoised[[row for row, _ in wanted]])
        for (row, number), image in zip(wanted, images, strict=True):
            job, picture = rows[row]
            job.tell(Previewed(picture, number, plain_png(image)))


def preview_at(step: int, steps: int, previews: int) -> int | None:
    """Which of `previews` pictures, spread evenly over the steps before the last, is shown after this step (from 1); None for none."""
    shown = min(previews, steps - 1)
    places = [(number + 1) * steps // (shown + 1) for number in range(shown)]
    return places.index(step) if step in places else None
