"""`syzygy reproduce text-encoder` on tiny untrained models: every file, resumption, wrong input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from syzygy.core import artifacts
from tests.tiny_adapter import save_tiny_lm

SMALL = (
    "align.adapter.queries=3",
    "align.adapter.layers=1",
    "align.adapter.heads=2",
    "align.adapter.width=16",
    'align.languages=["en","zh"]',
    'image.languages=["en","zh"]',
    'quality.languages=["en","zh"]',
    'align.lengths=["short"]',
    "align.task.batch_size=6",
    "align.task.temperature=0.1",
    "align.loop.steps=3",
    "align.loop.warmup=0",
    "align.loop.ema_half_life=0",
    "align.seed=5",
    "image.scenes=12",
    "image.validation_images=2",
    "image.task.batch_size=4",
    "image.task.temperature=0.1",
    "image.loop.steps=2",
    "image.loop.warmup=0",
    "image.loop.ema_half_life=0",
    "quality.scenes=12",
    "quality.validation_images=8",
    "quality.task.batch_size=4",
    "quality.task.temperature=0.1",
    "quality.loop.steps=1",
    "quality.loop.warmup=0",
    "quality.loop.ema_half_life=0",
    "probe_scenes=40",
    "seeds=1",
    'scoring.languages=["en","zh"]',
    "scoring.captions=6",
    "scoring.prompts=1",
    "scoring.steps=1",
)
PATHS = ("align", "align+image", "align+image+quality", "image", "image+quality")
TITLES = ["1", "1+2", "1+2+3", "2", "2+3", "1, last layer", "1+2, last layer", "1+2+3, last layer"]
NAMES = [*(f"mean-{path}" for path in PATHS), *(f"last-{path}" for path in PATHS[:3])]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a language model."""
    folder = tmp_path_factory.mktemp("lm")
    save_tiny_lm(folder / "llm", "en", "zh")
    return folder


def test_the_comparison_is_whole_and_goes_on_where_it_stopped(
    syzygy: Callable[..., Any], tiny_model: Path, llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = (
        "reproduce",
        "text-encoder",
        "--model",
        tiny_model,
        "--llm",
        llm,
        "--out",
        out,
        "--device",
        "cpu",
        "--json",
        *SMALL,
    )

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("syzygy.lab.reproduce.text_encoder_measures.score_controls", stop)
        answer = syzygy(*command)
    assert answer.code == 130, answer.err
    assert "minutes with one thread on one core" in answer.err
    assert sorted(path.name for path in (out / "trained").iterdir()) == sorted(f"{name}-seed0" for name in NAMES)
    done = _times(out, "trained")
    answer = syzygy(*command)
    assert answer.code == 0, answer.err
    assert _times(out, "trained") == done, "a finished step was done again"
    assert {path.stem for path in (out / "scores").iterdir()} == {
        "CLIP", "mean vector", "shuffled captions", *(f"{name}-seed0" for name in NAMES)
    }  # fmt: skip
    found = json.loads(answer.out)
    _check_numbers(found)
    _check_trainings(out)
    _check_pages(out)

    (out / "scores" / "mean-image-seed0.safetensors").unlink()
    kept = _times(out, "painted", "scores")
    assert json.loads(syzygy(*command).out)["scores"] == found["scores"]
    assert kept.items() <= _times(out, "painted", "scores").items()
    other = syzygy(*command, "scoring.captions=7")
    assert (other.code, "holds an experiment with other settings" in other.err) == (2, True)


def _times(out: Path, *parts: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for part in parts for path in (out / part).rglob("*") if path.is_file()}


def _check_numbers(found: dict[str, Any]) -> None:
    assert list(found["scores"]) == ["CLIP", *TITLES]
    assert list(found["gained"]) == [
        "1+2 less 1", "1+2+3 less 1+2", "1+2 less 2", "1+2+3 less 2+3",
        "1 less 1, last layer", "1+2 less 1+2, last layer", "1+2+3 less 1+2+3, last layer",
    ]  # fmt: skip
    own = found["scores"]["CLIP"]
    assert own["text"]["short"]["en"]["mean"] == own["cosine"]["short"]["en"]["mean"] == 1
    assert own["norm"]["short"]["en"]["mean"] == 1
    assert found["unmoved"]["CLIP"]["en"]["mean"] == 1  # cut before the words that differ
    assert found["controls"]["shuffled captions"]["text"]["mean"] == 0
    assert found["controls"]["mean vector"]["text"]["mean"] == pytest.approx(1 / 6, abs=1e-4)
    one = found["scores"]["1"]["cosine"]["short"]
    assert one["all"]["mean"] == pytest.approx((one["en"]["mean"] + one["zh"]["mean"]) / 2, abs=1e-4)
    assert one["others"] == one["zh"]
    assert list(found["agreement"]) == ["shuffled captions", "CLIP", *TITLES]
    assert found["agreement"].pop("shuffled captions")["all"] is None  # no prompt has another of its kind
    assert all(0 <= rows["all"]["mean"] <= 1 and rows["all"]["prompts"] == 13 for rows in found["agreement"].values())
    cost = found["cost"]
    assert cost["1+2+3"]["samples"] == {"1": 18, "2": 8, "3": 4}
    assert cost["2+3"]["samples"] == {"2": 28, "3": 4}  # whole steps of four: two captions more
    assert cost["1+2"]["total"] == cost["1+2, last layer"]["total"] == 26
    assert found["run"]["align"]["seed"] == 5


def _check_trainings(out: Path) -> None:
    """What each began with, and that none is another's copy."""

    def record(name: str) -> dict[str, Any]:
        return artifacts.read_json(out / "trained" / name / "adapter" / artifacts.PROVENANCE_FILE)

    whole, alone, last = (
        record(f"{name}-seed0") for name in ("mean-align+image+quality", "mean-image+quality", "last-align+image")
    )
    assert [one["stage"] for one in whole["lineage"]] == ["align", "image"]
    assert [one["stage"] for one in alone["lineage"]] == ["untrained", "image"]
    assert (last["llm"]["layers"], whole["llm"]["layers"]) == ("last", "all")
    assert (record("mean-align-seed0")["recipe"]["seed"], record("mean-image-seed0")["recipe"]["seed"]) == (5, 0)
    image = record("mean-image-seed0")["recipe"]["loop"]
    assert (image["steps"], image["lr"]) == (7, 1e-3)
    assert (whole["recipe"]["filter"], 0 < whole["captions"] < 12) == ("unnamed == 0", True)
    assert len({path.read_bytes() for path in (out / "trained").rglob("adapter/*.safetensors")}) == 8
    scores = {path.stem: artifacts.read_tensors(path) for path in (out / "scores").iterdir()}
    unmoved = {name: (1 - one["en/tail/unmoved"]).abs() for name, one in scores.items() if "en/tail/unmoved" in one}
    assert unmoved["CLIP"].max() < 1e-6 < unmoved["mean-align-seed0"].min()
    assert all(
        not torch.equal(scores["mean-align-seed0"]["zh/short/cosine"], scores[other]["zh/short/cosine"])
        for other in ("last-align-seed0", "mean-align+image-seed0")
    )


def _check_pages(out: Path) -> None:
    report = (out / "report.md").read_text()
    for said in (
        "Image found (R@1) by the prior's prediction: differences in points, all languages",
        "1+2+3 minus 2+3",
        "Prompt accuracy in per cent",
        "mean vector",
        "What this does not show",
        "The prior is frozen",
        "(text-encoder-tail.svg)",
    ):
        assert said in report, said
    # a prompt a category and side × CLIP in two languages and the candidates in Chinese
    assert (out / "index.html").read_text().count("data:image/png;base64,") == 9 * 10 + 4 * 10
    with Image.open(out / "text-encoder.jpg") as sheet:
        assert sheet.width > 10 * 112
    assert (out / "text-encoder-agreement.svg").read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "has no language model: set --llm"),
        (("align.lengths=null",), "all stages are trained on the embedded world"),
        (("quality.filter=null",), "only stage 3 selects images"),
        (('image.languages=["en"]',), "set those of align, image and quality alike"),
        (
            ("align.recipe.layers=last", "align.recipe.normalise=false"),
            "align.recipe is compared with the last layer",
        ),
        (('scoring.languages=["en","xx"]',), "unknown language 'xx'"),
        (('scoring.conditions=["smell"]',), "must be one or more of what the decoder reads"),
        (("--model", "stater"), "stater"),
    ],
)
def test_wrong_input(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    chosen = () if "--model" in arguments else ("--model", tiny_model)
    answer = syzygy("reproduce", "text-encoder", *chosen, "--out", tmp_path / "out", *SMALL, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
