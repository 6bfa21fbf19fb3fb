"""`syzygy reproduce eclipse` on a tiny untrained model: every file, resumption, wrong input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from syzygy.lab.evaluate import composition, probe
from syzygy.lab.reproduce import presets
from syzygy.lab.reproduce.eclipse_candidates import Training, all_trainings
from syzygy.prior.prior_loading import sampling_of

SMALL = (
    "prior.scenes=60",
    "prior.validation_images=16",
    "prior.num_layers=1",
    "prior.num_attention_heads=2",
    "prior.attention_head_dim=16",
    "prior.loop.steps=4",
    "prior.loop.warmup=1",
    "prior.loop.validate_every=2",
    "prior.task.batch_size=16",
    "diffusion.batch_size=16",
    "flow.batch_size=16",
    "residual.batch_size=16",
    "diffusion.sampling.steps=2",
    "flow.sampling.steps=3",
    "varied_prompts=1",
    "variations=2",
    "seeds=2",
    "painted_seeds=1",
    "prompts=1",
    "steps=1",
    "pairs=40",
    "probe_scenes=60",
    "lambdas=[0, 0.2, 0.8]",
    "fractions=[0.3, 1.0]",
    "sampling_steps=[1, 2]",
    "etas=[0.0, 1.0]",
    "sweep_seeds=1",
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEPS", 5)
    monkeypatch.setattr(composition, "NORM_PAIRS", 40)


def test_the_comparison_is_whole_and_goes_on_where_it_stopped(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("reproduce", "eclipse", "--model", tiny_model, "--out", tmp_path / "out", "--json", *SMALL)
    with monkeypatch.context() as patch:

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr("syzygy.lab.reproduce.eclipse_experiment.sweep_sampling", stop)
        assert syzygy(*command).code == 130
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").iterdir()}
    assert (
        len(trained) == 2 * 5 + 1 + 3 + 4
    )  # seeds × methods, one λ, one share × the paper's methods, controls and reference

    answer = syzygy(*command)
    assert answer.code == 0, answer.err
    assert all(path.stat().st_mtime_ns == when for path, when in trained.items()), "a finished step was done again"
    found = json.loads(answer.out)
    assert set(found["agreement"]) == {
        "reference",
        "text identity",
        "text identity, shifted",
        "linear map",
        "projection",
        "diffusion",
        "ECLIPSE",
        "flow matching",
        "residual",
    }
    assert set(found["eclipse_minus"]) == {
        "projection",
        "diffusion",
        "flow matching",
        "text identity, shifted",
        "linear map",
        "residual",
    }
    assert found["agreement"]["residual"]["seen"]["single"]["prompts"] == 1
    probed = found["embeddings"]["linear map"]
    assert {f"probe_{side}{objects}" for side in ("seen", "held_out") for objects in ("", "_one", "_two")} <= set(
        probed
    )
    assert found["agreement"]["ECLIPSE"]["seen"]["colour"]["prompts"] == 1
    assert found["agreement"]["ECLIPSE"]["held out"]["shape"] is None, "shapes alone make no composition"
    costs = {
        method: found["embeddings"][method]["evaluations"][0]
        for method in ("projection", "diffusion", "ECLIPSE", "flow matching", "residual")
    }
    assert costs == {"projection": 1, "diffusion": 4, "ECLIPSE": 1, "flow matching": 6, "residual": 1}
    assert sampling_of(tmp_path / "out/priors/flow-matching-data1-seed0/prior")[1] == "flow"
    assert set(found["variety"]) == set(found["agreement"])
    assert found["variety"]["reference"]["renders"][0] > 0
    assert found["varied_prompts"] == 2
    assert found["variety"]["text identity"]["embeddings"][0] < 1e-6 < found["variety"]["diffusion"]["embeddings"][0]
    assert found["embeddings"]["projection"]["parameters"] == found["embeddings"]["residual"]["parameters"]
    assert len(found["sweeps"]["fraction"]["diffusion"]) == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 11 * 9  # a prompt a category and side × candidates
    report = (tmp_path / "out" / "report.md").read_text()
    for said in (
        "ECLIPSE's prompt accuracy minus the others', in points",
        "| colour, unseen |",
        "## Variety of the images of one prompt",
        "How often more facts are right in ECLIPSE's image",
        "What this does not show",
        "](eclipse.jpg)",
    ):
        assert said in report, said
    with Image.open(tmp_path / "out" / "eclipse.jpg") as sheet:
        assert sheet.width > 8 * 112
    assert set(found["eclipse_preferred"]) == set(found["eclipse_minus"])
    assert 0 <= found["eclipse_preferred"]["projection"]["seen"]["mean"] <= 1

    other = syzygy(*command, "prompts=2")
    assert other.code == 2
    assert "holds an experiment with other settings" in other.err


def test_every_training_is_needed_once_and_budgets_are_equal() -> None:
    run = presets.reproduce_full()
    todo = all_trainings(run)
    assert len({one.name for one in todo}) == len(todo) == 5 * 5 + 2 * 4 + 2 * 4 * 3
    settings = [one.settings(run) for one in todo]
    assert len({(s.loop, s.num_layers, s.scenes, s.task.batch_size) for s in settings}) == 1
    assert Training("projection", 0, 0.2).settings(run).task.lambda_contrastive == 0  # pyright: ignore
    assert type(presets.reproduce_quick()).model_validate_json(presets.reproduce_quick().model_dump_json())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("seeds=1",), "setting 'seeds'"),
        (("diffusion.batch_size=8",), "of one batch size"),
        (("flow.precision=bf16",), "of one batch size and precision"),
        (("flow.schedule=linear",), "flow.schedule flow: rows are named after them"),
        (("sweep_seeds=3",), "sweep_seeds=3 is more than seeds=2"),
        (("etas=[2]",), "setting 'etas.0'"),
        (("fractions=[3]",), "setting 'fractions.0'"),
        (("--model", "stater"), "stater"),
    ],
)
def test_wrong_input(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    model = () if "--model" in arguments else ("--model", tiny_model)
    answer = syzygy("reproduce", "eclipse", *model, "--out", tmp_path / "out", *SMALL, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert len(answer.err.splitlines()[-2:]) <= 2


@pytest.mark.parametrize("command", ["demo", "reproduce eclipse", "reproduce experts", "reproduce text-encoder"])
def test_a_missing_extra_is_named_before_any_work(
    syzygy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("syzygy.lab.report.find_spec", lambda name: None)
    answer = syzygy(*command.split(), "--out", tmp_path / "out")
    assert (answer.code, answer.out) == (2, "")
    assert (
        "pages need the extra lab, and jinja2 and matplotlib cannot be found: run pip install -e '.[lab]'" in answer.err
    )
    assert not list((tmp_path / "out").rglob("*"))
