"""Subjects and layouts by command line and HTTP, on tiny random parts in the published layouts."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from syzygy.generation.image_files import open_picture, read_record
from syzygy.generation.text_to_image import TextToImage
from syzygy.server.app import create_app
from syzygy.server.engine import Engine
from syzygy.server.http_server import serving
from syzygy.server.limits import Limits
from tests.conftest import Answer
from tests.tiny_unclip import Tiny, tiny_lambda_eclipse

PROMPT = "a red circle left of a blue star"
GENERATIONS, RECIPES = "/v1/images/generations", "/v1/images/recipes"


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lambda_eclipse(tmp_path_factory.mktemp("lambda") / "prior")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("red", "red"), ("blue", "blue")):
        image = Image.new("RGBA", (30, 20))
        ImageDraw.Draw(image).ellipse((4, 4, 16, 16), fill=colour)
        image.save(folder / f"{name}.png")
    edges = Image.new("RGB", (24, 24))
    ImageDraw.Draw(edges).rectangle((3, 3, 15, 15), outline="white")
    edges.save(folder / "edges.png")
    Image.new("RGB", (4, 4), "white").save(folder / "white.png")
    Image.new("RGB", (4, 4)).save(folder / "black.png")
    return folder


@pytest.fixture
def run(syzygy: Callable[..., Answer], tiny_kandinsky: Tiny, prior: Path, tmp_path: Path) -> Callable[..., Answer]:
    def run(*arguments: object, prior: Path = prior) -> Answer:
        model = ("--model", tiny_kandinsky.decoder, "--clip", tiny_kandinsky.clip, "--prior", prior)
        return syzygy("generate", *model, "--device", "cpu", "--steps", 2, "--out", tmp_path / "out", *arguments)

    return run


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_images_of_subjects_say_what_they_are_of(run: Callable[..., Answer], pictures: Path) -> None:
    red, edges = pictures / "red.png", pictures / "edges.png"
    found = run(PROMPT, "--subject", f"star={red}", "--layout", edges, "--num-images", 2, "--seed", 7, "--json")
    assert (found.code, found.err) == (0, "")
    answer = json.loads(found.out)
    first = Path(answer["images"][0]["path"])
    record = read_record(first)
    assert record["subjects"] == [{"word": "star", "picture": str(red), "sha256": sha(red)}]
    assert record["layout"] == {"picture": str(edges), "sha256": sha(edges)}
    assert answer["settings"]["subjects"] == record["subjects"]
    assert Path(answer["contact_sheet"]).is_file()
    plain = json.loads(run(PROMPT, "--seed", 7, "--json").out)
    assert "subjects" not in read_record(Path(plain["images"][0]["path"]))
    made = [np.asarray(open_picture(path), int) for path in (first, Path(plain["images"][0]["path"]))]
    assert np.abs(made[0] - made[1]).max() > 1


def test_the_command_is_the_call(run: Callable[..., Answer], pictures: Path, tiny_kandinsky: Tiny, prior: Path) -> None:
    import torch

    from syzygy import Subject

    red = pictures / "red.png"
    made = json.loads(run(PROMPT, "--subject", f"star={red}", "--seed", 7, "--json").out)["images"][0]["path"]
    model = TextToImage.from_pretrained(tiny_kandinsky.decoder, clip=tiny_kandinsky.clip, prior=prior)
    called = model(
        PROMPT,
        subjects=[Subject("star", red)],
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(7)],
    )
    assert np.array_equal(np.asarray(open_picture(Path(made))), np.asarray(called.images[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PROMPT, "--subject", "red.png"], "--subject 'red.png' must be WORD=PICTURE, such as --subject dog=rex.png"),
        ([PROMPT, "--subject", "=red.png"], "must be WORD=PICTURE"),
        ([PROMPT, "--subject", "star="], "must be WORD=PICTURE"),
        ([PROMPT, "--subject", "dog=red.png"], "the word 'dog' of a subject is not in the prompt"),
        ([PROMPT, "a ring", "--subject", "star=red.png"], "'star' of a subject is not in 1 of 2 prompts: 'a ring'"),
        ([PROMPT, "--subject", "star=white.png"], "the picture of the subject 'star' holds nothing but white"),
        ([PROMPT, "--subject", "star=no.png"], "there is no file no.png"),
        ([PROMPT, "--subject", "star=red.png", "--subject", "star=blue.png"], "several subjects for the word 'star'"),
        ([PROMPT, "--layout", "black.png"], "the layout picture has no edges"),
        ([PROMPT, "--layout", "no.png"], "there is no file no.png"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line_before_anything_is_loaded(
    arguments: list[str], message: str, run: Callable[..., Answer], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    found = run(*arguments, prior=pictures / "no prior")
    assert (found.code, found.out) == (2, "")
    assert message in found.err
    assert len(found.err.splitlines()) == 1


def test_other_priors_take_neither(run: Callable[..., Answer], pictures: Path, tiny_kandinsky: Tiny) -> None:
    for option, value, message in (
        ("--subject", f"star={pictures / 'red.png'}", "this model's prior reads no subjects: it knows words alone."),
        ("--layout", pictures / "edges.png", "this model's prior reads no layout: it has no control."),
    ):
        found = run(PROMPT, option, value, prior=tiny_kandinsky.prior)
        assert found.code == 2
        assert message in found.err
        assert len(found.err.splitlines()) == 1


@pytest.fixture(scope="module")
def client(tiny_kandinsky: Tiny, prior: Path) -> Iterator[httpx.Client]:
    model = TextToImage.from_pretrained(tiny_kandinsky.decoder, clip=tiny_kandinsky.clip, prior=prior)
    own = {"steps": 2, "guidance_scale": 4.0, "sampler": "ddpm", "conditions": ["image"], "negative_prompt": None}
    limits = Limits(sources=2)
    with (
        serving(create_app(Engine.of(model, own), limits)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def generated(client: httpx.Client, body: dict[str, Any]) -> bytes:
    answer = client.post(GENERATIONS, json=body)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)), int)


def test_a_server_takes_both_and_makes_the_image_again(
    client: httpx.Client, pictures: Path, run: Callable[..., Answer]
) -> None:
    red, edges = pictures / "red.png", pictures / "edges.png"
    body = {"prompt": PROMPT, "seed": 3, "subjects": [{"word": "star", "image": base64_of(red)}]}
    body["layout"] = base64_of(edges)
    file = generated(client, body)
    recipe = client.post(RECIPES, files={"image": file}).json()
    assert recipe["record"]["subjects"] == [{"word": "star", "sha256": sha(red), "data": base64_of(red)}]
    assert recipe["record"]["layout"] == {"sha256": sha(edges), "data": base64_of(edges)}
    assert recipe["missing"] == []
    assert np.array_equal(pixels(generated(client, recipe["request"]["body"])), pixels(file))
    for name in ("subjects", "layout"):
        rest = {key: value for key, value in body.items() if key != name}
        assert np.abs(pixels(generated(client, rest)) - pixels(file)).max() > 1
    made = run(PROMPT, "--subject", f"star={red}", "--layout", edges, "--seed", 3, "--json", "--sampler", "ddpm")
    path = Path(json.loads(made.out)["images"][0]["path"])
    assert np.abs(pixels(path.read_bytes()) - pixels(file)).max() <= 1
    # Files of the command line hold no pictures: what must be sent again is named.
    recipe = client.post(RECIPES, files={"image": path.read_bytes()}).json()
    assert recipe["missing"] == ["layout", "subjects"]
    assert not {"layout", "subjects"} & recipe["request"]["body"].keys()


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"subjects": [("dog", "red")]}, "subjects[0].word", "the word 'dog' of a subject is not in the prompt"),
        ({"subjects": [("star", "red"), ("Star", "blue")]}, "subjects[1].word", "several subjects for the word 'Star'"),
        ({"subjects": [("star", "white")]}, "subjects[0].image", "holds nothing but white"),
        ({"subjects": [("star", None)]}, "subjects[0].image", "must be a picture's file in base64"),
        (
            {"subjects": [("star", "red")] * 3},
            "subjects",
            "an array with maximum length 2, but got an array with length 3",
        ),
        ({"layout": "black"}, "layout", "the layout picture has no edges"),
    ],
    ids=str,
)
def test_wrong_fields_are_named(
    more: dict[str, Any], param: str, message: str, client: httpx.Client, pictures: Path
) -> None:
    def sent(name: str | None) -> str:
        return "no picture" if name is None else base64_of(pictures / f"{name}.png")

    body: dict[str, Any] = {"prompt": PROMPT}
    if "subjects" in more:
        body["subjects"] = [{"word": word, "image": sent(name)} for word, name in more["subjects"]]
    if "layout" in more:
        body["layout"] = sent(more["layout"])
    answer = client.post(GENERATIONS, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]


def test_capabilities_say_so(client: httpx.Client, tiny_kandinsky: Tiny, pictures: Path) -> None:
    (own,) = client.get("/v1/models").json()["data"]
    assert own["capabilities"]["subjects"] is own["capabilities"]["layout"] is True
    eclipse = TextToImage.from_pretrained(tiny_kandinsky.decoder, clip=tiny_kandinsky.clip, prior=tiny_kandinsky.prior)
    engine = Engine.of(eclipse, {"steps": 2, "guidance_scale": 1.0, "sampler": "ddpm", "conditions": ["image"]})
    assert engine.capabilities()["subjects"] is engine.capabilities()["layout"] is False
    with serving(create_app(engine, Limits())) as url:
        for name, value in (("subjects", [{"word": "star", "image": "aGk="}]), ("layout", "aGk=")):
            answer = httpx.post(f"{url}{GENERATIONS}", json={"prompt": PROMPT, name: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
            assert "has no prior that reads" in answer.text
