"""The demo and the score through the command line, on a tiny untrained model: files, tables, controls, wrong input."""

import json
from pathlib import Path

import pytest

SMALL = ("prior.scenes=48", "prior.validation_scenes=16", "prior.loop.steps=4", "prior.loop.warmup=1")
TINIER = (*SMALL, "prior.loop.validate_every=2", "prior.task.batch_size=16", "shown_steps=2", "scoring.steps=2")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


def test_demo_writes_a_page_that_needs_nothing_else(syzygy, tiny_model: Path, out: Path) -> None:
    answer = syzygy("demo", "--model", tiny_model, "--quick", "--out", out, "--json", *TINIER)
    assert answer.code == 0, answer.err
    result = json.loads(answer.out.splitlines()[-1])
    page = Path(result["page"]).read_text()
    assert page.count("data:image/png;base64,") == 12 * 4  # twelve prompts × reference and three priors
    assert page.count("held out</small>") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") == 5
    assert {row["candidate"] for row in result["rows"]} == {"reference", "ECLIPSE", "projection only", "text identity"}
    assert {row["held_out"] for row in result["rows"]} == {True, False}
    assert json.loads((out / "results.json").read_text())["rows"] == result["rows"]


def test_its_priors_load_in_other_commands(syzygy, tiny_model: Path, out: Path, tmp_path: Path) -> None:
    answer = syzygy("generate", "a red star", "--model", tiny_model, "--prior", out / "eclipse", "--out", tmp_path)
    assert answer.code == 0, answer.err
    priors = [f"contrast={out / 'eclipse'}", f"plain={out / 'projection'}"]
    named = [part for prior in priors for part in ("--prior", prior)]
    options = ("--prompts", 1, "--steps", 1, "--json")
    answer = syzygy("evaluate", "composition", "--model", tiny_model, *named, *options)
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)["rows"]
    assert list(dict.fromkeys(row["candidate"] for row in rows)) == ["reference", "contrast", "plain", "text identity"]


def test_a_demo_run_again_trains_anew_and_finds_the_same(syzygy, tiny_model: Path, out: Path) -> None:
    before = json.loads((out / "results.json").read_text())["rows"]
    answer = syzygy("demo", "--model", tiny_model, "--quick", "--out", out, *TINIER)
    assert answer.code == 0, answer.err
    assert "Try next" in answer.out
    assert "held out" in answer.out
    assert json.loads((out / "results.json").read_text())["rows"] == before


def test_score_as_text(syzygy, tiny_model: Path) -> None:
    answer = syzygy("evaluate", "composition", "--model", tiny_model, "--prompts", 1, "--steps", 1, "--with-text")
    assert answer.code == 0, answer.err
    assert "reference" in answer.out
    assert "Reference, one object: colour" in answer.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompts", "0"), "at least 1"),
        (("--quick", "--steps", "3"), "--quick sets --steps itself"),
        (("--prior", "nowhere"), "nowhere"),
        (("--prior", "reference=nowhere"), "nowhere"),
        (("--guidance-scale", "nan"), "guidance"),
        (("--model", "stater"), "stater"),
    ],
)
def test_wrong_input_is_answered_in_two_lines(syzygy, tiny_model: Path, arguments: tuple[str, ...], said: str) -> None:
    few = () if {"--prompts", "--quick"} & set(arguments) else ("--prompts", 1)
    model = few if "--model" in arguments else ("--model", tiny_model, *few)
    answer = syzygy("evaluate", "composition", *model, *arguments)
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) <= 2


def test_demo_to_a_place_that_cannot_be_written(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    answer = syzygy("demo", "--model", tiny_model, "--out", tmp_path / "file" / "demo")
    assert answer.code == 2
    assert "file" in answer.err
