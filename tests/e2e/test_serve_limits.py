"""The server under clients that send too much, too slowly or too often, and its end."""

import base64
import io
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from syzygy.server import uploads
from syzygy.server.app import create_app
from syzygy.server.engine import ImageEngine
from syzygy.server.http_server import allow_files, serving
from syzygy.server.limits import Limits
from tests.conftest import Answer
from tests.tiny_server import ENGINES, PATIENCE, Held, tiny_engine, waited

GENERATIONS = "/v1/images/generations"
LIMITS = Limits(prompt=100, number=2, steps=5, queue=8, upload=100_000, upload_pixels=10_000)
PLAIN = {"prompt": "a circle", "steps": 1}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tiny_model: Path) -> ImageEngine:
    return request.param(partial(tiny_engine, tiny_model))


def drawn(padding: int = 0) -> dict[str, Any]:
    """A request with a region, which must be decoded; its body is longer by some bytes."""
    data = io.BytesIO()
    Image.new("L", (8, 8), 255).save(data, "PNG")
    region = {"phrase": "circle", "mask": base64.b64encode(data.getvalue()).decode()}
    return {**PLAIN, "regions": [region], "user": "a" * padding}


def ask(url: str, body: Any = PLAIN, **more: Any) -> httpx.Response:
    return httpx.post(url + GENERATIONS, json=body, timeout=PATIENCE, **more)


def connected(url: str, data: bytes = b"") -> socket.socket:
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port), timeout=PATIENCE)
    connection.sendall(data)
    return connection


def head_of(url: str, length: int) -> bytes:
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


def send(url: str, body: Any) -> socket.socket:
    """A request on a connection of its own."""
    content = json.dumps(body).encode()
    return connected(url, head_of(url, len(content)) + content)


def ended(connection: socket.socket) -> bool:
    """Wait until the server has closed it; a TimeoutError if it does not."""
    with connection, suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


@contextmanager
def held_decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Decoding waits until the block ends; what was decoded so far."""
    seen: list[str] = []
    go, opened = threading.Event(), uploads.opened

    def held(data: bytes, name: str) -> Image.Image:
        seen.append(name)
        assert go.wait(PATIENCE)
        return opened(data, name)

    monkeypatch.setattr(uploads, "opened", held)
    try:
        yield seen
    finally:
        go.set()


def test_uploads_hold_up_no_plain_requests_and_those_of_clients_that_left_are_dropped(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(engine, LIMITS)
    door = app.state.server.admission
    with serving(app) as url:
        with held_decoder(monkeypatch) as seen:
            sent = [send(url, drawn())]
            assert waited(lambda: seen)
            sent += [send(url, drawn(number)) for number in (0, 70_000)]
            assert waited(lambda: sum(entry.place for entry in door._entries) == 3)
            assert door.held > 70_000
            assert ask(url).status_code == 200
            for connection in sent:
                connection.close()
            assert waited(lambda: not door._entries)
            assert door.held == 0
        assert ask(url, drawn()).status_code == 200
        assert len(seen) == 2  # of the first, which was under way, and of the last


def test_a_full_queue_answers_before_a_body_is_parsed_and_names_the_time(engine: ImageEngine) -> None:
    held = Held(engine)
    app = create_app(held, LIMITS.changed(queue=1))
    worker = app.state.server.worker
    with serving(app) as url:
        sent = [send(url, PLAIN)]
        assert held.begun.wait(PATIENCE)
        sent.append(send(url, PLAIN))
        assert waited(lambda: worker.waiting == 1)
        worker._seconds, worker._lanes[0].end = 5.0, time.monotonic() + 20
        full = httpx.post(url + GENERATIONS, content=b"no JSON", timeout=PATIENCE)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert 5 < int(full.headers["Retry-After"]) <= 20
        metrics = httpx.get(url + "/metrics", timeout=PATIENCE).text
        assert "syzygy_queue_length 1\n" in metrics
        assert "syzygy_requests_running 1\n" in metrics
        held.go.set()
        assert waited(lambda: worker.waiting + worker.running == 0)
        wrong = httpx.post(url + GENERATIONS, content=b"no JSON", timeout=PATIENCE)
        assert wrong.status_code == 400
        for connection in sent:
            connection.close()


def test_bodies_that_wait_have_a_limit_in_all(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(engine, LIMITS.changed(queue=32))
    door = app.state.server.admission
    with serving(app) as url, held_decoder(monkeypatch):
        sent = [send(url, drawn(90_000)) for _ in range(8)]
        assert waited(lambda: sum(entry.place for entry in door._entries) == 8)
        full = ask(url, drawn(90_000))
        assert (full.status_code, full.json()["error"]["code"]) == (429, "uploads_full")
        assert "Retry-After" in full.headers
        assert door.held <= LIMITS.held
        assert ask(url).status_code == 200
        for connection in sent:
            connection.close()
        assert waited(lambda: door.held == 0)


def test_a_mask_is_not_decoded_where_all_together_are_too_large(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    Image.new("L", (99, 99), 255).save(data, "PNG")
    region = {"phrase": "circle", "mask": base64.b64encode(data.getvalue()).decode()}
    with serving(create_app(engine, LIMITS)) as url, held_decoder(monkeypatch) as seen:
        answer = ask(url, {**PLAIN, "regions": [region] * 2})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "regions[1].mask")
        assert "19,602 pixels together" in answer.json()["error"]["message"]
        assert not seen


def test_a_head_that_does_not_come_in_time_is_not_waited_for(engine: ImageEngine) -> None:
    with serving(create_app(engine, LIMITS.changed(head_seconds=0.5))) as url:
        silent = connected(url)
        slow = connected(url, b"GET /healthz HTTP/1.1\r\n")
        again = connected(url, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert again.recv(65536).startswith(b"HTTP/1.1 200")
        again.sendall(b"GET /healthz HTTP/1.1\r\n")  # of its second request
        trickling = threading.Thread(target=lambda: waited(lambda: trickle(slow, again), 5.0))
        trickling.start()
        assert all(ended(connection) for connection in (silent, slow, again))
        trickling.join()
        assert httpx.get(url + "/healthz").status_code == 200


def trickle(*connections: socket.socket) -> bool:
    """Send one more header to each; whether none takes it any more."""
    open_ = 0
    for connection in connections:
        try:
            connection.sendall(b"X-A: b\r\n")
            open_ += 1
        except OSError:
            pass
    time.sleep(0.1)
    return not open_


def test_a_request_may_take_longer_than_its_head(engine: ImageEngine) -> None:
    held = Held(engine)
    with serving(create_app(held, LIMITS.changed(head_seconds=0.2))) as url:
        threading.Timer(0.6, held.go.set).start()
        assert ask(url).status_code == 200
        content = json.dumps(PLAIN).encode()
        connection = connected(url, head_of(url, len(content)))
        time.sleep(0.6)
        connection.sendall(content)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()


def test_with_too_many_connections_the_oldest_that_is_not_served_gives_way(engine: ImageEngine) -> None:
    held = Held(engine)
    with serving(create_app(held, LIMITS.changed(connections=3))) as url:
        served = send(url, PLAIN)
        assert held.begun.wait(PATIENCE)
        slow = [connected(url, head_of(url, 100) + b"{"), connected(url, b"GET / HTTP/1.1\r\n")]
        assert httpx.get(url + "/healthz").status_code == 200
        assert ended(slow[0])
        held.go.set()
        assert served.recv(100).startswith(b"HTTP/1.1 200")
        served.close()
        slow[1].close()


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [(256, 4096, 2704), (256, 1024, 1024), (256, -1, 2704), (20_000, 20_000, None), (-1, -1, None)],
)
def test_the_process_may_open_files_for_all_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None
) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: found.append(limits))
    allow_files(400)
    assert found == ([] if raised is None else [(raised, hard)])


def test_what_is_not_finished_at_the_end_of_the_grace_is_answered_in_openais_form(
    engine: ImageEngine, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(engine)
    app = create_app(held, LIMITS)
    server = app.state.server
    found: dict[str, httpx.Response] = {}

    def asking(name: str, body: dict[str, Any]) -> threading.Thread:
        thread = threading.Thread(target=lambda: found.update({name: ask(url, body)}))
        thread.start()
        return thread

    with serving(app, grace=1.0) as url:
        threads = [asking("running", PLAIN)]
        assert held.begun.wait(PATIENCE)
        threads += [asking("waiting", PLAIN), asking("stream", {**PLAIN, "stream": True, "progress": True})]
        threads.append(asking("quiet stream", {**PLAIN, "stream": True}))
        uploading = connected(url, head_of(url, 100) + b"{")
        assert waited(lambda: server.worker.waiting == 3 and len(server.admission._entries) == 5)
        threads.append(threading.Thread(target=lambda: waited(lambda: server.worker._stopping) and held.go.set()))
        threads[-1].start()
    for thread in threads:
        thread.join(PATIENCE)
    for name in ("running", "waiting", "quiet stream"):
        error = found[name].json()["error"]
        assert (name, found[name].status_code, error["code"]) == (name, 503, "shutting_down")
    events = [json.loads(part.split("data: ")[1]) for part in found["stream"].text.strip().split("\n\n")]
    assert {event["type"] for event in events[:-1]} == {"syzygy.queue"}
    assert events[0]["position"] in (1, 2, 3)
    assert events[-1]["error"]["code"] == "shutting_down"
    with uploading:
        assert uploading.recv(100).startswith(b"HTTP/1.1 503")
    assert held.steps == 1
    log = capfd.readouterr().err + caplog.text
    assert "Traceback" not in log
    assert "rror" not in log


def test_what_waits_is_finished_if_the_grace_suffices(engine: ImageEngine) -> None:
    held = Held(engine)
    found: list[int] = []
    app = create_app(held, LIMITS)
    with serving(app, grace=PATIENCE) as url:
        threads = [threading.Thread(target=lambda: found.append(ask(url).status_code)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert waited(lambda: app.state.server.worker.waiting + app.state.server.worker.running == 3)
        threading.Timer(0.3, held.go.set).start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [200] * 3


def test_a_port_in_use_is_found_before_the_model_is_loaded(syzygy: Callable[..., Answer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = syzygy("serve", "--port", port, "--model", "nothing-there")
    assert answer.code == 2
    assert answer.out == ""
    assert (
        f"cannot listen on 127.0.0.1, port {port}: another program uses it. Choose another with --port." in answer.err
    )
    assert "nothing-there" not in answer.err


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x85"])
def test_control_characters_are_refused(engine: ImageEngine, character: str) -> None:
    with serving(create_app(engine, LIMITS)) as url:
        for name in ("prompt", "negative_prompt"):
            answer = ask(url, {**PLAIN, name: f"a{character}circle"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
            assert "control character" in answer.json()["error"]["message"]
        assert ask(url, {**PLAIN, "prompt": "a\tred\r\ncircle"}).status_code == 200
