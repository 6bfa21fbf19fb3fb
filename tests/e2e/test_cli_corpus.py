"""`syzygy world corpus`: lines that can be trusted, a file that is whole or not there."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from syzygy.cli.main import cli
from syzygy.core.errors import UserError
from syzygy.lab.world import parallel_corpus
from syzygy.lab.world.language import LANGUAGES, language
from syzygy.lab.world.scene_source import pair


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["world", "corpus", *map(str, args)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_are_the_captions_of_the_pairs(tmp_path: Path) -> None:
    result = run("--num", "40", "--seed", "5", "--no-unseen", "--out", tmp_path / "new" / "a.jsonl", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["lines"], summary["settings"]["languages"]) == (40, list(LANGUAGES))
    rows = lines(tmp_path / "new" / "a.jsonl")
    assert [row["id"] for row in rows] == list(range(40))
    for row in rows:
        assert set(row) == {"id", "description", "texts", "length"}
        for code, text in row["texts"].items():
            expected = pair(5, row["id"], unseen=False, lang=code).caption
            assert text == expected.text
            assert language(code).parse(text).description.key == expected.description.key
            assert not expected.description.unseen
            assert [m["shape"] for m in row["description"]["mentions"]] == [
                m.shape for m in expected.description.mentions
            ]
    naming = [pair(5, i, unseen=True).caption.description.unseen for i in range(40)]
    assert any(naming), "the option must have had something to do"


def test_a_seed_says_all(tmp_path: Path) -> None:
    for name, settings in {"a": "0", "b": "0", "c": "1"}.items():
        command = "--num", "30", "--length", "mixed", "--languages", "de, en", "--seed", settings
        assert run(*command, "--out", tmp_path / name).exit_code == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
    assert {row["length"] for row in lines(tmp_path / "a")} == {"short", "medium", "long"}
    assert all(list(row["texts"]) == ["de", "en"] for row in lines(tmp_path / "a"))


def test_an_interrupted_file_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = parallel_corpus.parallel

    def failing(seed: int, index: int, *args: Any, **settings: Any) -> parallel_corpus.Parallel:
        if index == 7:
            raise KeyboardInterrupt
        return made(seed, index, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(parallel_corpus, "parallel", failing)
        assert run("--num", "10", "--out", tmp_path / "a.jsonl").exit_code != 0
    assert list(tmp_path.iterdir()) == []
    assert run("--num", "10", "--out", tmp_path / "a.jsonl").exit_code == 0
    assert len(lines(tmp_path / "a.jsonl")) == 10


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--languages", "de,fr"), "English is missing"),
        (("--languages", "en,it"), "unknown language 'it'. Known: de, en, es, fr, ru, zh."),
        (("--languages", "en,en"), "named twice"),
        (("--languages", ""), "English is missing"),
    ],
)
def test_wrong_languages_write_nothing(tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    result = run("--num", "3", *args, "--out", tmp_path / "new" / "a.jsonl")
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("mine")
    result = run("--num", "3", "--out", tmp_path / "a.jsonl")
    assert isinstance(result.exception, UserError)
    assert "already exists. Choose another file, or delete it." in str(result.exception)
    assert (tmp_path / "a.jsonl").read_text() == "mine"
    assert isinstance(run("--num", "3", "--out", tmp_path / "a.jsonl" / "b").exception, UserError)


def test_show_reads_every_language(tmp_path: Path) -> None:
    for text in ("ein roter Kreis links von zwei blauen Sternen", "红色圆形在两颗蓝色星星的左边"):
        result = CliRunner().invoke(cli, ["world", "show", text, "--size", "16", "--out", str(tmp_path / "a.png")])
        assert result.stdout.startswith("understood: red circle, 2 × blue star; red circle left of 2 × blue star\n")
        assert result.stderr == ""
