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
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from PIL import Image, PngImagePlugin

from benchmarks.serve_fuzz import fuzz
from syzygy.core.errors import UserError
from syzygy.generation.image_files import RECORD_KEY, record_of
from syzygy.server import edits, requests, validation
from syzygy.server import responses as answers
from syzygy.server.app import create_app
from syzygy.server.engine import Engine, ImageEngine
from syzygy.server.http_server import listening, serving
from syzygy.server.limits import Limits
from syzygy.server.schema import Generation
from tests.conftest import Answer
from tests.tiny_server import ENGINES, PATIENCE, Held, tiny_engine, waited

GENERATIONS, MIXES = "/v1/images/generations", "/v1/images/mixes"
LIMITS = Limits(prompt=100, number=2, steps=5, regions=1, sources=3, queue=2, upload=100_000, upload_pixels=10_000)
SYZYGY = Path(sys.executable).with_name("syzygy")
SECRET = "s3cret"


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tiny_model: Path) -> ImageEngine:
    return request.param(partial(tiny_engine, tiny_model))


@pytest.fixture(scope="module")
def client(engine: ImageEngine) -> Iterator[httpx.Client]:
    with serving(create_app(engine, LIMITS)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 8), colour: Any = 0) -> bytes:
    data = io.BytesIO()
    Image.new(mode, size, colour).save(data, "PNG")
    return data.getvalue()


def noted(text: str) -> bytes:
    """A picture with this in the place of a record."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(RECORD_KEY, text)
    data = io.BytesIO()
    Image.new("L", (2, 2)).save(data, "PNG", pnginfo=chunks)
    return data.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


MASK = base64_of(picture(colour="white"))
WHOLE = {"phrase": "circle", "mask": MASK}
PART = {"phrase": "circle", "mask": base64_of(picture("RGBA", (6, 5), (255, 255, 255, 128))), "weight": 3}
CLEAR, CLEAR9 = picture("RGBA"), picture("RGBA", (9, 9))


def refused(answer: httpx.Response, param: str | None, message: str) -> None:
    """It names the field, what is allowed, and nothing of our code."""
    assert answer.status_code == (404 if param == "model" else 415 if "multipart" in message else 400)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"]
    assert message in error["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "Missing required parameter: 'prompt'."),
        ({"prompt": 3}, "prompt", "Invalid type for 'prompt': expected a string, but got an integer instead."),
        ({"prompt": " "}, "prompt", "the prompt is empty"),
        ({"prompt": "a" * 101}, "prompt", "a string with maximum length 100, but got a string with length 101 instead"),
        ({"prompt": "\ud800"}, "prompt", "Invalid 'prompt': the string is not valid Unicode."),
        ({"prompt": "a", "promt": "a"}, "promt", "Unknown parameter: 'promt'."),
        ({"prompt": "a", "n": 3}, "n", "integer above maximum value. Expected a value <= 2, but got 3 instead."),
        ({"prompt": "a", "n": 0}, "n", "integer below minimum value. Expected a value >= 1, but got 0 instead."),
        ({"prompt": "a", "steps": 6}, "steps", "Expected a value <= 5, but got 6 instead."),
        ({"prompt": "a", "seed": -1}, "seed", "Invalid 'seed': integer below minimum value."),
        ({"prompt": "a", "seed": 2**64 - 1, "n": 2}, "seed", "seeds end at"),
        (
            {"prompt": "a", "size": "1024x1024"},
            "size",
            "Invalid value: '1024x1024'. Supported values are: '32x32' and 'auto'.",
        ),
        ({"prompt": "a", "size": "large"}, "size", "Invalid value: 'large'. Supported values are: "),
        ({"prompt": "a", "response_format": "url", "stream": True}, "response_format", "not supported with stream"),
        (
            {"prompt": "a", "quality": "ultra"},
            "quality",
            "Invalid value: 'ultra'. Supported values are: 'auto', 'low', ",
        ),
        ({"prompt": "a", "output_format": "gif"}, "output_format", "Supported values are: 'png', 'jpeg', and 'webp'."),
        ({"prompt": "a", "output_compression": 50}, "output_compression", "is not supported for PNG output format"),
        ({"prompt": "a", "output_compression": 101}, "output_compression", "Expected a value <= 100"),
        ({"prompt": "a", "background": "transparent"}, "background", "Supported values are: 'auto' and 'opaque'."),
        ({"prompt": "a", "sampler": "eular"}, "sampler", "unknown sampler 'eular'. Did you mean 'euler'?"),
        ({"prompt": "a", "placement_strength": 1e37}, "placement_strength", "Expected a value <= 100"),
        ({"prompt": "a", "guidance_scale": 1000}, "guidance_scale", "Expected a value <= 100, but got 1000"),
        (
            {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1},
            "negative_prompt",
            "no effect at guidance scale 1",
        ),
        ({"prompt": "a", "negative_prompt": "b" * 101}, "negative_prompt", "maximum length 100"),
        (
            {"prompt": "a", "model": "dall-e-3"},
            "model",
            "The model `dall-e-3` does not exist or you do not have access",
        ),
        ({"prompt": "a", "style": "bold!"}, "style", "style must be a picture's file in base64"),
        ({"prompt": "a", "style": ["vivid", "natural"]}, "style[0]", "must be a picture's file in base64"),
        (
            {"prompt": "a", "style": [MASK] * 4},
            "style",
            "an array with maximum length 3, but got an array with length 4",
        ),
        ({"prompt": "a", "style": "vivid", "style_guidance": 2}, "style_guidance", "is for a style: give a picture"),
        ({"prompt": "a", "style_guidance": 2}, "style_guidance", "style_guidance is for a style: give a picture"),
        ({"prompt": "a", "style_content": "a ring"}, "style_content", "style_content is for a style: give a picture"),
        ({"prompt": "a", "style": MASK, "style_content": " "}, "style_content", "style_content is empty"),
        ({"prompt": "a", "style": MASK, "style_content": "a\x07"}, "style_content", "control character"),
        ({"prompt": "a", "region_strength": 2}, "region_strength", "region_strength is for regions: give regions"),
        (
            {"prompt": "a", "noise_level": 3},
            "noise_level",
            "has no option noise_level; it has no options. Leave it out",
        ),
        ({"prompt": "a", "noise_level": 1000}, "noise_level", "Expected a value <= 999, but got 1000"),
        ({"prompt": "a", "painting": 2}, "painting", "painting is for regions: give regions"),
        (
            {"prompt": "a circle", "regions": [WHOLE], "painting": 2, "region_strength": 2},
            "painting",
            "painting is the old name of region_strength: give only region_strength",
        ),
        ({"prompt": "a", "mask_blur": 0.1}, "mask_blur", "mask_blur is for regions"),
        ({"prompt": "a ring", "regions": [WHOLE]}, "regions[0].phrase", "does not contain the phrase 'circle'"),
        ({"prompt": "a ring", "regions": [{**WHOLE, "phrase": " "}]}, "regions[0].phrase", "words of the prompt"),
        ({"prompt": "a circle", "regions": [{**WHOLE, "weight": -1}]}, "regions[0].weight", "Expected a value >= 0"),
        ({"prompt": "a circle", "regions": [WHOLE, WHOLE]}, "regions", "Invalid 'regions': array too long."),
        ({"prompt": "a circle", "regions": [{**WHOLE, "mask": "/etc/passwd"}]}, "regions[0].mask", "a picture's file"),
        ({"prompt": "a", "partial_images": 1}, "partial_images", "is for streams: set stream"),
        ({"prompt": "a", "progress": True}, "progress", "is for streams: set stream"),
        ([], None, "Invalid type for the body: expected an object, but got an array instead."),
    ],
    ids=str,
)
def test_wrong_requests_are_told_why(client: httpx.Client, body: Any, param: str | None, message: str) -> None:
    refused(
        client.post(GENERATIONS, content=json.dumps(body), headers={"Content-Type": "application/json"}), param, message
    )


@pytest.mark.parametrize(
    ("sources", "param", "message"),
    [
        ([], "sources", "Expected an array with minimum length 1, but got an empty array instead."),
        ([{"text": "a"}] * 4, "sources", "an array with maximum length 3, but got an array with length 4 instead"),
        ([{}], "sources[0]", "either a text or an image"),
        ([{"text": "a"}, {"text": "a", "image": MASK}], "sources[1]", "either a text or an image"),
        ([{"text": "a"}, {"text": "b", "weight": 1}], "sources[1].weight", "or none for equal parts"),
        ([{"text": "a", "weight": 1.1}], "sources[0].weight", "decimal above maximum value. Expected a value <= 1"),
        ([{"text": "a", "weight": 0}], "sources", "the weights are all zero"),
        ([{"text": "a"}, {"text": " "}], "sources[1].text", "the prompt is empty"),
        ([{"text": "a" * 101}], "sources[0].text", "maximum length 100"),
        ([{"text": "a"}, {"image": "photo.png"}], "sources[1].image", "must be a picture's file in base64"),
    ],
    ids=str,
)
def test_wrong_mixes_are_told_why(client: httpx.Client, sources: Any, param: str, message: str) -> None:
    refused(client.post(MIXES, json={"sources": sources}), param, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'"\xff"', "not encoded in UTF-8"),
        (b"[" * 90_000, "too many values or levels"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "A number in it has too many digits"),
    ],
    ids=["nothing", "half", "latin", "levels", "digits"],
)
def test_what_is_no_json_is_told_so(client: httpx.Client, body: bytes, message: str) -> None:
    answer = client.post(GENERATIONS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "files", "data", "param", "message"),
    [
        ("variations", {}, {}, None, "multipart/form-data"),
        ("edits", {"mask": picture("RGBA")}, {"prompt": "a"}, "image", "Send a picture as a file of this name"),
        ("edits", {"image": b"?"}, {"prompt": "a"}, "image", "format is not known"),
        ("edits", {"image": picture(), "mask": b"?"}, {"prompt": "a"}, "mask", "format is not known"),
        (
            "edits",
            {"image": picture(), "mask": picture()},
            {"prompt": "a"},
            "mask",
            "make it transparent where the picture",
        ),
        ("edits", {"image": picture(), "mask": CLEAR9}, {"prompt": "a"}, "mask", "one size, got 8 × 8 and 9 × 9"),
        ("edits", {"image": picture(), "mask": CLEAR}, {"prompt": "a", "region": "b"}, "region", "phrase 'b'"),
        ("edits", {"image": picture(), "mask": CLEAR}, {"prompt": "a", "region": " "}, "region", "words of the prompt"),
        ("edits", {"image": picture()}, {"prompt": "a", "region": "a"}, "region", "region is for a mask: give one"),
        ("edits", {"image": picture()}, {"prompt": "a", "painting": "1"}, "painting", "painting is for a mask"),
        ("edits", {"image": picture()}, {"prompt": "a", "input_fidelity": "high"}, "input_fidelity", "is not possible"),
        (
            "edits",
            {"image": picture(), "n": picture()},
            {"prompt": "a"},
            "n",
            "Invalid type for 'n': expected a string.",
        ),
        ("edits", {"mask": CLEAR}, {"prompt": "a", "image": "file:///etc/passwd"}, "image", "expected a file."),
        ("variations", {"image": picture(), "image[]": picture()}, {}, "image", "array with maximum length 1, but got"),
        ("variations", {"image": picture(), "other": picture()}, {}, "other", "Unknown parameter: 'other'."),
        ("variations", {"image": picture(size=(200, 200))}, {}, "image", "40,000 pixels; at most 10,000"),
        ("variations", {"image": picture()}, {"prompt": "a"}, "prompt", "Unknown parameter: 'prompt'."),
        ("recipes", {"image": picture()}, {}, "image", "holds no record"),
        ("recipes", {"image": noted("[" * 900 + "]" * 900)}, {}, "image", "holds no record"),
        ("recipes", {"image": noted('{"prompt": ' + "[" * 900 + "]" * 900 + "}")}, {}, "image", "no plain JSON"),
        ("recipes", {"image": noted('{"prompt": NaN}')}, {}, "image", "no plain JSON"),
        ("recipes", {"image": noted('{"seed": ' + "1" * 5000 + "}")}, {}, "image", "holds no record"),
    ],
)
def test_wrong_forms_are_told_why(
    client: httpx.Client, path: str, files: dict[str, bytes], data: dict[str, str], param: str | None, message: str
) -> None:
    sent = {name: (f"{name}.png", content) for name, content in files.items()}
    refused(client.post(f"/v1/images/{path}", files=sent, data=data), param, message)


def test_a_body_that_is_too_large_is_not_read(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 1000

    for content in (b" " * 100_001, endless()):
        answer = client.post(GENERATIONS, content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


def generated(client: httpx.Client, path: str, body: dict[str, Any]) -> list[bytes]:
    """The files."""
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


@pytest.mark.parametrize(
    ("path", "body", "dropped"),
    [
        (GENERATIONS, {"prompt": "a circle", "negative_prompt": "a ring", "sampler": "heun"}, {"negative_prompt"}),
        (
            GENERATIONS,
            {"prompt": "a circle", "regions": [PART], "mask_blur": 0.1, "region_strength": 9},
            {"regions", "region_strength"},
        ),
        (GENERATIONS, {"prompt": "a circle", "style": MASK, "style_guidance": 3}, {"style", "style_guidance"}),
        (GENERATIONS, {"prompt": "a circle", "style": MASK, "style_content": "a ring"}, {"style_content"}),
        (MIXES, {"sources": [{"text": "a circle", "weight": 0.7}, {"image": MASK, "weight": 0.3}]}, set()),
        (MIXES, {"sources": [{"image": MASK}], "guidance_scale": 1.5}, {"guidance_scale"}),
    ],
    ids=["prompt", "regions", "style", "content", "mix", "variation"],
)
def test_an_image_is_generated_again_from_its_own_file(
    client: httpx.Client, path: str, body: dict[str, Any], dropped: set[str]
) -> None:
    (_, file) = generated(client, path, {**body, "seed": 3, "n": 2, "steps": 2})
    answer = client.post("/v1/images/recipes", files={"image": file}).json()
    assert answer["record"] == record_of(opened(file), "it")
    assert (answer["record"]["number"], answer["record"]["index"]) == (2, 1)
    request = answer["request"]
    assert (request["path"], request["body"]["seed"], request["body"]["steps"]) == (path, 4, 2)
    assert (answer["missing"], answer["notes"]) == ([], [])
    (again,) = generated(client, request["path"], request["body"])
    assert opened(again).tobytes() == opened(file).tobytes()
    if dropped:
        rest = {name: value for name, value in request["body"].items() if name not in dropped}
        assert opened(generated(client, path, rest)[0]).tobytes() != opened(file).tobytes()


def test_the_old_name_of_region_strength_still_works_with_a_warning(client: httpx.Client) -> None:
    asked = {"prompt": "a circle", "regions": [PART], "seed": 3, "steps": 1}
    old, new, weak = (
        client.post(GENERATIONS, json={**asked, **more}).json()
        for more in ({"painting": 9}, {"region_strength": 9}, {})
    )
    assert old["data"] == new["data"] != weak["data"]
    assert (old["warnings"], new["warnings"]) == ([validation.OLD_STRENGTH], [])
    idle = {"syzygy_requests_running 0", "syzygy_requests_painting 0"}
    assert waited(lambda: idle <= set(client.get("/metrics").text.splitlines()))


def test_a_variation_is_a_mixture_of_one_and_weights_decide(client: httpx.Client) -> None:
    varied = client.post("/v1/images/variations", files={"image": picture(colour="white")}, data={"seed": "3"}).json()
    first = opened(base64.b64decode(varied["data"][0]["b64_json"])).tobytes()

    def mixed(share: float) -> bytes:
        sources = [{"image": MASK, "weight": share}, {"text": "a circle", "weight": 1 - share}]
        return opened(generated(client, MIXES, {"sources": sources, "seed": 3})[0]).tobytes()

    assert mixed(1) == first
    assert len({first, mixed(0.5), mixed(0)}) == 3


def test_what_is_as_much_as_allowed_is_generated(client: httpx.Client) -> None:
    prompt = ("a circle" + " a circle" * 20)[:100]
    most = {"prompt": prompt, "negative_prompt": prompt, "steps": 5, "n": 2, "seed": 2**64 - 2, "regions": [WHOLE]}
    assert len(generated(client, GENERATIONS, most)) == 2
    assert len(generated(client, MIXES, {"sources": [{"text": prompt}] * 3, "steps": 1})) == 1


def test_seeds_are_generated_one_by_one_and_others_together(client: httpx.Client) -> None:
    def batches() -> int:
        text = client.get("/metrics").text
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("syzygy_batches_total"))

    counts = [batches()]
    for more in ({"seed": 1}, {}):
        generated(client, GENERATIONS, {"prompt": "a circle", "n": 2, "steps": 1, **more})
        counts.append(batches())
    assert [after - before for before, after in pairwise(counts)] == [2, 1]


def test_a_stream_is_made_of_named_events(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "SILENCE_SECONDS", 0.2)
    held = Held(engine)
    asked = {"sources": [{"text": "a circle"}], "stream": True, "progress": True, "partial_images": 1, "steps": 2}
    with serving(create_app(held, LIMITS)) as url, httpx.stream("POST", url + MIXES, json=asked, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-cache", "no")
        text = ""
        for part in answer.iter_text():
            text += part
            held.go.set()
    assert text.startswith(": waiting\n\n")
    names = []
    for block in text.replace(": waiting\n\n", "").removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        content = json.loads(data.removeprefix("data: "))
        names.append(name.removeprefix("event: "))
        assert content["type"] == names[-1]
        if names[-1] == "syzygy.progress":
            assert (content["step"], content["steps"]) == (names.count("syzygy.progress"), 2)
    image = "image_generation"
    assert names == ["syzygy.progress", f"{image}.partial_image", "syzygy.progress", f"{image}.completed"]


def test_a_text_that_is_the_name_of_a_file_is_a_text(client: httpx.Client, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(picture(colour="red"))
    with_file = generated(client, MIXES, {"sources": [{"text": str(file)}], "seed": 1})
    file.unlink()
    assert generated(client, MIXES, {"sources": [{"text": str(file)}], "seed": 1}) == with_file


def test_what_a_record_cannot_hold_is_said(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"prompt": "a circle", "style": MASK, "steps": 1}
    assert client.post(GENERATIONS, json=asked).json()["warnings"] == []
    monkeypatch.setattr(requests, "KEPT_BYTES", 10)
    answer = client.post(GENERATIONS, json=asked).json()
    assert "only the SHA-256" in answer["warnings"][0]
    file = base64.b64decode(answer["data"][0]["b64_json"])
    assert client.post("/v1/images/recipes", files={"image": file}).json()["missing"] == ["style"]
    monkeypatch.setattr(validation, "MASKS_BYTES", 10)
    too_much = client.post(GENERATIONS, json={"prompt": "a circle", "regions": [WHOLE]})
    refused(too_much, "regions", "bytes as PNG files; an image's record holds at most 10")


def test_other_routes(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/v1/models/none").status_code == 404
    assert client.get("/nothing").json()["error"]["message"] == "Invalid URL (GET /nothing)."
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


def test_a_key_is_asked_for_where_there_is_one(engine: ImageEngine) -> None:
    app = create_app(engine, LIMITS, api_key=SECRET)
    with serving(app) as url, httpx.Client(base_url=url) as client:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET}, {"Authorization": "Bearer é"}):
            raw = {name: value.encode("latin-1") for name, value in wrong.items()}
            answer = client.get("/v1/models", headers=raw)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert client.get("/metrics", headers=raw).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200
        assert client.get("/healthz").status_code == 200


def send(url: str, body: dict[str, Any]) -> socket.socket:
    """A request on a connection of its own, whose answer nobody reads."""
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port))
    content = json.dumps(body).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_killed_clients_free_their_places(engine: ImageEngine, stream: bool) -> None:
    held = Held(engine)
    app = create_app(held, LIMITS)
    worker = app.state.server.worker
    with serving(app) as url:
        painted = send(url, {"prompt": "a", "stream": stream, "seed": 1})
        assert held.begun.wait(PATIENCE)
        waiting = [send(url, {"prompt": "a", "stream": stream, "seed": 1}) for _ in range(2)]
        assert waited(lambda: worker.waiting == 2)
        full = httpx.post(url + GENERATIONS, json={"prompt": "a"}, timeout=60)
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        for connection in (painted, *waiting):
            connection.close()
        assert waited(lambda: worker.waiting == 0)
        assert waited(lambda: "syzygy_cancelled_total 3" in httpx.get(url + "/metrics", timeout=60).text)
        held.go.set()
        assert waited(lambda: worker.running == 0)
        assert (held.steps, len(held.batches)) == (1, 1)
        if not stream:
            assert f'path="{GENERATIONS}",status="499"}} 3' in httpx.get(url + "/metrics", timeout=60).text
        assert httpx.post(url + GENERATIONS, json={"prompt": "a"}, timeout=60).status_code == 200


def test_what_is_under_way_is_finished_before_the_end(engine: ImageEngine) -> None:
    held = Held(engine)
    answers: list[httpx.Response] = []
    with serving(create_app(held, LIMITS), grace=PATIENCE) as url:
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(url + GENERATIONS, json={"prompt": "a"}, timeout=60))
        )
        asking.start()
        assert held.begun.wait(PATIENCE)
        threading.Timer(0.3, held.go.set).start()
    asking.join(PATIENCE)
    assert answers[0].status_code == 200


def test_what_outlasts_the_grace_is_dropped(engine: ImageEngine) -> None:
    held = Held(engine)
    app = create_app(held, LIMITS)
    worker = app.state.server.worker
    with serving(app, grace=1.0) as url:
        connection = send(url, {"prompt": "a"})
        assert held.begun.wait(PATIENCE)
        letting = threading.Thread(target=lambda: waited(lambda: worker._stopping) and held.go.set())
        letting.start()
    letting.join(PATIENCE)
    connection.close()
    assert held.steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "lets other machines in: give an --api-key"),
        (["--api-key", "a", "--no-api-key"], "exclude each other"),
        (["--api-key", " a"], "without blanks"),
        (["--host", "203.0.113.1", "--no-api-key"], "cannot listen on 203.0.113.1"),
        (["--queue", "0"], "out of range"),
        (["--proxy", "proxy.example"], "is not an IP address or network"),
        (["--model", "nothing-there"], "nothing-there"),
    ],
    ids=str,
)
def test_wrong_arguments(syzygy: Callable[..., Answer], arguments: list[str], message: str) -> None:
    answer = syzygy("serve", "--port", "0", *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_the_servers_own_steps_are_within_its_limits(engine: ImageEngine) -> None:
    with pytest.raises(UserError, match="own 3 steps are more than the 2 that a request may ask for"):
        create_app(engine, Limits(steps=2))


def test_the_models_own_size_and_the_servers_sampler_are_checked_at_the_start(engine: ImageEngine) -> None:
    with pytest.raises(UserError, match=r"pixels, which are more than the 100 of --max-pixels"):
        create_app(engine, Limits(pixels=100))
    about = replace(engine.about, record={**engine.about.record, "sampler": "eular"})
    with pytest.raises(UserError, match=r"unknown sampler 'eular'\. Did you mean 'euler'"):
        validation.Validator(about, Limits())


def test_a_client_may_connect_before_the_server_runs() -> None:
    """The address is printed before the server accepts: connections wait, they are not refused."""
    with listening("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname(), timeout=5):
        pass


def test_the_command_serves_until_it_is_told_to_stop(tiny_model: Path) -> None:
    command = [SYZYGY, "serve", "--model", tiny_model, "--port", "0", "--json", "--steps", "2", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"SYZYGY_API_KEY": SECRET}) as process:
        try:
            assert process.stdout
            about = json.loads(process.stdout.readline())
            assert (about["api_key"], about["queue"]) == (True, 32)
            key = {"Authorization": f"Bearer {SECRET}"}
            answer = httpx.post(about["url"] + GENERATIONS, json={"prompt": "a circle"}, headers=key, timeout=60)
            record = record_of(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))), "it")
            assert (record["steps"], record["model"], record["prompt"]) == (2, tiny_model.name, "a circle")
            models = httpx.get(about["url"] + "/v1/models", headers=key, timeout=60)
            assert models.json()["data"][0]["id"] == tiny_model.name
            assert str(tiny_model.parent) not in models.text + json.dumps(record), (
                "no place on this machine is told to clients"
            )
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
        finally:
            process.kill()  # else a failed test waits for the server


def test_generated_requests_meet_no_failure_of_the_server(engine: ImageEngine) -> None:
    found = fuzz(create_app(engine, LIMITS, hosts=None), cases=1, a_round=5)
    statuses = {status for *_, status in found}
    assert {200, 400} <= statuses
    assert max(statuses) < 500
    assert len({path for _, path, _ in found}) == 10


def test_null_and_empty_texts_are_as_if_left_out(client: httpx.Client) -> None:
    """Clients of OpenAI's API send null for what they do not set, and forms send empty fields."""
    asked = {"prompt": "a circle", "seed": 3}
    expected = generated(client, GENERATIONS, asked)
    optional = [name for name, field in Generation.model_fields.items() if not field.is_required() and name != "seed"]
    assert {"n", "size", "stream", "quality", "regions", "style", "negative_prompt", "background"} <= set(optional)
    for value in (None, ""):
        assert generated(client, GENERATIONS, {**asked, **dict.fromkeys(optional, value)}) == expected
    region = {**WHOLE, "weight": None}
    assert generated(client, GENERATIONS, {**asked, "regions": [region]}) == generated(
        client, GENERATIONS, {**asked, "regions": [WHOLE]}
    )
    source = {"text": "a circle", "image": "", "weight": None}
    assert generated(client, MIXES, {"sources": [source]})
    form = client.post("/v1/images/variations", files={"image": picture()}, data={"n": "", "size": "", "seed": "3"})
    assert form.status_code == 200
    for body, param in (({"prompt": None}, "prompt"), ({"prompt": "a", "promt": None}, "promt")):
        assert client.post(GENERATIONS, json=body).json()["error"]["param"] == param


def test_base64_may_be_wrapped(client: httpx.Client) -> None:
    asked = {"prompt": "a circle", "seed": 1}
    big = picture(size=(99, 99), colour="white")
    straight = generated(client, GENERATIONS, {**asked, "regions": [{**WHOLE, "mask": base64_of(big)}]})
    wrapped = base64.encodebytes(big).decode()
    assert wrapped.count("\n") > 1
    for mask in (wrapped, "data:image/png;base64," + wrapped.replace("\n", "\r\n")):
        assert generated(client, GENERATIONS, {**asked, "regions": [{**WHOLE, "mask": mask}]}) == straight


def test_head_is_answered_as_get_without_a_body(client: httpx.Client) -> None:
    for path, status in (
        ("/healthz", 200),
        ("/v1/models", 200),
        ("/metrics", 200),
        ("/nothing", 404),
        (GENERATIONS, 405),
    ):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (status, b"")
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", [GENERATIONS, MIXES])
def test_json_of_another_type_is_refused_with_the_right_one(client: httpx.Client, path: str, kind: str) -> None:
    answer = client.post(path, content=b'{"prompt": "a circle"}', headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_content_type")
    assert "This API method only accepts 'application/json' requests" in answer.json()["error"]["message"]
    good = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post(GENERATIONS, content=b'{"prompt": "a circle", "steps": 1}', headers=good).status_code == 200


def test_broken_json_is_no_field(client: httpx.Client) -> None:
    answer = client.post(GENERATIONS, content=b'{"prompt": "a",}', headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, None)
    assert error["message"].startswith("We could not parse the JSON body of your request. It is not valid JSON: ")
    assert "at character 1" in error["message"]


def cut_out() -> bytes:
    """A red picture whose left half is transparent."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_the_transparent_part_of_a_picture_is_the_mask_where_none_is_sent(
    client: httpx.Client, engine: ImageEngine
) -> None:
    asked = {"prompt": "a circle", "seed": "3", "region_strength": "9", "region": "circle"}

    def edited(**files: bytes) -> Any:
        answer = client.post("/v1/images/edits", files=files, data=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()

    own, sent = edited(image=cut_out()), edited(image=cut_out(), mask=cut_out())
    assert own["data"] == sent["data"]
    assert edits.OWN_MASK in own["warnings"]
    assert edits.OWN_MASK not in sent["warnings"]
    translucent = picture("RGBA", colour=(255, 0, 0, 128))
    refused(
        client.post("/v1/images/edits", files={"image": translucent}, data=asked),
        "region",
        "region is for a mask: give one",
    )


@pytest.mark.parametrize("place", ENGINES)
def test_values_that_are_not_finite_are_a_failure_of_the_server(
    tiny_model: Path, place: Callable[[Callable[[], Engine]], ImageEngine]
) -> None:
    class Overflowing:
        def predict(self, features: Any, *, noise: Any = None, generator: Any = None) -> Any:
            return torch.full_like(features.pooled, float("inf"))

    engine = tiny_engine(tiny_model)
    model = replace(engine.model, pipeline=replace(engine.model.pipeline, prior=Overflowing()))
    with (
        serving(create_app(place(lambda: Engine(model, engine.record)), LIMITS)) as url,
        httpx.Client(base_url=url, timeout=60) as own,
    ):
        for path, body in ((GENERATIONS, {"prompt": "a circle"}), (MIXES, {"sources": [{"text": "a circle"}]})):
            answer = own.post(path, json={**body, "seed": 3})
            error = answer.json()["error"]
            assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "non_finite_values")
            assert "not finite" in error["message"]
            assert "(seed 3)" in error["message"]
            assert "--dtype" in error["message"]
        streamed = own.post(GENERATIONS, json={"prompt": "a circle", "stream": True})
        assert (streamed.status_code, streamed.json()["error"]["code"]) == (500, "non_finite_values")
