"""An adapter measured from the command line, tiny and untrained; and an adapter that is no other than CLIP, which must get full marks."""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from syzygy.clip.clip_model import Clip
from syzygy.generation.image_files import MARGIN, read_record
from syzygy.lab.evaluate.harness import FILE
from syzygy.lab.evaluate.text_encoder_images import CLIP_ENGLISH, SHOWN_SIZE
from tests.tiny_adapter import save_tiny_adapter, with_adapter
from tests.tiny_unclip import Tiny

FEW = ("--captions", 6, "--prompts", 1, "--steps", 2, "--languages", "en,zh")


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_adapter(tiny_model, tmp_path_factory.mktemp("models") / "adapted", languages=("en", "de", "zh"))


def test_everything_is_measured_and_resumes(syzygy: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", "text-encoder", "--model", model, *FEW, "--out", out)
    answer = syzygy(*arguments)
    assert answer.code == 0, answer.err
    assert {file.name for file in out.iterdir()} == {
        "results.json",
        "index.html",
        "prompt_accuracy.svg",
        "report.md",
        "retrieval.svg",
        "languages.png",
        FILE,
    }
    columns = 1 + 2 + 1  # the prompt, two languages, a paragraph
    with Image.open(out / "languages.png") as sheet:
        assert sheet.width == columns * (SHOWN_SIZE + MARGIN) + MARGIN
    assert read_record(out / "languages.png")["text_encoder"] == "adapter"
    found = json.loads((out / "results.json").read_text())
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    for one in found["shown"]:
        assert one["said"].keys() == {"en", "zh"}
        assert one["paragraph"].endswith(one["said"]["en"])
        for text in (*one["said"].values(), one["paragraph"]):
            assert html.escape(text) in page
    assert (found["text_encoder"], found["taught"]) == ("adapter", ["en", "de", "zh"])
    assert {(row["reader"], row["language"], row["length"]) for row in found["captions"]} == {
        (reader, code, length)
        for reader in ("adapter", "CLIP")
        for code in ("en", "zh")
        for length in ("short", "medium", "long")
    }
    own = next(
        row for row in found["captions"] if (row["reader"], row["language"], row["length"]) == ("CLIP", "en", "short")
    )
    assert (own["pooled_cosine"], own["norm_ratio"], own["predicted_cosine"]) == (1, 1, 1)
    assert own["to_text"] == {"R@1": 1, "R@5": 1, "R@10": 1}
    tail = {(row["reader"], row["language"]): row for row in found["tail"]}
    assert tail.keys() == {("adapter", "en"), ("adapter", "zh"), ("CLIP", "en")}
    assert (tail["CLIP", "en"]["changed_most"], tail["CLIP", "en"]["cut"]) == (0, 6)
    assert tail["CLIP", "en"]["fewest"] > 77
    for code in ("en", "zh"):
        assert tail["adapter", code]["changed_most"] > 0
    names = {row["candidate"] for row in found["rows"]}
    assert names == {
        CLIP_ENGLISH, "CLIP, en, long", "CLIP, zh", "adapter, en", "adapter, zh", "adapter, en, long", "adapter, zh, long"
    }  # fmt: skip
    assert "of_clip_english" in next(row for row in found["rows"] if row["candidate"] == "adapter, zh")
    kept = (out / FILE).read_text().splitlines()
    (out / FILE).write_text("\n".join(kept[:3]) + '\n{"candidate"')  # as a killed process leaves it
    again = syzygy(*arguments, "--json", "-")
    assert again.code == 0, again.err
    assert json.loads(again.out) == found
    assert (out / FILE).read_text().splitlines() == kept
    other = syzygy(*arguments, "--seed", 1)
    assert (other.code, "holds predictions of another evaluation (settings differ)" in other.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--languages", "en,xx"), "unknown language 'xx'"),
        (("--languages", "de,de"), "named twice"),
        (("--captions", 1), "at least 2"),
        (("--quick",), "--quick sets --captions itself"),
        (("--conditions", "smell"), "must be one or more of what the decoder reads"),
    ],
)
def test_wrong_input_is_answered(
    syzygy: Callable[..., Any], model: Path, arguments: tuple[Any, ...], said: str
) -> None:
    answer = syzygy("evaluate", "text-encoder", "--model", model, "--captions", 2, *arguments)
    assert (answer.code, said in answer.err) == (2, True), answer.err


def test_a_model_without_an_adapter(syzygy: Callable[..., Any], tiny_model: Path) -> None:
    answer = syzygy("evaluate", "text-encoder", "--model", tiny_model)
    assert (answer.code, "has no adapter of its own" in answer.err) == (2, True)


def test_a_published_model_is_measured_without_pictures(
    syzygy: Callable[..., Any], tiny_kandinsky: Tiny, model: Path, tmp_path: Path
) -> None:
    clip = Clip.from_pretrained(tiny_kandinsky.clip, text_first=True)
    adapter = save_tiny_adapter(tmp_path / "adapter", model / "llm", clip, queries=77, languages=("en",))
    named = ("--model", tiny_kandinsky.decoder, "--clip", tiny_kandinsky.clip, "--prior", tiny_kandinsky.prior)
    arguments = ("evaluate", "text-encoder", *named, "--text-encoder", adapter, "--captions", 3, "--json", "-")
    answer = syzygy(*arguments, "--prompts", 0)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert (found["rows"], len(found["captions"]), len(found["tail"])) == ([], 6, 2)
    assert all(-1 <= row["token_cosine"] <= 1 for row in found["captions"] if row["reader"] == "adapter")
    refused = syzygy(*arguments)
    assert (refused.code, "the judge reads images of the embedded world only" in refused.err) == (2, True)


def test_unseen_words_are_measured_side_by_side(
    syzygy: Callable[..., Any], model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip")
    other = save_tiny_adapter(tmp_path / "other", model / "llm", clip, seed=1, languages=("en",))
    lines = [
        {"prompt": "a crimson disc", "target": "a red circle"},
        {"prompt": "un cerchio", "target": "a ring", "language": "it"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    arguments = ("evaluate", "text-encoder", "--model", model, "--unseen-words", file, "--against", f"mine={other}")
    answer = syzygy(*arguments, "--out", tmp_path / "out", "--json", "-")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["rows"][0]["top_1"].keys() == {"CLIP", "adapter", "mine"}
    assert [row["name"] for row in found["rows"]] == ["", "en", "it"]
    assert found["taught"] == {"adapter": ["en", "de", "zh"], "mine": ["en"]}
    assert found["controls"]["candidates themselves"]["CLIP"]["mean"] == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.json",
        "index.html",
        "report.md",
        "unseen-words.svg",
    }
    shown = syzygy(*arguments, "--images", "--steps", 1, "--out", tmp_path / "shown", "--json", "-")
    assert shown.code == 0, shown.err
    images = json.loads(shown.out)["image_rows"]
    assert images[0]["right"].keys() == {"CLIP", "adapter", "mine", "their captions"}
    assert [row["name"] for row in images] == ["", "en", "it"]
    assert (tmp_path / "shown" / "predictions.jsonl").is_file()
    assert "Images right" in (tmp_path / "shown" / "report.md").read_text()
    file.write_text(file.read_text().replace("a red circle", "a red piano"))
    unknown = syzygy(*arguments, "--images")
    assert (unknown.code, "the embedded world does not know 'piano'" in unknown.err) == (2, True), unknown.err
    for wrong, said in (
        (("--captions", 5), "--captions has no effect with --unseen-words"),
        (("--steps", 5), "--steps has no effect with --unseen-words without --images"),
        (("--quick",), "--quick has no effect with --unseen-words"),
        (
            ("--against", f"CLIP={other}"),
            "'CLIP' is the name of a control: give the adapter another one, --against NAME=RUN",
        ),
        (("--against", f"mine={other}"), "two adapters are called 'mine'"),
    ):
        refused = syzygy(*arguments, *wrong)
        assert (refused.code, said in refused.err) == (2, True), refused.err
    refused = syzygy("evaluate", "text-encoder", "--model", model, "--against", other)
    assert "--against has no effect without --unseen-words" in refused.err
    refused = syzygy("evaluate", "text-encoder", "--model", model, "--images")
    assert "--images has no effect without --unseen-words" in refused.err
