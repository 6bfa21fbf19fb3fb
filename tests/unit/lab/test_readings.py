"""Readings on disk: an interrupted evaluation goes on, another one is refused; tables compare prompt by prompt."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.lab.evaluate.predictions import BATCH, FILE, Kept, Series, agrees, facts, groups, points, read, table
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.prompts import Prompt
from syzygy.lab.world.reader import Prediction, Reader, ReaderConfig
from syzygy.lab.world.scene import Thing

ABOUT = {"settings": {"steps": 3}, "fingerprints": {"clip": "a"}}


def prompt(category="single", held_out=False, *mentions: Mention) -> Prompt:
    return Prompt(category, "…", Description(mentions or (Mention("star", "red"),)), held_out)


def seen(*looks) -> Prediction:
    return Prediction(
        tuple(Thing(*look, 0.1 * i, 0.5, 0.1) for i, look in enumerate(looks)), "night", (0.9,) * len(looks)
    )


class Painted:
    """A candidate that notes which rows it painted, and stops before row `until`."""

    def __init__(self, until: int = 10**9) -> None:
        self.until, self.rows = until, []

    def __call__(self, rows) -> list[Image.Image]:
        if rows[0] >= self.until:
            raise KeyboardInterrupt
        self.rows += rows
        return [Image.new("RGB", (64, 64), (row, 2 * row, 255 - row)) for row in rows]


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = Reader(ReaderConfig(features=16, blocks=1, threshold=0.01)).eval()
    number, first, rest, again = BATCH + 5, Painted(until=BATCH), Painted(), Painted(until=0)
    whole = read([Series("one", number, Painted())], reader, Kept(None, ABOUT))
    assert any(one.things for one in whole["one"])
    with pytest.raises(KeyboardInterrupt):
        read([Series("one", number, first)], reader, Kept(tmp_path, ABOUT))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"candidate": "one", "start": 32, "rea')  # a killed process's last line
    assert read([Series("one", number, rest)], reader, Kept(tmp_path, ABOUT)) == whole
    assert (first.rows, rest.rows) == (list(range(BATCH)), list(range(BATCH, number)))
    done: list[int] = []
    assert read([Series("one", number, again)], reader, Kept(tmp_path, ABOUT), done.append) == whole
    assert sum(done) == number


def test_readings_of_something_else_are_refused(tmp_path: Path) -> None:
    Kept(tmp_path, ABOUT)
    with pytest.raises(UserError, match=r"another evaluation \(settings differ\)"):
        Kept(tmp_path, ABOUT | {"settings": {"steps": 4}})
    (tmp_path / FILE).write_text("no JSON\n")
    with pytest.raises(UserError, match="cannot be read"):
        Kept(tmp_path, ABOUT)


def test_agreement_is_all_facts() -> None:
    asked = prompt("colour", False, Mention("star", "red"), Mention("ring", "blue"))
    star, ring, other = ("star", "red", "plain"), ("ring", "blue", "plain"), ("ring", "green", "plain")
    assert [(agrees(asked, one), facts(asked, one)) for one in (seen(star, ring), seen(star, other), seen())] == [
        (1.0, 1.0),
        (0.0, 0.75),
        (0.0, 0.0),
    ]
    two = prompt("numeracy", False, Mention("star", "red", None, 2))
    assert (agrees(two, seen(star, star)), agrees(two, seen(star, star, star))) == (1.0, 0.0)


def test_a_table_has_every_group_and_paired_differences() -> None:
    wanted = [prompt("single"), prompt("single", True), prompt("colour"), prompt("colour")]
    assert groups(wanted) == {
        ("all", "all"): [0, 1, 2, 3], ("all", "seen"): [0, 2, 3], ("all", "held out"): [1],
        ("single", "all"): [0, 1], ("single", "seen"): [0], ("single", "held out"): [1],
        ("colour", "all"): [2, 3], ("colour", "seen"): [2, 3],
    }  # fmt: skip
    measured = {"a": {"agreement": [[1.0], [0.0], [1.0], [1.0]]}, "b": {"agreement": [[0.0], [0.0], [1.0], [0.0]]}}
    rows = table(measured, wanted, {"a": {"against_b": "b"}})
    assert len(rows) == 2 * 8
    found = {(row["candidate"], row["category"], row["side"]): row for row in rows}
    assert found["a", "all", "all"]["agreement"].mean == 0.75
    assert found["a", "all", "seen"]["against_b"].mean == pytest.approx(2 / 3)
    assert found["a", "colour", "all"]["against_b"].number == 2
    assert "against_b" not in found["b", "all", "all"]
    assert points(found["a", "single", "seen"]["against_b"]) == "+100 [+100, +100]"
