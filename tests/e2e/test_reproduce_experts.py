"""`syzygy reproduce experts` on a tiny untrained model that reads T5 too: every file, resumption, wrong input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from syzygy.core import artifacts
from syzygy.decoder.backbone import build_decoder, load_decoder, save_decoder
from syzygy.text_encoders.t5 import T5Config, build_t5

SMALL = (
    'experts.leaves=["E2_3","complement"]',
    "experts.every_level=false",
    "experts.task.batch_size=4",
    "experts.loop.steps=2",
    "experts.loop.warmup=0",
    "experts.loop.ema_half_life=0",
    "experts.rank=2",
    "experts.seed=1",
    "seeds=1",
    "prompts=1",
    "steps=1",
    "pictures=64",
)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a decoder that reads T5 beside, trained (so its record says) on painted words."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "tiny-t5")
    t5 = build_t5(T5Config(width=32, layers=1, decoder_layers=1, heads=2), ["a red circle"] * 9, seed=0)
    t5.save_pretrained(folder / "t5", {})
    old = load_decoder(folder / "decoder")
    slots = [*old.config.slots, old.config.slots[1].model_copy(update={"name": "t5", "pooled_width": None})]
    decoder = build_decoder(old.config.model_copy(update={"slots": tuple(slots)}))
    decoder.load_state_dict(decoder.state_dict() | old.state_dict())
    subsets = {"image+text+t5": 0.8, "t5": 0.1, "": 0.1}
    recipe = {"task": {"subsets": subsets, "painted": 0.5, "noise": {"p_mean": 0.4}}, "medium_captions": 0.2}
    save_decoder(decoder, folder / "decoder", {"recipe": recipe})
    return folder


@pytest.mark.usefixtures("few_pictures")
def test_the_comparison_is_whole_and_goes_on_where_it_stopped(
    syzygy: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syzygy.lab.reproduce.experts_candidates.TIMED", 2)
    out = tmp_path / "out"
    command = ("reproduce", "experts", "--model", model, "--out", out, "--json", *SMALL)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("syzygy.lab.reproduce.experts_experiment.measure_cost", stop)
        assert syzygy(*command).code == 130
    names = [f"{one}-seed0" for one in ("shared", "re-weighted", "full-experts", "LoRA-experts")]
    assert sorted(path.name for path in (out / "trained").iterdir()) == sorted(names)
    done = {
        path: path.stat().st_mtime_ns for part in ("trained", "losses") for path in (out / part).rglob("*.safetensors")
    }
    assert {path.stem for path in done if path.parent.name == "losses"} == {"start", *names}
    generated: list[str] = []

    with monkeypatch.context() as patch:
        patch.setattr(
            "syzygy.lab.reproduce.experts_candidates.generate",
            lambda context, name, *_: generated.append(name) or stop(),
        )
        assert syzygy(*command).code == 130
    assert generated == ["reference"]
    answer = syzygy(*command)
    assert answer.code == 0, answer.err
    assert all(path.stat().st_mtime_ns == when for path, when in done.items()), "a finished step was done again"
    found = json.loads(answer.out)
    _check_numbers(found)
    _check_trainings(out)
    report = (out / "report.md").read_text()
    for said in (
        "Loss compared with shared",
        "Prompt accuracy minus that of re-weighted",
        "What this does not show",
        "(experts-loss.svg)",
    ):
        assert said in report, said
    assert (out / "index.html").read_text().count(
        "data:image/png;base64,"
    ) == 9 * 5  # a prompt a category and side × candidates
    with Image.open(out / "experts.jpg") as sheet:
        assert sheet.width > 5 * 112
    assert (out / "experts-loss.svg").read_text().startswith("<svg ")

    pictures = {path: path.stat().st_mtime_ns for path in (out / "painted").iterdir()}
    assert syzygy(*command).code == 0
    assert all(path.stat().st_mtime_ns == when for path, when in pictures.items())
    other = syzygy(*command, "prompts=2")
    assert other.code == 2
    assert "holds an experiment with other settings" in other.err


def _check_numbers(found: dict[str, Any]) -> None:
    assert list(found["agreement"]) == ["reference", "start", "shared", "re-weighted", "full experts", "LoRA experts"]
    assert {base: set(rows) for base, rows in found["gained"].items()} == {
        "shared": {"start", "re-weighted", "full experts", "LoRA experts"},
        "re-weighted": {"full experts", "LoRA experts"},
    }
    assert set(found["losses"]["start"]) == {"complement", "E2_3", "all of p(σ)"}
    whole = found["losses"]["shared"]
    served = 0.25 * whole["E2_3"]["mean"] + 0.75 * whole["complement"]["mean"]
    assert whole["all of p(σ)"]["mean"] == pytest.approx(served, abs=1e-3)
    assert [len(points) for points in found["curves"].values()] == [8] * 4
    assert found["curves"]["start"] == sorted(found["curves"]["start"])
    assert found["samples_seen"] == {"trainings": 2, "each": 8, "total": 16, "thrown_away": 0,
                                     "parts": [[0.0, 0.75, 0.5], [0.75, 1.0, 0.5]]}  # fmt: skip
    cost = found["cost"]
    assert {cost[one]["samples"] for one in cost if one != "start"} == {16}
    assert cost["full experts"]["weights"] == 2 * cost["shared"]["weights"] == 2 * cost["full experts"]["at_work"]
    trunk = cost["LoRA experts"]["at_work"] * 2 - cost["LoRA experts"]["weights"]
    assert trunk == cost["start"]["weights"]


def _check_trainings(out: Path) -> None:
    """What each saw; and that experts are not one another's copies."""

    def record(*path: str) -> dict[str, Any]:
        return artifacts.read_json(out.joinpath("trained", *path, "expert", artifacts.PROVENANCE_FILE))

    shared, other = record("shared-seed0", "nodes", "whole"), record("re-weighted-seed0", "nodes", "whole")
    assert (shared["shares"], shared["weights"], shared["steps"]) == ([[0.0, 1.0]], None, 4)
    assert (other["shares"], other["weights"], other["steps"]) == ([[0.0, 0.75], [0.75, 1.0]], [0.5, 0.5], 4)
    one, two = (
        artifacts.read_tensors(
            out / "trained" / f"{name}-seed0" / "nodes" / "whole" / "expert" / artifacts.WEIGHTS_FILE
        )
        for name in ("shared", "re-weighted")
    )
    # fp16 rounds the same noise to the same weights; another noise is seen in many of them.
    assert sum((one[key] - two[key]).abs().max() > 1e-4 for key in one) > len(one) / 2
    leaf = record("LoRA-experts-seed0", "nodes", "E2_3")
    assert (leaf["shares"], leaf["steps"], leaf["recipe"]["seed"]) == ([[0.75, 1.0]], 2, 1)
    assert leaf["recipe"]["task"]["painted"] == 0.5
    assert leaf["recipe"]["medium_captions"] == 0.2
    assert "t5" in leaf
    losses = {path.stem: artifacts.read_tensors(path) for path in (out / "losses").iterdir()}
    assert all(len(value) == 64 for one in losses.values() for value in one.values())
    assert not torch.equal(losses["full-experts-seed0"]["E2_3"], losses["start"]["E2_3"])
    assert not torch.equal(losses["full-experts-seed0"]["E2_3"], losses["LoRA-experts-seed0"]["E2_3"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (('experts.leaves=["E1_0"]',), "leave gaps"),
        (("experts.form=lora",), "leave experts.form at full"),
        (("pictures=65",), "setting 'pictures'"),
        (("--model", "stater"), "stater"),
    ],
)
def test_wrong_input(
    syzygy: Callable[..., Any], model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    chosen = () if "--model" in arguments else ("--model", model)
    answer = syzygy("reproduce", "experts", *chosen, "--out", tmp_path / "out", *SMALL, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_a_decoder_that_reads_t5_is_not_grown_without(syzygy: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(model, tmp_path / "model")
    shutil.rmtree(whole / "t5")
    answer = syzygy("train", "experts", "--model", whole, "--out", tmp_path / "run")
    assert answer.code == 2
    assert "has no folder t5" in answer.err
