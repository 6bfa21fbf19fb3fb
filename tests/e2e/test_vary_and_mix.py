"""`syzygy vary` and `syzygy mix`, end to end on a tiny model of real classes and files."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from syzygy.generation.image_files import open_picture, read_record
from tests.tiny_karlo import tiny_karlo

TEXT = "a red circle left of a blue star"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, good and bad."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3), np.uint8)
    for name, pixels in zip(("a.png", "b@2.png"), noise, strict=True):
        Image.fromarray(pixels).save(folder / name)
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-1000])
    return folder


@pytest.fixture
def run(syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a command with `--json` on the tiny model, expecting success."""

    def run(command: str, *arguments: object, out: Path = tmp_path / "out") -> dict[str, Any]:
        answer = syzygy(command, "--model", tiny_model, "--device", "cpu", "--out", out, "--json", *arguments)
        assert (answer.code, answer.err) == (0, "")
        return json.loads(answer.out)

    return run


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(open_picture(Path(path))).astype(int)


def files(result: dict[str, Any]) -> list[str]:
    return [one["path"] for one in result["images"]]


def test_variations_tell_what_they_are_of(run: Callable[..., Any], photos: Path) -> None:
    pictures = photos / "a.png", photos / "b@2.png"
    result = run("vary", *pictures, "--num-images", "2", "--seed", "5", "--negative-prompt", "a moon")
    assert [Path(path).name for path in files(result)] == [
        "000-a-5.png",
        "001-a-6.png",
        "002-b-2-5.png",
        "003-b-2-6.png",
    ]
    for i, one in enumerate(result["images"]):
        record = read_record(Path(one["path"]))
        assert record == {"variation_of": one["variation_of"], "seed": 5 + i % 2, **result["settings"]}
        assert record["variation_of"]["picture"] == str(pictures[i // 2])
        assert "conditions" not in record
    digests = [one["variation_of"]["sha256"] for one in result["images"]]
    assert (digests[0] == digests[1], digests[0] != digests[2]) == (True, True)
    with Image.open(result["contact_sheet"]) as sheet:
        assert sheet.width > 3 * 192  # the picture itself comes first
    assert len({pixels(path).tobytes() for path in files(result)}) == 4


def test_neither_the_batch_nor_the_others_change_a_variation(
    run: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    pictures = photos / "a.png", photos / "b@2.png"
    together = run("vary", *pictures, "--num-images", "2")
    in_threes = run("vary", *pictures, "--num-images", "2", "--batch-size", "3", out=tmp_path / "3")
    alone = run("vary", pictures[1], "--seed", "1", out=tmp_path / "1")
    for path, other in zip(files(together), files(in_threes), strict=True):
        assert abs(pixels(path) - pixels(other)).max() <= 1
    assert abs(pixels(files(together)[3]) - pixels(files(alone)[0])).max() <= 1


def test_a_mixture_tells_its_sources_and_weights(run: Callable[..., Any], photos: Path) -> None:
    result = run("mix", f"{TEXT}@0.6", f"{photos / 'b@2.png'}@0.2", "--num-images", "2", "--seed", "3")
    for i, one in enumerate(result["images"]):
        text, picture = one["sources"]
        assert text == {"text": TEXT, "weight": 0.6}
        assert (picture["picture"], picture["weight"]) == (str(photos / "b@2.png"), 0.2)
        assert one["seed"] == 3 + i
        assert read_record(Path(one["path"])) == {"sources": [text, picture], "seed": 3 + i, **result["settings"]}
    assert len(read_record(Path(result["contact_sheet"]))["pictures"]) == 2


def test_weights_count_in_proportion_and_a_source_alone_is_itself(
    run: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    def one(command: str, *arguments: object, name: str) -> np.ndarray:
        return pixels(files(run(command, *arguments, out=tmp_path / name))[0])

    text, picture = TEXT, str(photos / "a.png")
    half = one("mix", text, picture, name="half")
    assert np.array_equal(half, one("mix", f"{picture}@0.2", f"{text}@0.2", name="turned"))
    ends = one("generate", text, "--conditions", "image", name="text"), one("vary", picture, name="picture")
    for row, end in enumerate(ends):
        weight = ["0", "0"]
        weight[row] = "0.7"
        assert abs(end - one("mix", f"{text}@{weight[0]}", f"{picture}@{weight[1]}", name=str(row))).max() <= 1
        assert abs(end - half).max() > 1


def test_the_best_of_several(run: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    for command, source in (("vary", photos / "a.png"), ("mix", TEXT)):
        result = run(command, source, "--num-images", "2", "--best-of", "2", out=tmp_path / command)
        first, second = result["images"]
        assert first["seed"] in (0, 1)
        assert second["seed"] in (2, 3)
        assert {"best_of", "score"} <= first.keys()
        again = run(command, source, "--seed", second["seed"], out=tmp_path / "again")
        assert abs(pixels(files(again)[0]) - pixels(second["path"])).max() <= 1


def test_frames_lead_from_one_source_to_the_other(run: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    result = run("mix", TEXT, photos / "a.png", "--frames", "5", "--seed", "2", "--batch-size", "2")
    assert [(one["frame"], one["frames"], one["seed"]) for one in result["images"]] == [(i, 5, 2) for i in range(5)]
    shown = [pixels(path) for path in files(result)]
    ends = (
        run("mix", TEXT, "--seed", "2", out=tmp_path / "a"),
        run("vary", photos / "a.png", "--seed", "2", out=tmp_path / "b"),
    )
    for frame, end in zip((shown[0], shown[-1]), ends, strict=True):
        assert abs(frame - pixels(files(end)[0])).max() <= 1
    steps = [abs(b - a).mean() for a, b in pairwise(shown)]
    assert max(steps) < abs(shown[-1] - shown[0]).mean()  # one noise: no frame jumps
    assert read_record(Path(result["animation"])) == read_record(Path(result["contact_sheet"]))
    with Image.open(result["animation"]) as animation:
        assert (animation.format, animation.n_frames) == ("PNG", 8)  # there and back
        for i, frame in enumerate([*shown, *shown[-2:0:-1]]):
            animation.seek(i)
            assert np.array_equal(np.asarray(animation.convert("RGB")), frame)


@pytest.mark.parametrize("name", ["kandinsky", "stable_unclip", "karlo"])
def test_published_models_vary_and_mix(
    name: str,
    syzygy: Callable[..., Any],
    request: pytest.FixtureRequest,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The image embedding is all that is told, also to a decoder that reads text."""
    monkeypatch.setenv("SYZYGY_CACHE", str(tmp_path / "cache"))
    tiny = tiny_karlo(tmp_path / "karlo") if name == "karlo" else request.getfixturevalue(f"tiny_{name}")
    where = "--model", tiny.decoder, "--clip", tiny.clip, "--prior", tiny.prior, "--device", "cpu", "--steps", "2"
    more = "--negative-prompt", "a moon", "--seed", "3", "--json"
    shown = {}
    for out, arguments in {
        "vary": ("vary", photos / "a.png", "--best-of", "2"),
        "other": ("vary", photos / "b@2.png"),
        "text": ("generate", TEXT, "--conditions", "image"),
        "one": ("mix", TEXT),
        "two": ("mix", f"{TEXT}@0.5", f"{photos / 'a.png'}@0.5", "--num-images", "2"),
        "way": ("mix", TEXT, photos / "a.png", "--frames", "3"),
    }.items():
        answer = syzygy(*arguments, *where, *more, "--out", tmp_path / out)
        assert answer.code == 0, answer.err
        shown[out] = [pixels(path) for path in files(json.loads(answer.out))]
    assert abs(shown["one"][0] - shown["text"][0]).max() <= 1
    assert abs(shown["way"][0] - shown["text"][0]).max() <= 1
    assert abs(shown["way"][1] - shown["two"][0]).max() <= 1
    assert abs(shown["vary"][0] - shown["other"][0]).max() > 1
    assert abs(shown["two"][0] - shown["two"][1]).max() > 1


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no picture": (("vary",), "Missing argument 'IMAGE…'"),
    "missing": (("vary", "{photos}/none.png"), "there is no file"),
    "folder": (("vary", "{photos}"), "is a folder, not a picture"),
    "text as picture": (("vary", "{photos}/text.png"), "its format is not known"),
    "truncated": (("vary", "{photos}/a.png", "{photos}/cut.png"), "cannot be read as a picture"),
    "candidates": (("vary", "{photos}/a.png", "--best-of", "0"), "0 is out of range"),
    "seed": (("vary", "{photos}/a.png", "--seed", str(2**64 - 1), "--num-images", "2"), "seeds end at"),
    "sampler": (("vary", "{photos}/a.png", "--sampler", "eulr"), "unknown sampler 'eulr'"),
    "idle negative": (("vary", "{photos}/a.png", "--negative-prompt", "x", "--guidance-scale", "1"), "has no effect"),
    "no source": (("mix",), "Missing argument 'SOURCE…'"),
    "empty text": (("mix", " ", TEXT), "the prompt is empty"),
    "empty weighted text": (("mix", "@0.5", TEXT), "the prompt is empty"),
    "broken bytes": (("mix", "a \udcff circle"), "the prompt is not text"),
    "missing in mixture": (("mix", TEXT, "{photos}/none.png"), "there is no file"),
    "missing with weight": (("mix", f"{TEXT}@0.5", "{photos}/none.png@0.5"), "there is no file"),
    "missing of another format": (("mix", TEXT, "photo.heic"), "there is no file photo.heic. Check the path"),
    "truncated in mixture": (("mix", TEXT, "{photos}/cut.png"), "cannot be read as a picture"),
    "zero weights": (("mix", f"{TEXT}@0", "{photos}/a.png@0"), "the weights are all zero"),
    "NaN": (("mix", f"{TEXT}@nan", "{photos}/a.png@1"), "weight nan is not a number to mix with"),
    "infinity": (("mix", f"{TEXT}@inf", "{photos}/a.png@1"), "weight inf is not a number to mix with"),
    "negative": (("mix", f"{TEXT}@-0.5", "{photos}/a.png@1"), "weight -0.5 is negative"),
    "per cent": (("mix", f"{TEXT}@60", "{photos}/a.png@0.4"), "weight 60 is out of scale"),
    "comma": (("mix", "{photos}/a.png@0,6"), "'0,6' after"),
    "half a weight": (("mix", "{photos}/a.png@half"), "'half' after"),
    "some weights": (("mix", f"{TEXT}@0.5", "{photos}/a.png"), "give every source one, or none"),
    "one end": (("mix", TEXT, "--frames", "3"), "1 given, 2 needed"),
    "three ends": (("mix", TEXT, TEXT, TEXT, "--frames", "3"), "3 given, 2 needed"),
    "weights of ends": (("mix", f"{TEXT}@1", f"{TEXT}@1", "--frames", "3"), "leave the weights out"),
    "one frame": (("mix", TEXT, TEXT, "--frames", "1"), "1 is out of range"),
    "frames and pictures": (("mix", TEXT, TEXT, "--frames", "3", "--num-images", "2"), "have no effect with --frames"),
    "frames and candidates": (("mix", TEXT, TEXT, "--frames", "3", "--best-of", "2"), "have no effect with --frames"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input(
    arguments: tuple[str, ...], message: str, syzygy: Callable[..., Any], tiny_model: Path, photos: Path, tmp_path: Path
) -> None:
    told = [one.replace("{photos}", str(photos)) for one in arguments]
    answer = syzygy(told[0], "--model", tiny_model, "--out", tmp_path / "out", *told[1:])
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert len(answer.err.splitlines()) <= 2
    assert not list(tmp_path.rglob("*.png"))


def test_a_decompression_bomb_is_refused(
    syzygy: Callable[..., Any], tiny_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for command in ("vary", "mix"):
        answer = syzygy(command, photos / "a.png", "--model", tiny_model, "--out", tmp_path / "out")
        assert (answer.code, answer.out) == (2, "")
        assert "too many pixels" in answer.err
        assert len(answer.err.splitlines()) == 1
