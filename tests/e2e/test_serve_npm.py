"""The official npm client of OpenAI's API, unchanged, against a server with the tiny model."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from syzygy.server.app import create_app
from syzygy.server.http_server import serving
from tests.tiny_server import PATIENCE, tiny_engine

ROOT = Path(__file__).parents[2]
KEY = "s3cret"


def test_the_npm_client_gets_images_events_urls_and_errors(tiny_model: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    if not (ROOT / "node_modules/openai/package.json").is_file():
        pytest.skip("the npm package openai is not installed: .ci/run installs it into node_modules")
    app = create_app(tiny_engine(tiny_model), aliases=["gpt-image-1"], api_key=KEY)
    with serving(app) as url:
        environment = {**os.environ, "SERVER_URL": url, "SERVER_KEY": KEY}
        script = [node, "tests/openai_client.mjs"]
        ran = subprocess.run(
            script, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["models"] == [tiny_model.name, "gpt-image-1"]
    assert (found["plain"]["usage"]["total_tokens"], found["plain"]["quality"]) == (0, "auto")
    assert found["plain"]["same"], "the URL serves the image that b64_json holds"
    assert (found["quality"]["quality"], found["quality"]["output_format"]) == ("high", "webp")
    assert found["quality"]["warnings"] == ["quality high has no effect here: steps decides about quality."]
    assert found["events"] == [
        {"type": "image_generation.partial_image", "tokens": None},
        {"type": "image_generation.completed", "tokens": 0},
    ]
    assert found["edits"] == 1
    refused = found["refused"]
    assert re.fullmatch("req_[0-9a-f]{32}", refused.pop("requestID"))
    assert re.fullmatch("req_[0-9a-f]{32}", found["id"])
    assert refused == {
        "kind": "BadRequestError",
        "status": 400,
        "param": "n",
        "code": "integer_above_max_value",
        "type": "invalid_request_error",
        "message": "400 Invalid 'n': integer above maximum value. Expected a value <= 10, but got 11 instead.",
    }
