"""The server as any HTTP client meets it: wrong input, limits, keys, clients that leave, its end."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from benchmarks.serve_fuzz import fuzz
from syzygy.pictures import record_of
from syzygy.serve.app import create_app
from syzygy.serve.limits import Limits
from syzygy.serve.running import serving
from syzygy.serve.studio import Studio
from tests.conftest import Answer
from tests.tiny_server import Held, tiny_studio

GENERATIONS = "/v1/images/generations"
LIMITS = Limits(prompt=100, number=2, steps=5, regions=1, queue=2, upload=100_000, upload_pixels=10_000)
SYZYGY = Path(sys.executable).with_name("syzygy")
SECRET = "s3cret"


@pytest.fixture(scope="module")
def studio(tiny_model: Path) -> Studio:
    return tiny_studio(tiny_model)


@pytest.fixture(scope="module")
def client(studio: Studio) -> Iterator[httpx.Client]:
    with serving(create_app(studio, LIMITS)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 8), colour: Any = 0) -> bytes:
    data = io.BytesIO()
    Image.new(mode, size, colour).save(data, "PNG")
    return data.getvalue()


MASK = base64.b64encode(picture(colour="white")).decode()
WHOLE = {"phrase": "circle", "mask": MASK}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "prompt: Field required"),
        ({"prompt": 3}, 400, "prompt: Input should be a valid string"),
        ({"prompt": " "}, 400, "the prompt is empty"),
        ({"prompt": "a" * 101}, 400, "101 characters are too many; at most 100"),
        ({"prompt": "\ud800"}, 400, "prompt: "),
        ({"prompt": "a", "promt": "a"}, 400, "promt: Extra inputs"),
        ({"prompt": "a", "n": 3}, 400, "3 pictures are too many; at most 2"),
        ({"prompt": "a", "n": 0}, 400, "n: Input should be greater"),
        ({"prompt": "a", "steps": 6}, 400, "6 steps are too many; at most 5"),
        ({"prompt": "a", "seed": -1}, 400, "seed: "),
        ({"prompt": "a", "seed": 2**64 - 1, "n": 2}, 400, "seeds end at"),
        ({"prompt": "a", "size": "1024x1024"}, 400, "32x32 only"),
        ({"prompt": "a", "response_format": "url"}, 400, "ask for b64_json"),
        ({"prompt": "a", "quality": "hd"}, 400, "quality: "),
        ({"prompt": "a", "sampler": "none"}, 400, "unknown sampler"),
        ({"prompt": "a", "guidance_scale": 1000}, 400, "guidance_scale: "),
        ({"prompt": "a", "model": "dall-e-3"}, 404, "there is no model 'dall-e-3'"),
        ({"prompt": "a", "style": "vivid"}, 400, "style must be a picture's file in base64"),
        ({"prompt": "a", "style_guidance": 2}, 400, "style guidance is for a style"),
        ({"prompt": "a", "painting": 2}, 400, "are for regions"),
        ({"prompt": "a ring", "regions": [WHOLE]}, 400, "does not hold the phrase 'circle'"),
        ({"prompt": "a circle", "regions": [WHOLE, WHOLE]}, 400, "2 painted phrases are too many"),
        ({"prompt": "a circle", "regions": [{**WHOLE, "mask": "/etc/passwd"}]}, 400, "must be a picture's file"),
        ({"prompt": "a", "partial_images": 1}, 400, "are for streams"),
        ([], 400, "valid"),
    ],
    ids=str,
)
def test_wrong_requests_are_told_why(client: httpx.Client, body: Any, status: int, message: str) -> None:
    answer = client.post(GENERATIONS, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"prompt": ' + b"1" * 5000 + b"}"], ids=len)
def test_what_is_no_json_is_told_so(client: httpx.Client, body: bytes) -> None:
    answer = client.post(GENERATIONS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "files", "data", "status", "message"),
    [
        ("edits", {}, {}, 415, "multipart/form-data"),
        ("edits", {"mask": picture("RGBA")}, {"prompt": "a"}, 400, "send one as the file 'image'"),
        ("edits", {"image": b"?"}, {"prompt": "a"}, 400, "format is not known"),
        ("edits", {"image": picture(), "mask": picture()}, {"prompt": "a"}, 400, "no part of the mask is transparent"),
        ("edits", {"image": picture(), "mask": picture("RGBA", (9, 9))}, {"prompt": "a"}, 400, "must have one size"),
        ("edits", {"image": picture(), "mask": picture("RGBA")}, {"prompt": "a", "region": "b"}, 400, "phrase 'b'"),
        ("edits", {"image": picture()}, {"prompt": "a", "region": "a"}, 400, "are for a mask"),
        ("edits", {"image": picture()}, {"prompt": "a", "input_fidelity": "high"}, 400, "is not possible"),
        ("edits", {"image": picture(), "n": picture()}, {"prompt": "a"}, 400, "'n' must be a text"),
        ("edits", {"mask": picture()}, {"prompt": "a", "image": "file:///etc/passwd"}, 400, "'image' must be a file"),
        ("variations", {"image": picture(size=(200, 200))}, {}, 400, "40,000 pixels; at most 10,000"),
        ("variations", {"image": picture()}, {"prompt": "a"}, 400, "prompt: Extra inputs"),
        ("recipes", {"image": picture()}, {}, 400, "holds no record"),
    ],
)
def test_wrong_forms_are_told_why(
    client: httpx.Client, path: str, files: dict[str, bytes], data: dict[str, str], status: int, message: str
) -> None:
    sent = {name: (f"{name}.png", content) for name, content in files.items()}
    answer = client.post(f"/v1/images/{path}", files=sent, data=data)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_not_read(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 1000

    for content in (b" " * 100_001, endless()):
        answer = client.post(GENERATIONS, content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


def test_variations_and_recipes(client: httpx.Client) -> None:
    painted = client.post("/v1/images/variations", files={"image": picture(colour="red")}, data={"seed": "3", "n": "2"})
    (first, second) = painted.json()["data"]
    assert (first["seed"], second["seed"]) == (3, 4)
    png = base64.b64decode(first["b64_json"])
    record = client.post("/v1/images/recipes", files={"image": png}).json()["record"]
    assert record["seed"] == 3
    assert base64.b64decode(record["image"]["data"]) == picture(colour="red")
    assert record == record_of(Image.open(io.BytesIO(png)), "it")


def test_other_routes(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/v1/models/none").status_code == 404
    assert client.get("/nothing").json()["error"]["message"] == "Not Found."
    metrics = client.get("/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'syzygy_requests_total{path="/healthz",status="200"}' in metrics.text
    docs = client.get("/docs").text
    assert "a red star and a blue ring" in docs
    assert "http://" not in docs + json.dumps(client.get("/openapi.json").json()).replace("https://", "http://")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "[::"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ],
    ids=str,
)
def test_pages_of_other_sites_are_kept_out(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    answer = client.get("/v1/models", headers=headers)
    assert answer.status_code == status
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_key_is_asked_for_where_there_is_one(studio: Studio) -> None:
    app = create_app(studio, LIMITS, api_key=SECRET)
    with serving(app) as url, httpx.Client(base_url=url) as client:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET}, {"Authorization": "Bearer é"}):
            raw = {name: value.encode("latin-1") for name, value in wrong.items()}
            answer = client.get("/v1/models", headers=raw)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert client.get("/metrics", headers=raw).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200
        assert client.get("/healthz").status_code == 200


def waited(true: Callable[[], Any], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())


def send(url: str, body: dict[str, Any]) -> socket.socket:
    """A request on a connection of its own, whose answer nobody reads."""
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port))
    content = json.dumps(body).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_killed_clients_free_their_places(studio: Studio, stream: bool) -> None:
    held = Held(studio)
    app = create_app(held, LIMITS)
    worker = app.state.server.worker
    with serving(app) as url:
        painted = send(url, {"prompt": "a", "stream": stream, "seed": 1})
        assert held.begun.wait(30)
        waiting = [send(url, {"prompt": "a", "stream": stream, "seed": 1}) for _ in range(2)]
        assert waited(lambda: worker.waiting == 2)
        full = httpx.post(url + GENERATIONS, json={"prompt": "a"})
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        for connection in (painted, *waiting):
            connection.close()
        assert waited(lambda: worker.waiting == 0)
        assert waited(lambda: "syzygy_cancelled_total 3" in httpx.get(url + "/metrics").text)
        held.go.set()
        assert waited(lambda: worker.painting == 0)
        assert (held.steps, len(held.batches)) == (1, 1)
        assert httpx.post(url + GENERATIONS, json={"prompt": "a"}, timeout=60).status_code == 200


def test_what_is_under_way_is_finished_before_the_end(studio: Studio) -> None:
    held = Held(studio)
    answers: list[httpx.Response] = []
    with serving(create_app(held, LIMITS), grace=30.0) as url:
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(url + GENERATIONS, json={"prompt": "a"}, timeout=60))
        )
        asking.start()
        assert held.begun.wait(30)
        threading.Timer(0.3, held.go.set).start()
    asking.join(30)
    assert answers[0].status_code == 200


def test_what_outlasts_the_grace_is_dropped(studio: Studio) -> None:
    held = Held(studio)
    with serving(create_app(held, LIMITS), grace=1.0) as url:
        with closing(send(url, {"prompt": "a"})):
            assert held.begun.wait(30)
        threading.Timer(0.1, held.go.set).start()
    assert held.steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "lets other machines in: give an --api-key"),
        (["--api-key", "a", "--no-api-key"], "exclude each other"),
        (["--api-key", " a"], "without blanks"),
        (["--host", "203.0.113.1", "--no-api-key"], "cannot listen on 203.0.113.1"),
        (["--queue", "0"], "out of range"),
        (["--model", "nothing-there"], "nothing-there"),
    ],
    ids=str,
)
def test_wrong_arguments(syzygy: Callable[..., Answer], arguments: list[str], message: str) -> None:
    answer = syzygy("serve", "--port", "0", *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_the_command_serves_until_it_is_told_to_stop(tiny_model: Path) -> None:
    command = [SYZYGY, "serve", "--model", tiny_model, "--port", "0", "--json", "--steps", "2", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"SYZYGY_API_KEY": SECRET}) as process:
        assert process.stdout
        about = json.loads(process.stdout.readline())
        assert (about["api_key"], about["queue"]) == (True, 32)
        key = {"Authorization": f"Bearer {SECRET}"}
        answer = httpx.post(about["url"] + GENERATIONS, json={"prompt": "a circle"}, headers=key, timeout=60)
        record = record_of(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))), "it")
        assert (record["steps"], record["model"], record["prompt"]) == (2, str(tiny_model), "a circle")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)


def test_generated_requests_meet_no_failure_of_the_server(studio: Studio) -> None:
    statuses = fuzz(create_app(studio, LIMITS, hosts=None), cases=200)
    assert sum(statuses.values()) >= 200
    assert statuses[200] > 0
    assert statuses[400] > 0
    assert not [status for status in statuses if status >= 500]
