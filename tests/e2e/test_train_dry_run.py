"""`syzygy train … --dry-run` and `--threads`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.core import artifacts
from tests.tiny_stable_diffusion import tiny_stable_diffusion

PRIOR = (
    "num_layers=1",
    "num_attention_heads=2",
    "attention_head_dim=16",
    "scenes=600",
    "task.batch_size=8",
    "validation_images=40",
)


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_an_estimate_is_printed_and_nothing_is_written(
    syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syzygy.training.estimate.REHEARSED", 64)
    arguments = ("train", "prior", "--clip", tiny_model, *PRIOR, "--dry-run")
    answer = syzygy(*arguments, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert (found["steps"], found["validations"], found["trainings"]) == (600, 6, 1)
    assert (
        min(found[name] for name in ("step_seconds", "validation_seconds", "preparation_seconds", "disk", "free_disk"))
        > 0
    )
    total = 600 * found["step_seconds"] + 6 * found["validation_seconds"] + found["preparation_seconds"]
    assert found["seconds"] == pytest.approx(total, rel=0.1)
    answer = syzygy(*arguments, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    for start in ("parameters  ", "time        about ", "memory      ", "disk        ", "Nothing was written."):
        assert any(line.startswith(start) for line in answer.out.splitlines()), start
    assert not (tmp_path / "run").exists()


def test_a_tree_of_experts_counts_every_training(syzygy: Callable[..., Any], tmp_path: Path) -> None:
    model, data = tiny_stable_diffusion(tmp_path / "model"), tmp_path / "data"
    assert syzygy("world", "sample", "--num", 8, "--out", data).code == 0
    answer = syzygy(
        "train", "experts", "--model", model, "--data", data, "--leaves", "E1_0,E1_1", "task.batch_size=2", "size=16", "rank=2",
        "--dry-run", "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["trainings"] == 2
    assert "each picture's latents are encoded once" in answer.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_on_the_first_pictures_takes_any_number_for_validation(
    syzygy: Callable[..., Any], tmp_path: Path
) -> None:
    model, data = tiny_stable_diffusion(tmp_path / "model"), tmp_path / "data"
    assert syzygy("world", "sample", "--num", 60, "--out", data).code == 0
    answer = syzygy(
        "train", "experts", "--model", model, "--data", data, "--leaves", "E1_0,E1_1", "task.batch_size=2", "size=16", "rank=2",
        "validation_pictures=40", "--dry-run", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "validation_pictures" not in answer.err, "nothing is fitted to the few pictures of a dry run"


def test_the_starter_is_estimated_part_by_part(syzygy: Callable[..., Any]) -> None:
    answer = syzygy("train", "starter", "--dry-run")
    assert (answer.code, answer.out) == (2, "")
    assert "No such option '--dry-run'" in answer.err
    assert "syzygy train decoder --dry-run" in " ".join(syzygy("train", "starter", "--help").out.split()).replace(
        "- run", "-run"
    )


def test_threads_are_set_and_recorded(syzygy: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    command = ("train", "prior", "--clip", tiny_model, *PRIOR, "scenes=16", "loop.steps=1")
    answer = syzygy(*command, "--threads", 2, "--out", tmp_path)
    assert answer.code == 0, answer.err
    record = artifacts.read_json(tmp_path / "prior/provenance.json")
    assert record["threads"] == 2
    assert "2 threads" in record["machine"]
    wrong = syzygy(*command, "--threads", 10**9, "--out", tmp_path)
    assert (wrong.code, wrong.out) == (2, "")
    assert "allowed: from 1 to 256" in wrong.err
    wrong = syzygy(*command, "--threads", 0, "--out", tmp_path)
    assert (wrong.code, wrong.out) == (2, "")
    assert "allowed: from 1 to 256" in wrong.err
