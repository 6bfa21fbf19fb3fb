"""What programs written for OpenAI's images API expect besides images, through the official Python client."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.generation.image_files import record_of
from syzygy.server.app import create_app
from syzygy.server.http_server import serving
from syzygy.server.limits import Limits
from tests.tiny_server import tiny_engine

PROMPT = "a red circle and a blue star"
SECRET = "s3cret"
EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"


@pytest.fixture(scope="module")
def url(tiny_model: Path) -> Iterator[str]:
    aliases = ["gpt-image-1", "dall-e-3"]
    app = create_app(tiny_engine(tiny_model), Limits(sources=3), aliases=aliases, api_key=SECRET)
    with serving(app) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0) as client:
        yield client


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=60) as client:
        yield client


def picture(colour: str, mode: str = "RGB") -> bytes:
    """A picture of 32 × 32 whose left half has this colour, or is transparent."""
    image = Image.new(mode, (32, 32), "black")
    image.paste((0, 0, 0, 0) if mode == "RGBA" else colour, (0, 0, 16, 32))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


RED, GREEN, MASK = picture("red"), picture("green"), picture("", "RGBA")


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def opened(text: str | None) -> Image.Image:
    assert text
    return Image.open(io.BytesIO(base64.b64decode(text)))


def pixels(answer: Any) -> list[bytes]:
    return [opened(one["b64_json"]).convert("RGB").tobytes() for one in answer["data"]]


def test_answers_have_usage_quality_and_a_request_id(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, quality="high", n=10, extra_body={"steps": 1})
    assert answer.usage
    assert answer.usage.model_dump() == {
        "input_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "total_tokens": 0,
    }
    assert (len(answer.data or ()), answer.quality, answer.size) == (10, "high", "32x32")
    assert answer.model_dump()["warnings"] == ["quality high has no effect here: steps decides about quality."]
    assert re.fullmatch("req_[0-9a-f]{32}", answer._request_id or "")
    with client.images.generate(prompt=PROMPT, stream=True, quality="low", extra_body={"steps": 1}) as stream:
        (event,) = stream
    assert event.type == "image_generation.completed"
    assert (event.usage.total_tokens, event.usage.input_tokens_details.text_tokens, event.quality) == (0, 0, "low")


@pytest.mark.parametrize("quality", ["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd", None])
def test_each_quality_of_openai_is_accepted(client: openai.OpenAI, quality: Any) -> None:
    answer = client.images.generate(prompt=PROMPT, quality=quality, extra_body={"steps": 1}).model_dump()
    assert answer["quality"] == (quality or "auto")
    assert bool(answer["warnings"]) == (quality not in ("auto", None))


def test_fields_may_be_null(client: openai.OpenAI) -> None:
    names = ["background", "model", "moderation", "n", "output_compression", "output_format", "partial_images"]
    nothing: dict[str, Any] = dict.fromkeys([*names, "quality", "response_format", "size", "stream", "style"])
    more = {"seed": 3, "user": None, "safety_identifier": None, "steps": 1}
    answer = client.images.generate(prompt=PROMPT, **nothing, extra_body=more)
    expected = client.images.generate(prompt=PROMPT, extra_body={"seed": 3, "steps": 1})
    assert answer.data == expected.data
    schema = httpx.get(str(client.base_url).replace("/v1/", "/openapi.json")).json()["components"]["schemas"]
    for name in ("Generation", "JsonEdit", "Mix", "RegionMask"):
        for field, about in schema[name]["properties"].items():
            optional = field not in schema[name]["required"]
            assert ({"type": "null"} in about.get("anyOf", [])) == optional, (name, field)


@pytest.mark.parametrize("output", ["png", "jpeg", "webp"])
def test_files_have_the_format_that_was_asked_for(client: openai.OpenAI, output: Any) -> None:
    asked: Any = {"prompt": PROMPT, "output_format": output, "extra_body": {"seed": 3, "steps": 3}}
    answer = client.images.generate(**asked)
    assert answer.data
    assert answer.output_format == output
    image = opened(answer.data[0].b64_json)
    assert (image.format, image.size) == (output.upper(), (32, 32))
    with client.images.generate(**asked, stream=True, partial_images=1) as stream:
        events = list(stream)
    assert [(event.output_format, opened(event.b64_json).format) for event in events] == [(output, output.upper())] * 2
    if output != "png":
        small = client.images.generate(**asked, output_compression=0).data or []
        assert len(small[0].b64_json or "") < len(answer.data[0].b64_json or "")


def test_a_url_serves_the_image_to_those_with_the_key(client: openai.OpenAI, http: httpx.Client, url: str) -> None:
    asked: Any = {"prompt": PROMPT, "n": 2, "extra_body": {"seed": 3, "steps": 1}}
    answer = client.images.generate(**asked, response_format="url", output_format="webp")
    whole = client.images.generate(**asked, output_format="webp")
    urls = [one.url or "" for one in answer.data or []]
    assert [one.b64_json for one in answer.data or []] == [None, None]
    for place, expected in zip(urls, whole.data or [], strict=True):
        assert re.fullmatch(rf"{url}/v1/images/files/[\w-]{{43}}", place)
        found = http.get(place)
        assert (found.status_code, found.headers["Content-Type"]) == (200, "image/webp")
        assert text_of(found.content) == expected.b64_json
        assert http.head(place).headers["Content-Length"] == str(len(found.content))
        assert httpx.get(place).status_code == 401
    missing = http.get(urls[0][:-1] + ("A" if urls[0][-1] != "A" else "B"))
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "image_not_found")
    metrics = http.get("/metrics").text
    assert re.search(r"syzygy_stored_bytes [1-9]", metrics)
    assert urls[0].rpartition("/")[2] not in metrics


def test_the_model_has_other_names(client: openai.OpenAI, tiny_model: Path) -> None:
    names = [model.id for model in client.models.list().data]
    assert names == [tiny_model.name, "gpt-image-1", "dall-e-3"]
    assert client.models.retrieve("gpt-image-1").id == "gpt-image-1"
    assert client.images.generate(prompt=PROMPT, model="dall-e-3", extra_body={"steps": 1}).data
    with pytest.raises(openai.NotFoundError) as refused:
        client.images.generate(prompt=PROMPT, model="dall-e-2")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert "The model `dall-e-2` does not exist or you do not have access to it." in refused.value.message


@pytest.mark.parametrize("style", ["vivid", "natural"])
def test_styles_of_openai_have_no_effect_and_say_so(client: openai.OpenAI, style: Any) -> None:
    more: Any = {"prompt": PROMPT, "extra_body": {"seed": 3, "steps": 1}}
    plain, styled = client.images.generate(**more), client.images.generate(**more, style=style)
    assert plain.data == styled.data
    (warning,) = styled.model_dump()["warnings"]
    assert warning.startswith(f"style {style} has no effect here: ")


def test_further_images_are_the_style_of_an_edit(client: openai.OpenAI, http: httpx.Client) -> None:
    more: Any = {"prompt": PROMPT, "extra_body": {"seed": 3, "region": "a blue star", "region_strength": 5}}
    answers = [
        client.images.edit(image=images, mask=MASK, **more).model_dump() for images in (RED, [RED], [RED, GREEN])
    ]
    first, same, both = map(pixels, answers)
    assert first == same
    assert first != both
    record = record_of(opened(answers[2]["data"][0]["b64_json"]), "it")
    assert (record["image"]["data"], record["style"]["data"]) == (text_of(RED), text_of(GREEN))
    file = base64.b64decode(answers[2]["data"][0]["b64_json"])
    recipe = http.post("/v1/images/recipes", files={"image": file}).json()
    assert (recipe["missing"], recipe["notes"]) == ([], [])
    assert pixels(http.post(recipe["request"]["path"], json=recipe["request"]["body"]).json()) == both
    with pytest.raises(openai.BadRequestError, match="maximum length 3, but got an array with length 4") as refused:
        client.images.edit(image=[RED] * 4, prompt=PROMPT)
    assert (refused.value.param, refused.value.code) == ("image", "array_above_max_length")


def test_an_edit_may_be_json(client: openai.OpenAI, http: httpx.Client) -> None:
    more = {"prompt": PROMPT, "seed": 3, "region": "a blue star", "region_strength": 5}
    form = client.images.edit(image=[RED, GREEN], mask=MASK, prompt=PROMPT, extra_body={**more})
    references = [{"image_url": f"data:image/png;base64,{text_of(one)}"} for one in (RED, GREEN)]
    body = {**more, "images": references, "mask": {"image_url": text_of(MASK)}, "n": None}
    answer = http.post(EDITS, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["b64_json"] == (form.data or [])[0].b64_json
    assert answer.json()["warnings"] == form.model_dump()["warnings"]
    streamed = http.post(EDITS, json={**body, "stream": True}).text
    assert streamed.startswith("event: image_edit.completed\n")


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"images": []}, "images", "Expected an array with minimum length 1"),
        ({"images": [{"image_url": text_of(RED)}] * 4}, "images", "maximum length 3"),
        ({"images": [{"image_url": "https://example.org/a.png"}]}, "images[0].image_url", "a picture's file in base64"),
        ({"images": [{"file_id": "file-1"}]}, "images[0].image_url", "Missing required parameter"),
        ({"images": None}, "images", "Invalid type for 'images': expected an array, but got null instead."),
        ({"mask": {"image_url": "?"}}, "mask", "a picture's file in base64"),
        ({"image": "a"}, "image", "Unknown parameter: 'image'."),
    ],
    ids=str,
)
def test_wrong_edits_as_json(http: httpx.Client, change: dict[str, Any], param: str, message: str) -> None:
    answer = http.post(EDITS, json={"prompt": PROMPT, "images": [{"image_url": text_of(RED)}], **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert error["code"]


def test_pictures_of_json_edits_are_counted_before_they_are_decoded(tiny_model: Path) -> None:
    app = create_app(tiny_engine(tiny_model), Limits(upload_pixels=2 * 32 * 32))
    with serving(app) as url:
        pictures = [{"image_url": text_of(RED)}] * 2
        for more, status in (({}, 200), ({"mask": {"image_url": text_of(MASK)}}, 400)):
            answer = httpx.post(
                url + EDITS, json={"prompt": PROMPT, "images": pictures, "steps": 1, **more}, timeout=60
            )
            assert answer.status_code == status
        assert "together with the pictures before it" in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == "mask"


def test_what_is_cut_of_a_prompt_is_reported(client: openai.OpenAI, http: httpx.Client, caplog: Any) -> None:
    long, negative = "a red circle " * 40 + "omega", "a blue star " * 40 + "zeta"
    answer = client.images.generate(prompt=long, extra_body={"negative_prompt": negative, "steps": 1})
    cut = [note for note in answer.model_dump()["warnings"] if "this encoder reads 77; cut: " in note]
    assert [note[-6:] for note in cut] == ["omega'", " zeta'"]
    with client.images.generate(prompt=long, stream=True, extra_body={"steps": 1}) as stream:
        (event,) = stream
    assert any(note.endswith("omega'") for note in event.model_dump()["warnings"])
    mixed = http.post("/v1/images/mixes", json={"sources": [{"text": long}, {"text": PROMPT}], "steps": 1}).json()
    assert any(note.endswith("omega'") for note in mixed["warnings"])
    assert not client.images.generate(prompt=PROMPT, extra_body={"steps": 1}).model_dump()["warnings"]
    assert "omega" not in caplog.text


def test_every_answer_has_its_own_request_id(http: httpx.Client, url: str) -> None:
    answers = [
        *(http.get(path) for path in ("/", "/healthz", "/v1/models", "/nothing", "/metrics")),
        http.head("/v1/models"),
        http.get("/healthz", headers={"Host": "[::"}),
        httpx.get(f"{url}/v1/models"),
        http.put(GENERATIONS),
        http.post(GENERATIONS, json={}),
        http.post(GENERATIONS, json={"prompt": PROMPT, "steps": 1, "stream": True}),
    ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(answers)


def test_a_wrong_method_or_path_is_answered_in_openais_words(http: httpx.Client) -> None:
    for answer, status, message, code in (
        (http.get("/v1/nothing"), 404, "Invalid URL (GET /v1/nothing).", None),
        (http.put(GENERATIONS), 405, f"Method not allowed (PUT {GENERATIONS}).", "method_not_supported"),
    ):
        assert answer.status_code == status
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        assert answer.json() == {"error": error}


def test_the_key_that_is_missing_and_the_one_that_is_wrong(url: str) -> None:
    for key, message in ((None, "You didn't provide an API key."), ("wrong", "Incorrect API key provided.")):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        error = httpx.get(f"{url}/v1/models", headers=headers).json()["error"]
        assert error["message"].startswith(message)
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


def test_an_empty_alias_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="a model alias is empty"):
        create_app(tiny_engine(tiny_model), aliases=[" "])
