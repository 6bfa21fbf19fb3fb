"""The threads that have images generated, one for each lane of the engine, and the bounded queue of requests."""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from syzygy.core.errors import NonFiniteError, UserError
from syzygy.server.engine import ImageEngine, Interrupted, Step
from syzygy.server.metrics import Metrics
from syzygy.server.problems import Problem, closing, without_message
from syzygy.server.requests import ImageRequest

FIRST_GUESS_SECONDS, NEWEST = 0.04, 0.3
"""Of a sampling step of an image: what is expected before one was measured, and the weight of the newest measurement."""
STRETCH = 10.0
"""How far short requests overtake: one that came later goes first if its due time is earlier, and the due time of a request is when it
came plus this many times its own duration. So no request waits longer than that because of later ones, and short ones wait little."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Queued:
    """The request waits."""

    position: int
    """From 1, which is next."""
    seconds: float
    """Expected time until its first step."""


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
    file: bytes


@dataclass(frozen=True)
class ImageReady:
    """An image is finished."""

    picture: int
    seed: int
    file: bytes
    notes: tuple[str, ...] = ()
    """What of its texts was not read: for `warnings` of the answer."""


@dataclass(frozen=True)
class Finished:
    """The last event: all images are finished, or an error says why not."""

    error: Exception | None = None


Event = Queued | StepDone | PreviewReady | ImageReady | Finished


@dataclass(eq=False)
class Job:
    """A request in the worker."""

    request: ImageRequest
    send: Callable[[Event], None]
    """Receives the events, in any thread. It must not block."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when no client waits for it any more."""
    due: float = 0.0
    """On the clock of `time.monotonic`. The job that is due first is served first."""
    done: int = 0
    """Images that are finished."""
    alone: bool = False
    """Shares no batch, because one that it shared failed."""
    reported: int = 0
    """The position in the queue that was last sent; 0 for none."""

    @property
    def rest(self) -> range:
        """Indices of the images that are not finished."""
        return range(self.done, len(self.request.seeds))

    @property
    def exact(self) -> bool:
        """Generated one image at a time."""
        return self.request.exact

    @property
    def steps(self) -> int:
        """Sampling steps of each image."""
        steps = self.request.generation.sampling.steps
        assert steps is not None, "the server's own steps are in every request that leaves them out"
        return steps


class _AllLeft(Exception):
    """Ends a sampling that no client waits for."""


Rows = Sequence[tuple[Job, int]]
"""The images of a batch: their jobs and indices."""


@dataclass
class Lane:
    """Where one batch at a time is computed."""

    rows: Rows = ()
    """Of the batch that is computed now."""
    end: float = 0.0
    """When the batch is expected to end, on the clock of `time.monotonic`."""


class Worker:
    """Runs jobs batch by batch. Each time the job that is due first (`STRETCH`) gives a batch; others of its shape share it."""

    def __init__(self, engine: ImageEngine, metrics: Metrics, *, batch_size: int) -> None:
        self.engine, self.metrics, self.batch_size = engine, metrics, batch_size
        self._jobs: list[Job] = []
        """All that are not finished, in the order in which they came."""
        self._lanes = [Lane() for _ in range(engine.lanes)]
        self._change = threading.Condition()
        self._stopping = False
        self._seconds = FIRST_GUESS_SECONDS
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name="generation", daemon=True) for lane in self._lanes
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all jobs at once: their clients get status 503. The threads end after the step that they compute."""
        with self._change:
            self._stopping = True
            for job in self._jobs:
                job.left.set()
                job.send(Finished(closing()))
            self._jobs.clear()
            self._change.notify_all()
        self.engine.interrupt()

    def close(self) -> None:
        """Stop, and return when the threads have ended."""
        self.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def waiting(self) -> int:
        """Jobs that are in no batch that is computed now."""
        with self._change:
            return len(self._jobs) - len(self._running)

    @property
    def running(self) -> int:
        """Jobs in the batches that are computed now."""
        with self._change:
            return len(self._running)

    @property
    def _running(self) -> list[Job]:
        inside = {job for lane in self._lanes for job, _ in lane.rows}
        return [job for job in self._jobs if job in inside]

    def starts(self) -> list[float]:
        """Seconds until each waiting job is expected to start, in their order."""
        with self._change:
            return [seconds for _, seconds in self._forecast()]

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Problem: 503 when the server stops.
        """
        with self._change:
            if self._stopping:
                raise closing()
            job.due = time.monotonic() + STRETCH * self._cost(job, len(job.rest))
            self._jobs.append(job)
            if len(self._jobs) > 1:
                self._tell()
            self._change.notify()

    def cancel(self, job: Job) -> None:
        """Free the job's place at once; if it is alone in its batch, the sampling ends at the next step."""
        with self._change:
            job.left.set()
            if job in self._jobs:
                self._jobs.remove(job)
                job.send(Finished())
                self._tell()

    def _cost(self, job: Job, images: int) -> float:
        """Expected seconds."""
        return images * job.steps * self._seconds

    def _forecast(self) -> list[tuple[Job, float]]:
        """The waiting jobs in their order, and the seconds until each is expected to start."""
        running, now = self._running, time.monotonic()
        free = [max(lane.end - now, 0.0) if lane.rows else 0.0 for lane in self._lanes]
        heapq.heapify(free)
        found = []
        for job in sorted(self._jobs, key=lambda job: job.due):
            inside = sum(job is one for lane in self._lanes for one, _ in lane.rows)
            if job not in running:
                found.append((job, free[0]))
            heapq.heapreplace(free, free[0] + self._cost(job, max(len(job.rest) - inside, 0)))
        return found

    def _tell(self) -> None:
        """Send waiting jobs their new positions."""
        for position, (job, seconds) in enumerate(self._forecast(), 1):
            if position != job.reported:
                job.reported = position
                job.send(Queued(position, seconds))

    def _run(self, lane: Lane) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopping or len(self._jobs) > len(self._running))
                if self._stopping:
                    return
                lane.rows = self._next()
                lane.end = time.monotonic() + sum(self._cost(job, 1) for job, _ in lane.rows)
                self._tell()
            ended = self._serve(lane.rows)
            with self._change:
                lane.rows = ()
                for job, error in ended.items():
                    if job in self._jobs:
                        self._jobs.remove(job)
                        job.send(Finished(error))
                self._change.notify_all()  # the jobs that are not finished may continue in other lanes

    def _next(self) -> Rows:
        """Images of the job that is due first, and all those of others of its shape that fit into the batch with them."""
        running = self._running
        first, *others = sorted((job for job in self._jobs if job not in running), key=lambda job: job.due)
        if first.exact:
            return [(first, first.done)]
        rows = [(first, index) for index in first.rest[: self.batch_size]]
        for job in others:
            shares = not (first.alone or job.alone or job.exact) and job.request.shape == first.request.shape
            if shares and len(rows) + len(job.rest) <= self.batch_size:
                rows += [(job, index) for index in job.rest]
        return rows

    def _serve(self, rows: Rows) -> dict[Job, Exception | None]:
        """Compute a batch. The jobs that end with it, and why where they fail."""
        jobs = list(dict.fromkeys(job for job, _ in rows))
        try:
            self._run_batch(rows, jobs)
        except (_AllLeft, Interrupted):
            return {}
        except (UserError, Problem) as mistake:
            if len(jobs) > 1:  # only one of them may be at fault
                for job in jobs:
                    job.alone = True
                return {}
            if isinstance(mistake, NonFiniteError):
                log.error("a request failed: %s hold values that are not finite", mistake.what)
            return dict.fromkeys(jobs, mistake)
        except Exception as bug:
            log.error("a batch of %d requests failed\n%s", len(jobs), without_message(bug))
            return dict.fromkeys(jobs, bug)
        return {job: None for job in jobs if not job.rest}

    def _run_batch(self, rows: Rows, jobs: Sequence[Job]) -> None:
        requests = [job.request for job, _ in rows]
        seeds = [job.request.seeds[index] for job, index in rows]
        began = time.monotonic()

        def on_step(done: Step) -> None:
            if all(job.left.is_set() for job in jobs):
                raise _AllLeft
            for job in jobs:
                at_once = 1 if job.exact else self.batch_size
                before, after = -(-job.done // at_once), -(-len(job.rest) // at_once)
                job.send(StepDone(before * done.steps + done.step, (before + after) * done.steps))
            for row, number, image in done.previews:
                job, picture = rows[row]
                if not job.left.is_set():
                    job.send(PreviewReady(picture, number, job.request.format.encoded(image)))

        if all(job.left.is_set() for job in jobs):
            raise _AllLeft
        images, truncated = self.engine.generate(requests, seeds, on_step)
        self.metrics.count("batches")
        for (job, index), image, seed in zip(rows, images, seeds, strict=True):
            if not job.left.is_set():
                file = self.engine.about.file(image, job.request, index)
                texts = (*job.request.texts, job.request.generation.negative_prompt)
                notes = dict.fromkeys(sentence for text, sentence in truncated if text in texts)
                job.send(ImageReady(index, seed, file, tuple(notes)))
                self.metrics.count("pictures")
        for job, _ in rows:
            job.done += 1
        spent = (time.monotonic() - began) / (len(rows) * jobs[0].steps)
        with self._change:
            self._seconds += NEWEST * (spent - self._seconds)
