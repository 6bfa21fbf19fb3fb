"""The thread that generates images, and the bounded queue of requests."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from syzygy.core.contracts import Progress
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.server.engine import Engine, plain_png
from syzygy.server.metrics import Metrics
from syzygy.server.problems import BUSY, Problem, closing
from syzygy.server.requests import ImageRequest

FIRST_GUESS_SECONDS, NEWEST = 1.0, 0.3
LONGEST_WAIT_SECONDS = 60.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepDone:
    """A sampling step is done."""

    step: int
    steps: int
    """In all, over the batches of the request."""


@dataclass(frozen=True)
class PreviewReady:
    """What an image looks like so far."""

    picture: int
    number: int
    """Number of the preview of this image, from 0."""
    png: bytes


@dataclass(frozen=True)
class ImageReady:
    """An image is finished."""

    picture: int
    seed: int
    png: bytes


@dataclass(frozen=True)
class Finished:
    """The last event: all images are finished, or an error says why not."""

    error: Exception | None = None


Event = StepDone | PreviewReady | ImageReady | Finished


@dataclass(eq=False)
class Job:
    """A request in the worker."""

    request: ImageRequest
    send: Callable[[Event], None]
    """Receives the events. It is called in the worker's thread."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when no client waits for it any more."""


class _AllLeft(Exception):
    """Ends a sampling that no client waits for."""


class Worker:
    """Runs jobs first come, first served; jobs of the same shape share a batch."""

    def __init__(self, engine: Engine, metrics: Metrics, *, queue: int, batch_size: int) -> None:
        self.engine, self.metrics = engine, metrics
        self.queue, self.batch_size = queue, batch_size
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._change = threading.Condition()
        self._stopping = False
        self._seconds = FIRST_GUESS_SECONDS
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Cancel waiting and running jobs, the latter at their next step; return when the thread has ended."""
        with self._change:
            self._stopping = True
            dropped = [*self._waiting]
            self._waiting.clear()
            for job in self._running:
                job.left.set()
            self._change.notify_all()
        for job in dropped:
            job.send(Finished(closing()))
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Problem: 429 when the queue is full, 503 when the server stops.
        """
        with self._change:
            if self._stopping:
                raise closing()
            if len(self._waiting) >= self.queue:
                pictures = sum(len(one.request.seeds) for one in self._waiting)
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
        """Free the job's place in the queue at once, or end its sampling at the next step."""
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
                self._running = self._next()
            self._serve(self._running)
            with self._change:
                self._running = []

    def _next(self) -> list[Job]:
        """The oldest job, and others of its shape as far as they fit into a batch."""
        first = self._waiting.popleft()
        jobs = [first]
        if first.request.exact:
            return jobs
        room = self.batch_size - len(first.request.seeds)
        for job in list(self._waiting):
            number = len(job.request.seeds)
            if not job.request.exact and number <= room and job.request.shape == first.request.shape:
                self._waiting.remove(job)
                jobs.append(job)
                room -= number
        return jobs

    def _serve(self, jobs: Sequence[Job]) -> None:
        try:
            self._run_jobs(jobs)
        except _AllLeft:
            error = closing() if self._stopping else None
        except (UserError, Problem) as mistake:
            if len(jobs) > 1:  # only one of them may be at fault: run each alone
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
            job.send(Finished(error))

    def _run_jobs(self, jobs: Sequence[Job]) -> None:
        at_once = 1 if jobs[0].request.exact else self.batch_size
        rows = [(job, picture) for job in jobs for picture in range(len(job.request.seeds))]
        parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
        for number, part in enumerate(parts):
            began = time.monotonic()
            self._run_batch(part, number, len(parts))
            spent = (time.monotonic() - began) / len(part)
            self._seconds += NEWEST * (spent - self._seconds)

    def _run_batch(self, rows: Sequence[tuple[Job, int]], part: int, parts: int) -> None:
        requests = [job.request for job, _ in rows]
        seeds = [job.request.seeds[picture] for job, picture in rows]
        jobs = list(dict.fromkeys(job for job, _ in rows))

        def on_step(progress: Progress) -> None:
            if all(job.left.is_set() for job in jobs):
                raise _AllLeft
            for job in jobs:
                job.send(StepDone(part * progress.steps + progress.step, parts * progress.steps))
            self._preview(rows, progress)

        if all(job.left.is_set() for job in jobs):
            raise _AllLeft
        images = self.engine.generate(requests, seeds, on_step)
        self.metrics.count("batches")
        for (job, picture), image, seed in zip(rows, images, seeds, strict=True):
            if not job.left.is_set():
                job.send(ImageReady(picture, seed, self.engine.png(image, job.request, picture)))
                self.metrics.count("pictures")

    def _preview(self, rows: Sequence[tuple[Job, int]], progress: Progress) -> None:
        wanted = [
            (row, number)
            for row, (job, _) in enumerate(rows)
            if (number := preview_at(progress.step, progress.steps, job.request.previews)) is not None
            and not job.left.is_set()
        ]
        if not wanted or progress.denoised is None:
            return
        images = self.engine.preview(progress.denoised[[row for row, _ in wanted]])
        for (row, number), image in zip(wanted, images, strict=True):
            job, picture = rows[row]
            job.send(PreviewReady(picture, number, plain_png(image)))


def preview_at(step: int, steps: int, previews: int) -> int | None:
    """Number of the preview to show after this step (from 1), or None. Previews are spread evenly over the steps before the last."""
    shown = min(previews, steps - 1)
    places = [(number + 1) * steps // (shown + 1) for number in range(shown)]
    return places.index(step) if step in places else None
