"""Prompts in unusual words: the file, and the share of prompts whose own caption is the nearest."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.lab.evaluate.unseen_words import PLAIN, SHUFFLED, PromptFile, evaluate
from syzygy.lab.world.language import LANGUAGES, language
from syzygy.lab.world.scene import COLOURS, SHAPES
from tests.documents import ROOT

OURS = ROOT / "examples/unseen_words.jsonl"
LINES = (
    {"prompt": "a crimson disc", "target": "a red circle", "group": "synonym"},
    {"prompt": "a scarlet disc", "target": "a red circle", "group": "synonym"},
    {"prompt": "un cerchio rosso", "target": "a red circle", "group": "other language", "language": "it"},
    {"prompt": "a bleu sqaure", "target": "a blue square", "group": "typing error"},
    {"target": "a pink moon"},
)


def written(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


class Told:
    """An encoder in three dimensions that gives each text the axis that it is told, or the third."""

    width = 3

    def __init__(self, **axes: int) -> None:
        self.axes = {name.replace("_", " "): axis for name, axis in axes.items()}

    def encode_text(self, texts: list[str]) -> TextFeatures:
        pooled = torch.stack([5 * torch.eye(3)[self.axes.get(text, 2)] for text in texts])
        return TextFeatures(pooled[:, None], torch.ones(len(texts), 1, dtype=torch.bool), pooled)


CAPTIONS = {"a_red_circle": 0, "a_blue_square": 1, "a_pink_moon": 2}


def test_the_share_of_prompts_that_are_understood(tmp_path: Path) -> None:
    file = PromptFile.read(written(tmp_path, *LINES))
    clip = Told(**CAPTIONS)
    better = Told(**CAPTIONS, a_crimson_disc=0, un_cerchio_rosso=0, a_bleu_sqaure=1)
    found = evaluate(file, clip, {"adapter": better}, {"adapter": ["en"]}, {"model": "tiny"})
    result = found.to_json()
    assert (result["prompts"], result["candidates"], result["model"]) == (4, 3, "tiny")
    shares = {(row["by"], row["name"]): {k: x["mean"] for k, x in row["top_1"].items()} for row in result["rows"]}
    assert shares == {
        ("all prompts", ""): {"CLIP": 0, "adapter": 0.75},
        ("group", "synonym"): {"CLIP": 0, "adapter": 0.5},
        ("group", "other language"): {"CLIP": 0, "adapter": 1},
        ("group", "typing error"): {"CLIP": 0, "adapter": 1},
        ("language", "en"): {"CLIP": 0, "adapter": pytest.approx(2 / 3)},
        ("language", "it"): {"CLIP": 0, "adapter": 1},
    }
    first = result["rows"][0]
    (compared,) = first["differences"]
    assert (compared["first"], compared["second"], compared["mean"]) == ("adapter", "CLIP", 0.75)
    assert first["top_1"]["adapter"]["low"] < 0.75 <= first["top_1"]["adapter"]["high"] <= 1
    assert {name: x["mean"] for name, x in result["controls"][PLAIN].items()} == {"CLIP": 1, "adapter": 1}
    # The targets move by one: the adapter's answers are circle, moon, circle, square; of these the first alone fits the next target.
    assert result["controls"][SHUFFLED]["adapter"]["mean"] == 0.25
    answers = {one["prompt"]: one["found"]["adapter"] for one in result["answers"]}
    assert answers["a scarlet disc"] == "a pink moon"
    outcome = found.outcome()
    page = outcome.report(None).html()
    assert "a scarlet disc" in page
    assert "chance: 33.3 %" in page


def test_a_tie_is_no_understanding(tmp_path: Path) -> None:
    file = PromptFile.read(written(tmp_path, *LINES))
    same = Told(a_red_circle=1, a_blue_square=1, a_bleu_sqaure=1)
    assert evaluate(file, same, {"adapter": same}, {}, {}).to_json()["rows"][0]["top_1"]["CLIP"]["mean"] == 0


def test_the_first_adapter_is_compared_with_the_others(tmp_path: Path) -> None:
    file = PromptFile.read(written(tmp_path, *LINES))
    clip, better = Told(**CAPTIONS), Told(**CAPTIONS, a_crimson_disc=0, a_scarlet_disc=0)
    found = evaluate(file, clip, {"adapter": better, "other": clip}, {}, {}).to_json()["rows"][0]["differences"]
    assert [(one["first"], one["second"], one["mean"]) for one in found] == [
        ("adapter", "CLIP", 0.5), ("other", "CLIP", 0), ("adapter", "other", 0.5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("no JSON",), r"line 1 of .*prompts\.jsonl is no JSON object with a target\. An example: \{"),
        ((LINES[0], {"prompt": "a"}), "line 2 of .* is no JSON object with a target"),
        ((LINES[0], {"prompt": " ", "target": "a"}), "line 2 of .* has no text in 'prompt'"),
        ((LINES[0], {"prompt": "a", "target": "b", "lang": "de"}), "unknown key 'lang'; allowed: prompt, target, group, language"),
        ((LINES[0], {"target": "b", "language": "de"}), "has no prompt. A line with a target alone adds a candidate"),
        ((LINES[0],), "has 1 prompt and 1 different target: at least 1 and 2 are needed"),
        ((LINES[4],), "has 0 prompts"),
    ],
)  # fmt: skip
def test_wrong_files(lines: tuple[object, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        PromptFile.read(written(tmp_path, *lines))
    with pytest.raises(UserError, match="cannot be read"):
        PromptFile.read(tmp_path / "none.jsonl")


def test_our_prompts() -> None:
    """About two hundred, in English and nine other languages; none is a caption of the world, and all plain captions are candidates."""
    file = PromptFile.read(OURS)
    plain = {f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for colour in COLOURS for shape in SHAPES}
    assert set(file.candidates) == plain
    assert len({one.prompt for one in file.prompts}) == len(file.prompts) == 192
    groups = Counter(one.group for one in file.prompts)
    assert groups == {"synonym": 30, "paraphrase": 30, "typing error": 24, "other language": 108}
    languages = Counter(one.language for one in file.prompts)
    assert len(languages) == 10
    for one in file.prompts:
        if one.language in LANGUAGES:
            try:
                unknown = language(one.language).parse(one.prompt).unknown
            except UserError:
                continue
            assert unknown, one.prompt
