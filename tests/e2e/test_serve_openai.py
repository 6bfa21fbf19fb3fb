"""The official client of OpenAI's API, unchanged, against a server with the tiny model."""

import base64
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import openai
import pytest
from PIL import Image

from syzygy.generation.image_files import record_of
from syzygy.server.app import create_app
from syzygy.server.engine import Description
from syzygy.server.http_server import serving
from tests.tiny_server import ENGINES, Held, tiny_engine

PROMPT = "a red circle and a blue star"


@pytest.fixture(scope="module", params=ENGINES)
def url(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[str]:
    with serving(create_app(request.param(partial(tiny_engine, tiny_model)))) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def decoded(text: str | None) -> Image.Image:
    assert text
    return Image.open(io.BytesIO(base64.b64decode(text)))


def file_of(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def half(transparent: bool) -> bytes:
    """A mask whose left half is painted, or transparent."""
    image = Image.new("RGBA" if transparent else "L", (32, 32), "black")
    image.paste((0, 0, 0, 0) if transparent else 255, (0, 0, 16, 32))
    return file_of(image)


def test_pictures_of_a_prompt(client: openai.OpenAI) -> None:
    asked = {"seed": 7, "steps": 2, "guidance_scale": 1.5, "negative_prompt": "a square"}
    answer = client.images.generate(prompt=PROMPT, n=2, size="auto", user="me", extra_body=asked)
    assert answer.data
    first, second = (decoded(one.b64_json) for one in answer.data)
    assert (first.size, first.mode) == ((32, 32), "RGB")
    assert first.tobytes() != second.tobytes()
    record = record_of(second, "it")
    assert {name: record[name] for name in asked} == {**asked, "seed": 8}
    again = client.images.generate(prompt=PROMPT, extra_body={**asked, "seed": 8})
    assert again.data
    assert decoded(again.data[0].b64_json).tobytes() == second.tobytes()


def test_regions_and_style_change_the_picture_and_are_recorded(client: openai.OpenAI) -> None:
    mask, style = (base64.b64encode(one).decode() for one in (half(False), file_of(Image.new("RGB", (9, 9), "red"))))
    region = {"phrase": "a red circle", "mask": mask, "weight": 2}
    found = []
    for more in ({}, {"regions": [region], "region_strength": 5}, {"style": style, "style_guidance": 3}):
        answer = client.images.generate(prompt=PROMPT, extra_body={"seed": 1, **more})
        assert answer.data
        found.append(decoded(answer.data[0].b64_json))
    assert len({one.tobytes() for one in found}) == 3
    painted = record_of(found[1], "it")
    assert (painted["region_strength"], painted["regions"][0]["weight"]) == (5, 2)
    assert record_of(found[2], "it")["style"]["data"] == style


def test_a_record_tells_the_strengths_that_the_model_itself_has(client: openai.OpenAI) -> None:
    """So that the picture comes out alike on a model with others."""
    mask, style = (base64.b64encode(one).decode() for one in (half(False), file_of(Image.new("RGB", (9, 9), "red"))))
    records = []
    for more in ({}, {"regions": [{"phrase": "a red circle", "mask": mask}]}, {"style": style}):
        answer = client.images.generate(prompt=PROMPT, extra_body={"seed": 1, **more})
        assert answer.data
        records.append(record_of(decoded(answer.data[0].b64_json), "it"))
    told = [(record.get("region_strength"), record.get("style_guidance")) for record in records]
    assert told == [(None, None), (0.4, None), (None, 1.5)]


def test_a_stream_shows_pictures_before_they_are_done(client: openai.OpenAI) -> None:
    with client.images.generate(
        prompt=PROMPT, n=2, stream=True, partial_images=2, extra_body={"seed": 3, "steps": 3}
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 2,
        "image_generation.completed",
    ] * 2
    assert [event.partial_image_index for event in events if event.type == "image_generation.partial_image"] == [
        0,
        1,
    ] * 2
    assert all(decoded(event.b64_json).size == (32, 32) for event in events)
    whole = client.images.generate(prompt=PROMPT, n=2, extra_body={"seed": 3, "steps": 3})
    done = [event.b64_json for event in events if event.type == "image_generation.completed"]
    assert done == [one.b64_json for one in whole.data or []]


def test_previews_have_the_format_of_the_images_and_warnings_say_what_was_cut(client: openai.OpenAI) -> None:
    with client.images.generate(
        prompt="a red circle " * 40 + "omega",
        output_format="jpeg",
        stream=True,
        partial_images=1,
        extra_body={"seed": 3, "steps": 3},
    ) as stream:
        preview, image = stream
    assert [decoded(event.b64_json).format for event in (preview, image)] == ["JPEG"] * 2
    assert any(note.endswith("omega'") for note in image.model_dump()["warnings"])


def test_an_edit_repaints_the_image_where_the_mask_is_transparent(client: openai.OpenAI) -> None:
    image = file_of(Image.new("RGB", (32, 32), "green"))
    more = {"region": "a blue star", "seed": 1, "region_strength": 5}
    answer = client.images.edit(image=image, mask=half(True), prompt=PROMPT, extra_body=more)
    assert answer.data
    record = record_of(decoded(answer.data[0].b64_json), "it")
    assert record["regions"][0]["phrase"] == "a blue star"
    assert decoded(record["regions"][0]["mask"]).convert("L").tobytes() == Image.open(io.BytesIO(half(False))).tobytes()
    assert decoded(record["mask"]["data"]).convert("L").tobytes() == Image.open(io.BytesIO(half(False))).tobytes()
    assert base64.b64decode(record["image"]["data"]) == image
    assert ("style" in record, answer.model_dump()["warnings"]) == (False, [])
    with client.images.edit(image=[image], prompt=PROMPT, stream=True, extra_body={"seed": 1}) as stream:
        assert [event.type for event in stream] == ["image_edit.completed"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_variations_of_a_picture(client: openai.OpenAI) -> None:
    image = file_of(Image.new("RGB", (20, 10), "green"))
    answer = client.images.create_variation(image=image, n=2, size="32x32", extra_body={"seed": "5"})  # type: ignore[arg-type]
    assert answer.data
    pictures = [decoded(one.b64_json) for one in answer.data]
    assert pictures[0].tobytes() != pictures[1].tobytes()
    record = record_of(pictures[1], "it")
    assert base64.b64decode(record["variation_of"]["data"]) == image
    assert (record["seed"], record["index"], record["number"]) == (6, 1, 2)
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.create_variation(image=b"?")
    assert refused.value.param == "image"


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    about = model.model_dump()
    can = about["capabilities"]
    assert [name for name, value in can.items() if value is True] == [
        *("regions", "style", "style_guidance", "image", "mask", "variations", "mixes", "partial_images"),
    ]
    assert (can["size"], can["languages"], can["defaults"]["region_strength"]) == ("32x32", ["en"], 0.4)
    assert "euler" in can["samplers"]
    assert (about["limits"]["queue"], about["limits"]["sources"], about["limits"]["prompt"]) == (32, 8, 2000)


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, tiny_model: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="unknown sampler 'none'"):
        client.images.generate(prompt=PROMPT, extra_body={"sampler": "none"})
    with pytest.raises(openai.BadRequestError, match="unknown sampler 'none'"):
        client.images.generate(prompt=PROMPT, stream=True, extra_body={"sampler": "none"})
    with pytest.raises(openai.NotFoundError, match="The model `gpt-image-1` does not exist"):
        client.images.generate(prompt=PROMPT, model="gpt-image-1")
    app = create_app(tiny_engine(tiny_model), api_key="secret")
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
            stranger.models.list()
        assert stranger.with_options(api_key="secret").models.list().data


def test_a_failure_in_mid_stream_is_an_error_event(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(tiny_engine(tiny_model))
    held.go.set()
    monkeypatch.setattr(Description, "file", lambda *_: 1 / 0)
    with serving(create_app(held)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        with client.images.generate(prompt=PROMPT, stream=True) as stream, pytest.raises(openai.APIError) as failure:
            list(stream)
        assert "its log has the details" in str(failure.value)
        assert "ZeroDivision" not in str(failure.value)


def test_the_lines_in_readme_and_docs_run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # lines may write a picture
    names: dict = {}
    for file in ("README.md", "docs/how-to/serve.md"):
        text = (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
        names = {}
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            if "127.0.0.1:7860" in block:
                exec(block.replace("http://127.0.0.1:7860", url.removesuffix("/v1")), names)
        if "client" in names:
            names["client"].close()
    assert [Image.open(io.BytesIO(one)).size for one in names["pictures"]] == [(32, 32)] * 2
    (again,) = (decoded(one["b64_json"]) for one in names["again"].json()["data"])
    assert again.tobytes() == Image.open(io.BytesIO(names["picture"])).tobytes()
