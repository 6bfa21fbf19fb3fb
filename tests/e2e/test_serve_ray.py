"""`syzygy serve --engine ray`. Most of it is tested with the API, whose tests run with both engines; here is what only replicas can do."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from syzygy.core.errors import NonFiniteError, UserError
from syzygy.server.app import create_app
from syzygy.server.http_server import serving
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem
from syzygy.server.ray_engine import _check_resources
from tests.conftest import Answer
from tests.tiny_server import NO_RAY, PATIENCE, Held, in_replica, tiny_engine, waited

GENERATIONS = "/v1/images/generations"
SYZYGY = Path(sys.executable).with_name("syzygy")
LONG = {"prompt": "a circle", "steps": 100, "stream": True}


def test_without_ray_the_command_says_what_to_install(
    syzygy: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # another test may have imported its parts
    answer = syzygy("serve", "--port", "0", "--engine", "ray")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "error: --engine ray needs Ray Serve: run pip install -e '.[ray]' in the folder of Syzygy's source code.\n"
    )


def test_replicas_need_the_engine_that_has_them(syzygy: Callable[..., Answer]) -> None:
    answer = syzygy("serve", "--port", "0", "--replicas", "2")
    assert answer.code == 2
    assert "--replicas is for --engine ray" in answer.err


def test_more_replicas_than_processors_are_refused() -> None:
    found = {"CPU": 4.0, "GPU": 1.0}
    _check_resources(found, {"CPU": 4, "GPU": 1}, 4)
    with pytest.raises(UserError, match="2 replicas need 2 GPUs, and this Ray cluster has 1: use fewer --replicas"):
        _check_resources(found, {"CPU": 2, "GPU": 2}, 2)
    with pytest.raises(UserError, match="need 1 GPUs, and this Ray cluster has 0"):
        _check_resources({"CPU": 4.0}, {"CPU": 1, "GPU": 1}, 1)


@NO_RAY
def test_a_model_that_cannot_be_loaded_is_a_mistake_of_the_user() -> None:
    def load() -> Any:
        raise UserError("there is no such model.")

    with pytest.raises(UserError, match=r"^there is no such model\.$"):
        in_replica(load)


@NO_RAY
def test_errors_arrive_as_they_were_raised_and_bugs_without_their_message(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(tiny_engine(tiny_model))
    engine = in_replica(lambda: held)
    expected = [
        Problem(400, "no", param="sources", retry_after=3.0),
        NonFiniteError("images", [1], ["seed 3"]),
        UserError("no"),
    ]
    for error in expected:
        held.failure = error
        with pytest.raises(type(error)) as found:
            engine.generate([], [], lambda _: None)
        assert (str(found.value), vars(found.value)) == (str(error), vars(error))
    held.failure = KeyError("a secret prompt")
    with pytest.raises(RuntimeError, match="KeyError in a replica"):
        engine.generate([], [], lambda _: None)
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


@NO_RAY
def test_sampling_in_a_replica_ends_when_the_client_leaves(tiny_model: Path) -> None:
    held = Held(tiny_engine(tiny_model), seconds=0.02)
    app = create_app(in_replica(lambda: held), Limits())
    with serving(app) as url:
        held.go.set()
        with httpx.stream("POST", url + GENERATIONS, json={**LONG, "progress": True}, timeout=PATIENCE) as answer:
            assert next(answer.iter_lines()).startswith("event: ")
        assert waited(lambda: app.state.server.worker.running == 0)
        steps = held.steps
        assert steps < 100
        assert httpx.post(url + GENERATIONS, json={"prompt": "a", "steps": 1}, timeout=PATIENCE).status_code == 200
        assert held.steps < 100


@NO_RAY
def test_a_replica_that_does_not_answer_does_not_keep_the_server_from_stopping(tiny_model: Path) -> None:
    held = Held(tiny_engine(tiny_model))
    found: list[httpx.Response] = []
    with serving(create_app(in_replica(lambda: held)), grace=0.5) as url:
        asking = threading.Thread(
            target=lambda: found.append(httpx.post(url + GENERATIONS, json={"prompt": "a"}, timeout=PATIENCE))
        )
        asking.start()
        assert held.begun.wait(PATIENCE)
    asking.join(PATIENCE)
    assert (found[0].status_code, found[0].json()["error"]["code"]) == (503, "shutting_down")
    assert held.steps == 1
    held.go.set()


def test_the_health_check_fails_while_no_replica_runs(tiny_model: Path) -> None:
    held = Held(tiny_engine(tiny_model))
    held.ready = lambda: False
    with serving(create_app(held)) as url:  # type: ignore[arg-type]
        answer = httpx.get(url + "/healthz", timeout=PATIENCE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert "Retry-After" in answer.headers


def replicas(port: int) -> list[int]:
    """Processes of the replicas of the server on this port."""
    server = f"syzygy-{socket.gethostname()}-{port}".encode()
    names = (b"ray::ServeReplica:%s:" % server, b"ray::SERVE_REPLICA::%s#" % server)  # later, and while it starts
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [int(path.parent.name)] if path.read_bytes().startswith(names) else []
        except OSError:  # it has ended meanwhile
            continue
    return found


@NO_RAY
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it finds processes in /proc")
def test_two_replicas_serve_are_replaced_when_they_are_lost_and_end_with_the_server(tiny_model: Path) -> None:
    command = [SYZYGY, "serve", "--model", tiny_model.name, "--port", "0", "--json", "--device", "cpu", "--grace", "5"]
    command += ["--engine", "ray", "--replicas", "2"]
    # By default, Ray gives its workers a low priority, and ends them when a machine's memory is nearly full.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
    with subprocess.Popen(command, cwd=tiny_model.parent, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout
            about = json.loads(process.stdout.readline())
            url, port = about["url"], httpx.URL(about["url"]).port
            assert port
            assert len(replicas(port)) == 2
            assert httpx.get(url + "/healthz", timeout=PATIENCE).status_code == 200
            asked = {"prompt": "a circle", "seed": 3}
            answer = httpx.post(url + GENERATIONS, json=asked, timeout=PATIENCE)
            image = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
            with serving(create_app(tiny_engine(tiny_model))) as other:
                same = httpx.post(other + GENERATIONS, json=asked, timeout=PATIENCE)
            local = Image.open(io.BytesIO(base64.b64decode(same.json()["data"][0]["b64_json"])))
            assert image.tobytes() == local.tobytes()
            long, found = {"prompt": "a circle", "seed": 3, "steps": 100, "n": 2}, list[int]()
            threads = [
                threading.Thread(
                    target=lambda: found.append(httpx.post(url + GENERATIONS, json=long, timeout=600).status_code)
                )
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            assert waited(lambda: "syzygy_requests_running 2\n" in httpx.get(url + "/metrics", timeout=PATIENCE).text)
            lost = replicas(port)[0]
            os.kill(lost, signal.SIGKILL)
            for thread in threads:
                thread.join()
            assert found == [200, 200]  # also the request whose replica was lost
            assert waited(lambda: len({*replicas(port)} - {lost}) == 2)
            assert httpx.get(url + "/healthz", timeout=PATIENCE).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            assert waited(lambda: not replicas(port))
        finally:
            process.terminate()  # so that Ray's processes end with it
            process.wait(PATIENCE)
