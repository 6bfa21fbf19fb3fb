"""The demo and the score through the command line, on a tiny untrained model: files, tables, controls, wrong input."""

import json
from pathlib import Path

import pytest

from syzygy.lab.demo_report import Comparison
from syzygy.lab.evaluate.bootstrap import Difference

pytestmark = pytest.mark.usefixtures("few_pictures")

IDENTITIES = ("text identity", "text identity, shifted")
SMALL = ("prior.scenes=48", "prior.validation_images=16", "prior.loop.steps=4", "prior.loop.warmup=1")
TINIER = (
    *SMALL,
    "prior.loop.validate_every=2",
    "prior.task.batch_size=16",
    "pairs=24",
    "shown_steps=2",
    "scoring.steps=2",
)
FOLDERS = {"ECLIPSE": "eclipse", "projection only": "projection", "residual": "residual"}
TRAINED = tuple(FOLDERS)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


def test_demo_writes_a_page_that_needs_nothing_else(syzygy, tiny_model: Path, out: Path) -> None:
    answer = syzygy("demo", "--model", tiny_model, "--quick", "--out", out, "--json", *TINIER)
    assert answer.code == 0, answer.err
    result = json.loads(answer.out.splitlines()[-1])
    page = Path(result["page"]).read_text()
    assert page.count("data:image/png;base64,") == 12 * 6  # twelve prompts × reference and five priors
    assert page.count("unseen</small>") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") == 3 + 2  # training, accuracy
    assert {row["candidate"] for row in result["rows"]} == {"reference", *TRAINED, *IDENTITIES}
    assert {row["side"] for row in result["rows"]} == {"all", "seen", "unseen"}
    assert list(result["cosine"]) == [*TRAINED, *IDENTITIES]
    assert all(one["number"] == 24 for one in result["cosine"].values())
    results = json.loads((out / "results.json").read_text())
    assert results["rows"] == result["rows"]
    assert results["cosine"] == result["cosine"]
    tasks = {name: json.loads((out / folder / "run.json").read_text())["task"] for name, folder in FOLDERS.items()}
    assert [tasks[name]["lambda_contrastive"] for name in TRAINED] == [0.8, 0.0, 0.8]
    assert "penalty" in tasks["residual"]
    cosines = results["cosine"]
    for found in results["comparisons"]:
        assert found["cosine"]["mean"] == pytest.approx(
            cosines[found["first"]]["mean"] - cosines[found["second"]]["mean"], abs=2e-4
        )


def test_its_priors_load_in_other_commands(syzygy, tiny_model: Path, out: Path, tmp_path: Path) -> None:
    answer = syzygy("generate", "a red star", "--model", tiny_model, "--prior", out / "eclipse", "--out", tmp_path)
    assert answer.code == 0, answer.err
    priors = [f"contrast={out / 'eclipse'}", f"plain={out / 'projection'}"]
    named = [part for prior in priors for part in ("--prior", prior)]
    options = ("--prompts", 1, "--steps", 1, "--pairs", 40, "--linear-pairs", 40, "--json", "-")
    answer = syzygy("evaluate", "composition", "--model", tiny_model, *named, *options)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    names = list(dict.fromkeys(row["candidate"] for row in found["rows"]))
    assert names == ["reference", "contrast", "plain", *IDENTITIES, "linear map", "shuffled prompts"]
    assert list(found["embeddings"]) == ["contrast", "plain", *IDENTITIES, "linear map"]
    assert found["embeddings"]["text identity"].keys() == {"cosine", "recall_at_1", "frechet"}
    assert {row["candidate"] for row in found["rows"] if "against_reference" in row} == set(names) - {"reference"}
    preferred = syzygy("evaluate", "preference", "--model", tiny_model, *named, "--prompts", 1, "--steps", 1)
    assert preferred.code == 0, preferred.err
    assert "How often contrast is preferred to plain:" in preferred.out
    some = syzygy("evaluate", "composition", "--model", tiny_model, *options, "--categories", "colour,numeracy")
    assert some.code == 0, some.err
    found = json.loads(some.out)
    assert {row["category"] for row in found["rows"]} == {"colour", "numeracy", "all"}
    assert found["scoring"]["categories"] == ["colour", "numeracy"]
    assert {line.split()[0] for line in preferred.out.splitlines()[3:]} == {"fact_accuracy", "clip_score"}
    judges = ("--pickscore", tiny_model / "clip", "--json", tmp_path / "rates.json")
    same = [part for name in ("a", "b") for part in ("--prior", f"{name}={out / 'eclipse'}")]
    answer = syzygy("evaluate", "preference", "--model", tiny_model, *same, "--prompts", 1, "--steps", 1, *judges)
    assert answer.code == 0, answer.err
    rates = json.loads((tmp_path / "rates.json").read_text())["rows"]
    assert {row["criterion"] for row in rates} == {"fact_accuracy", "clip_score", "pickscore"}
    assert all((row["rate"]["mean"], row["ties"]) == (0.5, 1.0) for row in rates), "a prior against itself"


def test_a_demo_run_again_trains_anew_and_finds_the_same(syzygy, tiny_model: Path, out: Path) -> None:
    before = json.loads((out / "results.json").read_text())["rows"]
    answer = syzygy("demo", "--model", tiny_model, "--quick", "--out", out, *TINIER)
    assert answer.code == 0, answer.err
    assert "Try next" in answer.out
    assert "unseen" in answer.out
    assert "ECLIPSE − projection only: " in answer.out
    assert json.loads((out / "results.json").read_text())["rows"] == before


def test_a_comparison_tells_what_its_intervals_allow() -> None:
    clear, open_ = Difference(0.05, 0.01, 0.09, 40), Difference(0.05, -0.01, 0.11, 40)
    one = Comparison(
        "ECLIPSE", "projection only", {"cosine": clear, "seen": open_, "unseen": Difference(-0.1, -0.2, -0.01, 40)}
    )
    assert list(one.clear) == ["cosine", "unseen"]
    assert (
        str(one)
        == "ECLIPSE − projection only: cosine × 100 +5.0 [+1.0, +9.0], prompt accuracy, unseen compositions -10 [-20, -1]"
    )
    assert str(Comparison("a", "b", {"seen": open_})) == "a − b: no clear difference"


def test_score_as_text_and_page(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    files = ("--page", tmp_path / "page.html", "--json", tmp_path / "scores.json")
    few = ("--prompts", 1, "--draws", 2, "--steps", 1, "--pairs", 40, "--linear-pairs", 0)
    answer = syzygy("evaluate", "composition", "--model", tiny_model, *few, "--with-text", *files)
    assert answer.code == 0, answer.err
    assert "Reference, one object: colour" in answer.out
    assert "reference, with text" in answer.out
    assert "Fréchet" in answer.out
    found = json.loads((tmp_path / "scores.json").read_text())
    names = list(dict.fromkeys(row["candidate"] for row in found["rows"]))
    assert names == [f"{name}{text}" for text in ("", ", with text") for name in names[:5]]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert page.count("data:image/png;base64,") == 13 * 5  # a prompt a category and side × candidates
    assert "http" not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompts", "0"), "at least 1"),
        (("--categories", "single,color"), "categories"),
        (("--quick", "--pairs", "3"), "--quick sets --pairs itself"),
        (("--quick", "--linear-pairs", "3"), "--quick sets --linear-pairs itself"),
        (("--prior", "linear map={prior}"), "'linear map' is the name of a control"),
        (("--prior", "shuffled prompts={prior}"), "'shuffled prompts' is the name of a control"),
        (("--prior", "{prior}", "--prior", "{prior}"), "two priors are called 'prior'"),
        (("--page", "/dev/null/page.html"), "cannot write"),
        (("--html", "/dev/null/page.html"), "is now called --page"),
        (("--prior", "nowhere"), "nowhere"),
        (("--prior", "reference=nowhere"), "nowhere"),
        (("--guidance-scale", "nan"), "guidance"),
        (("--model", "stater"), "stater"),
    ],
)
def test_wrong_input_is_answered_in_two_lines(syzygy, tiny_model: Path, arguments: tuple[str, ...], said: str) -> None:
    arguments = tuple(argument.replace("{prior}", str(tiny_model / "prior")) for argument in arguments)
    few = (
        ()
        if {"--prompts", "--quick"} & set(arguments)
        else ("--prompts", 1, "--steps", 1, "--pairs", 0, "--linear-pairs", 0)
    )
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


@pytest.mark.parametrize(
    ("priors", "said"), [(1, "give --prior twice"), (3, "give --prior twice")], ids=["one", "three"]
)
def test_a_preference_needs_two(syzygy, tiny_model: Path, priors: int, said: str) -> None:
    named = [part for i in range(priors) for part in ("--prior", f"p{i}={tiny_model / 'prior'}")]
    answer = syzygy("evaluate", "preference", "--model", tiny_model, *named)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
