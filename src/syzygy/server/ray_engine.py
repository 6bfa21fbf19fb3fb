"""The model in replicas on a Ray cluster, or on this machine in Ray's local mode. It needs the extra `ray`.

Ray Serve starts the replicas, spreads batches over them and replaces those that are lost. HTTP, admission, the queue and the metrics stay in
this process, so they are the same with every engine.
"""

import asyncio
import concurrent.futures
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from syzygy.core.errors import UserError, install
from syzygy.server.engine import Description, Engine, Generated, Interrupted, Step
from syzygy.server.problems import SERVER, Problem, without_message
from syzygy.server.requests import ImageRequest

STOP_SECONDS = 5.0
"""Time for the step that a replica computes when it is stopped."""
log = logging.getLogger(__name__)


class Replica:
    """A deployment of Ray Serve: a model, which computes one batch at a time."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="generation")
        self.mistake: str | None = None
        try:
            self.engine = load()
        except UserError as error:  # Ray would try again and again, and show a traceback
            self.mistake = str(error)

    def describe(self) -> Description | str:
        """The model, or what the user has to correct."""
        return self.engine.about if self.mistake is None else self.mistake

    async def generate(
        self, requests: Sequence[ImageRequest], seeds: Sequence[int]
    ) -> AsyncIterator[Step | Generated | Exception]:
        """Each step, then the images, or the error that ended the sampling. When the request is cancelled, so is the sampling."""
        loop, left = asyncio.get_running_loop(), threading.Event()
        events: asyncio.Queue[Step | Generated | Exception] = asyncio.Queue()

        def on_step(step: Step) -> None:
            if left.is_set():
                raise Interrupted
            loop.call_soon_threadsafe(events.put_nowait, step)

        def compute() -> None:
            try:
                last = self.engine.generate(requests, seeds, on_step)
            except Interrupted:
                return
            except (UserError, Problem) as mistake:
                last = mistake
            except Exception as bug:  # Ray would log its message, which may quote prompts
                log.error("a batch of %d images failed\n%s", len(requests), without_message(bug))
                last = RuntimeError(f"{type(bug).__name__} in a replica, whose log has the details")
            loop.call_soon_threadsafe(events.put_nowait, last)

        computing = loop.run_in_executor(self._thread, compute)
        try:
            while isinstance(event := await events.get(), Step):
                yield event
            yield event
        finally:
            left.set()
            computing.cancel()


@dataclass(frozen=True, eq=False)
class RayEngine:
    """Sends batches to replicas, as many at a time as there are replicas (`ImageEngine`)."""

    about: Description
    handle: Any
    """Of the deployment of `Replica`."""
    lanes: int
    """Number of replicas."""
    running: Callable[[], int]
    """How many replicas run now."""
    _active: set[Any] = field(default_factory=set)
    """The responses under way."""

    def ready(self) -> bool:
        """Whether a replica runs."""
        return self.running() > 0

    def generate(
        self, requests: Sequence[ImageRequest], seeds: Sequence[int], on_step: Callable[[Step], None]
    ) -> Generated:
        """The images of a batch. If its replica is lost, another one computes it again, once.

        Raises:
            UserError: the model refuses the request. Errors that `on_step` raises end the sampling.
            Problem: 503 if the second replica was lost too.
            Interrupted: `interrupt` was called.
        """
        for _ in range(2):
            generated = self._generate(requests, seeds, on_step)
            if generated is not None:
                return generated
            log.warning("a replica was lost while it computed %d images", len(requests))
        raise Problem(
            503,
            "the replica that computed this was lost: try again.",
            kind=SERVER,
            code="replica_lost",
            retry_after=5.0,
        )

    def _generate(
        self, requests: Sequence[ImageRequest], seeds: Sequence[int], on_step: Callable[[Step], None]
    ) -> Generated | None:
        """The images, or None if the replica was lost."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        response = self.handle.options(stream=True).generate.remote(list(requests), list(seeds))
        self._active.add(response)
        try:
            for event in response:
                if isinstance(event, Exception):
                    raise event
                if not isinstance(event, Step):
                    return event
                on_step(event)
        except (RayError, RayServeException, concurrent.futures.CancelledError) as error:
            if response not in self._active:
                raise Interrupted from None
            if isinstance(error, RayTaskError):  # a bug in this module; its message may quote prompts
                raise RuntimeError(f"{type(error.cause).__name__} in a replica") from None
        except BaseException:
            response.cancel()
            raise
        finally:
            self._active.discard(response)
        return None

    def interrupt(self) -> None:
        """Give up all batches, also those that wait for a replica. Ray's calls block, so they are made in a thread."""
        given_up = list(self._active)
        self._active.clear()
        threading.Thread(target=lambda: [one.cancel() for one in given_up], daemon=True).start()


@contextmanager
def ray_engine(load: Callable[[str], Engine], *, device: str, replicas: int, name: str) -> Iterator[RayEngine]:
    """Start replicas on the cluster that Ray finds (`RAY_ADDRESS`), or on this machine; they end when the block does.

    Args:
        load: loads the model of a replica on this device. It is sent to the replicas.
        device: of each replica. A replica on CUDA gets a GPU of its own; auto chooses CUDA if the cluster has GPUs.
        name: of the application in Ray Serve. One that runs under this name is replaced.

    Raises:
        UserError: Ray is not installed, the cluster has too few processors, or the model cannot be loaded.
    """
    ray, serve = modules()
    begun = not ray.is_initialized()
    if begun:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    before = _ended_by_sigterm()
    try:
        found = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if found.get("GPU", 0) else "cpu"
        gpus = 1 if device == "cuda" else 0
        _check_resources(found, {"CPU": replicas, "GPU": replicas * gpus}, replicas)
        deployment = serve.deployment(Replica).options(
            num_replicas=replicas,
            max_ongoing_requests=1,
            graceful_shutdown_timeout_s=STOP_SECONDS,
            graceful_shutdown_wait_loop_s=0.5,
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.start(proxy_location="Disabled")
        handle = serve.run(deployment.bind(partial(load, device)), name=name, route_prefix=None)
        yield engine_of(handle, replicas, lambda: _running(serve, name))
    finally:
        _delete(serve, name)
        if begun:
            ray.shutdown()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _delete(serve: Any, name: str) -> None:
    """End the replicas. Ray waits for those that still load, so after a while this process ends without them."""

    def delete() -> None:
        with suppress(Exception):  # it may be gone already
            serve.delete(name)

    deleting = threading.Thread(target=delete, daemon=True)
    deleting.start()
    deleting.join(3 * STOP_SECONDS)


def engine_of(handle: Any, replicas: int, running: Callable[[], int]) -> RayEngine:
    """The engine for a deployment of `Replica`. Raises `UserError` if its model cannot be loaded."""
    about = handle.describe.remote().result()
    if isinstance(about, str):
        raise UserError(about)
    return RayEngine(about, handle, replicas, running)


def modules() -> tuple[Any, Any]:
    """The modules `ray` and `ray.serve`. Raises `UserError` if they are not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray's own uses of other libraries
            import ray
            from ray import serve
    except ImportError:
        raise UserError(f"--engine ray needs Ray Serve: {install('ray')}.") from None
    return ray, serve


def _running(serve: Any, name: str) -> int:
    """Replicas of the application that run now; none if the cluster cannot be asked."""
    try:
        application = serve.status().applications[name]
    except Exception:
        return 0
    return sum(one.replica_states.get("RUNNING", 0) for one in application.deployments.values())


def _check_resources(found: Mapping[str, float], needed: Mapping[str, int], replicas: int) -> None:
    """Refuse more processors than there are, because Ray would wait for them forever."""
    for kind, number in needed.items():
        if found.get(kind, 0) < number:
            raise UserError(
                f"{replicas} replicas need {number} {kind}s, and this Ray cluster has {found.get(kind, 0):g}: use fewer --replicas."
            )


def _ended_by_sigterm() -> Any:
    """Let SIGTERM end this process with exit code 0 after the replicas; Ray's own handler gives 15. Returns the handler before, if changed."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
