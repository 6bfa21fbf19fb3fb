"""Predictions on disk: an interrupted evaluation resumes, another one is refused; tables compare prompt by prompt."""

from pathlib import Path

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.lab.evaluate.harness import (
    BATCH,
    FILE,
    Candidate,
    CategoriesConfig,
    PredictionStore,
    as_table,
    category_table,
    fact_accuracy,
    groups,
    overall,
    predict,
    prompt_accuracy,
    table,
)
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.judge import Judge, JudgeConfig
from syzygy.lab.world.prompts import Prompt
from syzygy.lab.world.scene import Thing
from syzygy.lab.world.scene_classifier import Prediction

ABOUT = {"settings": {"steps": 3}, "fingerprints": {"clip": "a"}}


def prompt(category="single", held_out=False, *mentions: Mention) -> Prompt:
    return Prompt(category, "…", Description(mentions or (Mention("star", "red"),)), held_out)


def seen(*looks) -> Prediction:
    return Prediction(
        tuple(Thing(*look, 0.1 * i, 0.5, 0.1) for i, look in enumerate(looks)), "night", (0.9,) * len(looks)
    )


class Generated:
    """A candidate that notes for which cases it generated, and stops before case `until`."""

    def __init__(self, until: int = 10**9) -> None:
        self.until, self.rows = until, []

    def __call__(self, rows) -> torch.Tensor:
        if rows[0] >= self.until:
            raise KeyboardInterrupt
        self.rows += rows
        colours = torch.tensor([(row, 2 * row, 255 - row) for row in rows]) / 255
        return colours[:, :, None, None].expand(-1, 3, 64, 64)


def test_it_resumes(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge(JudgeConfig(channels=8, width=16, blocks=1, threshold=0.01)).eval()
    number, first, rest, again = BATCH + 5, Generated(until=BATCH), Generated(), Generated(until=0)
    also = {"mean": lambda images, rows: [round(x, 4) for x in images.mean((1, 2, 3)).tolist()]}

    def run(generate: Generated, folder: Path | None, **more):
        store = PredictionStore(folder, ABOUT)
        return predict([Candidate("one", number, generate)], judge, store, also=also, **more)

    whole = run(Generated(), None)
    assert any(one.things for one in whole["one"].scenes)
    assert len(whole["one"].values["mean"]) == number
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"candidate": "one", "start": 32, "sce')  # a killed process's last line
    assert run(rest, tmp_path) == whole
    assert (first.rows, rest.rows) == (list(range(BATCH)), list(range(BATCH, number)))
    done: list[int] = []
    assert run(again, tmp_path, progress=done.append) == whole
    assert sum(done) == number


def test_predictions_of_something_else_are_refused(tmp_path: Path) -> None:
    PredictionStore(tmp_path, ABOUT)
    with pytest.raises(UserError, match=r"another evaluation \(settings differ\)"):
        PredictionStore(tmp_path, ABOUT | {"settings": {"steps": 4}})
    (tmp_path / FILE).write_text("no JSON\n")
    with pytest.raises(UserError, match="cannot be read"):
        PredictionStore(tmp_path, ABOUT)


def test_prompt_accuracy_is_all_facts() -> None:
    asked = prompt("colour", False, Mention("star", "red"), Mention("ring", "blue"))
    star, ring, other = ("star", "red", "plain"), ("ring", "blue", "plain"), ("ring", "green", "plain")
    assert [
        (prompt_accuracy(asked, one), fact_accuracy(asked, one))
        for one in (seen(star, ring), seen(star, other), seen())
    ] == [
        (1.0, 1.0),
        (0.0, 0.75),
        (0.0, 0.0),
    ]
    two = prompt("numeracy", False, Mention("star", "red", None, 2))
    assert (prompt_accuracy(two, seen(star, star)), prompt_accuracy(two, seen(star, star, star))) == (1.0, 0.0)


def test_a_table_has_every_group_and_paired_differences() -> None:
    wanted = [prompt("single"), prompt("single", True), prompt("colour"), prompt("colour")]
    assert groups(wanted) == {
        ("all", "all"): [0, 1, 2, 3], ("all", "seen"): [0, 2, 3], ("all", "unseen"): [1],
        ("single", "all"): [0, 1], ("single", "seen"): [0], ("single", "unseen"): [1],
        ("colour", "all"): [2, 3], ("colour", "seen"): [2, 3],
    }  # fmt: skip
    measured = {
        "a": {"prompt_accuracy": [[1.0], [0.0], [1.0], [1.0]]},
        "b": {"prompt_accuracy": [[0.0], [0.0], [1.0], [0.0]]},
    }
    rows = table(measured, wanted, {"a": {"against_b": "b"}})
    assert len(rows) == 2 * 8
    found = {(row["candidate"], row["category"], row["side"]): row for row in rows}
    assert found["a", "all", "all"]["prompt_accuracy"].mean == 0.75
    assert found["a", "all", "seen"]["against_b"].mean == pytest.approx(2 / 3)
    assert found["a", "colour", "all"]["against_b"].number == 2
    assert "against_b" not in found["b", "all", "all"]
    assert str(found["a", "single", "seen"]["against_b"]) == "+100 [+100, +100]"
    cells = as_table(overall(rows), {"name": "candidate", "right": "prompt_accuracy", "less": "against_b"}).rows
    assert [line[0] for line in cells] == ["a", "b"]
    assert (cells[0][1].split()[0], cells[1][2]) == ("75", "")
    assert category_table(rows).rows[0][:3] == ["single", "seen", "100 % [100, 100]"]


def test_a_category_that_is_named_twice_counts_once() -> None:
    once, twice = (CategoriesConfig(prompts=2, categories=names) for names in (("single",), ("single", "single")))
    assert once.wanted() == twice.wanted()
